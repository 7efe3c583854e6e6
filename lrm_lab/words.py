"""Words that were kept out of all training pairs: does their goal mean the right class?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prior.captions import with_article
from steering.steerer import Steerer

HELD_OUT = Path(__file__).parent / "heldout_words.json"


def measure(steerer: Steerer, path: str | Path = HELD_OUT) -> dict[str, Any]:
    """How often the goal's best class is right, and how often one of its five best is.

    Args:
        path: a JSON file, word → names of the classes that are right.
    """
    right = json.loads(Path(path).read_text())
    goals = steerer.goals([with_article(word) for word in right])
    wrong, top5 = {}, 0
    for (word, names), goal in zip(right.items(), goals, strict=True):
        best = [steerer.class_names[i] for i in goal.vector.topk(5).indices.tolist()]
        top5 += any(name in names for name in best)
        if best[0] not in names:
            wrong[word] = best
    count = len(right)
    return {"words": count, "top1": 1 - len(wrong) / count, "top5": top5 / count, "wrong": wrong}
