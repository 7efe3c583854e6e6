"""Where the steering acted: which places of the image moved the output towards the goal.

For each feature map that feedback scales, the change that the feedback made, x · Σ f, times the gradient of the goal's
support with respect to that map (gradient × activation, as in HiResCAM; Draelos & Carin 2021), summed over channels.
Places that speak for the goal are kept; maps of different resolution are brought to one grid and averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lrm_core import LRM, State, Steer, Stem
from steering.evidence import support


def steering_heatmap(
    model: LRM, stem: Stem, state: State, steer: Steer, goals: Float[Tensor, "b m"]
) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b h w"]]:
    """Run one steered pass: (output, heatmaps in 0–1; the largest value of each is 1, or 0 where nothing acted)."""
    tracked = Stem({node: _track(value) for node, value in stem.values.items()})
    with torch.enable_grad():
        output, _, changes = model.inspect(tracked, state, [steer])
        maps = [change for change in changes.values() if change.ndim == 4]
        gradients = torch.autograd.grad(support(output, goals).sum(), maps)
    acted = [(change.detach() * gradient).sum(1) for change, gradient in zip(maps, gradients, strict=True)]
    return output.detach(), merge(acted)


def _track(value: Any) -> Any:
    """The value as the root of a graph of gradients."""
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().requires_grad_() if floating else value


def merge(maps: Sequence[Float[Tensor, "b _ _"]]) -> Float[Tensor, "b h w"]:
    """Positive parts of maps, each scaled by its mean, averaged on the finest grid and brought to 0–1."""
    if not maps:
        raise ValueError("no feedback reached a feature map in this pass: there is nothing to draw")
    size = max((tuple(m.shape[-2:]) for m in maps), key=lambda side: side[0] * side[1])
    total = torch.zeros(len(maps[0]), *size, device=maps[0].device)
    for positive in (m.float().clamp(min=0) for m in maps):
        scaled = positive / positive.mean((1, 2), keepdim=True).clamp(min=1e-12)
        total += F.interpolate(scaled[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return total / total.amax((1, 2), keepdim=True).clamp(min=1e-12)
