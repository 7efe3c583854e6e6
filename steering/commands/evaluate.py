"""`steer evaluate`: measure what steering does and does not do. The laboratory (`lrm_lab`) does the measuring.

Unusual: this is the one module of the product that imports the laboratory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields

from lrm_base.checks import MOST_SEED
from lrm_lab.commands import COMMANDS, TRIPLETS, Asked
from steering.commands import options

EPILOG = """\
examples:
  steer evaluate all --source DATA --photos PHOTOS --brain BRAIN92 --output results/results.json --report report.html
  steer evaluate all --source DATA --quick                  the same on fewer images, in minutes
  steer evaluate all --source DATA --output results/results.json --resume    go on after an interruption
  steer evaluate all --from results/results.json --readme README.md --results results/RESULTS.md
  steer evaluate composites --source FOLDER                 scenes of any ImageFolder (valid/<class>/*) or hub data set
  steer evaluate triplets --source FOLDER --output t.csv    write down which images make the scenes
  steer evaluate search --source DATA --output r.json       searching crowded scenes
  steer evaluate robustness --source DATA --output r.json   attacks and corruptions
  steer evaluate composites --model clip:FOLDER --source DATA    a CLIP; its names are those of the images' classes
  steer evaluate brain --brain BRAIN92                      similarity with inferior temporal cortex
  steer evaluate brain --responses mine.npz                 encode your own responses; see docs/brain.md

DATA is a folder of Tiny ImageNet parquet files. Without --source it is zh-plus/tiny-imagenet from the hub. A CLIP takes
the names of its classes: those of the labels, of the folders, or of a classes.json beside the images.
"""


def make_parser() -> options.Parser:
    """The parser of `steer evaluate`."""
    usage = "steer evaluate WHAT [options]"
    parser = options.Parser("evaluate", usage, "Measure what steering does, and what it does not.", EPILOG)
    described = "; ".join(f"{name}: {text}" for name, text in COMMANDS.items())
    parser.add_argument("what", metavar="WHAT", choices=tuple(COMMANDS), help=described)
    parser.add_argument("--model", help=f"a name, a model's folder, or clip:… ({options.MODEL_DEFAULT})")
    parser.add_argument("--prior", metavar="NAME", help="the model's own (default), or class-names")
    parser.add_argument("--device", help="cpu, cuda, mps, … (default: cuda, then mps, then cpu)")
    parser.add_argument("--source", default=Asked.source, help="labelled images: a folder or a name on the hub")
    parser.add_argument("--photos", metavar="DIR", help="full-size photographs with photos.json (default: none)")
    parser.add_argument("--brain", metavar="DIR", help="the 92 images and their RDMs (default: none)")
    parser.add_argument("--responses", metavar="NPZ", help="responses of your own, see docs/brain.md")
    parser.add_argument("--triplets", metavar="CSV", help="scenes, as `steer evaluate triplets` wrote them")
    parser.add_argument(
        "--scenes", type=options.whole(1), metavar="N", help="scenes of each kind (default 1000, quick 60)"
    )
    parser.add_argument(
        "--images", type=options.whole(1), metavar="N", help="number of single images (default all, quick 500)"
    )
    parser.add_argument("--quick", action="store_true", help="few images and scenes: to see that it works")
    parser.add_argument(
        "--seed",
        type=options.whole(0, MOST_SEED),
        default=Asked.seed,
        metavar="N",
        help=f"seed of the scenes, attacks and pictures (default {Asked.seed})",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="add the numbers to this JSON file; for triplets, write this CSV file"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on where an interrupted run with the same --output was"
    )
    parser.add_argument("--from", dest="stored", metavar="FILE", help="take stored numbers instead of measuring")
    parser.add_argument("--readme", metavar="FILE", help="all: rewrite the table between the markers in this file")
    parser.add_argument("--results", metavar="FILE", help="write the answers, with tables, as Markdown")
    parser.add_argument("--report", metavar="FILE", help="write one page with every table and picture, as HTML")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run `steer evaluate` with these arguments. Returns the exit code; wrong usage raises SystemExit(2)."""
    parser = make_parser()
    given = parser.parse_args(argv)
    _refuse_idle_options(parser, given)
    options.plain_streams()
    with parser.usage_errors(extra="evaluate"):
        from lrm_lab.run import evaluate, write_triplets_for

        if given.what == TRIPLETS:
            if not given.output:
                raise ValueError("output: expected the CSV to write")
            numbers = {"scenes": given.scenes} if given.scenes else {}
            print(write_triplets_for(given.model, given.source, given.output, seed=given.seed, **numbers))
            return 0
        asked = Asked(**{field.name: getattr(given, field.name) for field in fields(Asked)})
        print(
            evaluate(
                asked,
                output=given.output,
                resume=given.resume,
                stored=given.stored,
                readme=given.readme,
                results=given.results,
                report=given.report,
            )
        )
    if not given.output and not given.stored:
        print("steer: nothing was kept; --output FILE writes the numbers", file=sys.stderr)
    return 0


TELLING = ("readme", "results", "report")
MEASURING = ("model", "prior", "device", "source", "photos", "brain", "responses", "triplets", "scenes", "images")


def _refuse_idle_options(parser: options.Parser, given: argparse.Namespace) -> None:
    """Options that would change nothing are an error: somebody expects something of them."""
    idle: tuple[str, ...] = ()
    if given.what == TRIPLETS:
        idle, where = (*TELLING, *MEASURING[1:3], *MEASURING[4:8], "images", "quick", "resume", "stored"), "triplets"
    elif given.stored:
        idle, where = (*MEASURING, "quick", "seed", "output", "resume"), "--from, which measures nothing"
    told = [name for name in idle if getattr(given, name) != parser.get_default(name)]
    if told:
        spelled = ", ".join("--from" if name == "stored" else f"--{name}" for name in told)
        parser.error(f"{spelled}: not used with {where}")
