"""`steer index photos/`: build a gallery of images, or bring it up to date."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steering.commands import options
from steering.errors import printable
from steering.search.selection import LEFT_OUT, advice, suffix_of

if TYPE_CHECKING:
    from steering.search.report import Report
    from steering.search.store import Store
    from steering.search.watching import Watch

MOST_SKIPPED, MOST_NOTES = 20, 10  # lines of one kind
INTERVAL = 1.0  # seconds
EPILOG = """\
examples:
  steer index photos/                            into the default gallery; a later run reads only what changed
  steer index photos/ scans/ --gallery mine      several folders, a gallery of their own
  steer index photos/ --gallery fast --keep first-pass   90 KB an image instead of 30, searches three times as fast
  steer index photos/ --exclude '*.gif' --exclude drafts    without some files and folders
  steer index pictures/                          after photos/ was renamed: nothing is read again
  steer index photos/ --prune                    photos/ is gone: forget its images
  steer index photos/ --model clip:ViT-B-32:laion2b_s34b_b79k --also lrm_lite    two models in one gallery
  steer index photos/ --json                     the report as JSON, with a list of the bad files
  steer index photos/ --watch                    then keep in step with the folder, until Ctrl-C
  steer index photos/ --engine ray --address auto    on a Ray cluster (needs the extra `ray`)
  steer index photos/ --gallery s3://bucket/gallery  in an object store

You may interrupt it at any time. What was written stays, and the next run goes on.
Whatever is not indexed is told: kinds of pictures that are not read, linked folders, and what is left out by its name.
With --watch, a line tells of each batch of changes. A file is read when it has been at rest for a second. A FOLDER that
goes away is waited for, and its images are kept.
exit codes: 0 done (bad files are skipped and listed), or --watch was ended by Ctrl-C; 1 nothing was indexed; 2 wrong
usage
"""


def make_parser() -> options.Parser:
    """The parser of `steer index`."""
    usage = "steer index [options] FOLDER [FOLDER ...]"
    parser = options.Parser("index", usage, "Build a gallery of images, or bring it up to date.", EPILOG)
    parser.add_argument("sources", nargs="+", metavar="FOLDER", help="a folder (searched recursively) or an image")
    options.add_gallery(parser)
    options.add_model(parser)
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="MODEL",
        help="keep what this model sees beside it, for `steer search --model MODEL`; may be given again",
    )
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
    parser.add_argument("--prune", action="store_true", help="forget the images of a folder that is empty or gone now")
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="leave out files and folders whose name, or whose path below FOLDER, is like this; may be given again",
    )
    parser.add_argument(
        "--include-all",
        action="store_true",
        help=f"take hidden files and folders, too, and folders named {', '.join(LEFT_OUT)}; these are left out "
        "otherwise, unless FOLDER names them",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="keep the gallery in step with FOLDER until Ctrl-C; with --json, an object a line",
    )
    parser.add_argument(
        "--interval",
        type=options.number(0.1, 86_400.0, "a number of seconds"),
        metavar="SECONDS",
        help=f"least time between two scans with --watch (default {INTERVAL:g}); large folders are scanned less often",
    )
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="where images are read and seen")
    parser.add_argument("--address", metavar="HOST:PORT", help="a Ray cluster's address (default: start one here)")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run `steer index` with these arguments. Returns the exit code; wrong usage raises SystemExit(2)."""
    parser = make_parser()
    given = parser.parse_args(argv)
    if given.address and given.engine != "ray":
        parser.error("--address: expected --engine ray with it")
    if given.also and (given.watch or given.engine == "ray"):
        parser.error("--also: expected neither --watch nor --engine ray with it")
    if given.interval is not None and not given.watch:
        parser.error("--interval: expected --watch with it")
    options.plain_streams()
    place = given.gallery or options.default_gallery()
    with parser.usage_errors(extra="ray" if given.engine == "ray" else None):
        if any(not os.path.lexists(source) for source in given.sources):
            _check(given.sources, place, given.prune)  # a misspelt folder is reported before the network is loaded
        from steering.search.gallery import Gallery
        from steering.steerer import Steerer

        gallery = Gallery.open(place, Steerer.load(given.model, device=given.device), keep=given.keep)
        others = [Gallery.open(place, Steerer.load(m, device=given.device), keep=given.keep) for m in given.also]
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
        choices: dict[str, Any] = {
            "workers": given.workers,
            "engine": engine,
            "retry": given.retry,
            "prune": given.prune,
            "exclude": given.exclude,
            "include_all": given.include_all,
            "progress": None if given.quiet else _bar,
        }
        if given.watch:
            from steering.search.watching import Watch

            watch = Watch(gallery, given.sources, interval=given.interval or INTERVAL, **choices)
            return _follow(watch, place, given, parser)
        report = gallery.add(list(given.sources), **choices)
        also = {
            other.steerer.network.card["name"]: other.add(list(given.sources), **{**choices, "engine": None})
            for other in others
        }
    if given.json:
        told = {"also": {name: each.as_dict() for name, each in also.items()}} if also else {}
        print(json.dumps({"gallery": place, **report.as_dict(), **told}))
    else:
        _tell(report, place)
        for name, each in also.items():
            _tell(each, f"{place}, {name}")
        if not given.quiet:
            for line in _notes(report, parser):
                print(f"steer: {line}", file=sys.stderr)
    if report.new or report.changed or report.renamed or report.unchanged or report.deleted or report.forgotten:
        return 0
    if _holds(gallery.store, given.sources):
        return 0
    from steering.images import SUFFIXES

    print(f"steer: nothing was indexed; files that are read end with {' '.join(SUFFIXES)}", file=sys.stderr)
    return 1


