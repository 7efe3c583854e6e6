"""How much a pass supports a goal, and the calibrated verdict on whether the goal is in the image.

Support is the log-odds of the probability that the output gives to what the goal stands for. A goal for one class puts
all its weight there; a goal such as "a dog" spreads it over the breeds. Evidence is the support of the steered pass
minus that of the unsteered one.

Unusual: the verdict does not read the steered output alone. A logistic regression, fitted on composites of training
images that the backbone has not seen, weighs support before and after, how many classes the goal covers, and how near
the words lie to any that the backbone knows. Looking for is not seeing: the calibration is what says "absent".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

Answer = Literal["present", "absent", "unsure"]
FEATURES = ("support before", "support after", "log classes covered", "familiarity")


def goal_weights(goal: Float[Tensor, "*b m"]) -> Float[Tensor, "*b m"]:
    """How much each class counts as the goal, 0–1, the best class 1: the goal's softmax over its largest value."""
    distribution = goal.float().softmax(-1)
    return distribution / distribution.amax(-1, keepdim=True)


def support(output: Float[Tensor, "*b m"], goal: Float[Tensor, "*b m"]) -> Float[Tensor, " *b"]:
    """Log-odds, in nats, of the probability that an output (logits) gives to what the goal (logits) stands for."""
    probability = (output.float().softmax(-1) * goal_weights(goal)).sum(-1)
    return torch.logit(probability, eps=1e-6)


def features(
    before: Float[Tensor, "*b m"],
    after: Float[Tensor, "*b m"],
    goal: Float[Tensor, "*b m"],
    familiarity: Float[Tensor, " *b"],
) -> Float[Tensor, "*b 4"]:
    """What the verdict is made of, see `FEATURES`. `familiarity`: cosine of the query and the nearest known words."""
    covered = goal_weights(goal).sum(-1).log()
    return torch.stack([support(before, goal), support(after, goal), covered, familiarity.float()], -1)


@dataclass(frozen=True)
class Verdict:
    """A fitted logistic regression on polynomial features, and the probabilities at which it commits itself.

    Attributes:
        mean, std: of the features, for standardising.
        weights: for a constant, each feature, and each product of two features, in that order.
        absent_below, present_above: probabilities; between them the answer is "unsure".
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: tuple[float, ...]
    absent_below: float = 0.3
    present_above: float = 0.7

    def probability(self, values: Float[Tensor, "*b f"]) -> Float[Tensor, " *b"]:
        """Calibrated probability that the goal is in the image, if present and absent goals are equally frequent."""
        standard = (values - values.new_tensor(self.mean)) / values.new_tensor(self.std)
        return torch.sigmoid(expand(standard) @ values.new_tensor(self.weights))

    def answer(self, probability: float) -> Answer:
        """`present`, `absent`, or `unsure` between the two thresholds."""
        if probability >= self.present_above:
            return "present"
        return "absent" if probability <= self.absent_below else "unsure"

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        fields = {"features": FEATURES, **self.__dict__}
        Path(path).write_text(json.dumps(fields, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Verdict:
        """Read what `save` wrote. Raises ValueError if it is missing, damaged, or was fitted on other features."""
        try:
            fields: Any = json.loads(Path(path).read_text())
        except FileNotFoundError:
            hint = "`python -m steering.calibrate` makes it"
            raise ValueError(f"no calibrated verdict: expected {path}; {hint}") from None
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        if not isinstance(fields, dict) or fields.pop("features", None) != list(FEATURES):
            raise ValueError(f"{path} was fitted on other features; fit it again with `python -m steering.calibrate`")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"{path} does not hold a verdict: {error}") from None


def expand(standard: Float[Tensor, "*b f"]) -> Float[Tensor, "*b g"]:
    """A constant, the features, and their products of two."""
    count = standard.shape[-1]
    products = [standard[..., i] * standard[..., j] for i in range(count) for j in range(i, count)]
    return torch.cat([torch.ones_like(standard[..., :1]), standard, torch.stack(products, -1)], -1)
