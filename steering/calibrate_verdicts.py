"""Examples that verdicts are fitted on, for every way of making goals, and the fit.

Half of the absent goals are near misses. Users ask "is it a dog?" of a photograph of a cat, and a verdict that was
fitted on goals at random would say yes too often. A network that sees photographs in their own aspect is also shown
such photographs, whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lrm_core.pictures import PictureConfig, Pictures, select
from lrm_core.scenes import Scenes
from lrm_core.trials import Trials, near_misses
from prior.captions import Vocabulary, with_article
from steering.evidence import TWIN, Verdict, expand, features
from steering.images import framed
from steering.network import Network
from steering.rollouts import run_steered, run_unsteered
from steering.steerer import Steerer


@dataclass(frozen=True)
class Shown:
    """Trials, and the rows (b, k) of the pictures that their scenes show."""

    trials: Trials
    rows: Tensor


MakeGoals = Callable[[Shown, Tensor, bool], tuple[Tensor, Tensor]]
"""(what is shown, classes (b,), whether they are present) → goals (b, m) and their familiarity (b,)."""


def word_goals(
    steerer: Steerer,
    vocabulary: Vocabulary,
    unknown: Sequence[str],
    share_unknown: float,
    seed: int,
    *,
    hypernyms: bool,
) -> MakeGoals:
    """Goals by words: class names, or hypernyms. Absent goals may also be nouns outside the vocabulary.

    A hypernym of an absent class covers none of the objects in the scene, and at most a third of all classes. A class
    without such a hypernym has its name as its goal.
    """
    generator = torch.Generator().manual_seed(seed)
    most = len(vocabulary.names) / 3 if hypernyms else 0
    groups = [(noun, set(labels)) for noun, labels in vocabulary.groups.items() if 2 <= len(labels) <= most]

    def make(shown: Shown, classes: Tensor, is_present: bool) -> tuple[Tensor, Tensor]:
        queries = []
        for label, inside in zip(classes.tolist(), map(set, shown.trials.scenes.labels.tolist()), strict=True):
            coin = float(torch.rand((), generator=generator))
            fitting = [n for n, ls in groups if label in ls and (is_present or not ls & inside)]
            pick = int(torch.randint(0, 1_000_000, (), generator=generator))
            if not is_present and unknown and coin < share_unknown:
                queries.append(unknown[pick % len(unknown)])
            elif fitting:
                queries.append(fitting[pick % len(fitting)])
            else:
                queries.append(steerer.class_names[label])
        distinct = sorted(set(queries))
        index = torch.tensor([distinct.index(query) for query in queries])
        batches = [[with_article(q) for q in distinct[i : i + 200]] for i in range(0, len(distinct), 200)]
        goals = [goal for batch in batches for goal in steerer.goals(batch)]
        vectors = torch.stack([goal.vector for goal in goals])
        return vectors[index], vectors.new_tensor([goal.familiarity for goal in goals])[index]

    return make


def wordless_goals(goals: Callable[[Tensor], Tensor]) -> MakeGoals:
    """Goals that need no words. `goals` maps class indices (b,) to goal vectors (b, m)."""

    def make(shown: Shown, classes: Tensor, is_present: bool) -> tuple[Tensor, Tensor]:
        vectors = goals(classes)
        return vectors, vectors.new_ones(len(vectors))

    return make


def image_goals(steerer: Steerer, pictures: Pictures, seed: int) -> MakeGoals:
    """The network's unsteered outputs for another picture of each class, never one that the scene shows.

    Where a class has no other picture, its prototype stands for it, or else the scene's own picture.
    """
    pixels, labels = (torch.cat(parts) for parts in zip(*pictures.sets, strict=True))
    outputs = torch.cat([run_unsteered(steerer.network, part.float() / 255).last for part in pixels.split(500)])
    members = [torch.nonzero(labels == label)[:, 0].tolist() for label in range(len(steerer.class_names))]
    generator = torch.Generator().manual_seed(seed)

    def make(shown: Shown, classes: Tensor, is_present: bool) -> tuple[Tensor, Tensor]:
        vectors = []
        for label, rows in zip(classes.tolist(), shown.rows.tolist(), strict=True):
            others = [row for row in members[label] if row not in rows]
            if others:
                vectors.append(outputs[others[int(torch.randint(0, len(others), (), generator=generator))]])
            elif steerer.prototypes is not None:
                vectors.append(steerer.prototype_goal(steerer.class_names[label]).vector.to(outputs))
            else:
                vectors.append(outputs[members[label][0]])
        return torch.stack(vectors), outputs.new_ones(len(vectors))

    return make


@dataclass
class Examples:
    """What verdicts are fitted on: features, features as if steering changed nothing, and answers, for each way.

    Attributes:
        ways: for each way, one or more kinds of goals. Every scene is asked for a goal of each kind.
        near: share of the absent goals that are near misses.
        twin: a network that learned the same scenes without goals. It looks as well, for the first way, as a control.
    """

    network: Network
    ways: Mapping[str, Sequence[MakeGoals]]
    near: float
    generator: torch.Generator
    twin: Network | None = None
    rows: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = field(default_factory=dict)

    def add(self, shown: Shown) -> None:
        """Look at what is shown, for a present and for an absent goal of every way."""
        trials = shown.trials
        unsteered = run_unsteered(self.network, trials.scenes.pixels)
        first = unsteered.seen
        near = near_misses(unsteered.first, trials.scenes.labels, self.generator)
        is_near = (torch.rand(len(near), generator=self.generator) < self.near).to(near.device)
        absent = torch.where(is_near, near, trials.absent.to(near)).cpu()
        before_twin = None if self.twin is None else run_unsteered(self.twin, trials.scenes.pixels)
        asked = [(True, trials.present), (False, absent)]
        for way, make, (is_present, classes) in (
            (way, make, answer) for way, kinds in self.ways.items() for make in kinds for answer in asked
        ):
            goals, familiarity = make(shown, classes, is_present)
            after = run_steered(self.network, unsteered, goals)
            values, without = (features(first, seen, goals, familiarity).cpu() for seen in (after, first))
            answers = torch.full((len(values),), float(is_present))
            self.rows.setdefault(way, []).append((values, without, answers))
            if self.twin is not None and before_twin is not None and way == next(iter(self.ways)):
                after = run_steered(self.twin, before_twin, goals)
                values = features(first, after, goals, familiarity).cpu()
                self.rows.setdefault(f"{way}{TWIN}", []).append((values, values, answers))

    def of(self, way: str) -> tuple[Float[Tensor, "n f"], Float[Tensor, "n f"], Float[Tensor, " n"]]:
        """All that was added, for one way of making goals."""
        values, without, answers = (torch.cat(part) for part in zip(*self.rows[way], strict=True))
        return values, without, answers


def photographs(network: Network, configs: Sequence[PictureConfig], pictures: Pictures) -> Iterator[Shown]:
    """The photographs themselves, whole and in their own aspect, in groups of one shape.

    There are none for a network that squashes what it sees to a square.
    """
    if not network.preprocessing.keeps_aspect:
        return
    generator = torch.Generator().manual_seed(0)
    first = 0
    groups: dict[tuple[int, int], list[tuple[np.ndarray, int, int]]] = {}
    for config, (_, labels) in zip(configs, pictures.sets, strict=True):
        data = select(config, network.card["classes"])[0]
        for row, (entry, label) in enumerate(zip(data, labels.tolist(), strict=True), start=first):
            seen = np.asarray(framed(entry["image"], network.preprocessing.frame))
            groups.setdefault(seen.shape[:2], []).append((seen, label, row))
        first += len(labels)
    for members in groups.values():
        pixels = torch.from_numpy(np.stack([seen for seen, _, _ in members])).permute(0, 3, 1, 2).float() / 255
        labels, rows = (torch.tensor([[member[part]] for member in members]) for part in (1, 2))
        scores = torch.rand(len(members), len(network.class_names), generator=generator).scatter(1, labels, -1.0)
        boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(len(members), 1, 1)
        yield Shown(Trials(Scenes("photograph", pixels, labels, boxes), labels[:, 0], scores.argmax(1)), rows)


def fit_verdict(
    values: Float[Tensor, "n f"], answers: Float[Tensor, " n"], ridge: float, *, products: bool = True
) -> Verdict:
    """Ridge-penalised logistic regression (scikit-learn) on the expanded features.

    Args:
        products: whether products of features are read; otherwise their weights are 0.
    """
    from sklearn.linear_model import LogisticRegression

    mean, std = values.mean(0), values.std(0).clamp(min=1e-6)
    design = expand((values - mean) / std)
    read = design.shape[1] if products else 1 + values.shape[1]
    fitted = LogisticRegression(C=1 / (ridge * len(answers)), fit_intercept=False, max_iter=2000).fit(
        design[:, :read].numpy(), answers.numpy()
    )
    weights = [*fitted.coef_[0].tolist(), *[0.0] * (design.shape[1] - read)]
    return Verdict(tuple(mean.tolist()), tuple(std.tolist()), tuple(weights))
