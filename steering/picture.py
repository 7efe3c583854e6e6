"""The picture of a look: the photo, the heatmap over it, the likeliest classes before and after. Laid out in inches.

Unusual: matplotlib's `Figure` is used without pyplot. So drawing keeps no global state, needs no display and may run in
threads. Words of the user are never read as TeX.
"""

import warnings
from typing import Any, Literal, Protocol, runtime_checkable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from steering.errors import printable, shorten

INK, MUTED, FAINT = "#1c1c1e", "#6e6e73", "#e5e5ea"
BEFORE, AFTER = "#b4bac4", "#d1495b"
VERDICT = {"present": "#1f7a4d", "absent": "#a33a3a", "unsure": "#8a6a12", "unknown": "#5b4b8a"}
EITHER = {"unsure": "where it may be", "unknown": "no eyes for it"}
WHERE = {"present": "where steering found it", "absent": "not found", **EITHER}
UNWANTED = {"present": "not found", "absent": "where what is unwanted was found", **EITHER}
DPI = 150
MARGIN, GAP, HEAD, CAPTION = 0.35, 0.25, 0.95, 0.28  # inches, as all lengths below
LABELS, BARS, ROW = 2.4, 2.6, 0.46
PHOTO_PIXELS = (256, 1200)  # least and most pixels of the longer side in the drawing; the network saw the original


