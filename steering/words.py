"""What a network does not look at in a query: colours, numbers, sizes, places, and how two things stand to each other.

A classifier tells kinds of things apart. "a red car" is looked for as "a car", and the query is told so. Unusual: a
word is kept where it belongs to a name ("brown bear", "red fox"), or where it is the thing itself ("an orange").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from prior.captions import article, normal


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COLOURS = _words(
    "red green blue yellow purple violet pink brown black white grey gray golden silver orange beige turquoise cyan "
    "magenta crimson scarlet maroon navy khaki ivory blond blonde colourful colorful coloured colored multicoloured "
    "multicolored"
)
COUNTS = _words(
    "one two three four five six seven eight nine ten eleven twelve twenty thirty hundred many several few numerous "
    "multiple countless"
)
SIZES = _words(
    "small big large tiny huge little giant enormous gigantic massive tall short long wide narrow medium-sized"
)
PLACES = _words("leftmost rightmost topmost bottommost nearest closest farthest left right upper lower")
_SHADES = _words("light dark pale bright very quite rather")  # only before one of the above
_AMOUNT = re.compile(
    r"\b(?:(?:an?|the)\s+)?(?:(?:pair|couple|lot|number|bunch|group|dozen)\s+of|(?:few|dozen)(?=\s)|"
    r"(?:lots|plenty|dozens|hundreds|thousands)\s+of)\s+",
    re.IGNORECASE,
)
_EXACTLY = re.compile(r"\b(?:at least|at most|exactly|more than|fewer than|less than)\s+(?=\S+\s+\S)", re.IGNORECASE)
_SIDE = r"(?:top|bottom|upper|lower|left|right|far|middle|cent(?:er|re)|front|back)"
_FRAME = r"(?:\s+of\s+the\s+(?:photo(?:graph)?|picture|image|frame|scene))"
_PLACE = re.compile(
    rf",?\s+(?:somewhere\s+)?(?:in|at|on|to|from|near)\s+the\s+(?:very\s+)?(?:background|foreground|distance|corner|edge|"
    rf"{_SIDE}(?:[\s-]+{_SIDE})*(?:[\s-]+(?:corner|side|edge|half|part|hand\s+side|third))?)\b(?:{_FRAME}|(?!\s+of\b))",
    re.IGNORECASE,
)
_RELATION = re.compile(
    r"^(?P<one>\S.*?)\s+(?P<how>(?:to|on|at)\s+the\s+(?:left|right|top|bottom|side|front|back|edge)\s+of|"
    r"(?:left|right)\s+of|in\s+front\s+of|on\s+top\s+of|next\s+to|close\s+to|inside\s+of|underneath|beneath|behind|"
    r"beside|between|inside|outside|above|below|under|over|near|on|in|at)\s+(?P<other>\S.*)$",
    re.IGNORECASE,
)
_PICTURE = re.compile(
    r"^(?:(?:the|an?|this|my)\s+)?(?:photo(?:graph)?s?|pictures?|pics?|images?|frame|scene|view|it)\W*$", re.IGNORECASE
)
# Everyday names that hold such a word, beside those that the caller knows.
_EVERYDAY = (
    "black hole; black box; black belt; black pepper; black tea; black coffee; black bean; black currant; black "
    "sheep; blue jay; blue whale; blue jeans; blue cheese; blue tit; brown bear; brown rice; brown bread; brown "
    "sugar; red fox; red panda; red wine; red squirrel; red deer; red cross; red carpet; green tea; green bean; "
    "green pepper; green card; white wine; white shark; great white shark; white house; grey wolf; gray wolf; "
    "grey whale; gray whale; golden gate; golden eagle; golden retriever; silver fox; orange juice; orange tree; "
    "orange peel; pink flamingo; yellow jacket; big ben; big wheel; big top; big cat; big dipper; little owl; "
    "giant panda; giant squid; long johns; long jump; short circuit; right whale; lower jaw; three piece suit; "
    "seven up; four leaf clover; christmas tree"
)
NAMES = frozenset(_EVERYDAY.split("; "))


@dataclass(frozen=True)
class Reading:
    """What is looked for in the words of a query.

    Attributes:
        text: the words that the text encoder reads.
        ignored: the words that were taken out.
        relation: how two things were said to stand to each other, and the query that asks for both; None if it was not
            said.
    """

    text: str
    ignored: tuple[str, ...] = ()
    relation: tuple[str, str] | None = None


def read(text: str, names: Callable[[], Collection[str]] = lambda: ()) -> Reading:
    """Take out what the network does not look at. A text without such words comes back as it is.

    Args:
        names: the names that are known, in the form of `prior.captions.normal`. It is called only where a word is in
            question.
    """
    ignored: list[str] = []

    def drop(match: re.Match[str]) -> str:
        ignored.append(" ".join(match[0].strip(" ,").split()))
        return ""

    rest = _PLACE.sub(drop, text)
    if rest.strip() and (_AMOUNT.search(rest) or _EXACTLY.search(rest)) and not _named_whole(rest, names):
        rest = _AMOUNT.sub(drop, _EXACTLY.sub(drop, rest))
    words = rest.split()
    gone = _modifiers(words, names)
    ignored += [words[index].strip(",") for index in gone if words[index].lower() != "and"]
    kept = [word for index, word in enumerate(words) if index not in gone]
    relation = _relation(" ".join(kept) if ignored else text, names)
    if not ignored or not kept:
        return Reading(text, (), relation)
    for index in gone:  # "a red apple" becomes "an apple"
        before = len([i for i in range(index) if i not in gone])
        if 0 < before < len(kept) and kept[before - 1].lower() in ("a", "an"):
            kept[before - 1] = article(kept[before]) or kept[before - 1]
    return Reading(" ".join(kept), tuple(dict.fromkeys(ignored)), relation)


def notes(readings: Sequence[Reading]) -> tuple[str, ...]:
    """What is to be said about the readings of one query: at most one sentence of each kind."""
    told = []
    ignored = list(dict.fromkeys(word for reading in readings for word in reading.ignored))
    if ignored:
        is_not = "is not" if len(ignored) == 1 else "are not"
        told.append(
            f"{listed(ignored)} {is_not} looked at: this network tells kinds of things apart, not colours, numbers, "
            "sizes or places"
        )
    relations = [reading.relation for reading in readings if reading.relation]
    for how, both in relations[:1]:
        told.append(f'the relation “{how}” is not looked at: "{both}" asks for both')
    return tuple(told)


def judged(unwanted: Sequence[str]) -> str:
    """What is judged where everything in the query is unwanted."""
    is_absent = "is absent" if len(unwanted) == 1 else "are absent"
    return f"judged: that {listed(unwanted)} {is_absent}; the heatmap shows where it may be"


def listed(words: Sequence[str]) -> str:
    """At least one word, quoted: “a”, “b” and “c”."""
    quoted = [f"“{word}”" for word in words]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _modifiers(words: Sequence[str], names: Callable[[], Collection[str]]) -> list[int]:
    """Indices of the words that are not looked at."""
    bare = [word.strip(",.?!;:\"'“”").lower() for word in words]
    found = [index for index, word in enumerate(bare) if _is_modifier(word) and index + 1 < len(words)]
    if not found:
        return []
    kept = _within_names(bare, names)
    gone: set[int] = set()
    for index in reversed(found):  # a word counts as said of what follows it
        after = index + 1
        while after in gone:
            after += 1
        if index not in kept and after < len(words) and (bare[after] not in _NO_THING or _coloured_and(bare, index)):
            gone.add(index)
            if bare[after] == "and":
                gone.add(after)
    for index in reversed(range(len(words) - 1)):  # "light" in "a light blue car"
        if bare[index] in _SHADES and index + 1 in gone and index not in kept:
            gone.add(index)
    return sorted(gone)


_NO_THING = _words("and or of on in at with to by under behind near next for from is are that which + -")


def _coloured_and(bare: Sequence[str], index: int) -> bool:
    """Whether a word stands in "black and white cat"."""
    return index + 3 < len(bare) and bare[index + 1] == "and" and _is_modifier(bare[index + 2])


def _is_modifier(word: str) -> bool:
    if word in COUNTS or word in SIZES or word in PLACES or word.isdecimal():
        return True
    parts = word.split("-")
    return any(part in COLOURS for part in parts) and all(part in COLOURS or part in _SHADES for part in parts)


def _within_names(bare: Sequence[str], names: Callable[[], Collection[str]]) -> set[int]:
    """Indices of the words that belong to a name of several words."""
    known, inside = names(), set()
    for start in range(len(bare)):
        for end in range(start + 2, min(start + 5, len(bare)) + 1):
            if _is_name(" ".join(bare[start:end]), known):
                inside |= set(range(start, end))
    return inside


def _is_name(phrase: str, known: Collection[str]) -> bool:
    phrase = normal(phrase)
    forms = {phrase, phrase.removesuffix("s"), phrase.removesuffix("es")}
    return any(form in NAMES or form in known for form in forms)


def _named_whole(text: str, names: Callable[[], Collection[str]]) -> bool:
    return _is_name(re.sub(r"^(?:an?|the)\s+", "", text.strip(), flags=re.IGNORECASE), names())


def _relation(text: str, names: Callable[[], Collection[str]]) -> tuple[str, str] | None:
    match = _RELATION.match(text.strip().rstrip("?!."))
    if match is None or _PICTURE.match(match["other"]) or _PICTURE.match(match["one"]) or _named_whole(text, names):
        return None
    if match["one"].lower() in ("where", "is there", "look", "find"):
        return None
    return " ".join(match["how"].split()), f"{match['one']} + {match['other']}"
