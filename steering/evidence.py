"""How much a pass supports a goal, and the calibrated verdict on whether the goal is in the image.

Support is the log-odds of the probability that an output gives to what the goal stands for. A goal for one class puts
all its weight on that class. A goal such as "a dog" spreads it over the breeds. Evidence is the support of the steered
pass minus the support of the unsteered pass.

Unusual: the verdict does not read the steered output alone. It is a logistic regression, fitted on composites of
training images that the backbone has not seen. It weighs the support and the logit of the goal before and after, the
entropy of the output, what single places say, the margin of the goal over its best rival, how many classes the goal
covers, and how near the words lie to words that the backbone knows. It is fitted separately for every way of making
goals. This calibration is what says "absent".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

UNSTEERED = " without steering"  # ends the names of verdicts that were fitted on the first pass alone, as a control
TWIN = " by a twin without goals"  # and of verdicts that were fitted on such a twin's second pass
READINGS = ("support before", "support after", "support by places")
LEAST_SUPPORT = -4.0  # nats; in the calibration's examples 0.3 % of what is rightly said to be present lies below
TINY = 1e-30  # stands for a weight of zero in logarithms
Answer = Literal["present", "absent", "unsure", "unknown"]  # unknown: no eyes for it; see `steering.familiarity`
FEATURES = (
    "support before",
    "support after",
    "logit before",
    "logit after",
    "entropy before",
    "entropy after",
    "support by places",
    "log classes covered",
    "familiarity",
    "support by places after",
    "margin before",
    "margin after",
    "margin by places before",
    "margin by places after",
    "standing",
)


@dataclass(frozen=True)
class Seen:
    """What a pass over b images says of every class.

    Attributes:
        output: (b, M) logits, float32.
        places: (b, M), class evidence by places: probabilities; see `lrm_core.places`.
        embedding: (b, N), of any length, where the network's output is an embedding; see `steering.joint`.
        windows: (b, P, N), of unit length: embeddings of parts of the image, likewise.
    """

    output: Tensor
    places: Tensor
    embedding: Tensor | None = None
    windows: Tensor | None = None

    def __getitem__(self, rows: slice) -> Seen:
        embedding, windows = (None if part is None else part[rows] for part in (self.embedding, self.windows))
        return Seen(self.output[rows], self.places[rows], embedding, windows)

    @classmethod
    def cat(cls, parts: Sequence[Seen]) -> Seen:
        """Several as one."""
        embeddings = [part.embedding for part in parts if part.embedding is not None]
        windows = [part.windows for part in parts if part.windows is not None]
        return Seen(
            torch.cat([part.output for part in parts]),
            torch.cat([part.places for part in parts]),
            torch.cat(embeddings) if embeddings else None,
            torch.cat(windows) if windows else None,
        )


def goal_weights(goal: Float[Tensor, "*b m"]) -> Float[Tensor, "*b m"]:
    """How much each class counts as the goal, 0–1: the softmax of the goal, divided by its largest value."""
    distribution = goal.float().softmax(-1)
    return distribution / distribution.amax(-1, keepdim=True)


def support(output: Float[Tensor, "*b m"], goal: Float[Tensor, "*b m"]) -> Float[Tensor, " *b"]:
    """Log-odds, in nats, of the probability that an output (logits) gives to what the goal (logits) stands for.

    Computed in logarithms throughout, so that a network that is quite sure still has a gradient. The heatmap needs it.
    """
    for_it, against = _shares(output, goal)
    return for_it.logsumexp(-1) - against.logsumexp(-1)


def margin(output: Float[Tensor, "*b m"], goal: Float[Tensor, "*b m"]) -> Float[Tensor, " *b"]:
    """Log-odds, in nats, of what the goal stands for against its best rival: the likeliest class that it leaves out."""
    for_it, against = _shares(output, goal)
    return for_it.logsumexp(-1) - against.amax(-1)


def _shares(output: Float[Tensor, "*b m"], goal: Float[Tensor, "*b m"]) -> tuple[Tensor, Tensor]:
    """Logs of how much each class's probability counts for the goal, and of how much against it."""
    weights, chances = goal_weights(goal), output.float().log_softmax(-1)
    return chances + weights.clamp(min=TINY).log(), chances + (1 - weights).clamp(min=TINY).log()


