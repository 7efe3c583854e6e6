"""One long-range modulatory feedback path (Konkle & Alvarez, NeurIPS 2023, section 2).

norm → tanh → sign-dependent gain → 1×1 projection → resize. The result f scales the destination: x + x · Σ f.

Unusual: the projection is computed at the source's resolution and resized afterwards. The published code resizes first;
both are linear, but a late layer has far fewer positions than an early one, so this order costs a fraction.
`PublishedFeedback` is the published path to the letter, for published weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Strength = float | tuple[float, float]
FEATURE_SCALE = 0.02  # standard deviation of the weights at which a path from a classifier to its features starts


@dataclass(frozen=True)
class Connection:
    """Feedback from a named step (late) to a named step (early)."""

    source: str
    destination: str

    @property
    def key(self) -> str:
        """The name under which the path's parameters are stored."""
        return f"{self.source}->{self.destination}".replace(".", "_")


class Feedback(nn.Module):
    """The path of one connection.

    Args:
        source_shape: shape of the source's activation without the batch: (c,) for a vector, (c, h, w) for a map,
            (t, c) for tokens.
        destination_shape: likewise.

    The projection has no bias, so that gain 0 is the plain backbone bit for bit, and starts at zero, so that a new
    model's later passes equal its first until training makes them differ.
    """

    def __init__(self, source_shape: tuple[int, ...], destination_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.source_dims, self.destination_dims = len(source_shape), len(destination_shape)
        for dims, shape in ((self.source_dims, source_shape), (self.destination_dims, destination_shape)):
            if dims not in (1, 2, 3):
                raise ValueError(f"feedback joins vectors (c,), tokens (t, c) and maps (c, h, w); got shape {shape}")
        channels = _channels(source_shape)
        # As published: one mean and variance over all positions and channels of a map.
        self.norm: nn.Module = nn.GroupNorm(1, channels) if self.source_dims == 3 else nn.LayerNorm(channels)
        self.gain = nn.Parameter(torch.ones(2))  # for negative and for positive activations
        self.projection = nn.Linear(channels, _channels(destination_shape), bias=False)
        nn.init.zeros_(self.projection.weight)

    def forward(
        self, source: Float[Tensor, "b ..."], destination: Float[Tensor, "b ..."], strength: Strength | None = None
    ) -> Float[Tensor, "b ..."]:
        """What multiplies the destination, broadcastable to its shape.

        `strength` replaces the learned gain: one number, or (negative, positive).
        """
        activation = torch.tanh(self.norm(source))
        negative, positive = self.gain.unbind() if strength is None else _pair(strength)
        activation = negative * activation.clamp(max=0) + positive * activation.clamp(min=0)
        if self.source_dims == 3:
            projected = F.conv2d(activation, self.projection.weight[:, :, None, None])  # (b, c, h, w)
        else:
            projected = F.linear(activation, self.projection.weight)  # (b, c) or (b, t, c)
        return self._fit(projected, destination)

    def _fit(self, projected: Tensor, destination: Tensor) -> Tensor:
        """Bring a projection to the layout and the resolution of the destination."""
        if self.source_dims == 1:
            return projected.reshape(*projected.shape[:1], *_vector_shape(self.destination_dims, projected.shape[1]))
        if self.source_dims == 2:
            if projected.shape == destination.shape:
                return projected
            projected = projected.mean(1)
            return projected.reshape(*projected.shape[:1], *_vector_shape(self.destination_dims, projected.shape[1]))
        if self.destination_dims == 3:
            size = destination.shape[-2:]
            if projected.shape[-2:] == size:
                return projected
            return F.interpolate(projected, size=size, mode="bilinear", align_corners=False)
        pooled = projected.mean((2, 3))
        return pooled if self.destination_dims == 1 else pooled[:, None]


class PublishedFeedback(nn.Module):
    """The path of one connection in the published order: norm → tanh → resize → sign-dependent gain → 1×1 projection.

    Args:
        source_shape: shape of the source's activation without the batch: (c,) for a vector, (c, h, w) for a map.
        destination_shape: likewise.

    Unusual, all as published: the norm of a map has a weight for each channel of the source and each position of the
    destination, resized to the source's positions whatever the image; resizing aligns corners, so that a map
    reaches a vector by its first position; the projection has a bias and starts at random, so that neither gain 0
    nor an untrained path is the plain backbone; a strength multiplies the learned gain.
    """

    def __init__(self, source_shape: tuple[int, ...], destination_shape: tuple[int, ...]) -> None:
        super().__init__()
        for shape in (source_shape, destination_shape):
            if len(shape) not in (1, 3):
                raise ValueError(f"published feedback joins vectors (c,) and maps (c, h, w); got shape {shape}")
        channels, positions = source_shape[0], destination_shape[1:] or (1, 1)
        one_position = source_shape[1:] in ((), (1, 1))
        self.norm = nn.LayerNorm(channels if one_position else (channels, *positions))
        self.gain = nn.Parameter(torch.ones(2))  # for negative and for positive activations
        self.projection = nn.Conv2d(channels, destination_shape[0], 1)

    def forward(
        self, source: Float[Tensor, "b ..."], destination: Float[Tensor, "d ..."], strength: Strength | None = None
    ) -> Float[Tensor, "b ..."]:
        """What multiplies the destination, broadcastable to its shape.

        `strength` multiplies the learned gain: one number, or (negative, positive). With 0 the bias remains.
        """
        maps = source if source.ndim == 4 else source[:, :, None, None]
        activation = torch.tanh(self._normalise(maps))  # (b, c, h, w) of the source
        if activation.shape[-2:] != (1, 1):
            size = tuple(destination.shape[2:]) or (1, 1)
            activation = F.interpolate(activation, size=size, mode="bilinear", align_corners=True)
        negative, positive = self.gain.unbind()
        if strength is not None:
            negative, positive = (gain * by for gain, by in zip((negative, positive), _pair(strength), strict=True))
        projected = self.projection(activation * torch.where(activation < 0, negative, positive))
        return projected if destination.ndim == 4 else projected[:, :, 0, 0]

    def _normalise(self, maps: Tensor) -> Tensor:
        weight: Tensor = self.norm.weight
        bias: Tensor = self.norm.bias
        if weight.ndim == 1:  # over the channels
            return F.layer_norm(maps.movedim(1, -1), weight.shape, weight, bias, self.norm.eps).movedim(-1, 1)
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
    """Let a linear classifier say how looking for a class begins, before anything was learned.

    The features that vote for a class are raised by the path from the classifier to them (its transpose); templates
    are the classifier's own rows, and the path to them raises that of the class. A path that was trained is left alone.

    Args:
        classifier: (m, c). to_features: path from its output to the c features that it reads. templates: 1×1
            convolution of c channels to m. to_templates: path from the classifier's output to them. template_scale:
            factor by which a goal's own template is raised.
    """
    weight = classifier.weight
    if templates is not None and not templates.weight.any():
        _same_shape(templates.weight[:, :, 0, 0], weight)
        templates.weight.copy_(weight[:, :, None, None])
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
        raise ValueError(f"the classifier asks for weights of shape {tuple(wanted.shape)}, got {tuple(path.shape)}")


def _channels(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) != 2 else shape[1]


def _vector_shape(dims: int, channels: int) -> tuple[int, ...]:
    return {1: (channels,), 2: (1, channels), 3: (channels, 1, 1)}[dims]


def _pair(strength: Strength) -> tuple[float, float]:
    return strength if isinstance(strength, tuple) else (strength, strength)
