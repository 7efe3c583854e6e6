"""Choose how near to the known words a query must be: `python -m steering.calibrate_words MODEL WORDS`.

WORDS is a JSON file with two lists: `known`, words for things that the model can judge, and `unknown`, words that it
cannot. Every other word of each list chooses the threshold, and the rest reports what it does. Or the file has four
lists: `known_choosing`, `known_reporting`, `unknown_choosing`, `unknown_reporting`. The threshold is the
lowest that calls 95 % of the unknown words unfamiliar, so that as few real words as possible are lost. At most 5 % of
the known words may be lost. It is written into the model's `vocabulary.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrm_base.card import load_card, write_atomically
from steering.language import Language
from steering.words import read

MOST_LOST = 0.05
LEAST_CAUGHT = 0.95


@dataclass(frozen=True)
class WordLists:
    """Words that a model can judge and words that it cannot: those that choose a threshold, and those that report."""

    known_choosing: tuple[str, ...]
    known_reporting: tuple[str, ...]
    unknown_choosing: tuple[str, ...]
    unknown_reporting: tuple[str, ...]

    @classmethod
    def split(cls, known: Sequence[str], unknown: Sequence[str]) -> WordLists:
        """Every other word of two lists chooses.

        Raises:
            ValueError: a list has fewer than two texts.
        """
        if min(len(known), len(unknown)) < 2:
            raise ValueError(f"words: got {len(known)} known and {len(unknown)} unknown, expected at least 2 of each")
        return cls(*(tuple(part) for part in (known[::2], known[1::2], unknown[::2], unknown[1::2])))


def fit_familiarity(language: Language, words: WordLists) -> dict[str, Any]:
    """The threshold, and which share of each list it calls unfamiliar.

    Raises:
        ValueError: no threshold loses few enough of the known words.
    """
    good, also_good, bad, also_bad = (
        _familiarity(language, texts)
        for texts in (words.known_choosing, words.known_reporting, words.unknown_choosing, words.unknown_reporting)
    )
    candidates = sorted(set(torch.cat([good, bad]).tolist()))
    edges = [-1.0, *((a + b) / 2 for a, b in pairwise(candidates))]
    fitting = [least for least in edges if _share(bad, least) >= LEAST_CAUGHT]
    if not fitting or _share(good, fitting[0]) > MOST_LOST:
        raise ValueError(
            f"words: no threshold calls {LEAST_CAUGHT:.0%} of the unknown words unfamiliar and at most {MOST_LOST:.0%} "
            "of the known ones"
        )
    least = round(fitting[0], 4)
    return {
        "least": least,
        "known_called_unfamiliar": {"choosing": _share(good, least), "reporting": _share(also_good, least)},
        "unknown_called_unfamiliar": {"choosing": _share(bad, least), "reporting": _share(also_bad, least)},
    }


def write_familiarity(folder: str | Path, found: dict[str, Any]) -> None:
    """Keep what was found in the vocabulary's card of a model folder."""
    path = Path(folder) / "vocabulary.json"
    card = {**load_card(path), "familiarity": found}
    write_atomically(path, (json.dumps(card, indent=1, ensure_ascii=False) + "\n").encode())


def read_words(path: str | Path) -> WordLists:
    """The lists of a file. Raises ValueError if it does not hold them."""
    try:
        lists = json.loads(Path(path).read_text())
        names = [field.name for field in dataclasses.fields(WordLists)]
        if any(name in lists for name in names):
            return WordLists(*(tuple(map(str, lists[name])) for name in names))
        return WordLists.split(*(list(map(str, lists[key])) for key in ("known", "unknown")))
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"words: got {path}, expected a JSON file of two lists, known and unknown: {error}") from None


def _familiarity(language: Language, texts: Sequence[str]) -> Tensor:
    """(t,) familiarity; −2 where a text is unfamiliar whatever its familiarity."""
    said = [read(text, language.names).text for text in texts]
    embeddings = language.embed(said)
    certain = dataclasses.replace(language, least=-1.0).unfamiliar(said, embeddings)
    return torch.where(torch.tensor([bool(reason) for reason in certain]), -2.0, language.familiarity(embeddings).cpu())


def _share(familiarity: Tensor, least: float) -> float:
    return round(float((familiarity < least).float().mean()), 4)


def main(argv: list[str] | None = None) -> None:
    """Choose the threshold of a model folder, and write it into the folder."""
    parser = argparse.ArgumentParser(prog="python -m steering.calibrate_words", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="name of an embedded model, or a folder in the same format")
    parser.add_argument("words", help="JSON file of two lists of texts, known and unknown")
    options = parser.parse_args(argv)
    from steering.loading import find_model, load

    try:
        words = read_words(options.words)
        folder = find_model(options.model)
        found = fit_familiarity(load(folder, device="cpu").language(), words)
    except ValueError as error:
        parser.error(str(error))
    write_familiarity(folder, found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
