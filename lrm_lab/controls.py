r"""Networks that could refute steering: the same backbone, trained the same way, without multiplicative feedback.

- `additive`: every path adds instead of multiplying.
- `last_layer`: the goal scales the last features and nothing else.
- `plain`: no feedback at all; its training steps went into seeing.
- `twin`: the same feedback, trained on the same scenes, with a constant in place of the goal.

The controls of an embedded model lie in `lrm_lab/weights/NAME/`. NAME is the name in the model's card, so they are
found wherever its folder lies. Those of a model folder of your own lie in its `controls/`. The installed package lacks
them; a checkout of the project has them. Without controls, everything else is still measured.

Unusual: a control's file holds only the tensors that differ from its backbone. For large tensors it holds the
difference in 8 bits, with a scale for each output channel. This takes half the bytes of the tensor in half precision,
and is closer to what was trained.

    python -m lrm_lab.controls --model FOLDER additive=runs/lrm_additive/model
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from lrm_base.card import from_eight_bits, load_card, load_weights, save_weights, to_eight_bits
from lrm_core.feedback import Connection
from lrm_core.model import LRM
from lrm_core.weights import build, load_published
from steering.loading import MODELS

NAMES = ("additive", "last_layer", "plain", "twin")
WEIGHTS = Path(__file__).parent / "weights"
LARGE = 100_000  # elements
SCALE = ".scale"


def save_control(trained: str | Path, folder: str | Path, name: str) -> Path:
    """Keep a trained control of a model: its card, and the tensors that differ from the model's backbone.

    Args:
        trained: its weights, a file `….safetensors`.
        folder: the model's folder. Controls of an embedded model are kept in `lrm_lab/weights/`, others in `controls/`
            of the folder.
        name: one of `NAMES`.

    Returns:
        The file that was written.

    Raises:
        ValueError: there is no control of that name, a file is missing or was altered, or the control is of another
            backbone or of other classes.
    """
    if name not in NAMES:
        raise ValueError(f"name: got {name!r}, expected a control: {', '.join(NAMES)}")
    tensors, card = load_weights(trained)
    base, own = load_weights(Path(folder) / "backbone.safetensors")
    if (card["backbone"], card["classes"]) != (own["backbone"], own["classes"]):
        raise ValueError(f"{trained} is of another backbone, or of other classes, than {folder}")
    differ: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key not in base or (value.numel() < LARGE and not torch.equal(base[key], value)):
            differ[key] = value
        elif not torch.equal(base[key], value):
            differ[key], differ[f"{key}{SCALE}"] = to_eight_bits(value - base[key])
    embedded = Path(folder).resolve().parent == MODELS.resolve()
    path = (WEIGHTS / own["name"] if embedded else Path(folder) / "controls") / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in card.items() if key not in ("classes", "sha256")}
    scales = {key: value for key, value in differ.items() if key.endswith(SCALE)}
    halves = {key: value.half() if value.is_floating_point() else value for key, value in differ.items()}
    save_weights(path, halves | scales, {**kept, "kind": "control", "base_sha256": own["sha256"]})
    return path


def find_controls(folder: str | Path) -> dict[str, Path]:
    """The files of a model's controls, by name. Those that are not there are left out.

    They lie in `controls/` of the model's folder, or else in `lrm_lab/weights/`, under the name in the model's card.
    Controls there that are of another backbone with the same name do not count.
    """
    own = load_card(Path(folder) / "backbone.safetensors")
    beside = _files(Path(folder) / "controls")
    if beside:
        return beside
    shipped = _files(WEIGHTS / own["name"])
    return {name: path for name, path in shipped.items() if load_card(path).get("base_sha256") == own["sha256"]}


def _files(folder: Path) -> dict[str, Path]:
    paths = {name: folder / f"{name}.safetensors" for name in NAMES}
    return {name: path for name, path in paths.items() if path.is_file()}


def load_controls(folder: str | Path, device: torch.device) -> dict[str, LRM]:
    """The controls of a model, by name; see `find_controls`.

    Raises:
        ValueError: a file was altered, or a control in the model's folder is of another backbone.
    """
    paths = find_controls(folder)
    if not paths:
        return {}
    base, own = load_weights(Path(folder) / "backbone.safetensors")
    controls = {}
    for name, path in paths.items():
        tensors, card = load_weights(path)
        if card.get("base_sha256") != own["sha256"]:
            raise ValueError(
                f"{path} is of another backbone: got SHA-256 {card.get('base_sha256')}, expected {own['sha256']}"
            )
        connections = [Connection(**pair) for pair in card["connections"]]
        with torch.random.fork_rng(devices=[]):
            model, entry = build(card["backbone"], len(own["classes"]), connections, card["rule"])
        if "backbone_weights" in own:
            load_published(model, entry)
            base = model.state_dict() | base
        for key in [key.removesuffix(SCALE) for key in tensors if key.endswith(SCALE)]:
            tensors[key] = base[key] + from_eight_bits(tensors[key], tensors.pop(f"{key}{SCALE}"))
        wanted = model.state_dict()
        shared = {key: value for key, value in base.items() if key in wanted}
        missing, unknown = model.load_state_dict(shared | tensors, strict=False)
        missing = [key for key in missing if not key.endswith("num_batches_tracked")]
        if missing or unknown:
            raise ValueError(f"{path} does not fit backbone {card['backbone']!r}: missing {missing}, unknown {unknown}")
        controls[name] = model.eval().requires_grad_(False).to(device)
    return controls


def main() -> None:
    """Keep trained controls of a model."""
    parser = argparse.ArgumentParser(
        prog="python -m lrm_lab.controls", description="Keep trained controls of a model, for `steer evaluate`."
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="a model's folder")
    parser.add_argument("controls", nargs="+", metavar="NAME=RUN", help=f"NAME: {', '.join(NAMES)}; RUN: its model/")
    given = parser.parse_args()
    for pair in given.controls:
        name, _, run = pair.partition("=")
        try:
            print(save_control(Path(run) / "backbone.safetensors", given.model, name))
        except ValueError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
