"""`steer search "a dog"`: search a gallery by looking for what is named.

Unusual: the exit code is 1 when nothing in the gallery shows what was looked for, as with `grep`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steering.commands import options
from steering.errors import GalleryError, printable

if TYPE_CHECKING:
    from steering.goals import Goal
    from steering.search.gallery import Gallery
    from steering.search.hits import Hits

EPILOG = """\
examples:
  steer search "a dog"
  steer search "a dog - grass" --top 20 --contact-sheet dogs.png
  steer search "2:a dog + a cat"                 both, the dog counts twice
  steer search "image:photo.jpg + a hat"         an image as a term
  steer search "a dog" --where "width > 500 AND path LIKE '%/2024/%'" --json
  steer search "a dog" --threshold 0.8 --paths | xargs ls -l
  steer search --query-image photo.jpg           what looks like this

columns for --where: path, size, modified, sha256, width, height, sees (likeliest class before any goal)
exit codes: 0 found, 1 nothing in the gallery shows it, 2 wrong usage
"""


def make_parser() -> options.Parser:
    """The parser of `steer search`."""
    usage = 'steer search [options] "a dog"'
    parser = options.Parser("search", usage, "Search a gallery by looking for what is named.", EPILOG)
    parser.add_argument("query", nargs="*", metavar="QUERY", help="words in quotes, or terms joined by + and -")
    options.add_gallery(parser)
    options.add_model(parser)
    options.add_language(parser)
    options.add_printing(parser, "the hits as one JSON object")
    parser.add_argument("--query-image", metavar="IMAGE", help="look for what an image shows, instead of words")
    parser.add_argument("--top", type=options.whole(1), default=10, metavar="N", help="hits to show (default 10)")
    parser.add_argument(
        "--rerank", type=options.whole(0), default=128, metavar="N", help="candidates to look at (default 128; 0: none)"
    )
    parser.add_argument("--threshold", type=options.probability, metavar="P", help="least probability of a hit, 0 to 1")
    parser.add_argument("--where", metavar="SQL", help='search only such images, e.g. "width > 500"')
    parser.add_argument("--paths", action="store_true", help="print the paths of the hits and nothing else")
    parser.add_argument("--contact-sheet", metavar="FILE", help="draw the hits, with heatmaps, into a picture")
    parser.add_argument("--open", action="store_true", help="show the contact sheet")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run `steer search` with these arguments. Returns the exit code; wrong usage raises SystemExit(2)."""
    parser = make_parser()
    given = parser.parse_args(argv)
    if len(given.query) > 1:
        quoted = " ".join(given.query)
        parser.error(f'got {len(given.query)} queries, expected one; put the words in quotes: steer search "{quoted}"')
    query = given.query[0] if given.query else None
    if (query is None) == (given.query_image is None):
        parser.error('expected one thing to look for: words such as "a dog", or --query-image FILE')
    if given.contact_sheet and not os.path.isdir(os.path.dirname(os.path.abspath(given.contact_sheet))):
        parser.error(f"--contact-sheet {given.contact_sheet}: no such folder")
    options.plain_streams()
    place = given.gallery or options.default_gallery()
    with parser.usage_errors():
        from steering.search.store import Store

        try:
            Store.open(place)  # a missing gallery is reported before the network is loaded
        except GalleryError as error:
            makes_one = f"`steer index FOLDER --gallery {place}` makes one"
            raise GalleryError(str(error).replace("index images into it first", makes_one)) from None
        from steering.search.gallery import Gallery
        from steering.steerer import Steerer

        steerer = Steerer.load(given.model, prior=given.prior, text=given.text, device=given.device)
        gallery = Gallery.open(place, steerer, create=False)
        if query is None:
            goal = steerer.image_goal(given.query_image)
        else:
            goal = gallery.goal(query, seed=given.seed)
        hits = gallery.search(
            goal, top=given.top, rerank=given.rerank, where=given.where, threshold=given.threshold, seed=given.seed
        )
        if given.contact_sheet or given.open:
            _sheet(gallery, hits, goal, given.contact_sheet, given.open)
    _print(hits, given)
    shown = hits.present if hits.frequency is not None and given.threshold is None else hits
    return 0 if shown else 1


def _sheet(gallery: Gallery, hits: Hits, goal: Goal, path: str | None, show: bool) -> None:
    import tempfile
    import webbrowser

    from steering.search.sheet import contact_sheet

    if path is None:
        handle, path = tempfile.mkstemp(prefix="steer-", suffix=".png")
        os.close(handle)
    contact_sheet(gallery, hits, goal).savefig(path)
    if show and not webbrowser.open(Path(path).absolute().as_uri()):
        print(f"steer: {printable(path)}: was written, but no program here shows pictures", file=sys.stderr)


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
