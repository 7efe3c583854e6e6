"""How often a goal is the best class of an output (top-1): over strengths of steering, or over constants on its logit.

Every count is of goals that are present in a scene, and of goals that are absent from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lrm_core.feedback import Strength
from lrm_core.scenes import KINDS
from lrm_core.trials import Trials, top1
from steering.evidence import Seen
from steering.network import Network
from steering.rollouts import Unsteered, run_steered

COMPOSITES = tuple(kind for kind in KINDS if kind != "single")


@dataclass(frozen=True)
class TopOne:
    """Whether the goal is top-1, as 0 or 1.

    Attributes:
        settings: the strengths or the constants.
        present, absent: (scenes, settings), for the goal that is in the scene and for the one that is not.
    """

    settings: tuple[float, ...]
    present: Tensor
    absent: Tensor

    def rates(self, weights: Float[Tensor, "r b"] | None = None) -> tuple[Tensor, Tensor]:
        """Rates of present and of absent goals at every setting, (r, settings) each.

        Args:
            weights: weights of the scenes; each row sums to 1. None weighs all scenes alike.
        """
        if weights is None:
            weights = torch.full((1, len(self.present)), 1 / len(self.present))
        return weights @ self.present, weights @ self.absent


def run_both(
    network: Network,
    trials: Trials,
    unsteered: Unsteered,
    goals: Float[Tensor, "c m"],
    strength: Strength | None = None,
    passes: int | None = None,
) -> tuple[Seen, Seen]:
    """What the last steered pass says for the present goals, and for the absent ones."""
    present, absent = (
        run_steered(network, unsteered, goals[classes], strength, passes) for classes in (trials.present, trials.absent)
    )
    return present, absent


def steering_top_one(
    network: Network, trials: Trials, unsteered: Unsteered, goals: Float[Tensor, "c m"], strengths: Sequence[float]
) -> TopOne:
    """Whether the goal is top-1 after steering at each strength."""
    present, absent = [], []
    for strength in tqdm(strengths, desc=f"{trials.scenes.kind}: strengths", leave=False, disable=None):
        there, not_there = run_both(network, trials, unsteered, goals, strength)
        present.append(top1(there.output, trials.present).float().cpu())
        absent.append(top1(not_there.output, trials.absent).float().cpu())
    return TopOne(tuple(strengths), torch.stack(present, 1), torch.stack(absent, 1))


def constant_top_one(
    present: Float[Tensor, "b m"], absent: Float[Tensor, "b m"], trials: Trials, constants: Sequence[float]
) -> TopOne:
    """Whether the goal is top-1 once a constant, in nats, is added to its logit.

    With unsteered outputs this is a control: it knows the goal and has no feedback.

    Args:
        present, absent: outputs for the present goals and for the absent ones. Unsteered outputs are the same for both.
    """
    shown = []
    for output, classes in ((present, trials.present), (absent, trials.absent)):
        own = output.gather(1, classes[:, None].to(output.device))
        others = output.scatter(1, classes[:, None].to(output.device), -torch.inf).amax(1, keepdim=True)
        shown.append((own + torch.tensor(constants, device=output.device) > others).float().cpu())
    return TopOne(tuple(constants), *shown)
