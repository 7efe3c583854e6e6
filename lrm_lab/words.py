"""Words that were kept out of all training pairs: does their goal mean the right class?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrm_lab.imagenet_words import LISTS, lacks_classes
from prior.captions import with_article
from steering.steerer import Steerer

HELD_OUT = Path(__file__).parent / "heldout_words.json"


def held_out_of(classes: Sequence[Mapping[str, Any]]) -> Path:
    """The list of held-out words for a card's classes: that of ImageNet's 1,000, or else that of Tiny ImageNet."""
    return HELD_OUT if lacks_classes(classes) else LISTS


def measure(steerer: Steerer, path: str | Path | None = None) -> dict[str, Any]:
    """How often the goal's best class is right, and how often one of its five best is.

    Args:
        path: a JSON file, word → the classes that are right, by name or WordNet id. This may also be its object
            `held_out`. None takes the list that fits the model; see `held_out_of`.
    """
    classes = steerer.network.card["classes"]
    path = Path(path or held_out_of(classes))
    given = json.loads(path.read_text())
    right: dict[str, list[str]] = given.get("held_out", given)
    goals = steerer.goals([with_article(word) for word in right])
    wrong, top5 = {}, 0
    for (word, names), goal in zip(right.items(), goals, strict=True):
        best = [classes[i] for i in goal.vector.topk(5).indices.tolist()]
        fits = [entry["name"] in names or entry.get("wnid") in names for entry in best]
        top5 += any(fits)
        if not fits[0]:
            wrong[word] = [entry["name"] for entry in best]
    count = len(right)
    return {
        "list": path.name,
        "words": count,
        "top1": 1 - len(wrong) / count,
        "top5": top5 / count,
        "wrong": wrong,
    }
