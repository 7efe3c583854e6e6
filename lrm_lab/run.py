"""Run `steer evaluate`: measure the parts that were asked for, store their numbers, and write the reports."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from lrm_base.card import load_card
from lrm_base.checks import seed as check_seed
from lrm_base.checks import whole_number
from lrm_base.data import DataConfig, class_rows, load_images
from lrm_lab.bench import Bench
from lrm_lab.commands import ALL, Asked
from lrm_lab.goals import verdict_of
from lrm_lab.named import classes_of
from lrm_lab.page import write_page, write_results_md
from lrm_lab.part import Part
from lrm_lab.parts import PARTS, parts_of
from lrm_lab.report import TITLE, around, rewrite, sections, table
from lrm_lab.stored import read_parts, read_results, write_results
from lrm_lab.triplets import NUM_SCENES, SEED, triplets_for, write_triplets
from steering.catalogue import default_model, find_model, is_clip
from steering.cutoff import NOTE, is_calibrated

OPEN = (
    "{model} is compared with no prototypes, no goals by class names, no trained controls and no twin: a CLIP has none"
)
Pictures = Mapping[str, Mapping[str, Figure]]


def evaluate(
    asked: Asked,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    stored: str | Path | None = None,
    readme: str | Path | None = None,
    results: str | Path | None = None,
    report: str | Path | None = None,
) -> str:
    """Measure what was asked for, or take stored numbers, and write the reports.

    Args:
        output: where the numbers are kept as JSON, part by part. Parts of this file that were measured in the same way
            stay.
        resume: whether to skip parts of `output` that were measured in the same way.
        stored: a file of results. They are reported, and nothing is measured.
        readme: a Markdown file, in which the table between the markers is rewritten. The table needs all parts.
        results: where the sections are written as Markdown.
        report: where everything is written as one page, with pictures. The pictures need the images.

    Returns:
        The README's table if everything was asked for, otherwise the sections of what was asked for.

    Raises:
        ValueError: the arguments do not go together, a file is not what it should be, or something that a part needs is
            missing. All of this is found out before anything is measured.
    """
    parts = parts_of(asked.what)
    if resume and output is None:
        raise ValueError("resume: expected `output` as well, the results to go on with")
    if report is not None and stored is not None:
        raise ValueError("report: its pictures need the images, so that stored results cannot make them: measure again")
    if readme is not None:
        if asked.what != ALL:
            raise ValueError(f"readme: its table needs everything: got {asked.what!r}, expected {ALL!r}")
        around(readme)
    for name, path in (("output", output), ("results", results), ("report", report)):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"{name}: got {path}, expected a file in a folder that exists")
    if stored is None and asked.triplets is not None and not Path(asked.triplets).is_file():
        raise ValueError(f"triplets: got {asked.triplets}, expected a file")
    pictures: Pictures = {}
    if stored is None:
        measured, pictures = measure(asked, parts, output=output, resume=resume, draw=report is not None)
    else:
        measured = read_results(stored)
    if readme is not None:
        rewrite(readme, measured)
    told, title = sections(measured, pictures), TITLE.format(**measured)
    if results is not None:
        write_results_md(results, told, title, measured)
    if report is not None:
        write_page(report, title, measured, told)
    if asked.what == ALL:
        return table(measured)
    others = {part.name for part in PARTS} - {part.name for part in parts}
    chosen = {key: value for key, value in measured.items() if key not in others}
    return "\n\n".join(text.strip() for text, _ in sections(chosen))


def measure(
    asked: Asked,
    parts: Sequence[Part],
    *,
    output: str | Path | None = None,
    resume: bool = False,
    draw: bool = False,
) -> tuple[dict[str, Any], Pictures]:
    """The header and every part that is possible, and the pictures that were drawn. See `evaluate` for the arguments.

    Each part is kept in `output` as soon as it is measured, and stderr tells how long it took. A part for which the
    model lacks something is left out, and stderr tells why.
    """
    possible = [part for part in parts if part.is_possible(asked)]
    if not possible:
        needs = " or ".join(f"`{part.needs}`" for part in parts)
        raise ValueError(f"{asked.what}: got nothing to measure on, expected {needs}")
    bench = Bench(asked, draw=draw)
    if bench.network.is_open:
        print(OPEN.format(model=bench.network.card["name"]), file=sys.stderr)
        if not is_calibrated(bench.steerer):
            print(NOTE, file=sys.stderr)
    elif any(part.needs_verdict for part in possible):
        verdict_of(bench.steerer)
    header = bench.header(sees_images=any(part.sees_images for part in parts))
    controls = bench.controls_header()
    kept = {} if output is None else read_parts(output, header, controls)
    results = {**kept, **header, **controls}
    for part in possible:
        if resume and part.name in kept and not (part.draws and draw):
            continue
        if why := part.left_out(bench):
            print(f"{part.name}: left out, since {why}", file=sys.stderr)
            continue
        start = time.monotonic()
        results[part.name] = part.measure(bench)
        print(f"{part.name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
        if output is not None:
            write_results(output, results)
    return results, bench.pictures


def write_triplets_for(
    model: str | None, source: str, output: str | Path, *, scenes: int = NUM_SCENES, seed: int = SEED
) -> str:
    """Write which images make the composite scenes, as a CSV for `Asked.triplets`.

    Args:
        model: an embedded model, a folder or a CLIP; None for the default. The labels are its classes, for a CLIP those
            of the images.
        source: labelled images; see `lrm_base.data.DataConfig`.
        scenes: number of scenes of each kind.

    Returns:
        What was written, in a sentence.

    Raises:
        ValueError: there is no such model, a number is out of range, or the images do not fit the model.
    """
    whole_number("scenes", scenes, 1)
    by_images = is_clip(default_model() if model is None else model)
    classes = classes_of(source) if by_images else load_card(find_model(model) / "backbone.safetensors")["classes"]
    data = load_images(DataConfig(source=source, num_holdout=0), "valid")
    labels = torch.tensor(data["label"][:])
    if not by_images:
        labels = torch.tensor(class_rows(data, classes))[labels]
    triplets = triplets_for(labels, len(classes), count=scenes, seed=check_seed(seed))
    write_triplets(output, triplets, labels)
    return f"{output}: {sum(len(group.present) for group in triplets)} scenes of {len(labels)} images"
