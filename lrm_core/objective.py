"""The two losses of the backbone's training: seeing and looking.

Seeing is the cross-entropy averaged over the passes (Konkle & Alvarez 2023). Looking uses composite scenes and single
images with a goal. The target is the class of a present goal, or the classes in the scene if the goal is absent.

Unusual: inside the loss the goal's logits are raised by a margin (logit adjustment, Menon et al., ICLR 2021). At test
time there is no margin, so a goal needs that much more evidence to win. The margin falls with the strength: a small
strength makes the network cautious, a large strength makes it eager.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lrm_base.config import Config
from lrm_core.backbones import Preprocessing
from lrm_core.goal_memory import GoalMemory
from lrm_core.model import LRM, Steer
from lrm_core.scenes import presence, random_scenes


class GoalConfig(Config):
    """The goal-directed part of a stage.

    Attributes:
        share: share of the batch that is steered, 0–1.
        kinds: weight of each kind of scene.
        absent: probability that the goal is not in the scene.
        hard: probability that an absent goal is one that the first pass ranks high. With such goals the network learns
            better to tell a class from similar ones, but worse to tell it from all others; see results/LOG.md.
        group: probability that a goal is a hypernym ("a dog") instead of one class.
        strength: range of the strength, drawn uniformly.
        margin: nats added to the goal's logits in the loss, at strength 1.
        margin_slope: change of the margin when the strength grows by 1.
    """

    share: float = 0.75
    kinds: dict[str, float] = {"single": 0.2, "blend": 0.25, "side": 0.2, "inset": 0.15, "grid": 0.2}
    absent: float = 0.7
    hard: float = 0.0
    group: float = 0.2
    strength: tuple[float, float] = (0.5, 1.5)
    margin: float = 1.5
    margin_slope: float = -1.0


class Objective(nn.Module):
    """The model and its losses as one module, so that a data-parallel wrapper can wrap a single forward."""

    groups: Tensor

    def __init__(
        self,
        model: LRM,
        preprocessing: Preprocessing,
        output: str,
        num_classes: int,
        groups: Float[Tensor, "g m"],
        label_smoothing: float,
    ) -> None:
        super().__init__()
        self.model, self.preprocessing, self.output = model, preprocessing, output
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.memory = GoalMemory(num_classes)
        self.register_buffer("groups", groups, persistent=False)

    def forward(
        self,
        pixels: Float[Tensor, "b 3 s s"],
        labels: Int[Tensor, " b"],
        passes: int,
        goals: GoalConfig | None,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, values to log). Pixels in 0–1. The generator is on the CPU and decides the scenes and goals."""
        num_steered = 0 if goals is None or not self.memory.ready else int(len(pixels) * goals.share)
        seen = slice(num_steered, None)
        outputs = self.model.rollout(self._prepare(pixels[seen]), passes)
        losses = [F.cross_entropy(o.float(), labels[seen], label_smoothing=self.label_smoothing) for o in outputs]
        loss = torch.stack(losses).mean()
        log = {"loss/seeing": loss.detach()}
        if goals is not None:
            self.memory.add(outputs[-1].detach(), labels[seen])
        if num_steered and goals is not None:
            looking, extra = self._looking(pixels, labels, num_steered, passes, goals, generator)
            log |= extra
            loss = (1 - goals.share) * loss + goals.share * looking
        return loss, log

    def _prepare(self, pixels: Tensor) -> Tensor:
        return self.preprocessing.normalise(pixels).contiguous(memory_format=torch.channels_last)

    def _looking(
        self,
        pixels: Tensor,
        labels: Tensor,
        count: int,
        passes: int,
        goals: GoalConfig,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        kinds = list(goals.kinds)
        weights = torch.tensor([goals.kinds[kind] for kind in kinds])
        drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
        numbers = torch.bincount(drawn, minlength=len(kinds)).tolist()
        scenes = [
            random_scenes(kind, number, pixels, labels, generator)
            for kind, number in zip(kinds, numbers, strict=True)
            if number
        ]
        present = torch.cat([presence(scene.labels, self.num_classes) for scene in scenes])  # (b, m)
        stem = self.model.stem(self._prepare(torch.cat([scene.pixels for scene in scenes])))
        # The first pass has no loss here. It only gives the state and the ranks for confusable goals.
        with torch.no_grad():
            first, state = self.model.step(stem)
        members, is_there = self._choose(present, first.float(), goals, generator)
        low, high = goals.strength
        strength = low + (high - low) * float(torch.rand((), generator=generator))
        steer = Steer(self.output, self.memory.draw(members, generator), strength)
        target = torch.where(is_there[:, None], present * members, present)
        target = target / target.sum(1, keepdim=True)
        margin = max(0.0, goals.margin + goals.margin_slope * (strength - 1)) * members
        losses, output = [], first
        for _ in range(passes - 1):
            output, state = self.model.step(stem, state, [steer])
            losses.append(F.cross_entropy(output.float() + margin, target))
        hits = (members.gather(1, output.argmax(1, keepdim=True)) > 0)[:, 0].float()
        loss = torch.stack(losses).mean()
        return loss, {
            "loss/looking": loss.detach(),
            "train/present": (hits * is_there).sum() / is_there.sum().clamp(min=1),
            "train/absent": (hits * ~is_there).sum() / (~is_there).sum().clamp(min=1),
        }

    def _choose(
        self, present: Tensor, first: Tensor, goals: GoalConfig, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The classes of each goal, (b, m) of 0/1, and whether one of them is in the scene, (b,)."""
        device, count = present.device, len(present)

        def chance(probability: float) -> Tensor:
            return (torch.rand(count, generator=generator) < probability).to(device)

        noise = torch.rand(count, self.num_classes, generator=generator).to(device)
        is_there = ~chance(goals.absent)
        rank = first.masked_fill(present > 0, -torch.inf).argsort(1, descending=True).argsort(1)
        confusable = (rank < 10).float()
        candidates = torch.where(chance(goals.hard)[:, None], confusable, 1.0) * (1 - present)
        candidates = torch.where(is_there[:, None], present, candidates)
        chosen = F.one_hot((candidates * noise).argmax(1), self.num_classes).float()
        if len(self.groups) and goals.group:
            # A group can be a goal if it has the chosen class and, for an absent goal, no class of the scene.
            holds = chosen @ self.groups.T  # (b, g)
            clash = (present @ self.groups.T > 0) & ~is_there[:, None]
            usable = holds * ~clash
            pick = (usable * torch.rand(usable.shape, generator=generator).to(device)).argmax(1)
            use = chance(goals.group) & (usable.sum(1) > 0)
            chosen = torch.where(use[:, None], self.groups[pick], chosen)
        return chosen, is_there
