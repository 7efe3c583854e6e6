"""The part of a frozen backbone that training need not run again: what lies before the narrowest place of the stem.

No feedback reaches the stem of an `LRM`, so its values do not change while feedback is trained. They are large, though.
Somewhere in the stem a single small map holds everything that comes later. This map is what a training keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, fx

from lrm_core.graph import run_node
from lrm_core.model import LRM, Stem


@dataclass(frozen=True)
class Waist:
    """The narrowest place of a model's stem.

    Attributes:
        node: the step whose value is kept.
        shape: of this value for one image.
    """

    model: LRM
    node: fx.Node
    shape: tuple[int, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, model: LRM, height: int, width: int) -> Waist:
        """The narrowest place for images of `height` × `width` pixels.

        Raises:
            ValueError: no single value of the stem holds what comes later.
        """
        device = next(model.parameters()).device
        values = model.graph.inputs(torch.zeros(1, 3, height, width, device=device))
        steps, kept = model.stem_nodes, set(model.kept_nodes)
        later = {node: index for index, node in enumerate(steps)}
        starts = tuple(values)  # the images
        ends = {
            node: max((later.get(user, len(steps)) for user in node.users), default=-1) for node in (*starts, *steps)
        }
        ends |= {node: len(steps) for node in kept}
        found: list[tuple[int, fx.Node, tuple[int, ...]]] = []
        for index, node in enumerate(steps):
            values[node] = run_node(node, model.backbone, values)
            alive = [one for one in (*starts, *steps[: index + 1]) if ends[one] > index]
            value = values[node]
            if alive == [node] and isinstance(value, Tensor) and len(value) == 1:
                found.append((prod(value.shape), node, tuple(value.shape[1:])))
        if not found:
            raise ValueError("model: got a stem of which no single value holds what comes later")
        _, node, shape = min(found, key=lambda entry: entry[0])
        return cls(model, node, shape)

    @torch.no_grad()
    def keep(self, images: Float[Tensor, "b 3 h w"]) -> Tensor:
        """What is kept of normalised images, (b, …)."""
        values = self.model.graph.inputs(images)
        for node in self.model.stem_nodes:
            values[node] = run_node(node, self.model.backbone, values)
            if node is self.node:
                break
            for used in self.model.stem_release.get(node, ()):
                del values[used]
        return values[self.node]

    @torch.no_grad()
    def stem(self, kept: Tensor) -> Stem:
        """The stem of the images of which that was kept."""
        values = {self.node: kept}
        steps = self.model.stem_nodes
        for node in steps[steps.index(self.node) + 1 :]:
            values[node] = run_node(node, self.model.backbone, values)
        return Stem({node: values[node] for node in self.model.kept_nodes})
