"""`steer index photos/`: build a gallery of images, or bring it up to date."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steering.commands import options
from steering.errors import printable
from steering.search.selection import LEFT_OUT, advice

if TYPE_CHECKING:
    from steering.search.report import Report
    from steering.search.store import Store

MOST_SKIPPED, MOST_NOTES = 20, 10  # lines of one kind
EPILOG = """\
examples:
  steer index photos/                            into the default gallery; a later run reads only what changed
  steer index photos/ scans/ --gallery mine      several folders, a gallery of their own
  steer index photos/ --gallery fast --keep first-pass   90 KB an image instead of 30, searches three times as fast
  steer index photos/ --exclude '*.gif' --exclude drafts    without some files and folders
  steer index pictures/                          after photos/ was renamed: nothing is read again
  steer index photos/ --prune                    photos/ is gone: forget its images
  steer index photos/ --json                     the report as JSON, with a list of the bad files
  steer index photos/ --engine ray --address auto    on a Ray cluster (needs the extra `ray`)
  steer index photos/ --gallery s3://bucket/gallery  in an object store

You may interrupt it at any time. What was written stays, and the next run goes on.
Whatever is not indexed is told: kinds of pictures that are not read, linked folders, and what is left out by its name.
exit codes: 0 done (bad files are skipped and listed), 1 nothing was indexed, 2 wrong usage
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
        if any(not os.path.lexists(source) for source in given.sources):
            _check(given.sources, place, given.prune)  # a misspelt folder is reported before the network is loaded
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
            exclude=given.exclude,
            include_all=given.include_all,
            progress=None if given.quiet else _bar,
        )
    if given.json:
        print(json.dumps({"gallery": place, **report.as_dict()}))
    else:
        _tell(report, place, given.quiet, parser)
    if report.new or report.changed or report.renamed or report.unchanged or report.deleted or report.forgotten:
        return 0
    if _holds(gallery.store, given.sources):
        return 0
    from steering.images import SUFFIXES

    print(f"steer: nothing was indexed; files that are read end with {' '.join(SUFFIXES)}", file=sys.stderr)
    return 1


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


def _tell(report: Report, place: str, quiet: bool, parser: options.Parser) -> None:
    counts = [f"{getattr(report, key):,} {key}" for key in ("new", "changed", "renamed", "deleted", "unchanged")]
    speed = (report.new + report.changed) / report.seconds if report.seconds else 0.0
    images = f"{report.images:,} image{'' if report.images == 1 else 's'}"
    print(f"{printable(place)}: {images} ({', '.join(counts)}; {len(report.skipped):,} skipped)")
    if report.new + report.changed:
        print(f"{report.seconds:.1f} s, {speed:,.0f} images/s")
    if not quiet:
        for line in _notes(report, parser):
            print(f"steer: {line}", file=sys.stderr)


def _notes(report: Report, parser: options.Parser) -> Iterator[str]:
    """A line for each thing that a user may want to know, the most urgent last."""
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
    reasons = {name: parser.translate(reason) for name, reason in report.skipped.items()}
    yield from _first(reasons, MOST_SKIPPED, "skipped ")


def _first(told: Mapping[str, str], most: int, before: str = "") -> Iterator[str]:
    """A line for each of the first files, and how many more there are."""
    for name, text in itertools.islice(told.items(), most):
        yield f"{before}{printable(name)}: {text}"
    if len(told) > most:
        yield f"… and {len(told) - most:,} more (--json lists all)"


def _many(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"
