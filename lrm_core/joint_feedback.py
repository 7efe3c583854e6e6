"""The trained feedback of a CLIP's image tower: projections in a file with a card, for `lrm_core.joint`.

The centre is not stored: it belongs to the texts or other goals that the tower is steered by. Gains stay 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrm_base.card import load_weights, save_weights
from lrm_core.joint import VotePath
from lrm_core.model import LRM

FEEDBACK = "feedback.safetensors"


def projections(model: LRM) -> dict[str, nn.Parameter]:
    """The weights (channels, M) of each path of `lrm_core.joint.wrap_tower`, by the path's key."""
    found = {}
    for key, path in model.paths.items():
        assert isinstance(path, VotePath)
        weight = path.projection.weight
        assert isinstance(weight, nn.Parameter)
        found[key] = weight
    return found


def save_feedback(folder: Path, model: LRM, card: Mapping[str, Any]) -> Path:
    """Write `feedback.safetensors` and its card into a folder. The card needs `backbone_sha256`. Returns the file."""
    weights: dict[str, Tensor] = dict(projections(model))
    save_weights(folder / FEEDBACK, weights, {"kind": "feedback", **card}, half=True)
    return folder / FEEDBACK


@torch.no_grad()
def load_feedback(path: Path, model: LRM, sha256: str) -> dict[str, Any]:
    """Give a model the projections of a file. Returns the file's card.

    Args:
        sha256: hash of the tower's weights.

    Raises:
        ValueError: the file was altered, or was trained for another tower.
    """
    weights, card = load_weights(path)
    if card.get("backbone_sha256") != sha256:
        raise ValueError(
            f"{path} was trained for another model, SHA-256 {card.get('backbone_sha256')}, not {sha256}; "
            "train it again with `python -m steering.train_feedback`, or delete it"
        )
    own = projections(model)
    shapes, expected = ({key: tuple(value.shape) for key, value in each.items()} for each in (weights, own))
    if shapes != expected:
        raise ValueError(f"{path} holds feedback of other steps: got {shapes}, expected {expected}; delete it")
    for key, weight in own.items():
        weight.copy_(weights[key])
    return card
