"""How the verdict of a CLIP is chosen and measured: `steering.calibrate_scenes` makes the examples.

Cross-validation chooses the strength and the form of the verdict, its folds being images. Unusual: of all forms that
are within one standard error of the best, the simplest is taken (Breiman et al. 1984). So a verdict of few images is
not surer than they allow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steering.calibrate_scenes import Examples
from steering.calibrate_verdicts import fit_verdict
from steering.evidence import UNSTEERED, Verdict

RIDGES = (1.0, 0.1, 0.01, 0.001, 0.0001)  # strongest first
BINS = 15  # of the calibration error


@dataclass(frozen=True)
class Form:
    """How a verdict is fitted: whether it reads products of features, and the penalty of its weights."""

    products: bool
    ridge: float

    def fit(self, values: Float[Tensor, "n f"], answers: Float[Tensor, " n"]) -> Verdict:
        """The verdict on examples."""
        fitted = fit_verdict(values, answers, self.ridge, products=self.products)
        return dataclasses.replace(fitted, least_support=None)  # log-odds against a bank lie lower


def choose(
    examples: Examples, sources: Sequence[str], *, products: bool
) -> tuple[dict[str, Verdict], float, dict[str, Any]]:
    """Strength and form by cross-validation over all folds but the first, and the verdicts of that choice.

    Strengths are compared by the log loss of the best form of each, as the mean over `sources`. Steering helps if its
    loss is lower than without by more than one standard error over the folds. If not, the smallest strength is taken.

    Args:
        products: whether a verdict may read products of features.

    Returns:
        The verdicts; the strength, which is never 0; and the numbers that led to it, as plain values for JSON.
    """
    forms = [Form(either, ridge) for either in ((False, True) if products else (False,)) for ridge in RIDGES]
    fitted = examples.of(examples.fold > 0)
    strengths = sorted({strength for _, strength in examples.values})
    found = {key: cross_validate(forms, fitted, *key) for key in examples.values}
    losses = {s: torch.stack([_best(found[source, s]) for source in sources]).mean(0) for s in strengths}  # (k,) each
    steered = [strength for strength in strengths if strength > 0]
    best = min(steered, key=lambda strength: float(losses[strength].mean()))
    gain = losses[0.0] - losses[best]
    helps = bool(gain.mean() > _error(gain))
    strength = best if helps else steered[0]
    verdicts, chosen = {}, {}
    for source in sources:
        for way, at in ((source, strength), (f"{source}{UNSTEERED}", 0.0)):
            chosen[way] = simplest(forms, found[source, at])
            verdicts[way] = chosen[way].fit(fitted.values[source, at], fitted.answers)
    told = {
        "steering_helps": helps,
        "log_loss_by_strength": {f"{s:g}": round(float(losses[s].mean()), 5) for s in strengths},
        "forms": {way: dataclasses.asdict(form) for way, form in chosen.items()},
        "examples": {"fitted_on": len(fitted.answers), "held_out": len(examples.answers) - len(fitted.answers)},
    }
    return verdicts, strength, told


def cross_validate(forms: Sequence[Form], examples: Examples, source: str, strength: float) -> Float[Tensor, "c k"]:
    """Log loss, in nats, of each form on each fold, by a verdict that was fitted on the others."""
    values, answers = examples.values[source, strength], examples.answers
    losses = []
    for form in forms:
        for fold in examples.fold.unique():
            inside = examples.fold == fold
            verdict = form.fit(values[~inside], answers[~inside])
            losses.append(log_loss(verdict.probability(values[inside]), answers[inside]))
    return torch.tensor(losses).view(len(forms), -1)


def simplest(forms: Sequence[Form], losses: Float[Tensor, "c k"]) -> Form:
    """The first form whose loss is within one standard error of the best one's."""
    worse = losses - _best(losses)
    first = int((worse.mean(1) <= _error(worse)).int().argmax())
    return forms[first]


def _best(losses: Float[Tensor, "c k"]) -> Float[Tensor, " k"]:
    """The losses of the form whose mean is lowest."""
    return losses[losses.mean(1).argmin()]


def _error(values: Float[Tensor, "*c k"]) -> Float[Tensor, " *c"]:
    """Standard error of the mean over folds."""
    return values.std(-1) / values.shape[-1] ** 0.5


def report(examples: Examples, verdicts: Mapping[str, Verdict], strength: float) -> dict[str, Any]:
    """What verdicts are worth on examples of several kinds: for each source, with and without steering.

    A kind without examples is left out.
    """
    groups = {
        "all": torch.ones_like(examples.is_single),
        "single images": examples.is_single,
        "composites": ~examples.is_single,
        "absent at random": ~examples.is_near,
        "near misses": examples.is_near,
    }
    told: dict[str, Any] = {}
    for source in {source: None for source, _ in examples.values}:
        for way, at in ((source, strength), (f"{source}{UNSTEERED}", 0.0)):
            chances = verdicts[way].probability(examples.values[source, at])
            numbers = {
                name: measured(chances[rows], examples.answers[rows])
                for name, rows in groups.items()
                if len(examples.answers[rows].unique()) == 2
            }
            told.setdefault(source, {})["unsteered" if way != source else "steered"] = numbers
    return told


def measured(chances: Float[Tensor, " n"], answers: Float[Tensor, " n"]) -> dict[str, Any]:
    """How well probabilities tell present goals from absent ones. There must be both."""
    from sklearn.metrics import roc_auc_score

    says, present = chances >= 0.5, answers > 0.5
    right = (says[present].float().mean() + (~says[~present]).float().mean()) / 2
    return {
        "examples": len(answers),
        "auroc": float(roc_auc_score(present.numpy(), chances.numpy())),
        "balanced_accuracy": float(right),
        "calibration_error": calibration_error(chances, answers),
        "log_loss": log_loss(chances, answers),
    }


def calibration_error(chances: Float[Tensor, " n"], answers: Float[Tensor, " n"]) -> float:
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017)."""
    bins = (chances * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.double).index_add_(0, bins, (chances - answers).double())
    return float(gaps.abs().sum() / max(len(chances), 1))


def log_loss(chances: Float[Tensor, " n"], answers: Float[Tensor, " n"]) -> float:
    """Mean negative log likelihood of the answers, in nats."""
    return float(F.binary_cross_entropy(chances.double().clamp(1e-7, 1 - 1e-7), answers.double()))
