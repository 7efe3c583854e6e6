"""The report on encoding models of your own responses, with its figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lrm_lab.plots import layer_bars
from lrm_lab.writing import Section, change, correlation, direction, markdown_table


def sections(results: dict[str, Any]) -> list[Section]:
    """Which layer in which pass predicts the responses best?"""
    return [(section(results), figures(results))]


def section(results: dict[str, Any]) -> str:
    """The best set of features, what later passes and goals change, and every set in a table."""
    layers = results["layers"]
    best = max(layers, key=lambda name: layers[name]["median"])
    top = layers[best]
    unsure = top["interval"][0] <= 0
    lines = [
        f"## Encoding of {results['file']}",
        "",
        f"There are {results['units']} units, {results['images']} images and {results['repeats']} repeat(s). Of "
        f"{len(layers)} sets of features, {best} predicts the units best: its median r is {_median(top)} on images "
        "that were not trained on."
        + (" This interval holds 0, so there is no evidence that it predicts them at all." if unsure else "")
        + " The best of many sets was chosen on the same images, which flatters its r.",
    ]
    if results["ceiling"] is not None:
        reliable = f"{results['reliable_units']} of {results['units']} units are reliable enough to be normalised"
        share = top.get("normalised")
        lines += [
            "",
            f"{reliable}." + (f" For these, r is {share:.2f} of the noise ceiling (median)." if share else ""),
        ]
    for goal in (None, *results["queries"]):
        names = {row["name"] for row in results["rows"] if row["goal"] == goal}
        lines += ["", direction([d for d in results["differences"] if d["to"] in names], _against(goal))]
    table = []
    changes = {entry["to"]: entry for entry in results["differences"]}
    for row in results["rows"]:
        entry = changes.get(row["name"])
        cells = (row["layer"], str(row["pass"]), row["goal"] or "–", _median(layers[row["name"]]))
        table.append((*cells, change(entry) if entry else "–"))
    lines += ["", markdown_table(("layer", "pass", "goal", "median r", "change"), table)]
    for subject, units in results["subjects"].items():
        median = float(np.median([top["r"][unit] for unit in units]))
        lines += ["", f"{subject}: median r {median:.3f} over {len(units)} units ({best})."]
    lines += [
        "",
        "The change is that from pass 1. For a goal, it is that from the same pass without the goal. Brackets are 95 % "
        "intervals over images.",
    ]
    return "\n".join(lines) + "\n"


def _against(goal: str | None) -> str:
    return "From pass 1 to a later one, without a goal" if goal is None else f"With the goal {goal!r}, in the same pass"


def _median(entry: Mapping[str, Any]) -> str:
    return correlation(entry["median"], entry["interval"])


def figures(results: dict[str, Any]) -> dict[str, Figure]:
    """`encoding`: the median r of every layer and pass without a goal, and the median noise ceiling."""
    rows = [row for row in results["rows"] if row["goal"] is None]
    figure = Figure(figsize=(max(6.0, 0.7 * len({r["layer"] for r in rows})), 3.6), layout="constrained")
    axes = figure.add_subplot()
    bars = [(r["layer"], r["pass"], results["layers"][r["name"]]) for r in rows]
    layer_bars(axes, [(layer, number, e["median"], e["interval"]) for layer, number, e in bars])
    if results["ceiling"] is not None:
        axes.axhline(float(np.median(results["ceiling"])), color="#6e6e73", ls=":", label="noise ceiling (median)")
    axes.set_ylabel("Pearson r, median over units")
    axes.legend(frameon=False, fontsize=8)
    return {"encoding": figure}
