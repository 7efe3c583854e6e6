"""Class names in plain English: articles, plurals, templates, and the captions that a prior is trained on.

The templates start from the zero-shot prompts of CLIP (Radford et al. 2021). We added what people type when they look
for something. Unusual: a caption may mean several classes at once. "a dog" means every class that has `dog` among its
hypernyms (`is_a`). Every result depends on the arguments alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["name", "synonym", "is_a"]

# {name} is the noun as written, {a} the noun with its article, {s} its plural.
TEMPLATES: tuple[str, ...] = (
    "{name}",
    "{a}",
    "the {name}",
    "a photo of {a}",
    "a photo of the {name}",
    "a picture of {a}",
    "an image of {a}",
    "find the {name}",
    "find {a}",
    "where is the {name}?",
    "where is the {name}",
    "is there {a}?",
    "is there {a} here?",
    "look for the {name}",
    "look for {a}",
    "show me the {name}",
    "show me {a}",
    "search for {a}",
    "spot the {name}",
    "point to the {name}",
    "can you see {a}?",
    "there is {a}",
    "this is {a}",
    "I see {a}",
    "a close-up of {a}",
    "a blurry photo of {a}",
    "a photo of {a} in the background",
)
PLURAL_TEMPLATES: tuple[str, ...] = (
    "{s}",
    "two {s}",
    "three {s}",
    "some {s}",
    "many {s}",
    "the {s}",
    "a photo of {s}",
    "a group of {s}",
    "find the {s}",
    "where are the {s}?",
    "are there any {s}?",
)

_IRREGULAR = {
    "child": "children", "person": "people", "mouse": "mice", "louse": "lice", "goose": "geese", "foot": "feet",
    "tooth": "teeth", "ox": "oxen", "die": "dice", "knife": "knives", "wife": "wives", "life": "lives",
    "wolf": "wolves", "leaf": "leaves", "loaf": "loaves", "calf": "calves", "half": "halves", "shelf": "shelves",
    "thief": "thieves", "elf": "elves", "hoof": "hooves", "potato": "potatoes", "tomato": "tomatoes",
    "hero": "heroes", "monarch": "monarchs", "stomach": "stomachs", "echo": "echoes", "cactus": "cacti",
    "fungus": "fungi", "woman": "women", "man": "men",
}  # fmt: skip
_UNCHANGED = {"fish", "sheep", "deer", "bison", "moose", "shrimp", "cattle", "aircraft", "swine", "series", "species"}
_NOT_MEN = {"human", "german", "roman", "ottoman", "talisman", "shaman", "caiman", "norman", "cayman"}
_MASS = {
    "clothing", "footwear", "swimwear", "furniture", "food", "hardware", "cookware", "tableware", "glassware",
    "guacamole", "thatch", "bread", "cattle", "equipment", "gear", "seafood", "waterfowl", "jewelry", "luggage",
}  # fmt: skip
_SINGULAR_IN_S = {"bus", "gas", "lens", "christmas", "canvas", "atlas", "texas", "pancreas", "minibus", "cosmos"}
_SPELT_OUT = re.compile(r"^([AEFHILMNORSX][A-Z0-9-]|iP)")  # an ATM, an X-ray, an iPod
_CONSONANT_SOUND = re.compile(
    r"^(uni(?!n|m)|uk[ue]|us[aeu]|ut[ei]|u[bf]o|eu|ewe|one(?![a-z])|once|ouija)", re.IGNORECASE
)
_SILENT_H = re.compile(r"^(hour|honest|honor|honour|heir)", re.IGNORECASE)


def is_plural(noun: str) -> bool:
    """Whether a noun phrase is already a plural. `binoculars` and `swimming trunks` are; `school bus` is not."""
    words = noun.split()
    last = words[_head(words)].lower() if words else ""
    return last.endswith("s") and not last.endswith(("ss", "us", "is", "'s")) and last not in _SINGULAR_IN_S


def article(noun: str) -> str:
    """`a` or `an`; an empty string for plurals and for masses such as `guacamole`, which take neither."""
    words = noun.split()
    if not words or is_plural(noun) or words[_head(words)].lower() in _MASS:
        return ""
    if _SPELT_OUT.match(noun) or _SILENT_H.match(noun):
        return "an"
    return "an" if noun[0].lower() in "aeiou" and not _CONSONANT_SOUND.match(noun) else "a"


def with_article(noun: str) -> str:
    """A noun phrase with its article: `a dog`, `an apron`, `binoculars`."""
    return f"{article(noun)} {noun}".strip()


def plural(noun: str) -> str:
    """The plural of a noun phrase: `dining tables`, `kings of beasts`, `meat loaves`, `geese`."""
    words = noun.split()
    if not words:
        return noun
    head = _head(words)
    if is_plural(noun) or words[head].lower() in _MASS:
        return noun
    words[head] = _plural_word(words[head])
    return " ".join(words)


def _head(words: Sequence[str]) -> int:
    """The index of the word that becomes plural: the word before the first preposition, or else the last word."""
    for index, word in enumerate(words[1:], start=1):
        if word in ("of", "in", "with", "on", "for"):
            return index - 1
    return len(words) - 1


def _plural_word(word: str) -> str:
    lower = word.lower()
    if lower in _UNCHANGED or lower.endswith("fish"):
        return word
    if lower in _IRREGULAR:
        return word[0] + _IRREGULAR[lower][1:]
    if lower.endswith("man") and lower not in _NOT_MEN and len(lower) > 4:
        return word[:-2] + "en"
    if re.search(r"(s|x|z|ch|sh)$", lower):
        return word + "es"
    if re.search(r"[^aeiou]y$", lower):
        return word[:-1] + "ies"
    return word + "s"


def fill(template: str, noun: str) -> str:
    """The text of a template for a noun. `{name}` is the noun, `{a}` the noun with its article, `{s}` its plural."""
    return template.format(name=noun, a=with_article(noun), s=plural(noun))


def templates_for(noun: str) -> tuple[str, ...]:
    """The templates that make good English with this noun. Plurals and masses do not get the plural templates."""
    if is_plural(noun):
        swaps = {
            " is the": " are the",
            "is there {a}": "are there {a}",
            "there is": "there are",
            "this is": "these are",
        }
        return tuple(_swapped(template, swaps) for template in TEMPLATES)
    if not article(noun):
        return TEMPLATES
    return TEMPLATES + PLURAL_TEMPLATES


def _swapped(template: str, swaps: dict[str, str]) -> str:
    for old, new in swaps.items():
        template = template.replace(old, new)
    return template


def query_variants(noun: str) -> tuple[str, ...]:
    """All the ways in which we expect people to ask for a noun, without duplicates. The bare noun comes first."""
    return tuple(dict.fromkeys(fill(template, noun) for template in templates_for(noun)))


@dataclass(frozen=True)
class Caption:
    """A text and the classes that it means.

    Attributes:
        noun: what was put into the template.
        labels: the classes.
        source: where the noun comes from.
    """

    text: str
    noun: str
    labels: tuple[int, ...]
    source: Kind


class Vocabulary:
    """The words of a table of classes: names, synonyms, and groups (hypernym → labels).

    Args:
        classes: one entry for each class, in the order of the labels. An entry has a `name`, and may have `synonyms`
            and `is_a`, which lists hypernyms.
        held_out: words that must not reach a caption, in any case. Whole nouns are compared, and their plurals.

    Raises:
        ValueError: an entry has no name, its `label` is not its row in the table, or the held-out words leave a class
            without any name.
    """

    def __init__(self, classes: Sequence[dict[str, Any]], held_out: Iterable[str] = ()) -> None:
        self.held_out = frozenset(normal(word) for word in held_out)
        names: list[str] = []
        synonyms: list[tuple[str, ...]] = []
        groups: dict[str, list[int]] = {}
        for label, entry in enumerate(classes):
            if not entry.get("name"):
                raise ValueError(f"class {label}: expected a name, got {entry!r}")
            if entry.get("label", label) != label:
                raise ValueError(
                    f"class {entry['name']}: expected label {label}, its place in the table, got {entry['label']}"
                )
            names.append(entry["name"])
            synonyms.append(tuple(word for word in entry.get("synonyms", ()) if not self.holds_out(word)))
            for word in entry.get("is_a", ()):
                if not self.holds_out(word):
                    groups.setdefault(word, []).append(label)
        self.names = tuple(names)
        self.synonyms = tuple(synonyms)
        self.groups = {word: tuple(labels) for word, labels in groups.items()}
        bare = [name for name, others in zip(names, synonyms, strict=True) if self.holds_out(name) and not others]
        if bare:
            raise ValueError(f"held-out words leave no name for {', '.join(bare)}")

    @classmethod
    def load(cls, path: str | Path, held_out: Iterable[str] = ()) -> Vocabulary:
        """Read a classes.json. Raises ValueError if it is missing, or is not a list of classes."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"table of classes not found: {path}")
        classes = json.loads(path.read_text())
        if not isinstance(classes, list):
            raise ValueError(f"{path}: expected a list of classes, got {type(classes).__name__}")
        return cls(classes, held_out)

    def holds_out(self, noun: str) -> bool:
        """Whether a noun, or its plural, is one of the held-out words."""
        return normal(noun) in self.held_out or normal(plural(noun)) in self.held_out

    def nouns(self) -> list[tuple[str, tuple[int, ...], Kind]]:
        """Every noun with the classes that it means. A noun that several classes have means all of those classes."""
        meaning: dict[str, tuple[str, set[int], Kind]] = {}

        def add(noun: str, labels: Iterable[int], kind: Kind) -> None:
            if not self.holds_out(noun):
                _, known, _ = meaning.setdefault(normal(noun), (noun, set(), kind))
                known.update(labels)

        for label, name in enumerate(self.names):
            add(name, [label], "name")
        for label, others in enumerate(self.synonyms):
            for noun in others:
                add(noun, [label], "synonym")
        for noun, labels in self.groups.items():
            add(noun, labels, "is_a")
        return [(noun, tuple(sorted(labels)), kind) for noun, labels, kind in meaning.values()]

    def captions(self, templates: Sequence[str] | None = None) -> list[Caption]:
        """Every noun in every template, each text once. Without `templates`, those of `templates_for` are used."""
        by_text: dict[str, Caption] = {}
        for noun, labels, kind in self.nouns():
            for template in templates_for(noun) if templates is None else templates:
                text = fill(template, noun)
                by_text.setdefault(text, Caption(text, noun, labels, kind))
        return list(by_text.values())


def captions(class_entry: dict[str, Any], templates: Sequence[str] | None = None) -> list[str]:
    """The texts that mean one class: its name, synonyms and hypernyms in every template, each text once."""
    nouns = [class_entry["name"], *class_entry.get("synonyms", ()), *class_entry.get("is_a", ())]
    texts = (fill(t, noun) for noun in nouns for t in (templates_for(noun) if templates is None else templates))
    return list(dict.fromkeys(texts))


def normal(noun: str) -> str:
    """The form in which nouns are compared: lower case, single spaces, spaces for hyphens and underscores."""
    return " ".join(re.sub(r"[-_]", " ", noun).lower().split())
