"""The README's table and the sections of RESULTS.md and the page, written from stored numbers and never by hand.

Unusual: a sentence says what the numbers say. Its words are chosen by comparing numbers, with their intervals.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from matplotlib.figure import Figure

from lrm_base import markers
from lrm_lab.part import Part
from lrm_lab.parts import PARTS
from lrm_lab.writing import Section, markdown_table
from steering.catalogue import is_clip

T = TypeVar("T")
TITLE = "What steering does: {model}"
BEGIN, END = "<!-- results: written by `steer evaluate --readme` -->", "<!-- end of results -->"
_NUMBER = re.compile(r"(?<![\w.–-])[+−-]?\d+(?:[.,]\d+)*")


def sections(results: dict[str, Any], pictures: Mapping[str, Mapping[str, Figure]] | None = None) -> list[Section]:
    """The sections of every part that `results` holds, in order. Each names the command that measures it.

    Args:
        pictures: figures that were drawn while a part was measured, by the name of the part. They follow its last
            section.
    """
    told: list[Section] = []
    for part in PARTS:
        if part.name not in results:
            continue
        command = f"steer evaluate {part.command} {part.arguments}{' --quick' if results.get('quick') else ''}"
        own = _complete(part.sections, part, results)
        text, figures = own[-1]
        own[-1] = (text, {**figures, **(pictures or {}).get(part.name, {})})
        told += [(f"{text.rstrip()}\n\nMeasured by `{command}`.", figures) for text, figures in own]
    return told


def table(results: dict[str, Any]) -> str:
    """The README's table: what was measured, the figure, and the bar that it was held to.

    Raises:
        ValueError: a part that it needs was not measured.
    """
    parts = [part for part in PARTS if part.is_in_table and not (part.needs_classes and is_clip(results["model"]))]
    missing = [part.name for part in parts if part.is_for_all and part.name not in results]
    if missing:
        raise ValueError(f"the table needs {', '.join(missing)}, not measured here; use `steer evaluate all`")
    rows = [row for part in parts if part.name in results for row in _complete(part.rows, part, results)]
    return markdown_table(("what", "measured", "bar"), rows)


def _complete(tell: Callable[[dict[str, Any]], list[T]], part: Part, results: dict[str, Any]) -> list[T]:
    """What is told of a part. Raises ValueError if its numbers are incomplete."""
    try:
        return tell(results[part.name])
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"results: part {part.name!r} is incomplete ({type(error).__name__}: {error})") from None


def around(path: str | Path) -> tuple[str, str]:
    """What stands before and after the markers of a Markdown file. Raises ValueError if they are not there."""
    return markers.around(path, BEGIN, END)


def rewrite(path: str | Path, results: dict[str, Any]) -> None:
    """Replace what stands between the markers of a Markdown file. Raises like `around` and `table`."""
    around(path)  # a file without markers is told first
    markers.replace_between(path, BEGIN, END, table(results))


def numbers_in(text: str) -> list[str]:
    """The numbers of a text in order, so that two texts of the same results can be compared whatever their words.

    A number within a word, such as that of `top-1` or `layer2`, is part of the word.
    """
    return _NUMBER.findall(text)
