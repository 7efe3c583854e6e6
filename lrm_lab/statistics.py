"""Rates at an equal rate of absent goals, intervals, and how well a score tells present from absent.

Intervals are percentile bootstraps over scenes (Efron 1979). Where two rates are compared, they are paired: one set of
resampling weights serves both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from lrm_lab.trials import TopOne

CONSTANTS = tuple(i * 0.1 for i in range(-60, 101))  # negative: an eager network must be held back to compare
ABSENT_RATES = (0.05, 0.10)
NUM_RESAMPLES = 1000


def rate_at(present: Float[Tensor, "r s"], absent: Float[Tensor, "r s"], level: float) -> Float[Tensor, " r"]:
    """The present rate where the absent rate reaches `level`, linear between settings. Each row stands on its own.

    Settings run from cautious to eager. If even the most eager one stays below the level, its present rate is taken. If
    even the most cautious one exceeds the level, it is mixed with never saying yes.
    """
    present, absent = (F.pad(rates, (1, 0)) for rates in (present, absent.cummax(1).values))
    above = absent >= level
    index = torch.where(above.any(1), above.float().argmax(1), absent.shape[1] - 1)
    before = (index - 1).clamp(min=0)
    rows = torch.arange(len(absent))
    low, high = absent[rows, before], absent[rows, index]
    share = ((level - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    return present[rows, before] + share * (present[rows, index] - present[rows, before])


def interval(values: Float[Tensor, " r"]) -> list[float]:
    """The central 95 % of bootstrap values."""
    return [float(values.quantile(0.025)), float(values.quantile(0.975))]


def percentiles(values: Float[np.ndarray, " r"]) -> list[float]:
    """The same as `interval`, for an array. The two may differ in the last bit."""
    return [float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))]


def resampling(count: int, seed: int = 0) -> Float[Tensor, "r b"]:
    """Weights of `count` scenes in bootstrap samples. Each row sums to 1."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(0, count, (NUM_RESAMPLES, count), generator=generator)
    return torch.zeros(NUM_RESAMPLES, count).scatter_add_(1, picks, torch.ones(picks.shape)) / count


def mean_interval(values: Float[Tensor, " b"], weights: Float[Tensor, "r b"]) -> list[float]:
    """The interval of a mean over scenes."""
    return interval(weights @ values.float())


def against_controls(steered: TopOne, controls: Mapping[str, TopOne]) -> dict[str, Any]:
    """Present rates at equal absent rates: with steering, for each control, and their difference with its interval.

    `best` names the strongest control.

    Args:
        steered: counts over constants on the steered output, or over strengths. If steering and controls both get
            constants, the comparison is between what their outputs know.
    """
    weights = resampling(len(steered.present))
    result: dict[str, Any] = {}
    for level in ABSENT_RATES:
        own, samples = float(rate_at(*steered.rates(), level)), rate_at(*steered.rates(weights), level)
        entries: dict[str, dict[str, Any]] = {}
        for name, control in controls.items():
            rate = float(rate_at(*control.rates(), level))
            difference = interval(samples - rate_at(*control.rates(weights), level))
            entries[name] = {"rate": rate, "difference": own - rate, "interval": difference}
        best = max(entries, key=lambda name: entries[name]["rate"])
        result[f"{level:.0%}"] = {"steered": own, "interval": interval(samples), "controls": entries, "best": best}
    return result


def auroc(scores: Float[Tensor, " b"], outcome: Tensor) -> float:
    """Area under the ROC curve of any score. Scores are brought to 0–1, where torchmetrics leaves them as they are."""
    return float(binary_auroc(unit(scores), outcome.long()))


def unit(values: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Values in 0–1 in the same order."""
    return (values.double() - values.min()) / (values.max() - values.min()).clamp(min=1e-9)


def auroc_interval(
    scores: Float[Tensor, "n k"], outcome: Int[Tensor, "n k"], seed: int = 0, resamples: int = 200
) -> list[float]:
    """Interval of the AUROC over k questions about each of n images, with images resampled.

    Args:
        outcome: 1 where what was asked for is there, 0 where it is not. Samples that lack either are left out.
    """
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(resamples):
        rows = torch.randint(0, len(scores), (len(scores),), generator=generator)
        if 0 < int(outcome[rows].sum()) < outcome.numel():
            values.append(auroc(scores[rows].flatten(), outcome[rows].flatten()))
    return interval(torch.tensor(values))


def auroc_difference(
    first: Tensor, second: Tensor, outcome: Tensor, seed: int = 0, resamples: int = 200
) -> list[float]:
    """Interval of the difference between the AUROCs of two scores over the same trials, with scenes resampled.

    Args:
        outcome: 1 for present goals and 0 for absent ones. Both are in the order of the scenes.

    Raises:
        ValueError: there are not as many present goals as absent ones.
    """
    there, not_there = (torch.nonzero(outcome == value)[:, 0] for value in (1, 0))
    if len(there) != len(not_there):
        raise ValueError(
            f"outcome: got {len(there)} present goals and {len(not_there)} absent ones, expected as many of either"
        )
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(resamples):
        scenes = torch.randint(0, len(there), (len(there),), generator=generator)
        rows = torch.cat([there[scenes], not_there[scenes]])
        values.append(auroc(first[rows], outcome[rows]) - auroc(second[rows], outcome[rows]))
    return interval(torch.tensor(values))
