"""Figures that are drawn from stored numbers: those of the composite challenge, and bars by layer and pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#b2182b", "#4d4d4d", "#9a9a9a", "#2166ac", "#92c5de", "#762a83", "#c2a5cf")  # steered first
PASS_COLOURS = ("#b4bac4", "#6d8ea0", "#d1495b", "#8a6a12", "#1f7a4d")


def against(kinds: dict[str, Any], names: Mapping[str, str]) -> Figure:
    """Present goals at 5 % absent: steered and every control, with 95 % intervals of the steered rate.

    Args:
        names: what each control is called in the figure.
    """
    figure, axes = _axes(9.0, 3.6)
    first = next(iter(kinds.values()))["at_equal_absent"]["5%"]
    bars = ["steered", *first["controls"]]
    rows = {}
    for name in bars:
        entries = [entry["at_equal_absent"]["5%"] for entry in kinds.values()]
        rows[name] = [e["steered"] if name == "steered" else e["controls"][name]["rate"] for e in entries]
    _bars(axes, list(kinds), {names.get(name, name): values for name, values in rows.items()})
    for place, entry in enumerate(kinds.values()):
        low, high = entry["at_equal_absent"]["5%"]["interval"]
        axes.plot([offset(place, 0, len(bars))] * 2, [100 * low, 100 * high], color="black", linewidth=1)
    axes.set_ylabel("goal is top-1 when present, %")
    axes.set_title("At 5 % absent goals", loc="left")
    return figure


def trade_off(kinds: dict[str, Any]) -> Figure:
    """Present goals against absent ones over strengths, with a line for each kind of scene."""
    figure, axes = _axes(5.5, 4.0)
    for kind, entry in kinds.items():
        rows = entry["sweep"]["strength"]
        axes.plot([100 * r["absent"] for r in rows], [100 * r["present"] for r in rows], marker="o", ms=3, label=kind)
    axes.set_xlabel("goal is top-1 when absent, %")
    axes.set_ylabel("goal is top-1 when present, %")
    first, last = (next(iter(kinds.values()))["sweep"]["strength"][i]["setting"] for i in (0, -1))
    axes.set_title(f"Strength {first:g} to {last:g}", loc="left")
    axes.legend(frameon=False)
    return figure


def ablations(entries: dict[str, Any]) -> Figure:
    """Present goals at 5 % absent ones, with each connection taken away."""
    figure, axes = _axes(7.0, 0.6 + 0.35 * len(entries))
    names = list(entries)
    values = [100 * entries[name]["present_at_5%"] for name in names]
    axes.barh(names, values, color=[COLOURS[0] if name == "none" else COLOURS[2] for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("goal is top-1 when present, at 5 % absent, %")
    axes.set_title("Without …", loc="left")
    return figure


def pointing(entries: dict[str, Any]) -> Figure:
    """How often the peak of a map lies in the named object."""
    figure, axes = _axes(6.0, 3.2)
    rows = {name: [entry[key] for entry in entries.values()] for name, key in _MAPS}
    _bars(axes, list(entries), rows)
    axes.set_ylabel("peak in the named object, %")
    return figure


_MAPS = (("steered heatmap", "steered"), ("unsteered class-activation map", "unsteered_cam"), ("chance", "area"))


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def offset(place: int, index: int, count: int) -> float:
    """The position of bar `index` of `count` in the group at `place`. All bars together are 0.8 wide."""
    return place + 0.8 * ((index + 0.5) / count - 0.5)


def _bars(axes: Axes, groups: Sequence[str], rows: dict[str, list[float]]) -> None:
    for index, (name, values) in enumerate(rows.items()):
        places = [offset(place, index, len(rows)) for place in range(len(groups))]
        colour = COLOURS[index % len(COLOURS)]
        axes.bar(places, [100 * value for value in values], 0.8 / len(rows), label=name, color=colour)
    axes.set_xticks(range(len(groups)), groups)
    axes.legend(frameon=False, fontsize=8, ncols=min(3, len(rows)))
    axes.margins(y=0.25)


def layer_bars(axes: Axes, bars: Sequence[tuple[str, int, float, Sequence[float]]]) -> None:
    """Bars, one group for each layer.

    Args:
        bars: (layer, pass, value, 95 % interval).
    """
    layers = list(dict.fromkeys(bar[0] for bar in bars))
    passes = sorted({bar[1] for bar in bars})
    for index, number in enumerate(passes):
        chosen = [bar for bar in bars if bar[1] == number]
        places = [offset(layers.index(bar[0]), index, len(passes)) for bar in chosen]
        heights = [bar[2] for bar in chosen]
        colour = PASS_COLOURS[index % len(PASS_COLOURS)]
        axes.bar(places, heights, 0.8 / len(passes), color=colour, label=f"pass {number}")
        axes.vlines(places, [bar[3][0] for bar in chosen], [bar[3][1] for bar in chosen], color="#1c1c1e", lw=0.8)
    axes.set_xticks(range(len(layers)), layers, rotation=45, ha="right")
    axes.axhline(0, color="#1c1c1e", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
