"""A contact sheet: the hits of a search as a grid of pictures, with the heatmap of the look at each."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from steering.errors import ImageError, printable
from steering.picture import INK, MUTED, VERDICT, QuietFigure, overlay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from steering.goals import Goal
    from steering.search.gallery import Gallery
    from steering.search.hits import Hit, Hits

COLUMNS, CELL, CAPTION, GAP, MARGIN, HEAD = 5, 1.9, 0.42, 0.16, 0.3, 0.55  # inches


def contact_sheet(gallery: Gallery, hits: Hits, query: str | Goal) -> Figure:
    """The figure. Each hit keeps its aspect, with rank, verdict and name below. A lost image is an empty cell."""
    columns = min(COLUMNS, max(len(hits), 2))
    rows = max(math.ceil(len(hits) / columns), 1)
    width = 2 * MARGIN + columns * CELL + (columns - 1) * GAP
    height = 2 * MARGIN + HEAD + rows * (CELL + CAPTION) + (rows - 1) * GAP
    figure = QuietFigure(figsize=(width, height), dpi=150, facecolor="white")
    title = f"“{printable(hits.query)}”"
    figure.text(
        MARGIN / width, 1 - MARGIN / height, title, size=14, weight="bold", color=INK, va="top", parse_math=False
    )
    figure.text(
        1 - MARGIN / width, 1 - (MARGIN + 0.06) / height, summary(hits), size=9, color=MUTED, va="top", ha="right"
    )
    for index, hit in enumerate(hits):
        left = MARGIN + index % columns * (CELL + GAP)
        top = MARGIN + HEAD + index // columns * (CELL + CAPTION + GAP)
        axes = figure.add_axes((left / width, 1 - (top + CELL) / height, CELL / width, CELL / height))
        _cell(axes, gallery, hit, query)
    return figure


def summary(hits: Hits) -> str:
    """How much was searched, and what the gallery answers."""
    many = f"{hits.images:,} image{'' if hits.images == 1 else 's'}"
    if hits.answer is None:
        return f"{hits.looked_at:,} of {many} looked at"
    said = {"present": f"about {max(round(hits.expected), 1)} of these show it", "absent": "nothing shows it"}
    said |= {"unknown": "no eyes for it"}
    return f"{said.get(hits.answer, 'unsure whether any shows it')} · {many}, {hits.looked_at:,} looked at"


def _cell(axes: Axes, gallery: Gallery, hit: Hit, query: str | Goal) -> None:
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    said = (f" {hit.verdict}" if hit.verdict else "") + ("" if hit.alone is None else f" {hit.alone:.0%}")
    copies = f", {len(hit.copies):,} more like it" if hit.copies else ""
    below: dict[str, Any] = {"transform": axes.transAxes, "va": "top", "parse_math": False}
    axes.text(
        0, -0.03, f"{hit.rank}{said}", size=9, weight="bold", color=VERDICT.get(hit.verdict or "", MUTED), **below
    )
    axes.text(0, -0.12, _short(os.path.basename(hit.path)) + copies, size=7.5, color=MUTED, **below)
    try:
        look = gallery.look(hit, query)
    except ImageError:
        axes.text(0.5, 0.5, "gone", size=9, color=MUTED, ha="center", va="center")
        return
    picture = look.picture.copy()
    picture.thumbnail((480, 480))
    shown = overlay(look, picture) if hit.looked_at else np.asarray(picture) / 255
    wide, high = (side / max(picture.size) for side in picture.size)
    axes.imshow(shown, extent=((1 - wide) / 2, (1 + wide) / 2, (1 - high) / 2, (1 + high) / 2), aspect="auto")
    axes.set(xlim=(0, 1), ylim=(0, 1))


def _short(name: str, length: int = 30) -> str:
    name = printable(name)
    return name if len(name) <= length else f"{name[: length - 11]}…{name[-10:]}"
