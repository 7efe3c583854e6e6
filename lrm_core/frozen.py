"""The part of a frozen backbone that training need not run again: what lies before the narrowest place of the stem.

No feedback reaches the stem of an `LRM`, so its values do not change while feedback is trained. They are large, though.
Somewhere in the stem a single small map holds everything that comes later. This map is what a training keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx

from lrm_core.graph import run_node
from lrm_core.model import LRM, Stem


@dataclass(frozen=True)
class Waist:
    """The narrowest place of a model's stem.

    Attributes:
        name: of the step of the graph whose value is kept.
        shape: of this value for one image.
    """

    model: LRM
    name: str
    shape: tuple[int, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, model: LRM, height: int, width: int) -> Waist:
        """The narrowest place for images of `height` × `width` pixels.

        Raises:
            ValueError: no single value of the stem holds what comes later.
        """
        device = next(model.parameters()).device
        way = model.traced()
        start, steps, kept = way.graph.images, way.stem_nodes, set(way.places.values())
        values: dict[fx.Node, Any] = {start: torch.zeros(1, 3, height, width, device=device)}
        later = {node: index for index, node in enumerate(steps)}
        made = (start, *(node for node in steps if node.op != "get_attr"))  # parameters are there anyway
        ends = {node: max((later.get(user, len(steps)) for user in node.users), default=-1) for node in made}
        ends |= {node: len(steps) for node in kept}
        found: list[tuple[int, str, tuple[int, ...]]] = []
        for index, node in enumerate(steps):
            values[node] = run_node(node, way.graph, model.backbone, values)
            alive = [one for one in made if ends[one] > index and later.get(one, -1) <= index]
            value = values[node]
            if alive == [node] and isinstance(value, Tensor) and len(value) == 1:
                found.append((prod(value.shape), node.name, tuple(value.shape[1:])))
        if not found:
            raise ValueError("model: got a stem of which no single value holds what comes later")
        _, name, shape = min(found, key=lambda entry: entry[0])
        return cls(model, name, shape)

    @torch.no_grad()
    def keep(self, images: Float[Tensor, "b 3 h w"]) -> Tensor:
        """What is kept of normalised images, (b, …)."""
        return self.model.traced().until(self.model.backbone, images, self.name)

    @torch.no_grad()
    def stem(self, kept: Tensor) -> Stem:
        """The stem of the images of which that was kept."""
        return self.model.traced().since(self.model.backbone, kept, self.name)