def _follow(watch: Watch, place: str, given: argparse.Namespace, parser: options.Parser) -> int:
    """Print the reports of a watch until Ctrl-C. Returns the exit code."""
    told: set[str] = set()  # notes; each comes once
    with contextlib.suppress(KeyboardInterrupt):
        for number, report in enumerate(watch.reports()):
            if given.json:
                print(json.dumps({"gallery": place, **report.as_dict()}), flush=True)
                continue
            if number == 0:
                _tell(report, place)
            elif changes := _changes(report):
                many = f"{report.images:,} image{'' if report.images == 1 else 's'}"
                print(f"{time.strftime('%H:%M:%S')}  {changes}; {many}", flush=True)
            notes = [] if given.quiet else [line for line in _notes(report, parser) if line not in told]
            told.update(notes)
            for line in notes:
                print(f"steer: {line}", file=sys.stderr)
            if number == 0 and not given.quiet:
                print(f"steer: watching {', '.join(map(printable, given.sources))}; Ctrl-C ends", file=sys.stderr)
    return 0


def _changes(report: Report) -> str:
    """The counts of a report that are not 0."""
    counts = {key: getattr(report, key) for key in ("new", "changed", "renamed", "deleted")}
    counts["skipped"] = len(report.skipped)
    return ", ".join(f"{count:,} {key}" for key, count in counts.items() if count)


def _check(sources: Sequence[str], place: str, prune: bool) -> None:
    """Raises ImageError if a source is not there, unless it is to be forgotten and the gallery knows it."""
    from steering.errors import GalleryError
    from steering.search.files import missing
    from steering.search.store import Store

    try:
        known = [name for name, *_ in Store.open(place).known()]
    except GalleryError:  # no gallery yet
        known = []
    missing(sources, known, prune=prune)


def _holds(store: Store, sources: Sequence[str]) -> bool:
    """Whether a gallery holds an image from one of the sources."""
    from steering.search.files import is_below, roots

    folders = roots(sources)
    return any(
        is_below(name, folders) for batch in store.images.batches(("path",)) for name in batch["path"].to_pylist()
    )


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


def _tell(report: Report, place: str) -> None:
    counts = [f"{getattr(report, key):,} {key}" for key in ("new", "changed", "renamed", "deleted", "unchanged")]
    speed = (report.new + report.changed) / report.seconds if report.seconds else 0.0
    images = f"{report.images:,} image{'' if report.images == 1 else 's'}"
    print(f"{printable(place)}: {images} ({', '.join(counts)}; {len(report.skipped):,} skipped)", flush=True)
    if report.new + report.changed:
        print(f"{report.seconds:.1f} s, {speed:,.0f} images/s", flush=True)


def _notes(report: Report, parser: options.Parser) -> Iterator[str]:
    """A line for each thing that a user may want to know, the most urgent last."""
    from steering import photos

    lacks = {photos.needs(kind) for kind in photos.KINDS}
    lacked = {name: reason for name, reason in report.skipped.items() if reason in lacks}
    for (suffix, reason), count in sorted(Counter((suffix_of(name), lacked[name]) for name in lacked).items()):
        yield f"{suffix}: {_many(count, 'file is', 'files are')} not read; each {reason}"
    for suffix, count in sorted(report.passed_over.items()):
        yield f"{suffix}: {_many(count, 'file is', 'files are')} not read; {advice(suffix)}"
    if report.left_out:
        parts = [f"{count:,} × {printable(what)}" for what, count in sorted(report.left_out.items())]
        yield f"left out: {', '.join(parts)} (--include-all takes them)"
    for pattern, count in report.excluded.items():
        did = f"left out {_many(count, 'file or folder', 'files and folders')}" if count else "matched nothing"
        yield f"--exclude {shlex.quote(printable(pattern))} {did}"
    links = dict.fromkeys(report.linked, "is a linked folder and was not followed; name it each time, too, to index it")
    yield from _first(links, MOST_NOTES)
    yield from _first(report.notes, MOST_NOTES)
    for name, count in report.forgotten.items():
        gone = "is empty now" if os.path.lexists(name) else "is gone"
        yield f"{printable(name)}: {gone}; {_many(count, 'image was', 'images were')} forgotten"
    for name, count in report.kept.items():
        yield (
            f"{printable(name)}: is empty now; {_many(count, 'image of it was', 'images of it were')} kept "
            "(--prune forgets them)"
        )
    yield from _first(report.unlisted, MOST_SKIPPED)
    reasons = {name: parser.translate(reason) for name, reason in report.skipped.items() if name not in lacked}
    yield from _first(reasons, MOST_SKIPPED, "skipped ")


def _first(told: Mapping[str, str], most: int, before: str = "") -> Iterator[str]:
    """A line for each of the first files, and how many more there are."""
    for name, text in itertools.islice(told.items(), most):
        yield f"{before}{printable(name)}: {text}"
    if len(told) > most:
        yield f"… and {len(told) - most:,} more (--json lists all)"


def _many(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"
