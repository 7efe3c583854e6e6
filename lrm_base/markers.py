"""Replace what stands between two markers of a text file."""

from __future__ import annotations

from pathlib import Path


def around(path: str | Path, begin: str, end: str) -> tuple[str, str]:
    """What stands before and after the markers. Raises ValueError if they are not there."""
    before, found, rest = Path(path).read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path}: expected the markers {begin!r} and {end!r}")
    return before, after


def replace_between(path: str | Path, begin: str, end: str, text: str) -> None:
    """Put a text on lines of its own between the markers. Raises like `around`."""
    before, after = around(path, begin, end)
    Path(path).write_text(f"{before}{begin}\n{text}\n{end}{after}")
