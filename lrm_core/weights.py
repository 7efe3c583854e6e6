"""Save and load models. A model is a safetensors file and its card (see `lrm_base.card`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrm_base.building import no_random_start
from lrm_base.card import load_weights, save_weights
from lrm_base.checks import whole_number
from lrm_core.backbones import BackboneEntry, Preprocessing, find_backbone
from lrm_core.efficientnet import PUBLISHED, published_weights
from lrm_core.feedback import Connection
from lrm_core.model import LRM, Rule

LAYOUT = torch.contiguous_format
BACKBONE = "backbone."  # begins the names of a model's weights that feedback does not have
LICENCE = "MIT (weights trained on ImageNet images: research use)"


def build(
    backbone: str, num_classes: int, connections: Sequence[Connection] | None = None, rule: Rule | None = None
) -> tuple[LRM, BackboneEntry]:
    """An untrained model of a registered backbone, with its own connections and rule unless others are given.

    Raises:
        ValueError: there is no such backbone, or `num_classes` is not a whole number above 0. Or `LRM` raises it.
    """
    module, entry = _plain(backbone, num_classes)
    return _wrapped(module, entry, connections, rule), entry


def _plain(backbone: str, num_classes: int) -> tuple[nn.Module, BackboneEntry]:
    """A registered backbone without feedback."""
    entry = find_backbone(backbone)
    return entry.build(num_classes=whole_number("num_classes", num_classes, 1)), entry


def _wrapped(
    module: nn.Module, entry: BackboneEntry, connections: Sequence[Connection] | None, rule: Rule | None
) -> LRM:
    connections, rule = connections or entry.connections, rule or entry.rule
    return LRM(module, connections, entry.preprocessing.size, feedback=entry.feedback, rule=rule)


def save_model(
    path: str | Path,
    model: LRM,
    *,
    name: str,
    backbone: str,
    preprocessing: Preprocessing,
    output: str,
    classes: Sequence[dict[str, Any]],
    training: dict[str, Any],
    measured: dict[str, float],
    keeps_published: bool = False,
) -> None:
    """Write a model and its card, in half precision.

    Args:
        keeps_published: whether the backbone has the published weights that a data package holds. They are not written
            again; the card names the package and the SHA-256 of its file.
    """
    published = find_backbone(backbone).weights if keeps_published else None
    card = {
        "name": name,
        "kind": "lrm",
        "backbone": backbone,
        "output": output,
        "rule": model.rule,
        "connections": [_written(connection) for connection in model.connections],
        "preprocessing": {
            "size": preprocessing.size,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "keeps_aspect": preprocessing.keeps_aspect,
            "range": "pixels in 0-1, then (x - mean) / std; the whole frame, "
            + ("in its aspect" if preprocessing.keeps_aspect else "squashed to a square"),
        },
        "paper": "Konkle & Alvarez, Cognitive Steering in Deep Neural Networks via Long-Range Modulatory Feedback "
        "Connections, NeurIPS 2023",
        "licence": LICENCE,
        "measured": measured,
        "training": training,
        "classes": list(classes),
    }
    if published is not None:
        card["backbone_weights"] = {"package": PUBLISHED[published].package, "sha256": PUBLISHED[published].sha256}
    tensors = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    if published is not None:
        tensors = {key: value for key, value in tensors.items() if not _is_backbone(key)}
    save_weights(path, tensors, card, half=True)


def load_published(model: LRM, entry: BackboneEntry) -> None:
    """Give a backbone its published weights, where a package holds them. Raises like `published_weights`."""
    if entry.weights is not None:
        model.backbone.load_state_dict(published_weights(entry.weights))


def start_from(model: LRM, classes: Sequence[dict[str, Any]], path: str | Path) -> dict[str, str]:
    """Give a model the weights of a trained model of the same classes.

    The trained model may lack feedback paths, and then the model keeps its own weights for them. It may also have more
    paths, which are left out.

    Returns:
        `name` and `sha256` of the trained model, for the card of the new model.

    Raises:
        ValueError: the trained model is missing or altered, or has other classes or another backbone.
    """
    tensors, card = load_weights(path)
    theirs, ours = ([entry["name"] for entry in table] for table in (card["classes"], classes))
    if theirs != ours:
        raise ValueError(
            f"{path}: got {len(theirs)} classes, expected the {len(ours)} classes of this training in their order"
        )
    wanted = model.state_dict()
    tensors = {key: value for key, value in tensors.items() if key in wanted or not key.startswith("paths.")}
    unfit = sorted(key for key, value in tensors.items() if key not in wanted or wanted[key].shape != value.shape)
    published = "backbone_weights" in card  # the new model has them already, or `load_published` gives them
    lacking = wanted.keys() - tensors.keys() - {key for key in wanted if published and _is_backbone(key)}
    missing = sorted(key for key in lacking if not key.startswith("paths.") and "num_batches" not in key)
    if unfit or missing:
        raise ValueError(f"{path} does not fit: got unknown keys or other shapes {unfit}, missing {missing}")
    model.load_state_dict(tensors, strict=False)
    return {"name": card["name"], "sha256": card["sha256"]}


def _is_backbone(key: str) -> bool:
    return key.startswith(BACKBONE)


def held_out_rows(card: dict[str, Any]) -> int:
    """The number of images, at the end of the training split, that training left out; 0 if the card does not say."""
    return card.get("training", {}).get("data", {}).get("num_holdout", 0)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[LRM, Preprocessing, dict[str, Any]]:
    """Load a model in evaluation mode, its preprocessing and its card.

    Raises:
        ValueError: files are missing, altered, or do not fit the architecture that the card names.
    """
    tensors, card = load_weights(path)
    lacking = [key for key in ("backbone", "connections", "preprocessing", "classes") if key not in card]
    if lacking:
        raise ValueError(
            f"{path}: got a card of kind {card.get('kind')!r} without {', '.join(lacking)}, expected that of a backbone"
        )
    connections = [Connection(**pair) for pair in card["connections"]]
    with no_random_start():
        backbone, entry = _plain(card["backbone"], len(card["classes"]))
    published = card.get("backbone_weights", {}).get("sha256")
    if published is not None:
        if entry.weights is None or PUBLISHED[entry.weights].sha256 != published:
            raise ValueError(f"{path} was trained beside other weights of {card['backbone']!r}: SHA-256 {published}")
        tensors = {**{f"{BACKBONE}{key}": v for key, v in published_weights(entry.weights).items()}, **tensors}
    holder = nn.ModuleDict({BACKBONE[:-1]: backbone})  # it has its weights before its steps are read
    lacking, unknown = _give(holder, {k: v for k, v in tensors.items() if _is_backbone(k)}, path, card)

    def path_of(source: Any, destination: Any) -> nn.Module:
        with no_random_start():
            return entry.feedback(source, destination)

    model = _wrapped(backbone, replace(entry, feedback=path_of), connections, card.get("rule", "multiply"))
    missing, unexpected = _give(model, {k: v for k, v in tensors.items() if not _is_backbone(k)}, path, card)
    missing, unexpected = lacking + [key for key in missing if not _is_backbone(key)], unknown + unexpected
    if missing or unexpected:
        raise ValueError(f"{path} does not fit backbone {card['backbone']!r}: missing {missing}, unknown {unexpected}")
    given = card["preprocessing"]
    mean, std = tuple(given["mean"]), tuple(given["std"])
    preprocessing = Preprocessing(given["size"], mean, std, given.get("keeps_aspect", False))
    return model.eval().requires_grad_(False).to(device), preprocessing, card


def _written(connection: Connection) -> dict[str, Any]:
    """A connection as a card keeps it: its two names, and what else was asked for."""
    plain = Connection(connection.source, connection.destination)
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in vars(connection).items()
        if key in ("source", "destination") or value != getattr(plain, key)
    }


def _give(
    module: nn.Module, tensors: dict[str, Tensor], path: str | Path, card: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """Let a module take tensors as its weights. Returns the missing keys and the unknown ones.

    A tensor is copied only if its strides are not those of a new weight. The strides decide how a convolution computes,
    and so how it rounds.

    Raises:
        ValueError: a tensor has another shape than the weight of that name.
    """
    wanted = module.state_dict()
    unfit = [key for key, value in tensors.items() if key in wanted and wanted[key].shape != value.shape]
    if unfit:
        raise ValueError(f"{path} does not fit backbone {card['backbone']!r}: of another shape {unfit}")
    laid_out = {
        key: value if key in wanted and wanted[key].stride() == value.stride() else value.clone(memory_format=LAYOUT)
        for key, value in tensors.items()
    }
    missing, unexpected = module.load_state_dict(laid_out, strict=False, assign=True)
    return [key for key in missing if not key.endswith("num_batches_tracked")], unexpected
