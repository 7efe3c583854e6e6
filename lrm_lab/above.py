"""Words above the classes ("a dog", "furniture"): is the verdict right about every photograph?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from lrm_lab.goals import chances, verdict_of
from lrm_lab.names import BATCH
from lrm_lab.statistics import auroc, auroc_interval, interval, resampling
from prior.captions import with_article
from steering.rollouts import run_unsteered
from steering.seek import answer, is_unknown
from steering.steerer import Steerer


def measure(
    steerer: Steerer,
    pixels: Float[Tensor, "n 3 s s"],
    labels: Int[Tensor, " n"],
    words: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """AUROC of the probability, and how often a word is called present where it is shown and where it is not.

    Every photograph is asked for every word. A word is shown where the photograph's class is one that it covers.
    Intervals are over photographs.

    Args:
        pixels: labelled photographs, in 0–1.
        words: word → the classes that it covers.

    Raises:
        ValueError: the model has no calibrated verdict, or no word is shown by some photographs and not by others.
    """
    verdict_of(steerer)
    truth = torch.stack([torch.isin(labels, torch.tensor(list(rows))) for rows in words.values()], 1)
    if not (truth.any() and (~truth).any()):
        raise ValueError(f"words: got {len(words)}, expected some that are shown in some photographs and not in others")
    goals = steerer.goals([with_article(word) for word in words])
    batches = []
    for part in tqdm(pixels.split(BATCH), desc="above", disable=None):
        seen, count = run_unsteered(steerer.network, part), len(part)
        judged = [
            chances(steerer, seen, goal.vector.expand(count, -1), goal.vector.new_full((count,), goal.familiarity))
            for goal in goals
        ]
        batches.append(torch.stack(judged, 1))
    probability = torch.cat(batches)
    told = [
        [answer(steerer.verdicts, goal, chance) == "present" for chance in column]
        for goal, column in zip(goals, probability.T.tolist(), strict=True)
    ]
    said = torch.tensor(told).T
    entries = {word: _entry(probability[:, i], said[:, i], truth[:, i]) for i, word in enumerate(words)}
    areas = torch.tensor([entry["auroc"] for entry in entries.values() if entry["auroc"] is not None])
    return {
        "photographs": len(labels),
        "auroc": auroc(probability.flatten(), truth.flatten()),
        "auroc_interval": auroc_interval(probability, truth.long()),
        "median_auroc": float(areas.quantile(0.5)) if len(areas) else None,
        "recall": _share(said, truth),
        "false_present": _share(said, ~truth),
        "unknown": [word for word, goal in zip(words, goals, strict=True) if is_unknown(steerer.verdicts, goal)],
        "words": entries,
    }


def _entry(
    probability: Float[Tensor, " n"], said: Bool[Tensor, " n"], truth: Bool[Tensor, " n"]
) -> dict[str, int | float | None]:
    """One word. What cannot be told, since all photographs show it or none does, is None."""
    some, others = bool(truth.any()), bool((~truth).any())
    return {
        "shown": int(truth.sum()),
        "auroc": auroc(probability, truth) if some and others else None,
        "recall": float(said[truth].float().mean()) if some else None,
        "false_present": float(said[~truth].float().mean()) if others else None,
    }


def _share(said: Bool[Tensor, "n w"], among: Bool[Tensor, "n w"]) -> dict[str, Any]:
    """How often `present` was said among some of the questions, with its interval."""
    hits, questions = (said & among).sum(1).float(), among.sum(1).float()
    weights = resampling(len(said))
    ratios = (weights @ hits) / (weights @ questions).clamp(min=1e-9)
    return {"share": float(hits.sum() / questions.sum()), "interval": interval(ratios)}
