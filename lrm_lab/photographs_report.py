"""The report on full-size photographs."""

from __future__ import annotations

from typing import Any

from lrm_lab.writing import Row, Section, percent, table_row


def sections(photos: dict[str, Any]) -> list[Section]:
    """Does it know what is in a photograph?"""
    lines = [
        "## Does it know what is in a photograph?",
        "",
        f"Each of {photos['photographs']} full-size photographs was asked for what it shows, and for another class "
        f"drawn at random. What it shows is called present for {percent(photos['right_name_present'])} of them, and "
        f"the other class is called absent for {percent(photos['other_name_absent'])}; a probability of one half "
        f"decides. {photos['unsure']} of {2 * photos['photographs']} verdicts are “unsure”.",
    ]
    return [("\n".join(lines), {})]


def rows(photos: dict[str, Any]) -> list[Row]:
    """Balanced accuracy."""
    figure = f"{percent(photos['balanced_accuracy'])} (right name {percent(photos['right_name_present'])}, "
    figure += f"other name {percent(photos['other_name_absent'])})"
    what = f"{photos['photographs']} photographs: balanced accuracy"
    return [table_row(what, figure, "≥ 75 %", photos["balanced_accuracy"] >= 0.75)]
