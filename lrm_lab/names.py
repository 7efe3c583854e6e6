"""Photographs and every name that the model has: does the verdict know what is in them, and what only looks like it?

Each photograph is asked for its own class, for another class drawn at random, and for two that are easily taken for it:
the other class that outputs for its class favour most on average, and the near miss, which the first pass finds
likeliest among the wrong ones in this very photograph. A CLIP is not asked for the former, since it has no prototypes.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from lrm_lab.goals import chances, verdict_of
from lrm_lab.statistics import auroc, auroc_interval, mean_interval, resampling
from prior.captions import with_article
from steering.evidence import Answer
from steering.rollouts import run_unsteered
from steering.seek import answer
from steering.steerer import Steerer

ASKED = ("right", "random", "alike", "near")
BATCH = 50  # photographs whose first passes are in memory at a time


def measure(
    steerer: Steerer, pixels: Float[Tensor, "n 3 s s"], labels: Int[Tensor, " n"], seed: int = 0
) -> dict[str, Any]:
    """Balanced accuracy and AUROC against other names at random, names that look alike, and near misses.

    The shares of each answer are told, too. A probability of one half decides. The answer `unknown` is wrong, whether
    the name is right or not. AUROC is that of the probability alone. Intervals are over photographs.

    Args:
        pixels: labelled photographs, in 0–1.
        seed: number that draws the other classes.

    Raises:
        ValueError: the model has no calibrated verdict. QueryError: it is a classifier and has no prototypes.
    """
    verdict_of(steerer)
    classes = len(steerer.class_names)
    confused = None if steerer.network.is_open else _confused(steerer)
    ways = [way for way in ASKED if way != "alike" or confused is not None]
    goals = steerer.goals([with_article(name) for name in steerer.class_names])
    vectors = torch.stack([goal.vector for goal in goals])
    familiarity = vectors.new_tensor([goal.familiarity for goal in goals])
    other = torch.randint(0, classes - 1, (len(labels),), generator=torch.Generator().manual_seed(seed))
    other += other >= labels
    asked, scores = [], []
    rows = list(zip(pixels.split(BATCH), labels.split(BATCH), other.split(BATCH), strict=True))
    for part, right, random in tqdm(rows, desc="names", disable=None):
        seen = run_unsteered(steerer.network, part)
        near = seen.first.cpu().scatter(1, right[:, None], -torch.inf).argmax(1)
        each = (right, random, near) if confused is None else (right, random, confused[right], near)
        asked.append(torch.stack(each, 1))
        parts = [chances(steerer, seen, vectors[names], familiarity[names]) for names in each]
        scores.append(torch.stack(parts, 1))
    names, probability = torch.cat(asked), torch.cat(scores)
    said = [
        [answer(steerer.verdicts, goals[name], chance) for name, chance in zip(*pair, strict=True)]
        for pair in zip(names.T.tolist(), probability.T.tolist(), strict=True)
    ]
    shares = {way: {a: row.count(a) / len(row) for a in get_args(Answer)} for way, row in zip(ways, said, strict=True)}
    judged = torch.tensor([[told != "unknown" for told in row] for row in said]).T
    correct = torch.cat([probability[:, :1] >= 0.5, probability[:, 1:] < 0.5], 1) & judged
    return {
        "photographs": len(labels),
        "classes": classes,
        "right_name_present": float(correct[:, 0].float().mean()),
        **{way: _against(correct[:, [0, i]], probability[:, [0, i]]) for i, way in enumerate(ways) if i},
        "answers": shares,
    }


def _confused(steerer: Steerer) -> Int[Tensor, " m"]:
    """For each class, the other class that outputs for it favour most on average."""
    means = torch.stack([steerer.prototype_goal(name).vector.cpu() for name in steerer.class_names])
    return means.fill_diagonal_(-torch.inf).argmax(1)


def _against(correct: Bool[Tensor, "n 2"], probability: Float[Tensor, "n 2"]) -> dict[str, Any]:
    """The right names, first column, against other names."""
    balanced, weights = correct.float().mean(1), resampling(len(correct))
    outcome = torch.tensor([1, 0]).expand(len(correct), -1)
    return {
        "absent": float(correct[:, 1].float().mean()),
        "balanced_accuracy": float(balanced.mean()),
        "interval": mean_interval(balanced, weights),
        "auroc": auroc(probability.flatten(), outcome.flatten()),
        "auroc_interval": auroc_interval(probability, outcome),
    }
