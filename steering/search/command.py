"""`steer index` and `steer search`: parse, call, print. The work is in `steering.search.gallery`.

Unusual: a search ends with exit code 1 when nothing in the gallery shows what was looked for, as `grep` does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steering.errors import printable

if TYPE_CHECKING:
    from steering.goals import Goal
    from steering.search.gallery import Gallery, Hits
    from steering.search.indexing import Report

VARIABLE = "STEER_GALLERY"
MOST = 1_000_000_000
INDEX_EPILOG = """\
examples:
  steer index photos/                            into the default gallery; again, later, only what changed
  steer index photos/ scans/ --gallery mine      several folders, a gallery of their own
  steer index photos/ --gallery fast --keep first-pass   90 KB an image instead of 30, searches three times as fast
  steer index photos/ --json                     the report for a machine; bad files are listed in it
  steer index photos/ --engine ray --address auto    on a Ray cluster (pip install 'lrm-steering[ray]')
  steer index photos/ --gallery s3://bucket/gallery  in an object store

May be interrupted at any time: what was committed stays, the next run goes on.
exit codes: 0 done (bad files are skipped and listed), 2 usage
"""
SEARCH_EPILOG = """\
examples:
  steer search "a dog"
  steer search "a dog - grass" --top 20 --contact-sheet dogs.png
  steer search "2:a dog + a cat"                 both, the dog counts twice
  steer search "image:photo.jpg + a hat"         an image as a term
  steer search "a dog" --where "width > 500 AND path LIKE '%/2024/%'" --json
  steer search "a dog" --threshold 0.8 --paths | xargs ls -l
  steer search --query-image photo.jpg           what looks like this

columns for --where: path, size, modified, sha256, width, height, sees (likeliest class before any goal)
exit codes: 0 found, 1 nothing in the gallery shows it, 2 usage
"""


def default_gallery() -> str:
    """Where a gallery is unless told otherwise: $STEER_GALLERY, or a folder among the user's data."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return os.environ.get(VARIABLE) or str(Path(data) / "steer" / "gallery")


def _parser(name: str, usage: str, description: str, epilog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"steer {name}",
        usage=usage,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--gallery",
        metavar="DIR",
        help=f"folder or address of the gallery (default: ${VARIABLE}, or {default_gallery()})",
    )
    parser.add_argument(
        "--model", default="lrm_mini", help="lrm_mini (default), a model's folder, or a published model"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: what there is)")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no notes, errors only")
    return parser


def _whole(least: int) -> Any:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= MOST:
            raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number from {least} to {MOST:,}")
        return value

    return parse


def index(argv: Sequence[str]) -> int:
    """Run `steer index` with these arguments; returns the exit code."""
    usage = "steer index [options] FOLDER [FOLDER ...]"
    parser = _parser("index", usage, "Build a gallery of images, or bring it up to date.", INDEX_EPILOG)
    parser.add_argument("sources", nargs="+", metavar="FOLDER", help="a folder (searched recursively) or an image")
    parser.add_argument(
        "--workers", type=_whole(0), metavar="N", help="processes that read images (default: all cores)"
    )
    parser.add_argument(
        "--keep",
        choices=("pixels", "first-pass", "nothing"),
        help="of each image, in a new gallery: what the network saw (default, 27 KB), also what a steered pass starts "
        "from (90 KB), or nothing: a search then reads the files",
    )
    parser.add_argument("--retry", action="store_true", help="read again what could not be read before")
    parser.add_argument("--prune", action="store_true", help="forget the images of a folder that is empty now")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="where images are read and seen")
    parser.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster; without it, one on this machine")
    given = parser.parse_args(argv)
    if given.address and given.engine != "ray":
        parser.error("--address: expected --engine ray with it")
    place = given.gallery or default_gallery()
    try:
        from steering.search.files import scan

        for source in given.sources:  # a misspelt folder is told before the network is loaded
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
        progress = None if given.quiet else _bar
        options = {"workers": given.workers, "engine": engine, "retry": given.retry, "prune": given.prune}
        report = gallery.add(list(given.sources), progress=progress, **options)
    except ModuleNotFoundError as error:
        parser.error(f"{error}; the engine needs more packages: pip install 'lrm-steering[ray]'")
    except ValueError as error:
        parser.error(str(error))
    if given.json:
        print(json.dumps({"gallery": place, **report.as_dict()}))
    else:
        _tell(report, place, given.quiet)
    return 0


def _bar(results: Iterator[Any], count: int | None, report: Report) -> Iterator[Any]:
    """The results, with images a second and the time left on a terminal."""
    from tqdm import tqdm

    with tqdm(
        results, total=count, unit="image", desc="indexing", dynamic_ncols=True, disable=None, smoothing=0.1
    ) as bar:
        for item in bar:
            if report.skipped:
                bar.set_postfix(skipped=len(report.skipped), refresh=False)
            yield item


def _tell(report: Report, place: str, quiet: bool) -> None:
    counts = [f"{getattr(report, key):,} {key}" for key in ("new", "changed", "renamed", "deleted", "unchanged")]
    speed = (report.new + report.changed) / report.seconds if report.seconds else 0.0
    print(f"{printable(place)}: {report.images:,} images ({', '.join(counts)}; {len(report.skipped):,} skipped)")
    if report.new + report.changed:
        print(f"{report.seconds:.1f} s, {speed:,.0f} images/s")
    if quiet:
        return
    for name, count in report.kept.items():
        print(
            f"steer: {printable(name)}: empty now; its {count:,} images were kept (--prune forgets them)",
            file=sys.stderr,
        )
    for name, reason in report.unlisted.items():
        print(f"steer: {printable(name)}: {reason}", file=sys.stderr)
    for name, reason in report.skipped.items():
        print(f"steer: skipped {printable(name)}: {reason}", file=sys.stderr)


