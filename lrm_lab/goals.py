"""Goals of all classes at once, how familiar their words are, and the verdict that judges them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prior.captions import with_article
from steering.evidence import Seen, Verdict
from steering.network import Network
from steering.rollouts import Unsteered, class_goals, run_steered
from steering.steerer import Steerer

ROWS = 64  # images whose windows are compared with the bank of a CLIP at a time


@dataclass(frozen=True)
class GoalSets:
    """Goals of every class, made in several ways.

    Attributes:
        by: way of making goals → goals (c, m), row = class.
        familiarity: (m,), how familiar the words of each class are.
    """

    by: Mapping[str, Tensor]
    familiarity: Tensor

    @classmethod
    def of(cls, steerer: Steerer, by_name: Steerer | None, seed: int) -> GoalSets:
        """Goals by the steerer's own prior, by class names, by mean outputs, and those of another class at random.

        Args:
            by_name: the same model, whose prior is `class-names`; None leaves these goals out.
        """
        own = class_goals(steerer)
        goals = {steerer.language.prior.source: own}
        if by_name is not None:
            goals["class-names"] = class_goals(by_name)
        with contextlib.suppress(ValueError):  # a model may have no prototypes
            goals["prototype"] = torch.stack([steerer.prototype_goal(name).vector for name in steerer.class_names])
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))
        other = torch.empty_like(order)
        other[order] = order.roll(1)  # a cycle through all classes: never a class's own
        goals["random"] = own[other]
        return cls(goals, class_familiarity(steerer))


def class_familiarity(steerer: Steerer) -> Float[Tensor, " m"]:
    """How familiar the words of every class are."""
    language = steerer.language
    return language.familiarity(language.embed([with_article(name) for name in steerer.class_names]))


@torch.no_grad()
def chances(
    steerer: Steerer, seen: Unsteered, goals: Float[Tensor, "b m"], familiarity: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Probability, on the CPU, that each scene shows its own goal by words. Raises like `verdict_of`."""
    goals, familiarity = goals.to(seen.first), familiarity.to(seen.first)
    after = run_steered(steerer.network, seen, goals)
    values = features_of(steerer.network, seen.seen, after, goals, familiarity)
    return verdict_of(steerer).probability(values).cpu()


def features_of(
    network: Network, before: Seen, after: Seen, goals: Float[Tensor, "b m"], familiarity: Float[Tensor, " b"]
) -> Float[Tensor, "b f"]:
    """What verdicts read, for many images; see `Network.features`."""
    parts = [network.features(before[r], after[r], goals[r], familiarity[r]) for r in _rows(network, len(goals))]
    return torch.cat(parts)


def supports_of(network: Network, seen: Seen, goals: Float[Tensor, "b m"]) -> Float[Tensor, " b"]:
    """How much a pass supports each goal, in nats, for many images; see `Network.support`."""
    return torch.cat([network.support(seen[r], goals[r]) for r in _rows(network, len(goals))])


def _rows(network: Network, count: int) -> Iterator[slice]:
    """Parts of so many images. A classifier takes all of them at once."""
    step = ROWS if network.is_open else count
    return (slice(start, start + step) for start in range(0, count, step))


def verdict_of(steerer: Steerer) -> Verdict:
    """The verdict on goals by words. Raises ValueError where none was calibrated."""
    verdict = steerer.verdict
    if verdict is None:
        raise ValueError(
            f"model {steerer.network.card['name']} has no calibrated verdict for goals by "
            f"{steerer.language.prior.source}; `python -m steering.calibrate` makes it"
        )
    return verdict
