"""The report on the examples: how often each rule found a failure, and pictures with heatmaps over scenes.

Unusual: a heatmap colours the scene as strongly as steering acted there. A wrong verdict is written in red.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lrm_lab.examples import RULES, Examples, Item, peak_of
from lrm_lab.trials import COMPOSITES
from lrm_lab.writing import Section, markdown_table
from steering.errors import shorten
from steering.picture import MUTED

KEY = "Box: the object. Cross: the peak of the heatmap. Red: the probability is on the wrong side of one half."
RIGHT, WRONG = "#1f7a4d", "#a33a3a"
TILE, LINE, WRITING = 1.45, 0.17, 7.5  # a picture and a line of its caption in inches; its letters in points


def sections(results: dict[str, Any]) -> list[Section]:
    """Heatmaps and failures. The pictures need the images; see `figures`."""
    return [(section(results), {})]


def section(results: dict[str, Any]) -> str:
    """How often each rule found a failure, by kind of scene. `results` are those of `examples.summary`."""
    kinds = results["kinds"]
    total = {key: sum(counts[key] for counts in kinds.values()) for key in next(iter(kinds.values()))}
    misplaced = "No present goal was answered “present” in a scene with places, so no heatmap can be misplaced."
    if total["placed"]:
        misplaced = (
            "Some present goals were answered “present” in a scene in which their object has a place. The heatmap does "
            f"not peak in the object for {_share(total['misplaced'], total['placed'])} of them; if peaks lay at "
            f"random, this would be {total['misplaced_by_chance'] / total['placed']:.0%}."
        )
    *rules, last = (f"- {rule}: {meaning}" for rule, meaning in results["rules"].items())
    lines = [
        "## Heatmaps and failures",
        "",
        f"There are {results['trials']} scenes of each kind, of seed {results['seed']}. In each, a goal that is "
        f"present and a goal that is absent were looked for. Of {total['trials']:.0f} present goals, "
        f"{_share(total['misses'], total['trials'])} were missed. Of as many absent goals, "
        f"{_share(total['hallucinations'], total['trials'])} were hallucinated. {misplaced}",
        "",
        "Nothing is chosen by hand. The heatmaps are those of the first scenes of the seed. The failures are, for "
        "every kind of scene:",
        "",
        *(f"{rule};" for rule in rules),
        f"{last}.",
        "",
    ]
    rows = []
    for kind, counts in kinds.items():
        placed = counts["placed"]
        cells = [_share(counts[rule], counts["trials"]) for rule in ("misses", "hallucinations")]
        chance = f"{counts['misplaced_by_chance'] / placed:.0%}" if placed else "–"
        rows.append((kind, *cells, _share(counts["misplaced"], placed), chance))
    head = ("scenes", "missed", "hallucinated", "misplaced", "by chance")
    return "\n".join([*lines, markdown_table(head, rows, rule="---:")]) + "\n"


def _share(count: int | float, of: int | float) -> str:
    return f"{count:.0f} of {of:.0f} ({count / of:.0%})" if of else "–"


def figures(examples: Examples) -> dict[str, Figure]:
    """`heatmaps_KIND` for every kind of scene, and a figure for each rule that found anything. Labels are captions."""
    drawn = {}
    for kind, pairs in examples.shown.items():
        drawn[f"heatmaps_{kind}"] = _heatmaps(pairs)
        caption = (
            f"{kind}: the first {len(pairs)} scenes of seed {examples.seed}. The scene is above. Below it is where "
        )
        caption += f"the steered pass looked for what is there, and for what is not. {KEY}"
        drawn[f"heatmaps_{kind}"].set_label(caption)
    for rule, items in examples.failures.items():
        if items:
            drawn[rule] = _pairs(items)
            drawn[rule].set_label(f"{rule}: {RULES[rule]}; of {examples.trials} scenes of each kind. {KEY}")
    return drawn


def _heatmaps(pairs: Sequence[tuple[Item, Item]]) -> Figure:
    """A column for each trial: the scene, its present goal, its absent goal."""
    captions = [_in_scene(present) for present, _ in pairs]
    tall = max(caption.count("\n") for caption in captions) + 1
    axes = _tiles(len(pairs), [tall, 2, 2])
    for column, (pair, caption) in enumerate(zip(pairs, captions, strict=True)):
        _scene(axes[0][column], pair[0], caption, boxed=False)
        for row, item in enumerate(pair, start=1):
            _overlay(axes[row][column], item)
    return axes[0][0].get_figure(root=True)  # type: ignore[return-value]


def _pairs(items: Sequence[Item]) -> Figure:
    """A row for each kind: scene and heatmap of each item."""
    rows = {kind: [item for item in items if item.kind == kind] for kind in COMPOSITES}
    filled = [row for row in rows.values() if row]
    tall = [max([2, *(_in_scene(item).count("\n") + 2 for item in row)]) for row in filled]
    axes = _tiles(2 * max(map(len, filled)), tall)
    for row, line in enumerate(filled):
        for column, item in enumerate(line):
            _scene(axes[row][2 * column], item, f"{item.kind}\n{_in_scene(item)}", boxed=True)
            _overlay(axes[row][2 * column + 1], item)
    return axes[0][0].get_figure(root=True)  # type: ignore[return-value]


def _tiles(columns: int, lines: Sequence[int]) -> list[list[Axes]]:
    """Empty axes for square pictures, laid out in inches.

    Args:
        lines: for each row of pictures, the number of lines of its captions.
    """
    gap = 0.12
    width = gap + columns * (TILE + gap)
    height = gap + sum(TILE + LINE * count + gap for count in lines)
    figure = Figure(figsize=(width, height), facecolor="white")
    axes, top = [], gap
    for count in lines:
        top += TILE
        lefts = [gap + column * (TILE + gap) for column in range(columns)]
        row = [figure.add_axes((x / width, 1 - top / height, TILE / width, TILE / height)) for x in lefts]
        for ax in row:
            ax.set_axis_off()
        axes.append(row)
        top += LINE * count + gap
    return axes


def _scene(ax: Axes, item: Item, caption: str, *, boxed: bool) -> None:
    ax.imshow(item.picture, extent=(0, 1, 1, 0))
    _write(ax, caption, MUTED)
    if boxed:
        _box(ax, item)


def _overlay(ax: Axes, item: Item) -> None:
    """The scene in dimmed grey, coloured as strongly as steering acted. The peak is marked; a wrong verdict is red."""
    heat = item.heatmap.float().numpy()
    ax.imshow(item.picture.convert("L"), cmap="gray", vmin=-60, vmax=340, extent=(0, 1, 1, 0))
    whole: dict[str, Any] = {"extent": (0, 1, 1, 0), "interpolation": "bicubic"}
    ax.imshow(heat, cmap="inferno", alpha=0.85 * heat**0.6, vmin=-0.35, vmax=1, **whole)
    peak = peak_of(item.heatmap)
    if peak is not None:
        for colour, width in (("black", 2.6), ("white", 1.2)):
            ax.plot(*peak, "x", color=colour, markersize=6, markeredgewidth=width)
    ax.set(xlim=(0, 1), ylim=(1, 0))
    _box(ax, item)
    right = (item.probability >= 0.5) == (item.truth == "present")
    _write(ax, f"{shorten(item.query, 26)}\n{item.truth}, P(present) {item.probability:.0%}", RIGHT if right else WRONG)


def _box(ax: Axes, item: Item) -> None:
    if item.box is not None and item.kind != "blend":
        left, top, right, bottom = item.box
        frame: dict[str, Any] = {"fill": False, "clip_on": False}
        ax.add_patch(Rectangle((left, top), right - left, bottom - top, edgecolor="black", linewidth=2.4, **frame))
        ax.add_patch(Rectangle((left, top), right - left, bottom - top, edgecolor="white", linewidth=1.2, **frame))


def _in_scene(item: Item) -> str:
    """What is in the scene, one thing a line."""
    return "\n".join(shorten(name, 26) for name in item.names)


def _write(ax: Axes, words: str, colour: str) -> None:
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    ax.annotate(words, (0, 0), xytext=(0, -3), va="top", size=WRITING, color=colour, parse_math=False, **place)
