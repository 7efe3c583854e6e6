"""The section on the gallery: how often each rule found a failure, and the pictures, heatmaps over scenes.

Unusual: a heatmap colours the scene as strongly as steering acted there, and a wrong verdict is written in red.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from steering.evaluate.gallery import COMPOSITES, RULES, Gallery, Item, peak_of
from steering.evaluate.words import markdown_table
from steering.look import short
from steering.picture import MUTED

KEY = "Box: the object; cross: the heatmap's peak; red: the probability is on the wrong side of one half."
RIGHT, WRONG = "#1f7a4d", "#a33a3a"
TILE, LINE, WRITING = 1.45, 0.17, 7.5  # a picture and a line of its caption in inches; its letters in points


def section(results: dict[str, Any]) -> str:
    """Markdown of a `summary`: how often each rule found a failure, by kind of scene."""
    kinds = results["kinds"]
    total = {key: sum(counts[key] for counts in kinds.values()) for key in next(iter(kinds.values()))}
    misplaced = "No present goal in a scene with places was answered “present”, so no heatmap can be misplaced."
    if total["placed"]:
        chance = f"{total['misplaced_by_chance'] / total['placed']:.0%}"
        misplaced = (
            "Where a present goal was answered “present” in a scene in which its object has a place, the heatmap does "
            f"not peak in the object in {_share(total['misplaced'], total['placed'])}; of peaks that lie anywhere "
            f"alike it would be {chance}."
        )
    lines = [
        "## Heatmaps and failures",
        "",
        f"{results['trials']} scenes of each kind, seed {results['seed']}; in each, a thing that is there and one that "
        f"is not were looked for. Of {total['trials']:.0f} present goals {_share(total['misses'], total['trials'])} "
        f"were missed, of as many absent ones {_share(total['hallucinations'], total['trials'])} were hallucinated. "
        + misplaced,
        "",
        "Nothing is picked by hand. The heatmaps are those of the first scenes of the seed. The failures are, of every "
        "kind of scene:",
        "",
        *(f"- {rule}: {meaning};" for rule, meaning in list(results["rules"].items())[:-1]),
        *(f"- {rule}: {meaning}." for rule, meaning in list(results["rules"].items())[-1:]),
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


def figures(gallery: Gallery) -> dict[str, Figure]:
    """`heatmaps_KIND` for every kind, and one figure for each of `RULES` that found anything; labels are captions."""
    found = {}
    for kind, pairs in gallery.shown.items():
        found[f"heatmaps_{kind}"] = _heatmaps(pairs)
        words = f"{kind}: the first {len(pairs)} scenes of seed {gallery.seed}. Above, the scene; below, where the "
        words += f"steered pass found what is there, and what is not. {KEY}"
        found[f"heatmaps_{kind}"].set_label(words)
    for rule, items in gallery.failures.items():
        if items:
            found[rule] = _pairs(items)
            found[rule].set_label(f"{rule}: {RULES[rule]}; of {gallery.trials} scenes of each kind. {KEY}")
    return found


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
    """Empty axes for square pictures, so many rows as there are captions, each of so many lines; laid out in inches."""
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
    """The scene in dimmed grey, coloured as strongly as steering acted, its peak marked; a wrong verdict in red."""
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
    _write(ax, f"{short(item.query, 26)}\n{item.truth}, P(present) {item.probability:.0%}", RIGHT if right else WRONG)


def _box(ax: Axes, item: Item) -> None:
    if item.box is not None and item.kind != "blend":
        left, top, right, bottom = item.box
        frame: dict[str, Any] = {"fill": False, "clip_on": False}
        ax.add_patch(Rectangle((left, top), right - left, bottom - top, edgecolor="black", linewidth=2.4, **frame))
        ax.add_patch(Rectangle((left, top), right - left, bottom - top, edgecolor="white", linewidth=1.2, **frame))


def _in_scene(item: Item) -> str:
    """What is in the scene, a line for each thing."""
    return "\n".join(short(name, 26) for name in item.names)


def _write(ax: Axes, words: str, colour: str) -> None:
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    ax.annotate(words, (0, 0), xytext=(0, -3), va="top", size=WRITING, color=colour, parse_math=False, **place)
