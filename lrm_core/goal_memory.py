"""Goals for training, made from the network's own outputs for a class or for a group of classes ("a dog").

A memory keeps a few recent unsteered outputs of every class. A goal is the mean of the outputs of a class, one of them,
or the mean over a group. So the network learns to look for outputs like those that a language prior produces later.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lrm_base.checks import whole_number


class GoalMemory(nn.Module):
    """The last `depth` unsteered outputs of every class: (classes, depth, classes), a buffer that checkpoints save."""

    outputs: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, depth: int = 24) -> None:
        super().__init__()
        num_classes, depth = whole_number("num_classes", num_classes, 1), whole_number("depth", depth, 1)
        self.depth = depth
        self.register_buffer("outputs", torch.zeros(num_classes, depth, num_classes))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.long))

    @torch.no_grad()
    def add(self, outputs: Float[Tensor, "b m"], labels: Int[Tensor, " b"]) -> None:
        """Remember outputs. The oldest output of a class is replaced first."""
        for output, label in zip(outputs.float(), labels.tolist(), strict=True):
            self.outputs[label, self.counts[label] % self.depth] = output
            self.counts[label] += 1

    @property
    def ready(self) -> bool:
        """Whether every class has `depth` outputs."""
        return bool((self.counts >= self.depth).all())

    def prototypes(self) -> Float[Tensor, "m m"]:
        """The mean output of every class: row = class."""
        return self.outputs.sum(1) / self.counts.clamp(1, self.depth)[:, None]

    def draw(
        self,
        members: Float[Tensor, "b m"],
        generator: torch.Generator,
        *,
        single_output: float = 0.25,
    ) -> Float[Tensor, "b m"]:
        """One goal for each row of a 0/1 matrix of classes: the mean over the classes of the row.

        With probability `single_output` a goal uses one remembered output of each class instead of its mean.
        """
        entries = torch.randint(0, self.depth, (len(self.counts),), generator=generator).to(self.outputs.device)
        one = self.outputs[torch.arange(len(self.counts), device=self.outputs.device), entries]
        weights = members / members.sum(1, keepdim=True)
        coin = (torch.rand(len(members), 1, generator=generator) < single_output).to(self.outputs.device)
        return torch.where(coin, weights @ one, weights @ self.prototypes())
