"""Helpers that write the sections: tables, shares, differences with their intervals, and phrases for intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

Section = tuple[str, Mapping[str, Figure]]
"""Markdown, and the figures that follow it, by name."""
Row = tuple[str, str, str]
"""A row of the README's table: what, the figure, and the bar that it was held to."""


def table_row(what: str, figure: str, bar: str, met: bool) -> Row:
    """A row of the README's table. It says so if the bar was missed."""
    return what, figure, bar if met else f"{bar}, **missed**"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, rule: str = "---") -> str:
    """A Markdown table.

    Args:
        rule: what stands below every column but the first. `---:` sets figures to the right.
    """
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---', *(rule for _ in head[1:])])} |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def percent(value: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * value:.1f} %"


def bounds(interval: Sequence[float], scale: int = 100, digits: int = 1, sign: str = "") -> str:
    """An interval of shares in percent; with `scale` 1, an interval of figures as they are."""
    low, high = (f"{scale * bound:{sign}.{digits}f}" for bound in interval)
    return f"[{low}, {high}]"


def signed(value: float, interval: Sequence[float], scale: int = 100, digits: int = 1) -> str:
    """A difference of shares in points, with its interval."""
    return f"{scale * value:+.{digits}f} {bounds(interval, scale, digits, '+')}"


def correlation(value: float, interval: Sequence[float]) -> str:
    """A correlation with its interval."""
    return f"{value:.3f} {bounds(interval, 1, 3)}"


def change(entry: Mapping[str, Any]) -> str:
    """The `difference` of two correlations or dissimilarities, with its `interval`."""
    return signed(entry["difference"], entry["interval"], 1, 3)


def against_zero(interval: Sequence[float], above: str, below: str, level: str) -> str:
    """One of three phrases: the interval of a difference lies above 0, lies below 0, or holds 0."""
    return above if interval[0] > 0 else below if interval[1] < 0 else level


def direction(entries: Sequence[Mapping[str, Any]], what: str) -> str:
    """One sentence: how many intervals exclude 0, on which side, and how many would do so by chance."""
    up = sum(entry["interval"][0] > 0 for entry in entries)
    down = sum(entry["interval"][1] < 0 for entry in entries)
    return (
        f"{what}: {up} of {len(entries)} differences lie above 0 and {down} lie below it, beyond their 95 % interval "
        f"(uncorrected; about {0.05 * len(entries):.1f} would do so by chance alone)."
    )
