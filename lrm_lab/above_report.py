"""The report on words above the classes."""

from __future__ import annotations

from typing import Any

from lrm_lab.writing import Row, Section, bounds, correlation, markdown_table, percent, table_row


def sections(above: dict[str, Any]) -> list[Section]:
    """Are words for kinds of things understood?"""
    entries, recall, false = above["words"], above["recall"], above["false_present"]
    median = "" if above["median_auroc"] is None else f" The median over the words is {above['median_auroc']:.3f}."
    unknown = f" It calls unknown: {', '.join(above['unknown'])}." if above["unknown"] else ""
    lines = [
        "## Does it understand words for kinds of things?",
        "",
        f"Each of {above['photographs']} photographs was asked for each of {len(entries)} words that cover several "
        f"classes, such as {', '.join(list(entries)[:3])}. The probability tells those that show it from those that do "
        f"not with AUROC {correlation(above['auroc'], above['auroc_interval'])}.{median} “Present” is said for "
        f"{percent(recall['share'])} {bounds(recall['interval'])} of what is shown, and for {percent(false['share'])} "
        f"{bounds(false['interval'])} of what is not.{unknown} Intervals are over photographs.",
        "",
        markdown_table(
            ("word", "photographs that show it", "AUROC", "present where shown", "present elsewhere"),
            [(word, *_cells(entry)) for word, entry in entries.items()],
        ),
    ]
    return [("\n".join(lines), {})]


def _cells(entry: dict[str, Any]) -> tuple[str, ...]:
    area = "–" if entry["auroc"] is None else f"{entry['auroc']:.3f}"
    shares = ("–" if entry[key] is None else percent(entry[key]) for key in ("recall", "false_present"))
    return (str(entry["shown"]), area, *shares)


def rows(above: dict[str, Any]) -> list[Row]:
    """AUROC of the probability, and how often what is not shown is called present."""
    what, false = f"{len(above['words'])} words for kinds of things", above["false_present"]
    figure = f"{percent(false['share'])} {bounds(false['interval'])} (shown: {percent(above['recall']['share'])})"
    return [
        table_row(
            f"{what}, AUROC over {above['photographs']} photographs",
            correlation(above["auroc"], above["auroc_interval"]),
            "≥ 0.98",
            above["auroc"] >= 0.98,
        ),
        table_row(f"{what}: called present where not shown", figure, "≤ 3 %", false["share"] <= 0.03),
    ]
