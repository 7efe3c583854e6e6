"""Whether the words of a query are such that a network can judge them, and what may have been meant instead.

A text encoder gives an embedding to whatever is typed: foreign scripts, numbers, misspellings, abstract words. Words
that are far from every name of the network's classes get no answer: the verdict is `unknown`. How far is too far
depends on the text encoder, so the threshold is kept with the model (`steering.calibrate_words`). A model without one
judges every word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from prior.captions import normal
from steering.words import listed

CLOSE = 0.85  # ratio of difflib from which a word that nobody knows is taken for another that was misspelt
SUGGEST = 0.8  # ratio from which another word is suggested
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_FRAME = re.compile(r"^(?:(?:an?|the|some|any)\s+)+(?=\S)", re.IGNORECASE)


@dataclass(frozen=True)
class Unfamiliar:
    """Why no answer to a text can be given, in one sentence, and the known things that it names, the nearest first."""

    reason: str
    nearest: tuple[str, ...] = ()


def unfamiliar(
    text: str,
    familiarity: float,
    least: float,
    nearest: Sequence[str],
    known: Callable[[], Collection[str]],
    is_whole: Callable[[str], bool],
) -> Unfamiliar | None:
    """Why no answer to a text can be given; None if there is no reason.

    Args:
        familiarity: of the text; see `steering.language.Language.familiarity`.
        nearest: the known words that are nearest, at least one, the nearest first.
        least: the familiarity below which words are unfamiliar.
        known: gives single words that are known, in lower case, to suggest one of them.
        is_whole: whether a word is a single token of the text encoder. A misspelling seldom is.
    """
    foreign = [c for c in text if c.isalpha() and not unicodedata.name(c, "").startswith("LATIN")]
    if foreign:
        script = unicodedata.name(foreign[0], "UNKNOWN").split()[0].lower()
        script = {"cjk": "Chinese", "hangul": "Korean"}.get(script, script.capitalize())
        return Unfamiliar(f"“{text}” is not in Latin letters ({script}): the text encoder reads English only")
    words = [word.lower() for word in _WORD.findall(text)]
    if not words:
        return Unfamiliar(f"“{text}” is not a word: expected what a thing is called in English, such as “a dog”")
    odd = next((word for word in words if len(word) > 2 and not is_whole(word)), None)
    if odd is not None or familiarity < least:
        meant = suggestion(words, known(), is_whole, CLOSE if familiarity >= least else SUGGEST)
        if meant:
            reason = f"“{meant[0]}” is not a word that is known here: did you mean “{meant[1]}”?"
            return Unfamiliar(reason, meant[1:])
    if familiarity >= least:
        return None
    thing, are = _FRAME.sub("", text.strip()), "is" if len(nearest) == 1 else "are"
    reason = f"“{thing}” is not like any thing that this network knows; the nearest {are} {listed(nearest)}"
    return Unfamiliar(reason, tuple(nearest))


def suggestion(
    words: Sequence[str], known: Collection[str], is_whole: Callable[[str], bool], ratio: float
) -> tuple[str, str] | None:
    """The first word that is neither known nor a whole token, and the known word that is nearest in spelling."""
    import difflib

    for word in words:
        if len(word) < 4 or is_whole(word) or _forms(word) & set(known):
            continue
        for form in (word, word.removesuffix("s")):
            near = difflib.get_close_matches(form, sorted(known), 1, ratio)
            if near:
                return word, near[0]
    return None


def single_words(names: Iterable[str]) -> frozenset[str]:
    """The words of which names consist, in lower case."""
    return frozenset(word for name in names for word in normal(name).replace(",", " ").split() if len(word) > 2)


def _forms(word: str) -> set[str]:
    """A word, and what it may be the plural of."""
    forms = {word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("'s"), word.removesuffix("’s")}
    return forms | ({word[:-3] + "y"} if word.endswith("ies") else set())
