"""One long-range modulatory feedback path (Konkle & Alvarez, NeurIPS 2023, section 2).

norm → tanh → sign-dependent gain → 1×1 projection → resize. The result f scales the destination: x + x · Σ f.

Unusual: the projection is computed at the source's resolution and resized afterwards. The published code resizes first.
Both steps are linear, but a late layer has far fewer positions than an early one, so this order is much cheaper.
A path knows the layouts of both ends, so maps, maps with channels last and tokens exchange places (`lrm_core.layouts`).
`PublishedFeedback` computes exactly what the published code computes, for published weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lrm_base import checks
from lrm_core.layouts import Layout, fitted

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
            So what only LayerNorms read, and a sum that a LayerNorm reads, are refused: the residual stream of a
            transformer.
        channels: the channels of the destination that feedback scales, a range (first, behind the last); None for all.
            `values` are those that attention reads as its values, in a layer that makes queries, keys and values at
            once, such as `blocks.11.attn.qkv` of timm. That is the place where AbSViT (Shi et al. 2023) adds feedback.
        source_layout, destination_layout: where the layout of a step cannot be found: `c h w`, `h w c`, `t c`, or
            `1+14x14 c` for 1 prefix token and a grid of patch tokens. None to find it.

    Raises:
        ValueError: `anywhere` is neither True nor False, `channels` is no range of channels, or a layout is none of
            these forms.
    """

    source: str
    destination: str
    anywhere: Any = False  # a bool; a card or a dictionary of strings may give anything, here and below
    channels: Any = None
    source_layout: Any = None
    destination_layout: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.anywhere, bool):
            raise ValueError(f"anywhere: got {self.anywhere!r}, expected True or False")
        if self.channels is not None and self.channels != "values":
            ends = tuple(self.channels) if isinstance(self.channels, tuple | list) else ()
            if len(ends) != 2 or not all(type(end) is int for end in ends) or not 0 <= ends[0] < ends[1]:
                raise ValueError(
                    f"channels: got {self.channels!r}, expected a range (first, behind the last) or 'values'"
                )
            object.__setattr__(self, "channels", ends)  # a card has a list
        for name in ("source_layout", "destination_layout"):
            if getattr(self, name) is not None:
                Layout.read(name, getattr(self, name))

    @property
    def key(self) -> str:
        """The name of the path's parameters in a state dict."""
        return f"{self.source}->{self.destination}".replace(".", "_")


class Feedback(nn.Module):
    """The path of one connection.

    Args:
        source: layout of the source's activation. A shape without the batch is a vector (c,), tokens (t, c) without
            places, or a map (c, h, w).
        destination: likewise.

    The projection has no bias, so gain 0 gives exactly the plain backbone. It starts at zero, so the later passes of a
    new model equal its first pass until training makes them differ.

    Raises:
        ValueError: a layout is not known, or a shape has other axes.
    """

    def __init__(self, source: Layout | tuple[int, ...], destination: Layout | tuple[int, ...]) -> None:
        super().__init__()
        self.source, self.destination = Layout.of(source), Layout.of(destination)
        channels = self.source.channels
        # As published, a map has one mean and one variance over all its positions and channels.
        self.norm: nn.Module = nn.GroupNorm(1, channels) if self.source.is_map else nn.LayerNorm(channels)
        self.gain = nn.Parameter(torch.ones(2))  # for negative and for positive activations
        self.projection = nn.Linear(channels, self.destination.channels, bias=False)
        nn.init.zeros_(self.projection.weight)

    def forward(
        self, source: Float[Tensor, "b ..."], destination: Float[Tensor, "d ..."], strength: Strength | None = None
    ) -> Float[Tensor, "b ..."]:
        """The factor f of the destination, in a shape that broadcasts to the destination's.

        `strength` replaces the learned gain: one number, or (negative, positive).

        Raises:
            ValueError: patch tokens do not fit a grid; see `lrm_core.layouts.Layout.grid_of`.
        """
        activation = torch.tanh(self.norm(self.source.with_channels_first(source)))
        negative, positive = self.gain.unbind() if strength is None else strength_pair(strength)
        activation = negative * activation.clamp(max=0) + positive * activation.clamp(min=0)
        if self.source.is_map:
            weight = rearrange(self.projection.weight, "out channels -> out channels 1 1")
            projected = F.conv2d(activation, weight)  # (b, c, h, w)
        else:
            projected = F.linear(activation, self.projection.weight)  # (b, c) or (b, t, c)
        return self.destination.spread(fitted(projected, self.source, self.destination, destination))


class PublishedFeedback(nn.Module):
    """The path of one connection in the published order: norm → tanh → resize → sign-dependent gain → 1×1 projection.

    Args:
        source: layout of the source's activation, or its shape without the batch: (c,) for a vector, (c, h, w) for a
            map. There are no other layouts here.
        destination: likewise.

    Unusual, all as published:

    - The norm of a map has a weight for each channel of the source and each position of the destination. The weights
      are resized to the source's positions.
    - Resizing aligns corners, so a vector gets the first position of a map.
    - The projection has a bias and starts at random. So neither gain 0 nor an untrained path is the plain backbone.
    - A strength multiplies the learned gain.

    Raises:
        ValueError: a layout is another one or not known.
    """

    def __init__(self, source: Layout | tuple[int, ...], destination: Layout | tuple[int, ...]) -> None:
        super().__init__()
        source_shape, destination_shape = _published_shape(source), _published_shape(destination)
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


def _published_shape(given: Layout | tuple[int, ...]) -> tuple[int, ...]:
    shape = given.shape if isinstance(given, Layout) else given
    layout = Layout.of(given) if isinstance(given, Layout) or len(shape) in (1, 3) else None
    if layout is None or layout.kind not in ("vector", "map") or layout.part is not None:
        raise ValueError(f"shape: got {shape}, expected a vector (c,) or a map (c, h, w) with all its channels")
    return shape


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


def strength_pair(strength: Strength) -> tuple[float, float]:
    """A strength as (negative, positive), checked."""
    checked = checks.strength(strength)
    return checked if isinstance(checked, tuple) else (checked, checked)
