"""What a steered pass starts from, as numbers that can be stored: the stem and the state after the first pass.

They are stored in half precision. The error is far below the effect of a steered pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import einops
import numpy as np
import torch
from torch import Tensor

from lrm_base.checks import whole_number
from lrm_core.model import LRM, State, Stem
from lrm_core.steps import Place

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """What is stored for an image, in order, and what every image shares.

    Attributes:
        stem, state: the shape of each stored tensor, without the batch.
        shared: the values of the stem that are the same for every image, such as parameters; they are not stored.
    """

    stem: Mapping[Place, Shape]
    state: Mapping[str, Shape]
    shared: Mapping[Place, Any]

    @classmethod
    @torch.no_grad()
    def of(cls, model: LRM, height: int, width: int) -> Layout:
        """The layout for a network and images of `height` × `width` pixels.

        Raises:
            ValueError: a side is not a whole number above 0, or a value of the stem depends on the batch but is not a
                tensor with one entry for each image.
        """
        height, width = whole_number("height", height, 1), whole_number("width", width, 1)
        device = next(model.parameters()).device
        one, two = (model.stem(torch.zeros(batch, 3, height, width, device=device)) for batch in (1, 2))
        stem: dict[Place, Shape] = {}
        shared: dict[Place, Any] = {}
        for place, value in one.values.items():
            shape, doubled = _shape(value), _shape(two.values[place])
            if shape is not None and doubled is not None and (shape[:1], doubled[:1]) == ((1,), (2,)):
                stem[place] = shape[1:]
            elif shape == doubled and (shape is not None or _same(value, two.values[place])):
                shared[place] = value
            else:
                raise ValueError(
                    f"stem: got a value of {place.name} that depends on the number of images, {value!r:.40}; "
                    "expected a tensor with one entry for each image"
                )
        _, state = model.step(one)
        return cls(stem, {name: tuple(value.shape[1:]) for name, value in state.activations.items()}, shared)

    def pack(self, stem: Stem, state: State) -> list[bytes]:
        """The numbers of each image, as bytes."""
        parts = [stem.values[place] for place in self.stem] + [state.activations[name] for name in self.state]
        numbers, _ = einops.pack([part.half() for part in parts], "images *")
        return [row.tobytes() for row in numbers.cpu().numpy()]

    def unpack(self, packed: list[bytes], device: torch.device) -> tuple[Stem, State]:
        """The stem and the state after one pass of a batch of images, from their packed numbers.

        Raises:
            ValueError: the numbers are those of another network.
        """
        shapes: list[Shape | list[int]] = [*self.stem.values(), *self.state.values()]
        expected = sum(map(prod, shapes))
        sizes = {len(row) for row in packed}
        if sizes != {2 * expected}:
            got = ", ".join(map(str, sorted(sizes))) or "none"
            raise ValueError(f"packed: got {got} bytes an image, expected {2 * expected}: of another network")
        rows = torch.from_numpy(np.stack([np.frombuffer(row, np.float16) for row in packed])).to(device).float()
        parts = iter(einops.unpack(rows, shapes, "images *"))
        shared = {
            place: value.to(device) if isinstance(value, Tensor) else value for place, value in self.shared.items()
        }
        return Stem({**shared, **{place: next(parts) for place in self.stem}}), State(
            {name: next(parts) for name in self.state}, 1
        )


def _same(first: Any, second: Any) -> bool:
    """Whether two values that are no tensors are equal; values that cannot be compared are not."""
    try:
        return bool(first == second)
    except (RuntimeError, ValueError):  # they hold tensors
        return False


def _shape(value: Any) -> Shape | None:
    """The shape of a tensor; None for any other value."""
    return tuple(value.shape) if isinstance(value, Tensor) else None
