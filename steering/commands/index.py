"""`steer index photos/`: build a gallery of images, or bring it up to date."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from steering.commands import options
from steering.errors import printable

if TYPE_CHECKING:
    from steering.search.report import Report

EPILOG = """\
examples:
  steer index photos/                            into the default gallery; a later run reads only what changed
  steer index photos/ scans/ --gallery mine      several folders, a gallery of their own
  steer index photos/ --gallery fast --keep first-pass   90 KB an image instead of 30, searches three times as fast
  steer index photos/ --json                     the report as JSON, with a list of the bad files
  steer index photos/ --engine ray --address auto    on a Ray cluster (pip install 'lrm-steering[ray]')
  steer index photos/ --gallery s3://bucket/gallery  in an object store

You may interrupt it at any time. What was written stays, and the next run goes on.
exit codes: 0 done (bad files are skipped and listed), 2 wrong usage
"""


def make_parser() -> options.Parser:
    """The parser of `steer index`."""
    usage = "steer index [options] FOLDER [FOLDER ...]"
    parser = options.Parser("index", usage, "Build a gallery of images, or bring it up to date.", EPILOG)
    parser.add_argument("sources", nargs="+", metavar="FOLDER", help="a folder (searched recursively) or an image")
    options.add_gallery(parser)
    options.add_model(parser)
    options.add_printing(parser, "the report as one JSON object")
    parser.add_argument(
        "--workers", type=options.whole(0), metavar="N", help="processes that read images (default: all cores)"
    )
    parser.add_argument(
        "--keep",
        choices=("pixels", "first-pass", "nothing"),
        help="what a new gallery keeps of each image: the pixels that the network saw (default, 27 KB), also what a "
        "steered pass starts from (90 KB), or nothing, so that a search reads the files",
    )
    parser.add_argument("--retry", action="store_true", help="read again what could not be read before")
    parser.add_argument("--prune", action="store_true", help="forget the images of a folder that is empty now")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="where images are read and seen")
    parser.add_argument("--address", metavar="HOST:PORT", help="a Ray cluster's address (default: start one here)")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run `steer index` with these arguments. Returns the exit code; wrong usage raises SystemExit(2)."""
    parser = make_parser()
    given = parser.parse_args(argv)
    if given.address and given.engine != "ray":
        parser.error("--address: expected --engine ray with it")
    options.plain_streams()
    place = given.gallery or options.default_gallery()
    with parser.usage_errors(extra="ray" if given.engine == "ray" else None):
        from steering.search.files import scan

        for source in given.sources:  # a misspelt folder is reported before the network is loaded
            if not os.path.lexists(source):
                next(iter(scan([source])))
        from steering.search.gallery import Gallery
        from steering.steerer import Steerer

        gallery = Gallery.open(place, Steerer.load(given.model, device=given.device), keep=given.keep)
        engine = None
        if given.engine == "ray":
            from steering.search.ray_engine import ray_engine

            engine = ray_engine(
                given.model,
                address=given.address,
                workers=given.workers,
                device=given.device,
                first_pass=gallery.store.card.first_pass,
            )
        report = gallery.add(
            list(given.sources),
            workers=given.workers,
            engine=engine,
            retry=given.retry,
            prune=given.prune,
            progress=None if given.quiet else _bar,
        )
    if given.json:
        print(json.dumps({"gallery": place, **report.as_dict()}))
    else:
        _tell(report, place, given.quiet, parser)
    return 0


def _bar(results: Iterator[Any], count: int | None, report: Report) -> Iterator[Any]:
    """The results, with a bar on a terminal: images a second and the time left."""
    from tqdm import tqdm

    with tqdm(
        results, total=count, unit="image", desc="indexing", dynamic_ncols=True, disable=None, smoothing=0.1
    ) as bar:
        for item in bar:
            if report.skipped:
                bar.set_postfix(skipped=len(report.skipped), refresh=False)
            yield item


def _tell(report: Report, place: str, quiet: bool, parser: options.Parser) -> None:
    counts = [f"{getattr(report, key):,} {key}" for key in ("new", "changed", "renamed", "deleted", "unchanged")]
    speed = (report.new + report.changed) / report.seconds if report.seconds else 0.0
    print(f"{printable(place)}: {report.images:,} images ({', '.join(counts)}; {len(report.skipped):,} skipped)")
    if report.new + report.changed:
        print(f"{report.seconds:.1f} s, {speed:,.0f} images/s")
    if quiet:
        return
    for name, count in report.kept.items():
        print(
            f"steer: {printable(name)}: is empty now; its {count:,} images were kept (--prune forgets them)",
            file=sys.stderr,
        )
    for name, reason in report.unlisted.items():
        print(f"steer: {printable(name)}: {reason}", file=sys.stderr)
    for name, reason in report.skipped.items():
        print(f"steer: skipped {printable(name)}: {parser.translate(reason)}", file=sys.stderr)
