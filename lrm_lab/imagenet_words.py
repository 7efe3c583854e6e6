"""Lists of words for models that tell ImageNet's 1,000 classes apart, written down before any model was asked.

`words_imagenet.json` holds six lists. `held_out`: words that are kept out of all training, with the classes that they
mean. `above`: everyday words that cover several classes. `known_…` and `unknown_…`: queries for what the classes show,
and for what they do not show. Of these, one half is for choosing (`…_choosing`), the other for reporting
(`…_reporting`). Classes are WordNet ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LISTS = Path(__file__).parent / "words_imagenet.json"


@dataclass(frozen=True)
class WordLists:
    """The lists that the laboratory reports on. None of them may choose anything.

    Attributes:
        above: word → rows of the classes that it covers.
        known, unknown: queries, with their articles.
    """

    above: Mapping[str, tuple[int, ...]]
    known: tuple[str, ...]
    unknown: tuple[str, ...]


def lacks_wnids(classes: Sequence[Mapping[str, Any]]) -> str:
    """Why a card's classes cannot be told by their WordNet ids; an empty string if they can."""
    without = sum("wnid" not in entry for entry in classes)
    return f"{without} of the model's {len(classes)} classes have no WordNet id" if without else ""


def lacks_classes(classes: Sequence[Mapping[str, Any]]) -> str:
    """Why the lists do not fit a card's classes; an empty string if they do: 1,000, with the ids of the lists."""
    if why := lacks_wnids(classes):
        return why
    if len(classes) != 1000:
        return f"the lists are for ImageNet's 1,000 classes, and the model has {len(classes)}"
    strange = _wnids() - {entry["wnid"] for entry in classes}
    return f"the model lacks {len(strange)} of the classes that the lists name" if strange else ""


def word_lists(classes: Sequence[Mapping[str, Any]]) -> WordLists:
    """The lists, with the rows of a card's classes. Raises ValueError if they do not fit; see `lacks_classes`."""
    if why := lacks_classes(classes):
        raise ValueError(why)
    lists, row = json.loads(LISTS.read_text()), {entry["wnid"]: index for index, entry in enumerate(classes)}
    above = {word: tuple(row[wnid] for wnid in wnids) for word, wnids in lists["above"].items()}
    return WordLists(above, tuple(lists["known_reporting"]), tuple(lists["unknown_reporting"]))


def _wnids() -> set[str]:
    lists = json.loads(LISTS.read_text())
    return {wnid for name in ("above", "held_out") for wnids in lists[name].values() for wnid in wnids}
