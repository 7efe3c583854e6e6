"""One long-range modulatory feedback path (Konkle & Alvarez, NeurIPS 2023, section 2).

norm → tanh → sign-dependent gain → 1×1 projection → resize. The result f scales the destination: x + x · Σ f.

Unusual: the projection is computed at the source's resolution and resized afterwards. The published code resizes first.
Both steps are linear, but a late layer has far fewer positions than an early one, so this order is much cheaper.
`PublishedFeedback` computes exactly what the published code computes, for published weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from lrm_base import checks

Strength = float | tuple[float, float]
FEATURE_SCALE = 0.02  # standard deviation of the first weights of a path from a classifier to its features


@dataclass(frozen=True)
class Connection:
    """Feedback from a named step (late) to a named step (early).

    Attributes:
        source: a step of the backbone.
        destination: a step whose value only rectifiers or gates read (a pre-activation), also through Identity and
            Dropout. Or a stage, a module with steps inside: `layer2` is its last pre-activation, `layer2[0]` its first.
        anywhere: whether the destination may be any step, then by its exact name. This gives up that what is absent
            stays absent. Without a rectifier behind it, a negative value is a signal too, and a gain makes it larger.
            So the pass may see what is not in the image. Before a norm, a gain that all channels share has no effect.

    Raises:
        ValueError: `anywhere` is neither True nor False.
    """

    source: str
    destination: str
    anywhere: Any = False  # a bool; a card or a dictionary of strings may give anything

    def __post_init__(self) -> None:
        if not isinstance(self.anywhere, bool):
            raise ValueError(f"anywhere: got {self.anywhere!r}, expected True or False")

    @property
    def key(self) -> str:
        """The name of the path's parameters in a state dict."""
        return f"{self.source}->{self.destination}".replace(".", "_")


