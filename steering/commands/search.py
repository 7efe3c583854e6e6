"""`steer search "a dog"`: search a gallery by looking for what is named.

Unusual: the exit code is 1 when nothing in the gallery shows what was looked for, or when that is unsure, as with
`grep`. It is 3 when the network has no eyes for the words, and so ranked nothing.
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
from steering.errors import printable

if TYPE_CHECKING:
    from steering.goals import Goal
    from steering.search.gallery import Gallery
    from steering.search.hits import Hit, Hits

EPILOG = """\
examples:
  steer search "a dog"
  steer search "a dog - grass" --top 20 --contact-sheet dogs.png
  steer search "2:a dog + a cat"                 both, the dog counts twice
  steer search "image:photo.jpg + a hat"         an image as a term
  steer search "a dog" --where "width > 500 AND path LIKE '%/2024/%'" --json
  steer search "a dog" --threshold 0.8 --print0 | xargs -0 ls -l
  steer search --query-image photo.jpg           what looks like this
  steer search "a cofee" --anyway                rank by words that the network has no eyes for

A hit has two numbers: how likely it shows the goal alone, and how likely here, given all that was seen of the gallery.
The verdict of a hit is that of the image alone. The answer above the hits is that of the gallery.
Some images are drawn at random and looked at, too: what nobody looked at is no evidence of absence.

columns for --where: path, size, modified, sha256, width, height, sees (likeliest class before any goal)
exit codes: 0 found, 1 nothing shows it or it is unsure, 2 wrong usage, 3 the network has no eyes for the words
  (with --anyway: 1)
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
    parser.add_argument("--all", action="store_true", help="list images that are the same to the eye one by one")
    parser.add_argument("--anyway", action="store_true", help="rank even by words that the network has no eyes for")
    parser.add_argument("--paths", action="store_true", help="print the paths of the hits and nothing else")
    parser.add_argument("--print0", action="store_true", help="like --paths, with a NUL after each, for xargs -0")
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
        options.open_store(place)  # a missing gallery is reported before the network is loaded
        from steering.search.gallery import Gallery
        from steering.steerer import Steerer

        steerer = Steerer.load(given.model, prior=given.prior, text=given.text, device=given.device)
        gallery = Gallery.open(place, steerer, create=False)
        if query is None:
            goal = steerer.image_goal(given.query_image)
        else:
            goal = gallery.goal(query, seed=given.seed)
        hits = gallery.search(
            goal,
            top=given.top,
            rerank=given.rerank,
            where=given.where,
            threshold=given.threshold,
            fold=not given.all,
            anyway=given.anyway,
            seed=given.seed,
        )
        if given.contact_sheet or given.open:
            _sheet(gallery, hits, goal, given.contact_sheet, given.open)
    _print(hits, given)
    if hits.is_unknown and not given.anyway:
        return 3
    judged = hits.answer is not None and given.threshold is None
    return 0 if hits and (not judged or hits.answer == "present") else 1


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
    if given.paths or given.print0:
        here = [hit for hit in hits if not hit.gone]
        options.write_paths((hit.path for hit in here), nul=given.print0)
        if hits.is_unknown and not given.quiet:
            print(f"steer: {_unknown(hits)}. {'; '.join(map(printable, hits.notes))}", file=sys.stderr)
        if len(here) < len(hits) and not given.quiet:
            print(f"steer: {_gone(len(hits) - len(here))}; left out", file=sys.stderr)
    elif given.json:
        print(json.dumps(hits.as_dict()))
    else:
        print(told(hits, given.threshold))


def told(hits: Hits, threshold: float | None = None) -> str:
    """The answer of the gallery, then a line for each hit."""
    lines = [_head(hits, threshold)]
    if hits.images or hits.is_unknown:
        lines += [f"  note: {printable(note)}" for note in hits.notes]
        lines += [_line(hit) for hit in hits]
    gone = sum(hit.gone for hit in hits)
    if gone:
        lines.append(f"{_gone(gone)}; `steer index` of their folder forgets them (--prune if the folder is gone)")
    return "\n".join(lines)


def _head(hits: Hits, threshold: float | None) -> str:
    """What was found, and how sure that is."""
    query = printable(hits.query)
    many = f"{hits.images:,} image{'' if hits.images == 1 else 's'}"
    work = f"{many}, {hits.looked_at:,} looked at, {hits.seconds:.2f} s"
    if not hits.images:
        return f"There is no image to search for “{query}”."
    if hits.is_unknown:
        return f"{_unknown(hits)} ({work})"
    if threshold is not None:
        some = f"{len(hits)} of the images reach" if hits else "no image reaches"
        return f"“{query}”: {some} {threshold:.0%} ({work})"
    if not hits.looked_at:
        return f"“{query}”, by the first pass alone ({work})"
    seen = hits.prevalence
    if seen is None:
        return f"“{query}”, by evidence; this model has no calibrated verdict for such a goal ({work})"
    if hits.answer == "absent":
        return f"Nothing in this gallery shows “{query}” ({work}). Nearest:"
    count = len(hits.present)
    like = f"{count} of the hits below look{'s' if count == 1 else ''} like it alone" if count else ""
    right = f"about {round(hits.expected)} of them" if round(hits.expected) else "fewer than one of them"
    nearest = "None of the hits below looks like it alone."
    share, low, high = (percent(max(part, 1 / hits.images)) for part in (seen.share, seen.low, seen.high))
    if hits.answer == "present":
        like = f"{like}; {right} expected to be right." if count else nearest
        return f"“{query}”: present ({work}).\n  {like} In all, about {share} of the images show it ({low} to {high})."
    least = f"If any image shows it, at most {high} do." if seen.high < 0.995 else "How many show it cannot be told."
    like = f"{like}; if any are right, {right}." if count else nearest
    return f"“{query}”: unsure whether any image shows it ({work}).\n  {like} {least} Nearest:"


def _unknown(hits: Hits) -> str:
    """That the network has no eyes for the words, and whether it ranked images all the same."""
    then = "the hits are guesses" if hits else "nothing was ranked; --anyway ranks all the same"
    return f"“{printable(hits.query)}”: unknown. This network has no eyes for it: {then}"


def percent(share: float) -> str:
    """A share in per cent with as many digits as it needs: 0.04 %, 1.3 %, 87 %."""
    return (
        f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %" if share >= 0.01 else f"{100 * share:.2g} %"
    )


def _line(hit: Hit) -> str:
    if hit.alone is not None and hit.probability is not None:
        said = f"{hit.verdict:<7} {hit.alone:>4.0%}, here {hit.probability:>4.0%}"
    else:
        said = "not looked at" if hit.evidence is None else f"{hit.evidence:+.2f} nats"
    path = printable(hit.path.removeprefix(os.getcwd() + os.sep))
    about = [f"{hit.width}×{hit.height}", f"sees {hit.sees}"]
    if hit.copies:
        about.append(f"and {len(hit.copies):,} more like it")
    if hit.gone:
        about.append("file is gone")
    return f"{hit.rank:>3}  {said:<23}  {path}  ({', '.join(about)})"


def _gone(count: int) -> str:
    return f"{count} hit{'' if count == 1 else 's'} whose file is gone"
