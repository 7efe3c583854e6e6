"""What a search gives: hits, how they are ranked, and the direction in which the first stage looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from steering.cutoff import NOTE
from steering.evidence import Answer
from steering.goals import Goal
from steering.network import Network
from steering.search.candidates import Candidate
from steering.search.files import to_path
from steering.search.looks import Looks
from steering.search.odds import Prevalence, corrected
from steering.seek import Verdicts, answer, is_unknown


@dataclass(frozen=True)
class Hit:
    """One image that a search gave.

    `evidence` is None where there was no look. `alone`, `verdict` and `probability` are also None where the model has
    no calibrated verdict.

    Attributes:
        path: its file, or its name if it has none.
        rank: place among the hits, from 1 on.
        score: the first stage's score: cosine of the image's class evidence and the goal, 0 to 1. For a complement
            ("- a cat") it is the negative of the cosine with what is unwanted.
        width, height: of the image, upright.
        sees: likeliest class before any goal.
        looked_at: whether the second stage looked at it.
        evidence: change of the support for the goal by steering, in nats.
        alone: how likely it shows the goal, as if it were the only image.
        verdict: what `alone` means: `present`, `absent` or `unsure`. Where the network has no eyes for the words, it is
            `unknown`, and `alone` and `probability` are None.
        probability: how likely it shows the goal, given all that was seen of the gallery.
        copies: paths of images that are the same to the eye and were folded into this hit.
        gone: whether its file is not there now.
    """

    path: str
    rank: int
    score: float
    width: int
    height: int
    sees: str
    looked_at: bool = False
    evidence: float | None = None
    alone: float | None = None
    verdict: Answer | None = None
    probability: float | None = None
    copies: tuple[str, ...] = ()
    gone: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {k: round(v, 4) if isinstance(v, float) else v for k, v in self.__dict__.items()}
        return {**values, "copies": list(self.copies)}


class Hits(list[Hit]):
    """Hits, the best first, and what they answer.

    Attributes:
        goal: what was looked for.
        images: number of images of the gallery that the filter lets through.
        looked_at: how many of them were looked at.
        prevalence: estimated share of these images that show the goal, with an interval; None without a calibrated
            verdict, and where the answer is `unknown`.
        seconds: how long the search took.
        is_unknown: whether the network has no eyes for the goal.
        is_calibrated: False where the probabilities are guesses; see `steering.cutoff`.
    """

    def __init__(
        self,
        hits: Sequence[Hit],
        goal: Goal,
        images: int,
        looked_at: int,
        prevalence: Prevalence | None,
        seconds: float,
        is_unknown: bool = False,
        *,
        is_calibrated: bool = True,
    ) -> None:
        super().__init__(hits)
        self.goal, self.images, self.looked_at = goal, images, looked_at
        self.prevalence, self.seconds = prevalence, seconds
        self.is_unknown, self.is_calibrated = is_unknown, is_calibrated

    @property
    def query(self) -> str:
        """What was looked for, as given."""
        return self.goal.name

    @property
    def present(self) -> list[Hit]:
        """The hits that show the goal if each is judged alone."""
        return [hit for hit in self if hit.verdict == "present"]

    @property
    def expected(self) -> float:
        """How many of `present` are expected to show the goal, given all that was seen of the gallery."""
        return float(sum(hit.probability or 0.0 for hit in self.present))

    @property
    def answer(self) -> Answer | None:
        """Whether the gallery shows the goal: `present`, `absent`, `unsure` or `unknown`. None without a verdict.

        `present` means that some of the hits show it. `unknown` means that the network has no eyes for the words. No
        hits are given then, unless they were asked for.
        """
        if self.is_unknown:
            return "unknown"
        return None if self.prevalence is None else self.prevalence.answer

    @property
    def notes(self) -> list[str]:
        """What must be known of the query: what is not looked at, why it is unfamiliar, and what is a guess."""
        guessed = [] if self.is_calibrated else [NOTE]
        return [*self.goal.notes, *([self.goal.unfamiliar] if self.goal.unfamiliar else []), *guessed]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        prevalence = self.prevalence
        return {
            "query": self.query,
            "answer": self.answer,
            "calibrated": self.is_calibrated,
            "images": self.images,
            "looked_at": self.looked_at,
            "prevalence": None if prevalence is None else prevalence.as_dict(),
            "present": len(self.present),
            "expected": round(self.expected, 2),
            "notes": self.notes,
            "nearest": list(self.goal.nearest),
            "seconds": round(self.seconds, 4),
            "hits": [hit.as_dict() for hit in self],
        }


def direction(network: Network, goal: Goal) -> np.ndarray:
    """What the first stage compares images with, (M,) float32; see `Network.direction`.

    For a goal with terms, the combined goal takes away what should not be there. For a complement ("- a cat") the
    direction is turned round, so that the images least like a cat lead.
    """
    towards = network.direction(goal.vector)
    return -towards if goal.is_complement else towards


def ranked(
    candidates: Sequence[Candidate], looks: Looks, prevalence: Prevalence | None, verdicts: Verdicts, goal: Goal
) -> list[Hit]:
    """Candidates as hits, the likeliest first. Images that could not be looked at come last. Ranks are not set.

    Where the network has no eyes for the goal, the order is that of the probabilities all the same; no hit tells them.
    """
    alone = looks.alone
    chances = None if alone is None else (alone if prevalence is None else corrected(alone, prevalence))
    support = -looks.support if goal.is_complement else looks.support
    order = np.lexsort((-support, -(np.zeros(len(candidates)) if alone is None else alone), ~looks.seen))
    hits, unknown = [], is_unknown(verdicts, goal)
    for row in order.tolist():
        hit = unseen(candidates[row])
        if looks.seen[row]:
            hit = replace(hit, looked_at=True, evidence=float(looks.evidence[row]))
            if unknown:
                hit = replace(hit, verdict="unknown")
            elif chances is not None and alone is not None:
                chance = float(alone[row])
                verdict = answer(verdicts, goal, chance)
                hit = replace(hit, probability=float(chances[row]), alone=chance, verdict=verdict)
        hits.append(hit)
    return hits


def unseen(candidate: Candidate) -> Hit:
    """A hit by the first stage alone. Its rank is not set."""
    row = candidate.row
    about = {key: row[key] for key in ("width", "height", "sees", "score")}
    copies = tuple(map(to_path, candidate.copies))
    return Hit(path=to_path(row["path"]), rank=0, copies=copies, **about)