@runtime_checkable
class Drawable(Protocol):
    """What is drawn of a look. `steering.Look` is one; its attributes are described there."""

    @property
    def image(self) -> str: ...
    @property
    def query(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def prior(self) -> str: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def picture(self) -> Image.Image: ...
    @property
    def heatmap(self) -> Tensor: ...
    @property
    def evidence(self) -> float: ...
    @property
    def verdict(self) -> str | None: ...
    @property
    def probability(self) -> float | None: ...
    @property
    def is_complement(self) -> bool: ...

    def ranking(self, which: Literal["before", "after", "goal"], top: int = 5) -> list[tuple[str, float]]: ...


def draw(look: Drawable, top: int = 5) -> Figure:
    """The figure of one look. The panels of a wide photograph are stacked; those of others stand side by side."""
    rows = _rows(look, top)
    photo = _drawable(look.picture)
    aspect = min(max(photo.width / photo.height, 0.5), 3.2)
    stacked = aspect > 1.75
    width = 4.8 if stacked else 3.3 * aspect
    height = width / aspect
    panels_high = 2 * (height + CAPTION) + GAP if stacked else height + CAPTION
    bars_high = CAPTION + ROW * len(rows)
    body = max(panels_high, bars_high)
    panels_wide = width if stacked else 2 * width + GAP
    full_width = MARGIN + panels_wide + GAP + LABELS + BARS + MARGIN
    full_height = MARGIN + HEAD + body + MARGIN
    figure = QuietFigure(figsize=(full_width, full_height), dpi=DPI, facecolor="white")

    def axes(left: float, top_edge: float, wide: float, high: float) -> Axes:
        """Axes with their upper left corner so many inches from that of the figure."""
        box = (left / full_width, 1 - (top_edge + high) / full_height, wide / full_width, high / full_height)
        return figure.add_axes(box)

    upper = MARGIN + HEAD
    second = (MARGIN, upper + CAPTION + height + GAP) if stacked else (MARGIN + width + GAP, upper)
    _head(axes(MARGIN, MARGIN, full_width - 2 * MARGIN, HEAD), look, full_width - 2 * MARGIN)
    _image(axes(MARGIN, upper + CAPTION, width, height), np.asarray(photo), "the photo")
    where = (UNWANTED if look.is_complement else WHERE)[look.verdict or ("absent" if look.is_complement else "present")]
    _image(axes(second[0], second[1] + CAPTION, width, height), overlay(look, photo), where)
    left = MARGIN + panels_wide + GAP + LABELS
    _bars(axes(left, upper + CAPTION, BARS, ROW * len(rows)), rows, look)
    return figure


def _drawable(picture: Image.Image) -> Image.Image:
    """A copy at a size fit for drawing. Large photographs are reduced; tiny ones show their pixels as squares."""
    least, most = PHOTO_PIXELS
    longest = max(picture.size)
    if least <= longest <= most:
        return picture
    enlarged = longest < least
    scale = -(-least // longest) if enlarged else most / longest
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    return picture.resize(size, Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)


class QuietFigure(Figure):
    """A figure that does not warn of letters that the font lacks. They are drawn as boxes."""

    def savefig(self, *args: Any, **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            super().savefig(*args, **options)


def _rows(look: Drawable, top: int) -> list[tuple[str, float, float]]:
    """(name, before, after) of the `top` classes after steering, of the `top` classes before it, and of the goal."""
    everything = len(look.class_names)
    before, after = dict(look.ranking("before", everything)), dict(look.ranking("after", everything))
    wanted = dict.fromkeys([*list(after)[:top], *list(before)[:top], look.ranking("goal", 1)[0][0]])
    return [(name, before[name], after[name]) for name in wanted]


def _head(ax: Axes, look: Drawable, inches: float) -> None:
    ax.set_axis_off()
    ax.set(xlim=(0, inches), ylim=(HEAD, 0))
    room = int(inches * 7.6)  # letters of the title's size
    verdict = look.verdict or "not calibrated"
    verdict += "" if look.probability is None else f", {look.probability:.0%}"
    _write(ax, 0.0, 0.1, shorten(f"“{printable(look.query)}”", room - len(verdict) - 4), size=15, weight="bold")
    _write(ax, inches, 0.1, verdict, size=15, weight="bold", color=VERDICT.get(look.verdict or "", MUTED), ha="right")
    goal = "looked for " + ", ".join(shorten(name, 26) for name, _ in look.ranking("goal", 3))
    evidence = f"evidence {look.evidence:+.2f} nats"
    _write(ax, 0.0, 0.42, shorten(goal, int(inches * 11) - len(evidence) - 4), size=9.5, color=MUTED)
    _write(ax, inches, 0.42, evidence, size=9.5, color=MUTED, ha="right")
    source = f"{look.model} · {look.prior}"
    name = printable(look.image)
    limit = max(int(inches * 11) - len(source) - 4, 12)
    _write(ax, 0.0, 0.63, name if len(name) <= limit else "…" + name[1 - limit :], size=9.5, color=MUTED)
    _write(ax, inches, 0.63, source, size=9.5, color=MUTED, ha="right")


def _image(ax: Axes, pixels: np.ndarray, caption: str) -> None:
    ax.imshow(pixels)
    ax.set_axis_off()
    ax.set_anchor("NW")
    ax.annotate(
        caption, (0, 1), xytext=(0, 5), xycoords="axes fraction", textcoords="offset points", size=9.5, color=MUTED
    )


def overlay(look: Drawable, photo: Image.Image) -> np.ndarray:
    """The photo in dimmed grey, coloured where steering acted; (h, w, 3) in 0–1.

    The colour is as strong as the goal, or what is unwanted, is believed to be there. Where the network has no eyes for
    it, nothing is coloured.
    """
    low = look.heatmap.detach().float().cpu().clamp(0, 1).numpy()
    heat = np.asarray(Image.fromarray(low).resize(photo.size, Image.Resampling.BICUBIC)).clip(0, 1)  # (h, w)
    grey = 0.15 + 0.6 * np.asarray(photo.convert("L"), dtype=np.float32)[..., None] / 255
    colour = matplotlib.colormaps["inferno"](0.25 + 0.75 * heat)[..., :3]
    sure = look.verdict in (None, "absent" if look.is_complement else "present")
    chance = look.probability or 0.0
    belief = 1.0 if sure else 0.0 if look.verdict == "unknown" else 1 - chance if look.is_complement else chance
    alpha = 0.85 * belief * heat[..., None] ** 0.8
    return grey * (1 - alpha) + colour * alpha


def _bars(ax: Axes, rows: list[tuple[str, float, float]], look: Drawable) -> None:
    longest = max(max(before, after) for _, before, after in rows)
    ax.set(xlim=(0, 1.28 * longest), ylim=(len(rows), 0))  # room for the figure at the longest bar
    ax.set_axis_off()
    ax.plot([0, 0], [0, len(rows)], color=FAINT, linewidth=1, clip_on=False)
    goal = look.ranking("goal", 1)[0][0]
    for row, (name, before, after) in enumerate(rows):
        for value, lower, colour in ((before, 0.17, BEFORE), (after, 0.51, AFTER)):
            ax.add_patch(Rectangle((0, row + lower), value, 0.32, color=colour, linewidth=0))
            _write(ax, value + 0.02 * longest, row + lower + 0.16, f"{value:.1%}", size=8, color=MUTED, va="center")
        weight = "bold" if name == goal else "normal"
        label = _write(
            ax, -0.04 * longest, row + 0.5, shorten(name, 28), size=9.5, weight=weight, ha="right", va="center"
        )
        label.set_clip_on(False)
    for x, colour, words in ((0.0, BEFORE, "before"), (0.3, AFTER, "after steering")):
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "size": 9.5}
        ax.annotate("■", (x, 1), xytext=(0, 5), color=colour, **place)
        ax.annotate(words, (x, 1), xytext=(11, 5), color=MUTED, **place)


def _write(ax: Axes, x: float, y: float, words: str, **style: Any) -> Text:
    return ax.text(x, y, words, parse_math=False, **{"color": INK, "va": "top", **style})
