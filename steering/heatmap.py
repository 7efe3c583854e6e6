"""Where the steered pass found what it was asked for.

At the feature maps that feedback scales, the activation after the feedback times the gradient of the goal's support,
summed over channels (gradient x activation, as in HiResCAM; Draelos & Carin 2021), in the last steered pass. Of each
resolution the last such map is taken; positive parts are brought to one grid and averaged.

Unusual: not the change that feedback made (x * sum of f), although that is literally where steering acts. On 250
composites of held-out images its peak lay in the named object less often than that of a map like this one: side by
side 66 against 87 %, insets 66 against 80 %, quarters 43 against 69 %.
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
    output, maps = _support_maps(model, stem, state, [steer], goals)
    return output, merge(maps)


def class_activation_map(model: LRM, stem: Stem, goals: Float[Tensor, "b m"]) -> Float[Tensor, "b h w"]:
    """What to compare with: the same measure at the last feature map of the first, unsteered pass, in 0–1.

    There it is the class-activation map of what the goal stands for (Zhou et al. 2016; HiResCAM, Draelos & Carin 2021).
    """
    return merge(_support_maps(model, stem, None, [], goals)[1][-1:])


def _support_maps(
    model: LRM, stem: Stem, state: State | None, steer: Sequence[Steer], goals: Float[Tensor, "b m"]
) -> tuple[Float[Tensor, "b m"], list[Float[Tensor, "b _ _"]]]:
    """Output of one pass, and activation times gradient of the support at the last map of each resolution, in order."""
    tracked = Stem({node: _track(value) for node, value in stem.values.items()})
    destinations = {connection.destination for connection in model.connections}
    names = [name for name in model.graph.steps if name in destinations]  # in running order
    with torch.enable_grad():
        output, activations, _ = model.inspect(tracked, state, steer, names)
        maps = {value.shape[-2:]: value for value in activations.values() if value.ndim == 4}
        ordered = list(maps.values())
        gradients = torch.autograd.grad(support(output, goals).sum(), ordered)
    found = [(value.detach() * gradient).sum(1) for value, gradient in zip(ordered, gradients, strict=True)]
    return output.detach(), found


def _track(value: Any) -> Any:
    """The value as the root of a graph of gradients."""
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().requires_grad_() if floating else value


def merge(maps: Sequence[Float[Tensor, "b _ _"]]) -> Float[Tensor, "b h w"]:
    """Positive parts of maps, each scaled by its mean, averaged on the finest grid and brought to 0–1."""
    if not maps:
        raise ValueError("no feedback goes to a feature map: there is nothing to draw")
    size = max((tuple(m.shape[-2:]) for m in maps), key=lambda side: side[0] * side[1])
    total = torch.zeros(len(maps[0]), *size, device=maps[0].device)
    for positive in (m.float().clamp(min=0) for m in maps):
        scaled = positive / positive.mean((1, 2), keepdim=True).clamp(min=1e-12)
        total += F.interpolate(scaled[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return total / total.amax((1, 2), keepdim=True).clamp(min=1e-12)
