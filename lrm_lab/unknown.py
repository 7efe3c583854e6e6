"""Words for what the network has no eyes for: are they called unknown, and are they alone?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lrm_lab.statistics import mean_interval, resampling
from steering.steerer import Steerer


def measure(steerer: Steerer, unknown: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    """Share of each list that is called unknown, with its interval over words, and the words that were got wrong."""
    return {"unknown": _called(steerer, unknown, True), "known": _called(steerer, known, False)}


def _called(steerer: Steerer, queries: Sequence[str], rightly: bool) -> dict[str, Any]:
    called = [bool(goal.unfamiliar) for goal in steerer.goals(list(queries))]
    return {
        "words": len(queries),
        "called_unknown": sum(called) / len(queries),
        "interval": mean_interval(torch.tensor(called).float(), resampling(len(queries))),
        "wrong": [query for query, told in zip(queries, called, strict=True) if told != rightly],
    }
