"""The report on the geometry of the passes, with its figure."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure

from lrm_lab.writing import Section, against_zero, markdown_table, signed
from steering.errors import shorten
from steering.picture import INK, MUTED

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe & Ito 2008
MARKERS = "os^DvPX*"


def sections(results: dict[str, Any]) -> list[Section]:
    """Do classes lie further apart than in the first pass?"""
    return [(section(results), figures(results))]


def section(results: dict[str, Any]) -> str:
    """How far apart the classes lie in each panel."""
    first, *later = results["panels"]
    told = [
        f"- {panel['name']}: {panel['ratio']:.2f}, "
        f"{against_zero(panel['interval'], 'further apart', 'closer together', 'no clear difference')} "
        f"({signed(panel['difference'], panel['interval'], 1, 2)})"
        for panel in later
    ]
    shares = " + ".join(f"{share:.0%}" for share in results["explained"])
    lines = [
        "## Geometry of the passes",
        "",
        f"These are the outputs of {results['images']} single images of {len(results['classes'])} classes "
        f"({', '.join(entry['name'] for entry in results['classes'])}), drawn by seed {results['seed']}. In the first "
        f"pass, the variance between classes is {first['ratio']:.2f} times the variance within them. In the other runs "
        "it is:",
        "",
        *told,
        "",
        "Brackets are paired 95 % bootstrap intervals over images. The plane of the figure is that of the first pass's "
        f"two principal components ({shares} of its variance). The numbers are of the whole outputs. AUROC tells how "
        "well the logit of the goal's class separates its images from the others, in the last pass without the goal "
        "and with it.",
        "",
    ]
    rows = []
    for panel in results["panels"]:
        auroc = panel.get("auroc")
        cells = [f"{auroc['last']:.3f}", f"{auroc['steered']:.3f}"] if auroc else ["–", "–"]
        values = [f"{panel['ratio']:.2f}", f"{panel['silhouette']:+.3f}", f"{panel['nearest_neighbour']:.1%}"]
        rows.append((panel["name"].replace("|", "/"), *values, *cells))
    head = ("outputs of", "between / within", "silhouette", "nearest neighbour", "AUROC without", "with the goal")
    return "\n".join([*lines, markdown_table(head, rows, rule="---:")]) + "\n"


def figures(results: dict[str, Any]) -> dict[str, Figure]:
    """`geometry`: all panels in one plane and at one scale. Images of the class that is looked for are filled."""
    panels, classes, labels = results["panels"], results["classes"], torch.tensor(results["labels"])
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.0 * columns + 0.3, 3.1 * rows + 0.9), facecolor="white", layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten().tolist()
    for ax in grid[len(panels) :]:
        ax.set_axis_off()
    for ax, panel in zip(grid, panels, strict=False):
        xy = torch.tensor(panel["xy"])
        for number, entry in enumerate(classes):
            own, colour = xy[labels == number], COLOURS[number % len(COLOURS)]
            solid = panel["target"] in (None, entry["index"])
            ax.scatter(
                *own.T.numpy(),
                s=16,
                marker=MARKERS[number % len(MARKERS)],
                facecolors=colour if solid else "none",
                edgecolors=colour,
                linewidths=0.7,
                alpha=0.75,
                label=entry["name"] if ax is grid[0] else None,
            )
        title = f"{shorten(panel['name'], 36)}\nbetween / within {panel['ratio']:.2f}"
        ax.set_title(title, size=9, color=INK, parse_math=False)
        ax.tick_params(labelsize=7, colors=MUTED)
        ax.spines[["top", "right"]].set_visible(False)
    shares = [f"component {i} ({share:.0%})" for i, share in enumerate(results["explained"], start=1)]
    for number, ax in enumerate(grid[: len(panels)]):
        ax.set_xlabel(shares[0], size=8, color=MUTED)
        ax.set_ylabel(shares[1] if number % columns == 0 else "", size=8, color=MUTED)
    figure.legend(loc="outside lower center", ncols=min(len(classes), 6), fontsize=8, frameon=False)
    figure.set_label(
        "Outputs of single images, in the plane of the first pass's two principal components. Where something is "
        "looked for, the images that show it are filled."
    )
    return {"geometry": figure}
