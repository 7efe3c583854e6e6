"""Look for a goal in images, and say how likely it is that the goal is there.

Unusual: a goal that was combined of several is judged term by term. Each term is looked for separately, and the
probabilities are multiplied as if the terms were independent: what is wanted is there, and what is unwanted is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lrm_core.feedback import Strength
from steering.evidence import Answer, Seen, Verdict
from steering.goals import Goal
from steering.network import Glance, Network

Verdicts = Mapping[str, Verdict]
"""A fitted verdict for each way of making goals, by `Goal.source`."""

TURNED: dict[Answer, Answer] = {"present": "absent", "absent": "present"}  # all others stay


@dataclass(frozen=True)
class Sought:
    """What looking for one goal gave, for each of b images.

    Attributes:
        after: the last steered pass.
        support: (b,), support of the goal after that pass, in nats.
        evidence: (b,), change of the support by steering, in nats.
        probability: (b,), calibrated probability that the goal is there. None where no verdict was calibrated for goals
            that were made in this way.
    """

    after: Seen
    support: Tensor
    evidence: Tensor
    probability: Tensor | None


@torch.no_grad()
def seek(
    network: Network,
    verdicts: Verdicts,
    glance: Glance,
    goal: Goal,
    *,
    strength: Strength | None = None,
    passes: int | None = None,
) -> Sought:
    """Look for one goal in every image of a glance. Raises like `Network.before_last`."""
    goals = goal.vector.to(network.device).expand(len(glance.output), -1)
    after = network.steer(glance, goals, strength=strength, passes=passes)
    supported = network.support(after, goals)
    chance = probability(network, verdicts, glance, goal, after, strength=strength, passes=passes)
    return Sought(after, supported, supported - network.support(glance, goals), chance)


@torch.no_grad()
def probability(
    network: Network,
    verdicts: Verdicts,
    glance: Glance,
    goal: Goal,
    after: Seen,
    *,
    strength: Strength | None = None,
    passes: int | None = None,
) -> Float[Tensor, " b"] | None:
    """Probability that a goal is in each image, given what the pass said that looked for it.

    A goal without terms needs no further pass. A goal with terms costs a pass for each. None where no verdict was
    calibrated.
    """
    count = len(glance.output)
    if not goal.terms:
        verdict = verdicts.get(goal.source)
        if verdict is None:
            return None
        goals = goal.vector.to(network.device).expand(count, -1)
        familiarity = goals.new_full((count,), goal.familiarity)
        return verdict.probability(network.features(glance, after, goals, familiarity))
    together = after.output.new_ones(count)
    for weight, term in goal.terms:
        alone = seek(network, verdicts, glance, term, strength=strength, passes=passes).probability
        if alone is None:
            return None
        together = together * (alone if weight > 0 else 1 - alone)
    return together


def answer(verdicts: Verdicts, goal: Goal, chance: float | None) -> Answer | None:
    """What a probability of `seek` means: `present`, `absent`, `unsure` or `unknown`; None without one.

    The answer for a complement ("- a cat") is the answer for what is unwanted, turned round: `present` where the cat is
    absent, `absent` where it is present. The answer for an unfamiliar goal is `unknown`, whatever the probability is.
    """
    if is_unknown(verdicts, goal):
        return "unknown"
    if chance is None:
        return None
    verdict = verdicts[next(_parts(goal)).source]
    if not goal.is_complement:
        return verdict.answer(chance)
    plain = verdict.answer(round(1 - chance, 9))  # 1 − 0.7 is 0.30000000000000004
    return TURNED.get(plain, plain)


def is_unknown(verdicts: Verdicts, goal: Goal) -> bool:
    """Whether the answer is `unknown` for any image: the goal is unfamiliar, and a verdict was calibrated for it."""
    return bool(goal.unfamiliar) and all(part.source in verdicts for part in _parts(goal))


def _parts(goal: Goal) -> Iterator[Goal]:
    """The goals without terms that a goal was combined from; itself if it has no terms."""
    if not goal.terms:
        yield goal
    for _, term in goal.terms:
        yield from _parts(term)
