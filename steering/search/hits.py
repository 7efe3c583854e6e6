"""What a search gives: hits, how they are ranked, and the direction in which the first stage looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from steering.evidence import Answer
from steering.goals import Goal
from steering.search.files import to_path
from steering.search.looks import Looks
from steering.search.odds import corrected
from steering.seek import Verdicts, answer


@dataclass(frozen=True)
class Hit:
    """One image that a search gave.

    The last four attributes are None where there was no look. The last three are also None where the model has no
    calibrated verdict.

    Attributes:
        path: its file, or its name if it has none.
        rank: place among the hits, from 1 on.
        score: the first stage's score: cosine of the image's class evidence and the goal, 0 to 1.
        width, height: of the image, upright.
        sees: likeliest class before any goal.
        looked_at: whether the second stage looked at it.
        evidence: change of the support for the goal by steering, in nats.
        probability: how likely it shows the goal, given how many images were looked at.
        alone: the same, as if it were the only image.
        verdict: what `probability` means: `present`, `absent` or `unsure`.
    """

    path: str
    rank: int
    score: float
    width: int
    height: int
    sees: str
    looked_at: bool = False
    evidence: float | None = None
    probability: float | None = None
    alone: float | None = None
    verdict: Answer | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in self.__dict__.items()}


class Hits(list[Hit]):
    """Hits, the best first, and what they answer.

    Attributes:
        query: what was looked for, as given.
        images: number of images of the gallery that the filter lets through.
        looked_at: how many of them were looked at.
        frequency: estimated share of these images that show the goal; None without a calibrated verdict.
        seconds: how long the search took.
    """

    def __init__(
        self, hits: Sequence[Hit], query: str, images: int, looked_at: int, share: float | None, seconds: float
    ) -> None:
        super().__init__(hits)
        self.query, self.images, self.looked_at, self.frequency, self.seconds = query, images, looked_at, share, seconds

    @property
    def present(self) -> list[Hit]:
        """The hits that are said to show the goal."""
        return [hit for hit in self if hit.verdict == "present"]


def direction(goal: Goal) -> np.ndarray:
    """What the first stage compares images with: the goal's class probabilities q at length 1; (M,) float32.

    Its cosine with the square root of an image's class evidence p is Σ q_c √p_c / |q|. For a goal of one class, this
    ranks images by the probability of that class. For a goal with terms, the combined goal takes away what should not
    be there.
    """
    chances = goal.vector.float().softmax(-1).cpu().numpy()
    return chances / np.linalg.norm(chances)


def ranked(
    rows: Sequence[dict[str, Any]], looks: Looks, share: float | None, verdicts: Verdicts, goal: Goal
) -> list[Hit]:
    """Candidates as hits, the likeliest first. Images that could not be looked at come last. Ranks are not set."""
    alone = looks.alone
    chances = None if alone is None else (alone if share is None else corrected(alone, share))
    order = np.lexsort((-looks.support, -(np.zeros(len(rows)) if alone is None else alone), ~looks.seen))
    hits = []
    for row in order.tolist():
        hit = unseen(rows[row])
        if looks.seen[row]:
            hit = replace(hit, looked_at=True, evidence=float(looks.evidence[row]))
            if chances is not None and alone is not None:
                chance = float(chances[row])
                verdict = answer(verdicts, goal, chance)
                hit = replace(hit, probability=chance, alone=float(alone[row]), verdict=verdict)
        hits.append(hit)
    return hits


def unseen(row: dict[str, Any]) -> Hit:
    """A hit by the first stage alone. Its rank is not set."""
    about = {key: row[key] for key in ("width", "height", "sees", "score")}
    return Hit(path=to_path(row["path"]), rank=0, **about)
