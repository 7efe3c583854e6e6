"""Compare our numbers with the published ones: python benchmarks/golden.py ../shared/data/golden

The published code computed arrays on deterministic weights. For each, this prints the largest absolute difference.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrm_core import SteerableLRM
from lrm_core.compat import PUBLISHED_CONNECTIONS, ours_to_published

CALLS: dict[str, dict[str, Any]] = {
    "plain_2": {},
    "plain_3": {"forward_passes": 3},
    "steer_s1": {"strength": 1},
    "steer_s3": {"strength": 3},
    "steer_neg1_pos3": {"strength": (1, 3)},
    "steer_s3_alpha05": {"strength": 3, "alpha": 0.5},
    "steer_s3_first": {"strength": 3, "first_pass_steering": True},
    "steer_s3_3passes": {"strength": 3, "forward_passes": 3},
    "plain_160px": {"size": 160},
}
"""How each array was made: a signal's `strength` and `alpha`, the image's `size`, and arguments of the call."""


def fill(folder: Path) -> ModuleType:
    """The module that defines the weights and the images, from the folder of the arrays."""
    spec = importlib.util.spec_from_file_location("fill_weights", folder / "fill_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(folder: Path, name: str) -> SteerableLRM:
    """A published model of that name with the deterministic weights, loaded under their published keys."""
    from torchvision.models import alexnet

    model = SteerableLRM(alexnet(weights=None), PUBLISHED_CONNECTIONS[name]).eval()
    wanted = ours_to_published(model.state_dict(), model.lrm.connections)
    tensor_for = fill(folder).tensor_for
    model.load_state_dict({key: tensor_for(key, tuple(value.shape)) for key, value in wanted.items()})
    return model


@torch.inference_mode()
def call(folder: Path, model: SteerableLRM, seed: int, array: str) -> Tensor:
    """What the model gives for an array's call: (passes, 2, 1000)."""
    arguments = dict(CALLS[array])
    images = fill(folder).image_batch(seed, 2, arguments.pop("size", 224))
    query = torch.randn(2, 1000, generator=torch.Generator().manual_seed(seed + 1)) * 3
    how = {key: arguments.pop(key) for key in ("strength", "alpha") if key in arguments}
    goal: dict[str, Any] = {"source": "classifier.6", "activation": query}
    signals = [goal | how] if how else None
    return torch.stack(model(images, return_list=True, steering_signals=signals, **arguments))


def expected(folder: Path, name: str) -> tuple[int, dict[str, Tensor]]:
    """The seed and the arrays of a published model."""
    with np.load(folder / f"{name}.npz") as stored:
        return int(stored["seed"]), {key: torch.from_numpy(stored[key]) for key in stored.files if key != "seed"}


def differences(folder: Path, name: str) -> Iterator[tuple[str, float, float]]:
    """For each array of a model: its name, the largest absolute difference, and the largest absolute value."""
    model = build(folder, name)
    seed, arrays = expected(folder, name)
    if arrays.keys() != CALLS.keys():
        raise ValueError(f"{name}: got arrays {', '.join(arrays)}; expected {', '.join(CALLS)}")
    for array, numbers in arrays.items():
        yield array, float((call(folder, model, seed, array) - numbers).abs().max()), float(numbers.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with fill_weights.py and alexnet_lrm{1,2,3}.npz")
    folder = parser.parse_args().folder
    print(f"{'model':<14}{'array':<20}{'max |Δ|':>10}{'max |value|':>14}")
    for name in PUBLISHED_CONNECTIONS:
        for array, difference, largest in differences(folder, name):
            print(f"{name:<14}{array:<20}{difference:>10.1e}{largest:>14.3f}")


if __name__ == "__main__":
    main()