def features(
    before: Seen,
    after: Seen,
    goal: Float[Tensor, "*b m"],
    familiarity: Float[Tensor, " *b"],
    standing: Float[Tensor, " *b"] | None = None,
) -> Float[Tensor, "*b f"]:
    """The features that verdicts read, in the order of `FEATURES`.

    Args:
        before, after: the first pass, and the last steered one.
        goal: logits.
        familiarity: cosine of the query and the nearest known words.
        standing: how far an image lies above images at large in its cosine with the query, in their standard
            deviations; see `steering.joint`. None means 0, as for a classifier.
    """
    weights = goal_weights(goal)
    covered = weights.sum(-1)
    outputs = (before.output.float(), after.output.float())
    placed = [seen.places.float().clamp(min=TINY).log() for seen in (before, after)]
    values = [
        *(support(output, goal) for output in outputs),
        *((output * weights).sum(-1) / covered for output in outputs),  # the mean logit of what the goal stands for
        *(torch.distributions.Categorical(logits=output).entropy() for output in outputs),
        support(placed[0], goal),
        covered.log(),
        familiarity.float(),
        support(placed[1], goal),
        *(margin(output, goal) for output in (*outputs, *placed)),
        torch.zeros_like(familiarity.float()) if standing is None else standing.float(),
    ]
    return torch.stack(values, -1)


@dataclass(frozen=True)
class Verdict:
    """A fitted logistic regression on polynomial features, and the two thresholds of its answers.

    Attributes:
        mean, std: of each feature; they standardise it.
        weights: for a constant, for each feature, and for each product of two features, in that order.
        absent_below, present_above: the thresholds, as probabilities. Between them the answer is "unsure".
        features: the names of the features that it reads, of `FEATURES`.
        least_support: what the best of `READINGS` must reach for "present", in nats; None where nothing is asked for,
            as against a bank of many things.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: tuple[float, ...]
    absent_below: float = 0.3
    present_above: float = 0.8  # a false "present" is what users of such systems complain of
    features: tuple[str, ...] = FEATURES
    least_support: float | None = LEAST_SUPPORT

    def probability(self, values: Float[Tensor, "*b f"]) -> Float[Tensor, " *b"]:
        """Calibrated probability that the goal is in the image, where present and absent goals are equally frequent.

        It stays below `present_above` where no reading of the image gives the goal weight (`least_support`). Products
        of features can say anything of an image that is unlike all those that they were fitted on.

        Args:
            values: all features, in the order of `FEATURES`.
        """
        read = values[..., [FEATURES.index(name) for name in self.features]]
        standard = (read - values.new_tensor(self.mean)) / values.new_tensor(self.std)
        fitted = torch.sigmoid(expand(standard) @ values.new_tensor(self.weights))
        best = values[..., [FEATURES.index(name) for name in READINGS]].amax(-1)
        if self.least_support is None:
            return fitted
        return torch.where(best < self.least_support, fitted.clamp(max=self.present_above - 0.01), fitted)

    def answer(self, probability: float) -> Answer:
        """`present`, `absent`, or `unsure` between the two thresholds."""
        if probability >= self.present_above:
            return "present"
        return "absent" if probability <= self.absent_below else "unsure"


def save_verdicts(path: str | Path, verdicts: Mapping[str, Verdict], backbone_sha256: str) -> None:
    """Write the verdicts of a backbone as JSON, one for each way of making goals. All read the same features."""
    read = next(iter(verdicts.values())).features
    fitted = {
        name: {k: v for k, v in verdict.__dict__.items() if k != "features"} for name, verdict in verdicts.items()
    }
    fields = {"backbone_sha256": backbone_sha256, "features": read, "verdicts": fitted}
    Path(path).write_text(json.dumps(fields, indent=1) + "\n")


def load_verdicts(path: str | Path, backbone_sha256: str) -> dict[str, Verdict]:
    """Read what `save_verdicts` wrote.

    Raises:
        ValueError: the file is damaged, or was fitted on other features or on another backbone.
    """
    try:
        fields: Any = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    read = fields.get("features") if isinstance(fields, dict) else None
    if not isinstance(read, list) or not read or any(name not in FEATURES for name in read):
        raise ValueError(
            f"{path} was fitted on other features; fit it again with `python -m steering.calibrate`, or "
            "`steer calibrate` for a CLIP"
        )
    if fields.get("backbone_sha256") != backbone_sha256:
        raise ValueError(
            f"{path} was fitted on another backbone, SHA-256 {fields.get('backbone_sha256')}, not {backbone_sha256}; "
            "fit it again with `python -m steering.calibrate`, or `steer calibrate` for a CLIP"
        )
    try:
        verdicts = {}
        for name, values in fields["verdicts"].items():
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            verdicts[name] = Verdict(**given, features=tuple(read))
        return verdicts
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} does not hold verdicts: {error}") from None


def expand(standard: Float[Tensor, "*b f"]) -> Float[Tensor, "*b g"]:
    """A constant, the features, and the products of any two of them."""
    count = standard.shape[-1]
    products = [standard[..., i] * standard[..., j] for i in range(count) for j in range(i, count)]
    return torch.cat([torch.ones_like(standard[..., :1]), standard, torch.stack(products, -1)], -1)
