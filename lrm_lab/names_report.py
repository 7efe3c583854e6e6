"""The report on photographs and every name that the model has."""

from __future__ import annotations

from typing import Any

from lrm_lab.writing import Row, Section, bounds, correlation, markdown_table, percent, table_row

OTHERS = {
    "random": "another name at random",
    "alike": "the name that looks most like it",
    "near": "a near miss",
}
BARS = {"random": 0.95, "alike": 0.85, "near": 0.85}
ASKED = {"right": "its own name", **OTHERS}


def sections(names: dict[str, Any]) -> list[Section]:
    """Does it know what is in a photograph, among all its names?"""
    alike = "for the other name that outputs for its class favour most on average, " if "alike" in names else ""
    lines = [
        "## Can it tell what is there from what looks like it?",
        "",
        f"Each of {names['photographs']} photographs was asked for its own name, for another of the {names['classes']} "
        f"names at random, {alike}and for a near miss: the name that the first pass finds likeliest among the wrong "
        "ones in this very photograph. A probability of one half decides, and the answer “unknown” is wrong. The right "
        "name is called present for "
        f"{percent(names['right_name_present'])} of them. Intervals are over photographs.",
        "",
        markdown_table(
            ("asked for its own name, or for", "balanced accuracy", "other name called absent", "AUROC"),
            [_entry(OTHERS[way], names[way]) for way in OTHERS if way in names],
        ),
        "",
        "The answers, where only a probability far from one half gives “present” or “absent”:",
        "",
        markdown_table(
            ("asked for", *names["answers"]["right"]),
            [
                (what, *map(percent, names["answers"][way].values()))
                for way, what in ASKED.items()
                if way in names["answers"]
            ],
        ),
    ]
    return [("\n".join(lines), {})]


def _entry(what: str, entry: dict[str, Any]) -> tuple[str, ...]:
    accuracy = f"{percent(entry['balanced_accuracy'])} {bounds(entry['interval'])}"
    return what, accuracy, percent(entry["absent"]), correlation(entry["auroc"], entry["auroc_interval"])


def rows(names: dict[str, Any]) -> list[Row]:
    """Balanced accuracy against other names at random, and against near misses."""
    return [
        table_row(
            f"{names['photographs']} photographs, {names['classes']} names: balanced accuracy against {what}",
            f"{percent(names[way]['balanced_accuracy'])} {bounds(names[way]['interval'])} "
            f"(right name {percent(names['right_name_present'])}, other name {percent(names[way]['absent'])})",
            f"≥ {100 * BARS[way]:.0f} %",
            names[way]["balanced_accuracy"] >= BARS[way],
        )
        for way, what in OTHERS.items()
        if way in names
    ]
