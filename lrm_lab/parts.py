"""Every part of the laboratory, in order. Results, commands, table, RESULTS.md and the page follow from this list.

Each part is two modules: `X.py` measures, and `X_report.py` reports what was measured (sections, figures, table rows).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lrm_lab import (
    above,
    above_report,
    brain,
    brain_report,
    composites,
    composites_report,
    cut_off,
    cut_off_report,
    encoding,
    encoding_report,
    examples,
    examples_report,
    geometry,
    geometry_report,
    ladder,
    ladder_report,
    names,
    names_report,
    photographs,
    photographs_report,
    retrieval,
    retrieval_report,
    robustness,
    robustness_report,
    single,
    single_report,
    unknown,
    unknown_report,
    where,
    where_report,
    words,
    words_report,
)
from lrm_lab.bench import Bench, evenly
from lrm_lab.commands import ALL, COMMANDS, TRIPLETS
from lrm_lab.imagenet_words import LISTS, lacks_classes, lacks_wnids, word_lists
from lrm_lab.part import Part

GEOMETRY_GOALS = ("a dog", "a bridge")


def _single(bench: Bench) -> dict[str, Any]:
    return single.measure(bench.named, *bench.single_images)


def _words(bench: Bench) -> dict[str, Any]:
    return words.measure(bench.steerer)


def _lacks_classes(bench: Bench) -> str:
    return lacks_classes(bench.named.network.card["classes"])


def _lacks_wnids(bench: Bench) -> str:
    return "" if bench.network.is_open else lacks_wnids(bench.network.card["classes"])


def _lacks_rows(bench: Bench) -> str:
    """A CLIP has no classes of its own, to which the labels of the photographs could belong."""
    if not bench.network.is_open or bench.asked.photos is None:
        return ""
    classes = bench.named.network.card["classes"]
    table = json.loads((Path(bench.asked.photos) / "photos.json").read_text())
    own = dict(enumerate(entry.get("wnid") for entry in classes))
    strange = [e for e in table if e["label"] not in own or e.get("wnid", own[e["label"]]) != own[e["label"]]]
    return f"{len(strange)} of {len(table)} labels in photos.json are not classes of the images" if strange else ""


def _lacks_threshold(bench: Bench) -> str:
    why = _lacks_classes(bench)
    if not why and bench.steerer.language.least is None:
        why = "the model has no threshold below which words are unfamiliar"
    return why


def _ladder(bench: Bench) -> dict[str, Any]:
    held_out = json.loads(LISTS.read_text())["held_out"]
    asked = bench.asked
    return ladder.measure(
        bench.steerer,
        held_out,
        *bench.images,
        others=bench.other_priors,
        scenes=min(bench.scenes, 100 if asked.quick else 500),
        seed=asked.seed,
    )


def _unknown(bench: Bench) -> dict[str, Any]:
    lists = word_lists(bench.network.card["classes"])
    return unknown.measure(bench.steerer, lists.unknown, lists.known)


def _names(bench: Bench) -> dict[str, Any]:
    return names.measure(bench.judging, *bench.single_images, bench.asked.seed)


def _above(bench: Bench) -> dict[str, Any]:
    words_above = word_lists(bench.named.network.card["classes"]).above
    step = 5 if bench.asked.quick else 1  # each photograph is asked for every word
    pixels, labels = bench.single_images
    return above.measure(bench.judging, pixels[::step], labels[::step], words_above)


def _photographs(bench: Bench) -> dict[str, Any]:
    return photographs.measure(bench.judging, str(bench.asked.photos), bench.asked.seed)


def _composites(bench: Bench) -> dict[str, Any]:
    options: dict[str, Any] = {"by_name": bench.by_name, "controls": bench.controls, "seed": bench.asked.seed}
    sweeps = min(bench.scenes, 40 if bench.asked.quick else 300)
    return composites.measure(bench.judging, bench.triplets, *bench.images, sweep_scenes=sweeps, **options)


def _where(bench: Bench) -> dict[str, Any]:
    few, fewer = min(bench.scenes, 500), min(bench.scenes, 20 if bench.asked.quick else 300)
    return where.measure(bench.named, bench.triplets, *bench.images, scenes=few, ablation_scenes=fewer)


def _search(bench: Bench) -> dict[str, Any]:
    queries = 10 if bench.asked.quick else None
    return retrieval.measure(bench.named, *bench.images, scenes=bench.scenes, queries=queries, seed=bench.asked.seed)


def _cut_off(bench: Bench) -> dict[str, Any]:
    pixels, labels = bench.single_images
    rows = evenly(len(labels), 1000)
    queries = 20 if bench.asked.quick else 100
    return cut_off.measure(bench.named, pixels[rows], labels[rows], queries=queries, seed=bench.asked.seed)


def _examples(bench: Bench) -> dict[str, Any]:
    trials = 40 if bench.asked.quick else 200
    gathered = examples.gather(bench.judging, *bench.images, trials=trials, seed=bench.asked.seed)
    if bench.draw:
        bench.pictures["examples"] = examples_report.figures(gathered)
    return examples.summary(gathered)


def _geometry(bench: Bench) -> dict[str, Any]:
    return geometry.measure(bench.named, *bench.images, GEOMETRY_GOALS, seed=bench.asked.seed)


def _robustness(bench: Bench) -> dict[str, Any]:
    plain = bench.controls["plain"].backbone if "plain" in bench.controls else None
    return robustness.measure(
        bench.network, plain, *bench.single_images, quick=bench.asked.quick, seed=bench.asked.seed
    )


def _brain(bench: Bench) -> dict[str, Any]:
    asked = bench.asked
    return brain.measure(bench.steerer, str(asked.brain), seed=asked.seed, quick=asked.quick)


def _encoding(bench: Bench) -> dict[str, Any]:
    asked = bench.asked
    return encoding.measure(bench.steerer, str(asked.responses), seed=asked.seed, quick=asked.quick)


PARTS = (
    Part("single", "composites", "--source DATA", _single, single_report.sections, single_report.rows),
    Part(
        "words",
        "composites",
        "--source DATA",
        _words,
        words_report.sections,
        words_report.rows,
        needs_classes="its list holds words that were kept out of the training, and nothing of a CLIP was trained here",
    ),
    Part(
        "ladder",
        "composites",
        "--source DATA",
        _ladder,
        ladder_report.sections,
        lacks=_lacks_classes,
        needs_classes="it compares ways from words to outputs over classes, and has an oracle by prototypes",
    ),
    Part(
        "unknown",
        "composites",
        "--source DATA",
        _unknown,
        unknown_report.sections,
        unknown_report.rows,
        lacks=_lacks_threshold,
        needs_classes="a CLIP takes any words: none is called unknown",
    ),
    Part(
        "names",
        "composites",
        "--source DATA",
        _names,
        names_report.sections,
        names_report.rows,
        lacks=_lacks_wnids,
        needs_verdict=True,
    ),
    Part(
        "above",
        "composites",
        "--source DATA",
        _above,
        above_report.sections,
        above_report.rows,
        lacks=_lacks_classes,
        needs_verdict=True,
    ),
    Part(
        "photographs",
        "composites",
        "--source DATA --photos PHOTOS",
        _photographs,
        photographs_report.sections,
        photographs_report.rows,
        needs="photos",
        lacks=_lacks_rows,
        needs_verdict=True,
    ),
    Part(
        "composites",
        "composites",
        "--source DATA",
        _composites,
        composites_report.sections,
        composites_report.rows,
        needs_verdict=True,
        has_controls=True,
    ),
    Part("where", "composites", "--source DATA", _where, where_report.sections, where_report.rows),
    Part(
        "search",
        "search",
        "--source DATA",
        _search,
        retrieval_report.sections,
        retrieval_report.rows,
        needs_verdict=True,
    ),
    Part("cut_off", "search", "--source DATA", _cut_off, cut_off_report.sections, needs_verdict=True),
    Part(
        "examples",
        "examples",
        "--source DATA",
        _examples,
        examples_report.sections,
        needs_verdict=True,
        draws=True,
    ),
    Part("geometry", "examples", "--source DATA", _geometry, geometry_report.sections),
    Part(
        "robustness",
        "robustness",
        "--source DATA",
        _robustness,
        robustness_report.sections,
        needs_classes="its attacks change outputs over classes, and a CLIP gives an embedding",
        has_controls=True,
    ),
    Part("brain", "brain", "--brain BRAIN92", _brain, brain_report.sections, needs="brain"),
    Part("encoding", "brain", "--responses NPZ", _encoding, encoding_report.sections, needs="responses"),
)


def parts_of(command: str) -> tuple[Part, ...]:
    """The parts that a command measures. Raises ValueError with the choices if there is no such command."""
    if command not in COMMANDS or command == TRIPLETS:
        choices = ", ".join(name for name in COMMANDS if name != TRIPLETS)
        raise ValueError(f"what: got {command!r}, expected {choices}")
    return tuple(part for part in PARTS if command in (ALL, part.command))
