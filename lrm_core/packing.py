"""What a steered pass starts from, as numbers that can be stored: the stem and the state after the first pass.

Half precision: half the bytes, at an error far below what a steered pass moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from lrm_core.model import LRM, State, Stem


@dataclass(frozen=True)
class Layout:
    """Shapes, without the batch, of what is stored for an image, in order."""

    stem: Mapping[fx.Node, Any]  # shapes; values that are no tensors as they are
    state: Mapping[str, tuple[int, ...]]

    @classmethod
    @torch.no_grad()
    def of(cls, model: LRM, size: int) -> Layout:
        """Of a network and images of this side."""
        device = next(model.parameters()).device
        stem = model.stem(torch.zeros(1, 3, size, size, device=device))
        _, state = model.step(stem)
        shapes = {n: tuple(v.shape[1:]) if isinstance(v, Tensor) else v for n, v in stem.values.items()}
        return cls(shapes, {name: tuple(value.shape[1:]) for name, value in state.activations.items()})

    def pack(self, stem: Stem, state: State) -> list[bytes]:
        """The numbers of each image."""
        parts = [value for value in stem.values.values() if isinstance(value, Tensor)]
        parts += [state.activations[name] for name in self.state]
        whole = torch.cat([part.flatten(1).half() for part in parts], 1).cpu().numpy()
        return [row.tobytes() for row in whole]

    def unpack(self, packed: list[bytes], device: torch.device) -> tuple[Stem, State]:
        """A batch of what `pack` gave, after one pass. Raises ValueError if it is of another network."""
        rows = torch.from_numpy(np.stack([np.frombuffer(row, np.float16) for row in packed])).to(device).float()
        shapes = [shape for shape in self.stem.values() if isinstance(shape, tuple)]
        shapes += list(self.state.values())
        sizes = [int(np.prod(shape)) for shape in shapes]
        if sum(sizes) != rows.shape[1]:
            raise ValueError(f"expected {sum(sizes)} numbers an image, got {rows.shape[1]}: of another network")
        parts = iter(part.reshape(-1, *shape) for part, shape in zip(rows.split(sizes, 1), shapes, strict=True))
        stem = {node: next(parts) if isinstance(shape, tuple) else shape for node, shape in self.stem.items()}
        return Stem(stem), State({name: next(parts) for name in self.state}, 1)
