"""ImageNet's classes as a table that vocabularies and weight cards take.

    python -m prior.class_table ../shared/data/imagenet/classes.json --output runs/imagenet_classes.json

The input holds WordNet's names of each class and of everything above it. Its form is `{"classes": [{"index", "wnid",
"names", "is_a"}], "above": {wnid: names}}`. Two classes of one name get names of their own, since a text encoder cannot
tell one crane from the other. What lies above a class and says nothing ("artifact") is left out.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrm_base.card import write_atomically
from prior.captions import normal

MOST_CLASSES = 500  # a hypernym of so many classes tells nothing about a photograph
PLAIN_NAMES = {"n02012849": "crane bird", "n03126707": "construction crane"}  # WordNet calls both of them only "crane"
EMPTY = {
    "entity", "physical entity", "object", "whole", "artifact", "matter", "abstraction", "causal agent",
    "agent", "part", "piece", "product", "work", "creation", "attribute", "relation", "communication",
    "natural object", "substance", "solid", "point", "location", "area", "system", "article",
    "instrumentality", "commodity", "consumer goods", "durables", "ware", "covering", "attachment",
    "connection", "obstruction", "control", "restraint", "top", "support", "strengthener", "upright",
    "framework", "surface", "horizontal surface", "shape", "round shape", "circle", "sheet", "medium",
    "measure", "peer", "associate", "participant", "concoction", "ingredient", "starches", "signal",
    "person", "ligament", "web", "runner", "bar", "ride", "institution", "geographic point", "reproducer", "padding",
}  # fmt: skip
"""First names of the synsets above a class that name no kind of thing. Three of ImageNet's classes are persons (groom,
ballplayer, scuba diver), which gives no eyes for people."""
MISLEADING = {
    "n02085374": ("toy",),  # toy dog
    "n02152991": ("game",),  # game bird
    "n02127808": ("cat",),  # big cat
    "n04586932": ("wind",),  # wind instrument
    "n04598582": ("wood",),  # woodwind
    "n02880546": ("string",),  # bowed stringed instrument
    "n02958343": ("machine",),  # automobile
    "n03343853": ("piece",),  # firearm
    "n04565375": ("arm",),  # weapon
    "n04602044": ("work",),  # workplace
    "n02785648": ("patch",),  # bandage
    "n03497657": ("lid",),  # hat
    "n02834778": ("wheel",),  # bicycle
    "n03959701": ("plate", "scale", "shell"),  # armour plate
    "n03959936": ("plate",),  # home plate of baseball, to which WordNet counts the puck
    "n01694709": ("monitor",),  # monitor lizard
    "n02062430": ("blower",),  # cetacean
    "n02384858": ("racer",),  # greyhound
    "n04091097": ("rig",),  # drilling platform
    "n04403638": ("scope",),  # telescope
    "n02856463": ("board",),  # scoreboard
    "n03100346": ("convertible",),  # sofa bed
    "n06263369": ("press",),  # public press
    "n03540267": ("hose",),  # hosiery
    "n04417809": ("house",),  # theater
    "n02946921": ("tin",),  # can
    "n04151940": ("cover", "covert", "concealment"),  # screen
    "n02688443": ("surface",),  # airfoil
    "n03956922": ("plant", "works"),  # factory
    "n03178782": ("figure",),  # design
    "n04038440": ("stand",),  # rack
    "n03665366": ("light",),  # torch
    "n07680932": ("roll",),  # bun
}
"""Names of a synset above a class that almost always mean something else."""


def class_table(source: dict[str, Any]) -> list[dict[str, Any]]:
    """A table for `prior.captions.Vocabulary`: `wnid`, `name`, `synonyms` and `is_a` of each class, in label order.

    Args:
        source: `classes`, a list of `index`, `wnid`, `names` and `is_a` (wnids, nearest first), and `above`, the names
            of each of those wnids.

    Raises:
        ValueError: a key is missing, an index is not its place, a class has no name, or two classes have the same only
            name and nothing above them tells them apart.
    """
    try:
        classes, above = source["classes"], source["above"]
        for label, entry in enumerate(classes):
            if entry["index"] != label:
                raise ValueError(f"class {entry['wnid']}: expected index {label}, its place, got {entry['index']}")
            if not entry["names"]:
                raise ValueError(f"class {entry['wnid']}: expected at least one name, got none")
        covered = Counter(wnid for entry in classes for wnid in set(entry["is_a"]))
        names = _unique_names(classes, above)
        spelling = {normal(name): name for name in names}
        return [
            {
                "wnid": entry["wnid"],
                "name": name,
                # A Cardigan is a corgi, but a cardigan is another class.
                "synonyms": [
                    other for other in entry["names"] if other != name and spelling.get(normal(other), other) == other
                ],
                "is_a": _hypernyms([wnid for wnid in entry["is_a"] if covered[wnid] < MOST_CLASSES], above),
            }
            for entry, name in zip(classes, names, strict=True)
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"classes: expected index, wnid, names and is_a of each, and above; got {error!r}") from None


def _unique_names(classes: Sequence[dict[str, Any]], above: dict[str, list[str]]) -> list[str]:
    """The first name of each class. A class that shares it takes a name of its own, unless all the others did."""
    names = [PLAIN_NAMES.get(entry["wnid"], entry["names"][0]) for entry in classes]
    owners = Counter(normal(name) for entry in classes for name in {normal(name): name for name in entry["names"]})
    shared = Counter(normal(name) for name in names)
    for label, entry in enumerate(classes):
        key = normal(names[label])
        own = [name for name in entry["names"] if owners[normal(name)] == 1]
        if shared[key] > 1 and own:
            shared[key] -= 1
            names[label] = own[0]
    for label, entry in enumerate(classes):
        if shared[normal(names[label])] > 1 and entry["is_a"]:
            names[label] = f"{names[label]} {above[entry['is_a'][0]][0]}"
    twice = [name for name, count in Counter(map(normal, names)).items() if count > 1]
    if twice:
        raise ValueError(f"classes: expected names that differ, got several classes of {', '.join(twice)}")
    return names


def _hypernyms(wnids: Sequence[str], above: dict[str, list[str]]) -> list[str]:
    """The names of synsets, each once, without those that are empty or misleading."""
    kept = [wnid for wnid in wnids if above[wnid][0] not in EMPTY]
    return list(dict.fromkeys(name for w in kept for name in above[w] if name not in MISLEADING.get(w, ())))


def main(argv: Sequence[str] | None = None) -> None:
    """Read WordNet's names, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("classes", metavar="CLASSES_JSON", help="the classes with their WordNet names")
    parser.add_argument("--output", required=True, help="….json to write")
    given = parser.parse_args(argv)
    try:
        table = class_table(json.loads(Path(given.classes).read_text()))
    except (ValueError, OSError) as error:
        parser.error(f"{given.classes}: {error}")
    output = Path(given.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, (json.dumps(table, indent=1, ensure_ascii=False) + "\n").encode())
    print(f"{len(table)} classes → {output}")


if __name__ == "__main__":
    main()
