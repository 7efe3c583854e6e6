"""Goals for training: what the network's own output looks like for a class, or for a group of classes ("a dog").

A memory keeps a few recent unsteered outputs of every class. A goal is the mean of a class's memory, one of its
entries, or the mean over a group. So the network learns to look for outputs as a language prior later produces them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class GoalMemory(nn.Module):
    """The last `depth` unsteered outputs of every class: (classes, depth, classes), a buffer that checkpoints carry."""

    outputs: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, depth: int = 24) -> None:
        super().__init__()
        self.depth = depth
        self.register_buffer("outputs", torch.zeros(num_classes, depth, num_classes))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.long))

    @torch.no_grad()
    def add(self, outputs: Float[Tensor, "b m"], labels: Int[Tensor, " b"]) -> None:
        """Remember outputs, the oldest of a class giving way."""
        for output, label in zip(outputs.float(), labels.tolist(), strict=True):
            self.outputs[label, self.counts[label] % self.depth] = output
            self.counts[label] += 1

    @property
    def ready(self) -> bool:
        """Whether every class was seen often enough."""
        return bool((self.counts >= self.depth).all())

    def prototypes(self) -> Float[Tensor, "m m"]:
        """Mean output of every class: row = class."""
        return self.outputs.sum(1) / self.counts.clamp(1, self.depth)[:, None]

    def draw(
        self,
        members: Float[Tensor, "b m"],
        generator: torch.Generator,
        *,
        single_output: float = 0.25,
    ) -> Float[Tensor, "b m"]:
        """One goal for each row of a 0/1 membership matrix: the mean over its classes.

        With probability `single_output` a goal is built from one remembered output a class instead of its mean.
        """
        entries = torch.randint(0, self.depth, (len(self.counts),), generator=generator).to(self.outputs.device)
        one = self.outputs[torch.arange(len(self.counts), device=self.outputs.device), entries]
        weights = members / members.sum(1, keepdim=True)
        coin = (torch.rand(len(members), 1, generator=generator) < single_output).to(self.outputs.device)
        return torch.where(coin, weights @ one, weights @ self.prototypes())