class Feedback(nn.Module):
    """The path of one connection.

    Args:
        source_shape: shape of the source's activation without the batch: (c,) for a vector, (c, h, w) for a map,
            (t, c) for tokens.
        destination_shape: likewise.

    The projection has no bias, so gain 0 gives exactly the plain backbone. It starts at zero, so the later passes of a
    new model equal its first pass until training makes them differ.
    """

    def __init__(self, source_shape: tuple[int, ...], destination_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.source_dims, self.destination_dims = len(source_shape), len(destination_shape)
        for dims, shape in ((self.source_dims, source_shape), (self.destination_dims, destination_shape)):
            if dims not in (1, 2, 3):
                raise ValueError(f"shape: got {shape}, expected a vector (c,), tokens (t, c) or a map (c, h, w)")
        channels = _channels(source_shape)
        # As published, a map has one mean and one variance over all its positions and channels.
        self.norm: nn.Module = nn.GroupNorm(1, channels) if self.source_dims == 3 else nn.LayerNorm(channels)
        self.gain = nn.Parameter(torch.ones(2))  # for negative and for positive activations
        self.projection = nn.Linear(channels, _channels(destination_shape), bias=False)
        nn.init.zeros_(self.projection.weight)

    def forward(
        self, source: Float[Tensor, "b ..."], destination: Float[Tensor, "d ..."], strength: Strength | None = None
    ) -> Float[Tensor, "b ..."]:
        """The factor f of the destination, in a shape that broadcasts to the destination's.

        `strength` replaces the learned gain: one number, or (negative, positive).
        """
        activation = torch.tanh(self.norm(source))
        negative, positive = self.gain.unbind() if strength is None else strength_pair(strength)
        activation = negative * activation.clamp(max=0) + positive * activation.clamp(min=0)
        if self.source_dims == 3:
            weight = rearrange(self.projection.weight, "out channels -> out channels 1 1")
            projected = F.conv2d(activation, weight)  # (b, c, h, w)
        else:
            projected = F.linear(activation, self.projection.weight)  # (b, c) or (b, t, c)
        return self._fit(projected, destination)

    def _fit(self, projected: Tensor, destination: Tensor) -> Tensor:
        """Bring a projection to the layout and the resolution of the destination."""
        if self.source_dims == self.destination_dims == 3:
            size = destination.shape[-2:]
            if projected.shape[-2:] == size:
                return projected
            return F.interpolate(projected, size=size, mode="bilinear", align_corners=False)
        if self.source_dims == 2 and projected.shape[1:] == destination.shape[1:]:
            return projected
        if self.source_dims == 2:
            projected = reduce(projected, "b t c -> b c", "mean")
        elif self.source_dims == 3:
            projected = reduce(projected, "b c h w -> b c", "mean")
        return rearrange(projected, f"b c -> {('b c', 'b 1 c', 'b c 1 1')[self.destination_dims - 1]}")


class PublishedFeedback(nn.Module):
    """The path of one connection in the published order: norm → tanh → resize → sign-dependent gain → 1×1 projection.

    Args:
        source_shape: shape of the source's activation without the batch: (c,) for a vector, (c, h, w) for a map.
        destination_shape: likewise.

    Unusual, all as published:

    - The norm of a map has a weight for each channel of the source and each position of the destination. The weights
      are resized to the source's positions.
    - Resizing aligns corners, so a vector gets the first position of a map.
    - The projection has a bias and starts at random. So neither gain 0 nor an untrained path is the plain backbone.
    - A strength multiplies the learned gain.
    """

    def __init__(self, source_shape: tuple[int, ...], destination_shape: tuple[int, ...]) -> None:
        super().__init__()
        for shape in (source_shape, destination_shape):
            if len(shape) not in (1, 3):
                raise ValueError(f"shape: got {shape}, expected a vector (c,) or a map (c, h, w)")
        channels, positions = source_shape[0], destination_shape[1:] or (1, 1)
        one_position = source_shape[1:] in ((), (1, 1))
        self.norm = nn.LayerNorm(channels if one_position else (channels, *positions))
        self.gain = nn.Parameter(torch.ones(2))  # for negative and for positive activations
        self.projection = nn.Conv2d(channels, destination_shape[0], 1)

    def forward(
        self, source: Float[Tensor, "b ..."], destination: Float[Tensor, "d ..."], strength: Strength | None = None
    ) -> Float[Tensor, "b ..."]:
        """The factor f of the destination, in a shape that broadcasts to the destination's.

        `strength` multiplies the learned gain: one number, or (negative, positive). With 0 the bias remains.
        """
        maps = source if source.ndim == 4 else rearrange(source, "b c -> b c 1 1")
        activation = torch.tanh(self._normalise(maps))  # (b, c, h, w) of the source
        if activation.shape[-2:] != (1, 1):
            size = tuple(destination.shape[2:]) or (1, 1)
            activation = F.interpolate(activation, size=size, mode="bilinear", align_corners=True)
        negative, positive = self.gain.unbind()
        if strength is not None:
            negative, positive = (
                gain * by for gain, by in zip((negative, positive), strength_pair(strength), strict=True)
            )
        projected = self.projection(activation * torch.where(activation < 0, negative, positive))
        return projected if destination.ndim == 4 else rearrange(projected, "b c 1 1 -> b c")

    def _normalise(self, maps: Tensor) -> Tensor:
        weight: Tensor = self.norm.weight
        bias: Tensor = self.norm.bias
        if weight.ndim == 1:  # over the channels
            last = rearrange(maps, "b c h w -> b h w c")
            return rearrange(F.layer_norm(last, weight.shape, weight, bias, self.norm.eps), "b h w c -> b c h w")
        weight, bias = (
            F.interpolate(each[None], size=maps.shape[-2:], mode="bilinear", align_corners=True)[0]
            for each in (weight, bias)
        )
        return F.layer_norm(maps, maps.shape[1:], weight, bias, self.norm.eps)


@torch.no_grad()
def start_at_classifier(
    classifier: nn.Linear,
    to_features: Feedback | None,
    templates: nn.Conv2d | None,
    to_templates: Feedback | None,
    template_scale: float,
) -> None:
    """Set the first weights of feedback paths and templates from a linear classifier, before any training.

    The path to the features is the classifier's transpose: it raises the features that vote for a class. The templates
    are the classifier's rows, and the path to them raises the template of the class. Weights that are not zero were
    trained and stay as they are.

    Args:
        classifier: its weight is (m, c).
        to_features: path from the classifier's output to the c features that it reads.
        templates: 1×1 convolution of c channels to m.
        to_templates: path from the classifier's output to the templates.
        template_scale: factor by which a goal's own template is raised.

    Raises:
        ValueError: the shapes do not fit, or `template_scale` is not a finite number.
    """
    template_scale = checks.finite_number("template_scale", template_scale)
    weight = classifier.weight
    if templates is not None and not templates.weight.any():
        _same_shape(templates.weight[:, :, 0, 0], weight)
        templates.weight.copy_(rearrange(weight, "m c -> m c 1 1"))
        if templates.bias is not None and classifier.bias is not None:
            templates.bias.copy_(classifier.bias)
    if to_features is not None and not to_features.projection.weight.any():
        _same_shape(to_features.projection.weight, weight.T)
        to_features.projection.weight.copy_(FEATURE_SCALE * weight.T / weight.std())
    if to_templates is not None and not to_templates.projection.weight.any():
        _same_shape(to_templates.projection.weight, weight @ weight.T)
        to_templates.projection.weight.copy_(template_scale * torch.eye(len(weight)))


def _same_shape(path: Tensor, wanted: Tensor) -> None:
    if path.shape != wanted.shape:
        raise ValueError(
            f"weights: got shape {tuple(path.shape)}, expected {tuple(wanted.shape)} to fit the classifier"
        )


def _channels(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) != 2 else shape[1]


def strength_pair(strength: Strength) -> tuple[float, float]:
    """A strength as (negative, positive), checked."""
    checked = checks.strength(strength)
    return checked if isinstance(checked, tuple) else (checked, checked)
