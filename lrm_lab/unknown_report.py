"""The report on words that the network has no eyes for."""

from __future__ import annotations

from typing import Any

from lrm_lab.writing import Row, Section, bounds, percent, table_row


def sections(told: dict[str, Any]) -> list[Section]:
    """Does it say so when it cannot know?"""
    unknown, known = told["unknown"], told["known"]
    lines = [
        "## Does it say when it cannot know?",
        "",
        f"Of {unknown['words']} words for what its classes do not show, {_share(unknown)} are called unknown. Of "
        f"{known['words']} words for what they do show, {_share(known)} are. Neither list has chosen the threshold. "
        "Intervals are over words.",
    ]
    for what, entry in (("Taken for something that it knows", unknown), ("Called unknown in spite of this", known)):
        if entry["wrong"]:
            lines += ["", f"{what}: {', '.join(entry['wrong'])}."]
    return [("\n".join(lines), {})]


def _share(entry: dict[str, Any]) -> str:
    return f"{percent(entry['called_unknown'])} {bounds(entry['interval'])}"


def rows(told: dict[str, Any]) -> list[Row]:
    """Which share of each list is called unknown."""
    unknown, known = told["unknown"], told["known"]
    no_eyes, eyes = (f"{entry['words']} words for what it has" for entry in (unknown, known))
    return [
        table_row(
            f"{no_eyes} no eyes for: called unknown", _share(unknown), "≥ 90 %", unknown["called_unknown"] >= 0.9
        ),
        table_row(f"{eyes} eyes for: called unknown", _share(known), "≤ 5 %", known["called_unknown"] <= 0.05),
    ]
