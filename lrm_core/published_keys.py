"""Translate the names of weights from the published ones (Konkle & Alvarez, NeurIPS 2023) to ours, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lrm_core.feedback import Connection

_PATH_KEYS = {
    "neg_scale": "gain.0",
    "pos_scale": "gain.1",
    "rescale.norm.weight": "norm.weight",
    "rescale.norm.bias": "norm.bias",
    "modulation.weight": "projection.weight",
    "modulation.bias": "projection.bias",
}
"""Published names within a path, and ours. Our gain holds both of the published gains."""
_GAINS = ("neg_scale", "pos_scale")


def published_to_ours(state_dict: Mapping[str, Any], connections: Sequence[Connection]) -> dict[str, Any]:
    """Weights under published keys as weights of an `LRM` with `PublishedFeedback`.

    It accepts the keys of the published model, those of published checkpoints (a leading `module.`, `backbone.` for
    `feedforward.`, `features8` for `features_8` in the names of paths), and our own. Unknown keys stay as they are.

    Raises:
        ValueError: one of the two gains of a path is missing, or a key comes in two spellings.
    """
    table = {
        _published_prefix(c) + published: f"paths.{c.key}.{ours}"
        for c in connections
        for published, ours in _PATH_KEYS.items()
    }
    weights: dict[str, Any] = {}
    for key, value in state_dict.items():
        name = key.removeprefix("module.")
        if name.startswith(("lrm.backbone.", "lrm.paths.")):
            name = name.removeprefix("lrm.")
        elif name.startswith("feedforward."):
            name = "backbone." + name.removeprefix("feedforward.")
        else:
            name = table.get(name) or table.get(re.sub(r"features(\d+)", r"features_\1", name), name)
        if name in weights:
            raise ValueError(f"state_dict: {key!r} is given twice, in two spellings, expected once")
        weights[name] = value
    for connection in connections:
        path = f"paths.{connection.key}.gain"
        halves = {gain: weights.pop(f"{path}.{i}") for i, gain in enumerate(_GAINS) if f"{path}.{i}" in weights}
        if len(halves) == 1:
            raise ValueError(
                f"state_dict: got only {', '.join(halves)} of {_published_prefix(connection)}, "
                f"expected {' and '.join(_GAINS)}"
            )
        if halves:
            weights[path] = torch.cat([halves[gain].reshape(1) for gain in _GAINS])
    return weights


def ours_to_published(state_dict: Mapping[str, Any], connections: Sequence[Connection]) -> dict[str, Any]:
    """Weights of an `LRM` with `PublishedFeedback`, or of a front, under the published keys."""
    table = {
        f"paths.{c.key}.{ours}": _published_prefix(c) + published
        for c in connections
        for published, ours in _PATH_KEYS.items()
    }
    published: dict[str, Any] = {}
    for key, value in state_dict.items():
        name = key.removeprefix("lrm.")
        if f"{name}.0" in table:  # a gain
            published |= {table[f"{name}.{i}"]: value[i : i + 1] for i in range(2)}
        elif name in table:
            published[table[name]] = value
        else:
            published["feedforward." + name.removeprefix("backbone.")] = value
    return published


def _published_prefix(connection: Connection) -> str:
    source, destination = (name.replace(".", "_") for name in (connection.source, connection.destination))
    return f"lrm.{destination}_modulation.from_{source}_to_{destination}."
