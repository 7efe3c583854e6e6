"""`steer search "a dog"`: search a gallery by looking for what is named.

Unusual: the exit code is 1 when nothing in the gallery shows what was looked for, or when that is unsure, as with
`grep`. It is 3 when the network has no eyes for the words, and so ranked nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from steering.commands import csv_rows, options, terminal
from steering.errors import printable

if TYPE_CHECKING:
    from steering.goals import Goal
    from steering.search.gallery import Gallery
    from steering.search.hits import Hit, Hits
    from steering.search.store import Store
    from steering.steerer import Steerer

EPILOG = """\
examples:
  steer search "a dog"
  steer search "a dog - grass" --top 20 --contact-sheet dogs.png
  steer search "2:a dog + a cat"                 both, the dog counts twice
  steer search "image:photo.jpg + a hat"         an image as a term
  steer search "a dog" --where "width > 500 AND path LIKE '%/2024/%'" --json
  steer search "a dog" --threshold 0.8 --paths -0 | xargs -0 ls -l
  steer search "a dog" --folder holidays --folder /disk/2024     only below these folders
  steer search "a dog" --preview                 show the hits in the terminal
  steer search "a dog" --csv > dogs.csv          for a spreadsheet
  steer search --query-image photo.jpg           what looks like this
  steer search --query-image a.jpg --query-image b.jpg           the same as "image:a.jpg + image:b.jpg"
  steer search "a cofee" --anyway                rank by words that the network has no eyes for

A hit has two numbers: how likely it shows the goal alone, and how likely here, given all that was seen of the gallery.
The verdict of a hit is that of the image alone. The answer above the hits is that of the gallery.
Some images are drawn at random and looked at, too: what nobody looked at is no evidence of absence.

--preview finds out by the environment what the terminal shows: kitty, iterm and sixel are pictures, blocks are coloured
characters. It needs a terminal unless one of these is named.
--csv has a row for each hit, with the numbers of --json, and the file's size, time and hash as they were indexed.

columns for --where: path, size, modified, sha256, width, height, sees (likeliest class before any goal)
exit codes: 0 found, 1 nothing shows it or it is unsure, 2 wrong usage (so is a --folder with no image of the gallery),
  3 the network has no eyes for the words (with --anyway: 1)
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
    parser.add_argument(
        "--query-image",
        action="append",
        default=[],
        metavar="IMAGE",
        help="look for what an image shows, instead of words; may be given again, for what all of them show",
    )
    parser.add_argument(
        "--folder", action="append", default=[], metavar="DIR", help="search only below DIR; may be given again"
    )
    parser.add_argument("--top", type=options.whole(1), default=10, metavar="N", help="hits to show (default 10)")
    parser.add_argument(
        "--rerank", type=options.whole(0), default=128, metavar="N", help="candidates to look at (default 128; 0: none)"
    )
    parser.add_argument("--threshold", type=options.probability, metavar="P", help="least probability of a hit, 0 to 1")
    parser.add_argument("--where", metavar="SQL", help='search only such images, e.g. "width > 500"')
    parser.add_argument("--all", action="store_true", help="list images that are the same to the eye one by one")
    parser.add_argument("--anyway", action="store_true", help="rank even by words that the network has no eyes for")
    parser.add_argument("--paths", action="store_true", help="print the paths of the hits and nothing else")
    parser.add_argument("-0", "--print0", action="store_true", help="like --paths, with a NUL after each, for xargs -0")
    parser.add_argument("--csv", action="store_true", help="the hits as CSV, a row for each")
    parser.add_argument(
        "--preview",
        nargs="?",
        const=terminal.AUTO,
        choices=(terminal.AUTO, *terminal.PROTOCOLS),
        help="show the hits in the terminal, as it can (default), or by one protocol",
    )
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
    if (query is None) == (not given.query_image):
        parser.error('expected one thing to look for: words such as "a dog", or --query-image FILE')
    _check_form(parser, given)
    if given.contact_sheet and not os.path.isdir(os.path.dirname(os.path.abspath(given.contact_sheet))):
        parser.error(f"--contact-sheet {given.contact_sheet}: no such folder")
    options.plain_streams()
    place = given.gallery or options.default_gallery()
    with parser.usage_errors():
        screen = terminal.screen(given.preview) if given.preview else None
        where = _condition(place, given)  # what is missing is reported before the network is loaded
        from steering.search.gallery import Gallery
        from steering.steerer import Steerer

        steerer = Steerer.load(
            given.model, prior=given.prior, text=given.text, templates=given.templates, device=given.device
        )
        gallery = Gallery.open(place, steerer, create=False)
        goal = _image_goal(steerer, given.query_image) if query is None else gallery.goal(query, seed=given.seed)
        hits = gallery.search(
            goal,
            top=given.top,
            rerank=given.rerank,
            where=where,
            threshold=given.threshold,
            fold=not given.all,
            anyway=given.anyway,
            seed=given.seed,
        )
        if given.contact_sheet or given.open:
            _sheet(gallery, hits, goal, given.contact_sheet, given.open)
        _print(hits, given, gallery.store, screen)
    if hits.is_unknown and not given.anyway:
        return 3
    judged = hits.answer is not None and given.threshold is None
    return 0 if hits and (not judged or hits.answer == "present") else 1


