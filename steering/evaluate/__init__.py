"""`steer evaluate`: what steering does and does not do, measured, and written into README, RESULTS.md and a page.

Parse, call, write; the measuring is in the modules beside this one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Pictures = dict[str, dict[str, Figure]]

EPILOG = """\
examples:
  steer evaluate all --source DATA --photos PHOTOS --brain BRAIN92 --output results.json --report report.html
  steer evaluate all --source DATA --quick                  the same in three minutes, on fewer images
  steer evaluate all --source DATA --output results.json --resume    go on after an interruption
  steer evaluate all --from results.json --readme README.md --results RESULTS.md    rewrite them from stored numbers
  steer evaluate composites --source FOLDER                 scenes of any ImageFolder (valid/<class>/*) or hub data set
  steer evaluate triplets --source FOLDER --output t.csv    keep which images make the scenes
  steer evaluate search --source DATA --output r.json       searching crowded scenes
  steer evaluate robustness --source DATA --output r.json   attacks and corruptions
  steer evaluate brain --brain BRAIN92                      similarity with inferior temporal cortex
  steer evaluate brain --responses mine.npz                 encode your own responses; see docs/brain.md

DATA is a folder of Tiny ImageNet parquet files; without --source, zh-plus/tiny-imagenet from the hub.
"""

TITLE = "What steering does: {model}"
COMMANDS = {
    "all": "everything below, README, RESULTS.md and a page",
    "composites": "find what is in a scene, keep quiet about what is not: against controls",
    "search": "a gallery of crowded scenes, searched for what is in them",
    "gallery": "heatmaps and failures chosen by rule, and the geometry of the passes",
    "robustness": "attacks and common corruptions, for each pass",
    "brain": "similarity with inferior temporal cortex; encoding of one's own responses",
    "triplets": "write which images make the composite scenes",
}


def main(argv: Sequence[str]) -> int:
    """Run `steer evaluate` with these arguments; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="steer evaluate",
        description="Measure what steering does, and what it does not.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    described = "; ".join(f"{name}: {text}" for name, text in COMMANDS.items())
    parser.add_argument("what", choices=tuple(COMMANDS), help=described)
    parser.add_argument("--model", default="lrm_mini", help="a name, or a model's folder (default lrm_mini)")
    parser.add_argument("--prior", metavar="NAME", help="the model's own (default), or class-names")
    parser.add_argument("--device", help="cpu, cuda, … (default: what there is)")
    parser.add_argument("--source", default="zh-plus/tiny-imagenet", help="labelled images: a folder or a hub name")
    parser.add_argument("--photos", metavar="DIR", help="full-size photographs with photos.json (default: none)")
    parser.add_argument("--brain", metavar="DIR", help="the 92 images and their RDMs (default: none)")
    parser.add_argument("--responses", metavar="NPZ", help="responses of your own, see docs/brain.md")
    parser.add_argument("--triplets", metavar="CSV", help="scenes, as `steer evaluate triplets` wrote them")
    parser.add_argument("--scenes", type=int, metavar="N", help="of each kind (default 1000, quick 60)")
    parser.add_argument("--images", type=int, metavar="N", help="single images (default all, quick 500)")
    parser.add_argument("--quick", action="store_true", help="few images and scenes: to see that it works")
    parser.add_argument("--seed", type=int, default=1000, help="of scenes, attacks and pictures (default 1000)")
    parser.add_argument(
        "--output", metavar="FILE", help="write the numbers as JSON, beside other parts; of triplets, the CSV"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on where an interrupted run with the same --output was"
    )
    parser.add_argument("--from", dest="stored", metavar="FILE", help="take stored numbers instead of measuring")
    parser.add_argument("--readme", metavar="FILE", help="all: rewrite the table between the markers in this file")
    parser.add_argument("--results", metavar="FILE", help="write the answers, with tables, as Markdown")
    parser.add_argument("--report", metavar="FILE", help="write one page with every table and picture, as HTML")
    given = parser.parse_args(argv)
    if given.resume and not given.output:
        parser.error("--resume: expected --output FILE, the results to go on with")
    try:
        from steering.evaluate.report import around

        if given.readme:
            if given.what != "all":
                raise ValueError("--readme: its table needs everything; use `steer evaluate all`")
            around(given.readme)  # before an hour of measuring, not after it
        if given.report and given.stored:
            raise ValueError("--report: its pictures need the images: measure instead of --from")
        if given.what == "triplets":
            return _triplets(given)
        if given.what == "brain" and not (given.brain or given.responses or given.stored):
            raise ValueError("brain: expected --brain DIR, --responses NPZ, or both")
        pictures: Pictures = {}
        if given.stored:
            results = json.loads(Path(given.stored).read_text())
        else:
            from steering.evaluate.suite import Asked, Suite

            options = {field.name: getattr(given, field.name) for field in fields(Asked) if hasattr(given, field.name)}
            suite = Suite(Asked(**options, pictures=bool(given.report)))
            results, pictures = suite.run(), suite.pictures
        _write(given, results, pictures)
    except ModuleNotFoundError as error:
        parser.error(f"{error}; the evaluation needs more packages: pip install 'lrm-steering[evaluate]'")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


def _triplets(given: argparse.Namespace) -> int:
    import torch

    from lrm_base.card import load_card
    from lrm_base.data import DataConfig, load_images
    from steering.evaluate.single import class_rows
    from steering.evaluate.triplets import draw_all, write_triplets
    from steering.steerer import find_model

    if not given.output:
        raise ValueError("triplets: expected --output CSV")
    classes = load_card(find_model(given.model) / "backbone.safetensors")["classes"]
    data = load_images(DataConfig(source=given.source, num_holdout=0), "valid")
    labels = torch.tensor(class_rows(data, classes))[torch.tensor(data["label"][:])]
    triplets = draw_all(labels, len(classes), given.scenes or 1000, given.seed)
    write_triplets(given.output, triplets, labels)
    print(f"{given.output}: {sum(len(group.present) for group in triplets)} scenes of {len(labels)} images")
    return 0


def _write(given: argparse.Namespace, results: dict[str, Any], pictures: Pictures) -> None:
    from steering.evaluate import report
    from steering.evaluate.page import write_page, write_results_md
    from steering.evaluate.suite import PARTS, PARTS_OF

    if given.readme:
        report.rewrite(given.readme, results)
    parts = report.parts(results, pictures)
    title = TITLE.format(**results)
    if given.results:
        write_results_md(given.results, parts, title, results)
    if given.report:
        write_page(given.report, title, results, parts)
    if given.what == "all":
        print(report.table(results))
    else:
        asked = {key: value for key, value in results.items() if key not in PARTS or key in PARTS_OF[given.what]}
        print("\n\n".join(text.strip() for text, _ in report.parts(asked)))
    if not given.output and not given.stored:
        print("nothing was kept: --output FILE writes the numbers", file=sys.stderr)