def search(argv: Sequence[str]) -> int:
    """Run `steer search` with these arguments; returns the exit code."""
    usage = 'steer search [options] "a dog"'
    parser = _parser("search", usage, "Search a gallery by looking for what is named.", SEARCH_EPILOG)
    parser.add_argument("query", nargs="?", metavar="QUERY", help="words, or terms joined by + and -")
    parser.add_argument("--query-image", metavar="IMAGE", help="look for what an image shows, instead of words")
    parser.add_argument("--top", type=_whole(1), default=10, metavar="N", help="hits to show (default 10)")
    parser.add_argument(
        "--rerank", type=_whole(0), default=128, metavar="N", help="candidates to look at (default 128; 0: none)"
    )
    parser.add_argument("--threshold", type=float, metavar="P", help="least probability of a hit, 0 to 1")
    parser.add_argument("--where", metavar="SQL", help='search only these, e.g. "width > 500"')
    parser.add_argument("--paths", action="store_true", help="print the paths of the hits and nothing else")
    parser.add_argument("--contact-sheet", metavar="FILE", help="draw the hits, with heatmaps, into a picture")
    parser.add_argument("--open", action="store_true", help="show the contact sheet")
    parser.add_argument("--prior", metavar="NAME", help="the model's own (default), class-names, or a file")
    parser.add_argument("--text", metavar="NAME:FILE", help="text encoder of a published model")
    parser.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="of the prior's sampling (default 0)")
    given = parser.parse_args(argv)
    if (given.query is None) == (given.query_image is None):
        parser.error('expected one thing to look for: words such as "a dog", or --query-image FILE')
    if given.contact_sheet and not os.path.isdir(os.path.dirname(os.path.abspath(given.contact_sheet))):
        parser.error(f"--contact-sheet {given.contact_sheet}: no such folder")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    place = given.gallery or default_gallery()
    try:
        from steering.search.store import Store

        Store.open(place)  # whether there is one, before the network is loaded
        from steering.search.gallery import Gallery
        from steering.steerer import Steerer

        steerer = Steerer.load(given.model, prior=given.prior, text=given.text, device=given.device)
        gallery = Gallery.open(place, steerer, create=False)
        if given.query_image is not None:
            goal = steerer.image_goal(given.query_image)
        else:
            goal = gallery.goal(given.query, seed=given.seed)
        hits = gallery.search(
            goal, top=given.top, rerank=given.rerank, where=given.where, threshold=given.threshold, seed=given.seed
        )
        if given.contact_sheet or given.open:
            _sheet(gallery, hits, goal, given.contact_sheet, given.open)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(str(error))
    _print(hits, given)
    found = hits.present if hits.frequency is not None and given.threshold is None else hits
    return 0 if found else 1


def _sheet(gallery: Gallery, hits: Hits, goal: Goal, path: str | None, show: bool) -> None:
    import tempfile
    import webbrowser

    from steering.search.sheet import contact_sheet

    if path is None:
        handle, path = tempfile.mkstemp(prefix="steer-", suffix=".png")
        os.close(handle)
    contact_sheet(gallery, hits, goal).savefig(path)
    if show and not webbrowser.open(Path(path).absolute().as_uri()):
        print(f"steer: {printable(path)}: written; no program here shows it", file=sys.stderr)


def _print(hits: Hits, given: argparse.Namespace) -> None:
    if given.paths:
        sys.stdout.flush()
        for hit in hits:
            sys.stdout.buffer.write(os.fsencode(hit.path) + b"\n")
        sys.stdout.buffer.flush()
    elif given.json:
        about = {"query": hits.query, "images": hits.images, "looked_at": hits.looked_at, "frequency": hits.frequency}
        print(json.dumps({**about, "seconds": round(hits.seconds, 4), "hits": [hit.as_dict() for hit in hits]}))
    else:
        print(_text(hits, given.threshold))


def _text(hits: Hits, threshold: float | None) -> str:
    """The answer in a sentence, then a line for each hit."""
    query, present = printable(hits.query), hits.present
    many = f"{hits.images:,} image{'' if hits.images == 1 else 's'}"
    work = f"{many}, {hits.looked_at:,} looked at, {hits.seconds:.2f} s"
    if not hits.images:
        return f"There is no image to search for “{query}”."
    if threshold is not None:
        some = f"{len(hits)} of the images reach" if hits else "no image reaches"
        head = f"“{query}”: {some} {threshold:.0%} ({work})"
    elif not hits.looked_at:
        head = f"“{query}”, by the first pass alone ({work})"
    elif hits.frequency is None:
        head = f"“{query}”, by evidence; this model has no calibrated verdict for such a goal ({work})"
    elif present:
        head = f"“{query}”: {len(present):,} of the hits below show it ({work})"
    else:
        unsure = any(hit.verdict == "unsure" for hit in hits)
        head = "It is unsure whether anything in this gallery shows" if unsure else "Nothing in this gallery shows"
        head += f" “{query}” ({work})." + (" Nearest:" if hits else "")
    lines = [head]
    here = os.getcwd() + os.sep
    for hit in hits:
        said = "not looked at" if hit.probability is None else f"{hit.verdict:<7} {hit.probability:>4.0%}"
        if hit.probability is None and hit.evidence is not None:
            said = f"{hit.evidence:+.2f} nats"
        path = printable(hit.path.removeprefix(here))
        lines.append(f"{hit.rank:>3}  {said:<13}  {path}  ({hit.width}×{hit.height}, sees {hit.sees})")
    return "\n".join(lines)
