"""Class evidence at the places of an image. It is read from the map that the classifier pools, without another pass.

A classifier that reads the mean of a map can also read the mean over a part of it (class activation mapping, Zhou et
al. 2016). Unusual: the places are all square windows of the map, from one position up, and the whole map. Each place
gives a probability to each class, so a small object in a crowded image counts through the windows that it fills.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lrm_core.model import LRM, State


def pooled_map(model: LRM, output: str) -> str | None:
    """The source of feedback whose pooled map the classifier `output` reads; None if there is none.

    Raises:
        ValueError: the backbone has no module `output`.
    """
    try:
        classifier = model.backbone.get_submodule(output)
    except AttributeError:
        choices = ", ".join(name for name, _ in model.backbone.named_modules() if name)
        raise ValueError(f"output: got {output!r}, expected a module of the backbone; choices: {choices}") from None
    if not isinstance(classifier, nn.Linear):
        return None
    fitting = [
        name
        for name, layout in model.layouts.items()
        if layout.kind == "map" and layout.channels == classifier.in_features and len({*(layout.places or ())}) == 1
    ]
    return fitting[-1] if fitting else None


@torch.no_grad()
def class_evidence(model: LRM, output: str, logits: Float[Tensor, "b m"], state: State) -> Float[Tensor, "b m"]:
    """The probability of each class, averaged over all places.

    Without a map to read (see `pooled_map`) it is the probability from the logits.

    Raises:
        ValueError: the backbone has no module `output`.
    """
    name = pooled_map(model, output)
    if name is None:
        return logits.float().softmax(-1)
    classifier: nn.Linear = model.backbone.get_submodule(output)  # type: ignore[assignment]
    maps = state.activations[name]
    height, width = maps.shape[-2:]
    here = rearrange(maps, "b c h w -> b (h w) c") @ classifier.weight.T  # (b, positions, m)
    windows = _windows(height, width).to(here) @ here
    if classifier.bias is not None:
        windows = windows + classifier.bias
    return windows.float().softmax(-1).mean(1)


@lru_cache(64)
def _windows(height: int, width: int) -> Float[Tensor, "w p"]:
    """All square windows of a map, and the whole map. Each row holds the weights of a mean over a window."""
    eye = rearrange(torch.eye(height * width), "positions (h w) -> positions h w", h=height)
    sizes: list[int | tuple[int, int]] = list(range(1, min(height, width) + 1))
    if height != width:
        sizes.append((height, width))
    return torch.cat([rearrange(F.avg_pool2d(eye, size, 1), "positions h w -> (h w) positions") for size in sizes])
