"""What is asked of labelled photographs to fit the verdict of a CLIP, and what the passes say.

Each photograph is a scene, and so are composites of several. Of each scene something that it shows is asked for, and
something that it does not show. Half of the latter is drawn at random, and half are near misses: what the first pass
takes for likeliest.

Unusual: the photographs are dealt into folds, and a composite shows those of one fold. So one fold tells what a verdict
that was fitted on the others is worth. Words that mean nearly the same as what is shown are not asked for as absent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from lrm_core.scenes import KINDS, NUM_OBJECTS
from lrm_core.trials import Triplets, build, draw, near_misses
from prior.identity import IdentityPrior
from steering.joint import Bank, JointNetwork
from steering.network import Glance
from steering.rollouts import batch_of, inputs_of

STRENGTHS = (0.0, 0.05, 0.1, 0.2, 0.4)
PASSES = 2
FOLDS = 5  # the first one is held out
COMPOSITES, LEAST_COMPOSITES = 0.25, 10  # of each kind in each fold: as a share of its images, and at least
NEAR = 0.5  # share of the absent goals that are near misses


@dataclass(frozen=True)
class Shown:
    """The photographs that are looked at, in memory.

    Attributes:
        pixels: (n, 3, s, s), as the network sees them.
        labels: (n,), the row of each one's text.
        folds: (n,).
        unread: why others could not be read, by their names.
    """

    pixels: Tensor
    labels: Tensor
    folds: Tensor
    unread: Mapping[str, str]


@dataclass(frozen=True)
class Examples:
    """What was asked of scenes, and what the passes said.

    Attributes:
        values: (n, f) features, by the source of goals and the strength.
        answers: (n,), 1 where the goal is present, else 0.
        fold: (n,), the fifth of the images that the scene was made of.
        is_single: (n,), whether the scene is an image by itself.
        is_near: (n,), whether the goal is a near miss, or the one that is there beside it.
    """

    values: Mapping[tuple[str, float], Tensor]
    answers: Tensor
    fold: Tensor
    is_single: Tensor
    is_near: Tensor

    def of(self, rows: Tensor) -> Examples:
        """Some of the examples."""
        values = {key: value[rows] for key, value in self.values.items()}
        return Examples(values, *(part[rows] for part in (self.answers, self.fold, self.is_single, self.is_near)))


def deal(labels: Int[Tensor, " n"], generator: torch.Generator) -> Int[Tensor, " n"]:
    """The fold of each image. The images of a name are dealt out evenly."""
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    folds = torch.empty_like(labels)
    folds[order] = torch.arange(len(labels)) % FOLDS
    return folds


class Questions:
    """What is asked of scenes: for each a goal that is there, and one that is not.

    Args:
        goals: (t, m), goals of all texts, by the source.
    """

    def __init__(self, network: JointNetwork, goals: Mapping[str, Tensor], generator: torch.Generator) -> None:
        self.network, self.goals, self.generator = network, goals, generator
        texts = F.normalize(goals[IdentityPrior.source], dim=-1)
        self.texts = texts
        self.alike: Bool[Tensor, "t t"] = Bank((), texts, network.bank.centre).alike(texts)
        self.values: dict[tuple[str, float], list[Tensor]] = {}
        self.told: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    @torch.no_grad()
    def ask(self, shown: Shown, seed: int, quiet: bool) -> Examples:
        """Look at all images and at composites of them.

        Raises:
            ValueError: all texts mean the same to the model, so that none is absent.
        """
        size = batch_of(self.network, shown.pixels[:1].float())
        batches = list(self._batches(shown, seed, size))
        for fold, triplets in bar(batches, len(batches), "looking", quiet):
            rows, within = triplets.images.unique(return_inverse=True)
            own = dataclasses.replace(triplets, images=within)
            trials = build(own, shown.pixels[rows].float() / 255, shown.labels[rows])
            glance = self.network.glance(inputs_of(self.network, trials.scenes.pixels))
            self._look(glance, trials.scenes.labels, triplets, fold)
        parts = [torch.cat(part) for part in zip(*self.told, strict=True)]
        if len(parts[1].unique()) < FOLDS:
            raise ValueError(
                f"folder: got {len(self.texts)} names or captions that mean nearly the same to this model, expected "
                "some that do not"
            )
        return Examples({key: torch.cat(each) for key, each in self.values.items()}, *parts)

    def _batches(self, shown: Shown, seed: int, size: int) -> Iterator[tuple[int, Triplets]]:
        """Every image by itself, and composites of each kind that a fold has images for."""
        count = len(self.texts)
        for fold in range(FOLDS):
            rows = torch.nonzero(shown.folds == fold)[:, 0]
            labels = shown.labels[rows]
            for number, kind in enumerate(KINDS):
                if len(labels.unique()) < NUM_OBJECTS[kind] or count <= NUM_OBJECTS[kind]:
                    continue
                scenes = len(rows) if kind == "single" else max(LEAST_COMPOSITES, round(COMPOSITES * len(rows)))
                found = draw(kind, labels, count, scenes, seed + FOLDS * number + fold)
                if kind == "single":  # each once
                    scores = torch.rand(scenes, count, generator=self.generator).scatter(1, labels[:, None], -1.0)
                    found = Triplets(kind, torch.arange(scenes)[:, None], None, labels, scores.argmax(1))
                found = dataclasses.replace(found, images=rows[found.images])
                for start in range(0, scenes, size):
                    yield fold, found[start : start + size]

    def _look(self, glance: Glance, labels: Int[Tensor, "b k"], triplets: Triplets, fold: int) -> None:
        assert glance.embedding is not None
        device = glance.output.device
        same = self.alike[labels.to(device)].any(1).scatter(1, labels.to(device), True)  # (b, t), may not be absent
        likeness = F.normalize(glance.embedding, dim=-1) @ self.texts.T
        near = near_misses(likeness.masked_fill(same, -torch.inf), labels, self.generator).to(device)
        is_near = torch.rand(len(labels), generator=self.generator) < NEAR
        absent = torch.where(is_near.to(device), near, triplets.absent.to(device))
        kept = torch.nonzero(~same.gather(1, absent[:, None])[:, 0])[:, 0]
        for present, texts in ((True, triplets.present.to(device)), (False, absent)):
            count = len(kept)
            self.told.append(
                (
                    torch.full((count,), float(present)),
                    torch.full((count,), fold),
                    torch.full((count,), triplets.kind == "single"),
                    is_near[kept.cpu()],
                )
            )
            for source, goals in self.goals.items():
                wanted = goals[texts]
                familiarity = wanted.new_ones(len(wanted))
                for strength in STRENGTHS:
                    after = (
                        glance
                        if strength == 0
                        else self.network.steer(glance, wanted, strength=strength, passes=PASSES)
                    )
                    values = self.network.features(glance, after, wanted, familiarity)
                    self.values.setdefault((source, strength), []).append(values[kept].cpu())


def bar(items: Any, count: int, what: str, quiet: bool) -> Any:
    """The items, with a bar on a terminal."""
    from tqdm import tqdm

    return tqdm(items, total=count, desc=what, dynamic_ncols=True, disable=True if quiet else None)
