"""The report on single images."""

from __future__ import annotations

from typing import Any

from lrm_lab.writing import Row, Section, against_zero, percent, signed, table_row


def sections(single: dict[str, Any]) -> list[Section]:
    """Is a later pass better than the first?"""
    passes = ", ".join(percent(value) for value in single["passes"])
    sentences = [f"Without a goal, top-1 of the passes on {single['images']} single images is {passes}."]
    for number, interval in enumerate(single["gain_intervals"], start=2):
        gain = single["passes"][number - 1] - single["passes"][0]
        verb = against_zero(interval, "is better than", "is worse than", "is level with")
        sentences.append(f"Pass {number} {verb} pass 1 ({signed(gain, interval)} points).")
    own, gain = single["own_words"], single["own_words"] - single["last_pass"]
    sentences.append(
        f"With the image's own class in words as goal, top-1 of the last pass is {percent(own)} ({100 * gain:+.1f})."
    )
    return [("\n".join(["## Is a later pass better than the first?", "", " ".join(sentences)]), {})]


def rows(single: dict[str, Any]) -> list[Row]:
    """Top-1 of the last pass, without a goal and with the class's own words."""
    last, own = single["last_pass"], single["own_words"]
    what = "top-1 of single images, goal: their own class's words"
    return [
        table_row("top-1 of the last pass without a goal", percent(last), "≥ 40 %", last >= 0.4),
        table_row(what, percent(own), "above the last row", own > last),
    ]