def _condition(place: str, given: argparse.Namespace) -> str | None:
    """The condition of --where and --folder, once it is known that the gallery is there."""
    store = options.open_store(place)
    from steering.search.below import narrowed

    return narrowed(store, given.folder, given.where)


def _image_goal(steerer: Steerer, images: Sequence[str]) -> Goal:
    """The goal of an image, or of several as in the query "image:a.jpg + image:b.jpg"."""
    from steering.algebra import IMAGE, combine_goals

    goals = [steerer.image_goal(image) for image in images]
    if len(goals) == 1:
        return goals[0]
    name = " + ".join(f"{IMAGE}{image}" for image in images)
    return combine_goals([(1.0, goal) for goal in goals], name, combine=steerer.network.combine)


def _check_form(parser: options.Parser, given: argparse.Namespace) -> None:
    """One form of output at a time. A picture in the text would spoil any form for programs."""
    forms = {
        "--json": given.json,
        "--paths": given.paths or given.print0,
        "--csv": given.csv,
        "--preview": given.preview,
    }
    chosen = [option for option, wanted in forms.items() if wanted]
    if len(chosen) > 1:
        parser.error(f"got {' and '.join(chosen)}, expected one of them")


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


def _print(hits: Hits, given: argparse.Namespace, store: Store, screen: terminal.Screen | None) -> None:
    if given.csv:
        csv_rows.write_hits(hits, store)
        _warn(hits, given)
    elif given.paths or given.print0:
        here = [hit for hit in hits if not hit.gone]
        options.write_paths((hit.path for hit in here), nul=given.print0)
        _warn(hits, given)
        if len(here) < len(hits) and not given.quiet:
            print(f"steer: {_gone(len(hits) - len(here))}; left out", file=sys.stderr)
    elif given.json:
        print(json.dumps(hits.as_dict()))
    else:
        print(told(hits, given.threshold, None if screen is None else partial(_picture, store, screen)))


def _warn(hits: Hits, given: argparse.Namespace) -> None:
    """Tell on stderr that the words are unknown, where stdout is for programs."""
    if hits.is_unknown and not given.quiet:
        print(f"steer: {_unknown(hits)}. {'; '.join(map(printable, hits.notes))}", file=sys.stderr)


def _picture(store: Store, screen: terminal.Screen, hit: Hit) -> list[str]:
    """The lines that show a hit's picture."""
    from steering.commands.drawing import drawn
    from steering.search.thumbnails import thumbnail

    picture = thumbnail(store, hit, screen.box)
    lines = ["(no picture)"] if picture is None else drawn(picture, screen).split("\n")
    return [" " * terminal.INDENT + line for line in lines]


def told(hits: Hits, threshold: float | None = None, picture: Callable[[Hit], list[str]] | None = None) -> str:
    """The answer of the gallery, then a line for each hit, and below it what `picture` gives for the hit."""
    lines = [_head(hits, threshold)]
    if hits.images or hits.is_unknown:
        lines += [f"  note: {printable(note)}" for note in hits.notes]
        for hit in hits:
            lines += [_line(hit), *(picture(hit) if picture else [])]
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
