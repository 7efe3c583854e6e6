"""What a classifier says of every place of an image: read from the map that it pools, without another pass.

A classifier that reads the mean of a map can read the mean over any part of it (class activation mapping, Zhou et al.
2016). Unusual: places are all square windows of the map, from one position to the whole, and each votes with a
probability for each class, so that a small thing in a crowd counts by the windows that it fills.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lrm_core.model import LRM, State


def pooled_map(model: LRM, output: str) -> str | None:
    """The source of feedback whose map the classifier `output` reads pooled; None if there is none."""
    classifier = model.backbone.get_submodule(output)
    if not isinstance(classifier, nn.Linear):
        return None
    fitting = [
        name
        for name, shape in model.activation_shapes.items()
        if len(shape) == 3 and shape[0] == classifier.in_features and shape[1] == shape[2]
    ]
    return fitting[-1] if fitting else None


@torch.no_grad()
def class_evidence(model: LRM, output: str, logits: Float[Tensor, "b m"], state: State) -> Float[Tensor, "b m"]:
    """Probability of each class, mean over all square windows; of the logits alone where no map can be read."""
    name = pooled_map(model, output)
    if name is None:
        return logits.float().softmax(-1)
    classifier: nn.Linear = model.backbone.get_submodule(output)  # type: ignore[assignment]
    maps = state.activations[name]
    here = maps.flatten(2).transpose(1, 2) @ classifier.weight.T  # (b, positions, m)
    windows = _windows(maps.shape[-1]).to(here) @ here
    if classifier.bias is not None:
        windows = windows + classifier.bias
    return windows.float().softmax(-1).mean(1)


@lru_cache(16)
def _windows(side: int) -> Float[Tensor, "w p"]:
    """All square windows of a map of `side` × `side` positions: a row each, which takes their mean."""
    eye = torch.eye(side * side).reshape(1, side * side, side, side)
    return torch.cat([F.avg_pool2d(eye, size, 1)[0].flatten(1) for size in range(1, side + 1)], 1).T.contiguous()
