r"""Networks that could refute steering: the same backbone, trained the same way, without multiplicative feedback.

`additive`: every path adds instead of multiplying. `last_layer`: the goal scales the last features and nothing else.
`plain`: no feedback at all, the steps spent on seeing. They lie beside the model in `controls/`, as what differs from
its backbone. Unusual: of large tensors the difference is kept in 8 bits and a scale for each output channel, which is
closer to what was trained than the tensor itself in half precision, at half the bytes.

    python -m steering.evaluate.controls --model steering/models/lrm_mini additive=runs/lrm_additive/model
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from lrm_base.card import load_weights, save_weights
from lrm_core.feedback import Connection
from lrm_core.model import LRM
from lrm_core.weights import build

NAMES = ("additive", "last_layer", "plain")
LARGE = 100_000  # elements
SCALE = ".scale"


def save_control(trained: str | Path, folder: str | Path, name: str) -> Path:
    """Keep a trained control (`….safetensors`) in a model's folder: its card, and the tensors that differ.

    Raises:
        ValueError: a file is missing or altered, the control is of another backbone or other classes, or is no control.
    """
    if name not in NAMES:
        raise ValueError(f"no control {name!r}; choices: {', '.join(NAMES)}")
    tensors, card = load_weights(trained)
    base, own = load_weights(Path(folder) / "backbone.safetensors")
    if (card["backbone"], card["classes"]) != (own["backbone"], own["classes"]):
        raise ValueError(f"{trained} is of another backbone, or of other classes, than {folder}")
    differ: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key not in base or (value.numel() < LARGE and not torch.equal(base[key], value)):
            differ[key] = value
        elif not torch.equal(base[key], value):
            change = value - base[key]
            scale = change.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
            differ[f"{key}{SCALE}"] = scale
            differ[key] = (change / _like(scale, change)).round().to(torch.int8)
    path = Path(folder) / "controls" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    kept = {key: value for key, value in card.items() if key not in ("classes", "sha256")}
    scales = {key: value for key, value in differ.items() if key.endswith(SCALE)}
    halves = {key: value.half() if value.is_floating_point() else value for key, value in differ.items()}
    save_weights(path, halves | scales, {**kept, "kind": "control", "base_sha256": own["sha256"]})
    return path


def _like(scale: Tensor, value: Tensor) -> Tensor:
    """A number for each output channel, to be multiplied with a tensor of them."""
    return scale.view(-1, *(1 for _ in value.shape[1:]))


def load_controls(folder: str | Path, device: torch.device) -> dict[str, LRM]:
    """The controls in a model's folder, by name; those that are not there are left out.

    Raises:
        ValueError: a file was altered or is of another backbone.
    """
    found = [name for name in NAMES if (Path(folder) / "controls" / f"{name}.safetensors").is_file()]
    if not found:
        return {}
    base, own = load_weights(Path(folder) / "backbone.safetensors")
    controls = {}
    for name in found:
        path = Path(folder) / "controls" / f"{name}.safetensors"
        tensors, card = load_weights(path)
        if card.get("base_sha256") != own["sha256"]:
            raise ValueError(f"{path} is of another backbone: SHA-256 {card.get('base_sha256')}, not {own['sha256']}")
        connections = [Connection(**pair) for pair in card["connections"]]
        with torch.random.fork_rng(devices=[]):
            model, _ = build(card["backbone"], len(own["classes"]), connections, card["rule"])
        for key in [key.removesuffix(SCALE) for key in tensors if key.endswith(SCALE)]:
            tensors[key] = base[key] + tensors[key] * _like(tensors.pop(f"{key}{SCALE}"), tensors[key])
        wanted = model.state_dict()
        shared = {key: value for key, value in base.items() if key in wanted}
        missing, unknown = model.load_state_dict(shared | tensors, strict=False)
        missing = [key for key in missing if not key.endswith("num_batches_tracked")]
        if missing or unknown:
            raise ValueError(f"{path} does not fit backbone {card['backbone']!r}: missing {missing}, unknown {unknown}")
        controls[name] = model.eval().requires_grad_(False).to(device)
    return controls


def main() -> None:
    """Keep trained controls beside a model."""
    parser = argparse.ArgumentParser(description="Keep trained controls beside a model.")
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
