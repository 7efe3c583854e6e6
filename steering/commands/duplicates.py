"""`steer duplicates`: the images of a gallery that are the same, byte for byte or to the eye.

Unusual: no network is loaded, because everything that is compared stands in the gallery. In each group the image to
keep comes first: one whose file is there, of the most pixels, of the most bytes. The exit code is 1 when there are
none, as with `grep`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from steering.commands import options
from steering.errors import printable

if TYPE_CHECKING:
    from steering.search.store import Store

EPILOG = """\
examples:
  steer duplicates                               groups of images that are the same to the eye, the biggest first
  steer duplicates --exact                       only files that are the same byte for byte
  steer duplicates --paths                       paths alone, an empty line after each group
  steer duplicates --exact --omit-first --print0 | xargs -0 ls -l    all but one of each group

Resized images and those compressed anew are the same to the eye. So may be two photographs of a burst: look before you
delete. The gallery is compared as it was indexed last.
exit codes: 0 there are some, 1 there are none, 2 wrong usage
"""


def make_parser() -> options.Parser:
    """The parser of `steer duplicates`."""
    usage = "steer duplicates [options]"
    parser = options.Parser("duplicates", usage, "List the images of a gallery that are the same.", EPILOG)
    options.add_gallery(parser)
    parser.add_argument("--exact", action="store_true", help="only files that are the same byte for byte")
    parser.add_argument("--omit-first", action="store_true", help="leave out the first of each group, the one to keep")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the groups as one JSON object")
    form.add_argument("--paths", action="store_true", help="print paths alone, an empty line after each group")
    form.add_argument("--print0", action="store_true", help="print paths alone, a NUL after each, for xargs -0")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run `steer duplicates` with these arguments. Returns the exit code; wrong usage raises SystemExit(2)."""
    parser = make_parser()
    given = parser.parse_args(argv)
    options.plain_streams()
    place = given.gallery or options.default_gallery()
    with parser.usage_errors():
        from steering.search.duplicates import groups

        store = options.open_store(place)
        found = _described(store, groups(store, near=not given.exact))
        total = store.count()
    if found and not (given.exact or store.card.side):
        told = "no pixels are stored here, so hashes alone were compared, and flat images all agree; see --exact"
        print(f"steer: {told}", file=sys.stderr)
    _print(found, total, place, given)
    return 0 if found else 1


def _described(store: Store, groups: Sequence[Sequence[str]]) -> list[list[dict[str, Any]]]:
    """What is known of each image, the biggest groups first, and in each group the image to keep first."""
    from steering.search.files import is_gone, to_key, to_path

    names = [to_key(path) for group in groups for path in group]
    rows = {to_path(row["path"]): row for row in store.rows(names, ("path", "size", "width", "height"))}
    described = [
        [{**rows[path], "path": path, "gone": is_gone(to_key(path))} for path in group if path in rows]
        for group in groups
    ]
    for group in described:
        group.sort(key=lambda image: (image["gone"], -image["width"] * image["height"], -image["size"], image["path"]))
    return sorted((group for group in described if len(group) > 1), key=lambda group: (-len(group), group[0]["path"]))


def _print(found: list[list[dict[str, Any]]], total: int, place: str, given: argparse.Namespace) -> None:
    shown = [group[1:] if given.omit_first else group for group in found]
    images, more = sum(map(len, found)), sum(len(group) - 1 for group in found)
    megabytes = sum(image["size"] for group in found for image in group[1:] if not image["gone"]) / 1e6
    if given.json:
        about = {"gallery": place, "exact": given.exact, "images": total, "duplicates": more}
        print(json.dumps({**about, "groups": shown}))
    elif given.paths or given.print0:
        after = [""] if given.paths else []  # an empty line after each group
        paths = (path for group in shown for path in (*(image["path"] for image in group), *after))
        options.write_paths(paths, nul=given.print0)
    else:
        for number, group in enumerate(shown, start=1):
            print(f"group {number:,}: {len(found[number - 1]):,} images")
            for image in group:
                gone = ", file is gone" if image["gone"] else ""
                print(
                    f"  {printable(image['path'])}  ({image['width']}×{image['height']}, {_size(image['size'])}{gone})"
                )
        same = "byte for byte" if given.exact else "to the eye"
        if found:
            many = f"{len(found):,} group{'' if len(found) == 1 else 's'}"
            spare = f"{more:,} more than needed, {megabytes:,.1f} MB"
            print(f"{many}, {images:,} of {total:,} images the same {same}; {spare}")
        else:
            print(f"No two of {total:,} images are the same {same}.")


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} KB"
