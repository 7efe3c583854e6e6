"""A picture as text for a terminal: Kitty's graphics protocol, iTerm2's inline images, Sixel, half blocks.

Sources: Kitty's "Terminal graphics protocol" (sw.kovidgoyal.net/kitty/graphics-protocol), iTerm2's "Images"
(iterm2.com/documentation-images.html), and for Sixel the VT330/VT340 Programmer Reference Manual, volume 2, chapter 14.

Unusual: Kitty is told to send no answer (q=2), since nobody reads it. A half block (▀) shows two pixels: the upper one
is its foreground, the lower one its background.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from itertools import groupby

import numpy as np
from einops import rearrange
from PIL import Image

from steering.commands.terminal import Screen

CHUNK = 4096  # characters of base64 in one of Kitty's sequences
SIXEL_COLOURS = 255
BAND = 6  # rows of pixels in a row of sixels
ESC, ST, BEL = "\x1b", "\x1b\\", "\x07"
_CUBE = np.array([0, 95, 135, 175, 215, 255])  # xterm's colours 16 to 231; 232 to 255 are greys
_XTERM = np.concatenate(
    [
        np.stack(np.meshgrid(_CUBE, _CUBE, _CUBE, indexing="ij"), -1).reshape(-1, 3),
        np.arange(8, 239, 10)[:, None].repeat(3, 1),
    ]
)


def drawn(picture: Image.Image, screen: Screen) -> str:
    """A picture as text that a terminal shows at the cursor, without a line break at its end.

    Args:
        picture: RGB, of a size that fits into `screen.box`.
    """
    draw: dict[str, Callable[[Image.Image, Screen], str]] = {"kitty": kitty, "iterm": iterm, "sixel": sixel}
    return draw.get(screen.protocol, blocks)(picture, screen)


def kitty(picture: Image.Image, screen: Screen) -> str:
    """A PNG in Kitty's graphics protocol, in chunks, as many rows high as the picture is."""
    data = base64.b64encode(_png(picture)).decode()
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    first = f"a=T,f=100,q=2,r={_rows(picture, screen)},"
    sequences = []
    for number, chunk in enumerate(chunks):
        more = int(number < len(chunks) - 1)
        sequences.append(f"{ESC}_G{first if number == 0 else 'q=2,'}m={more};{chunk}{ST}")
    return "".join(sequences)


def iterm(picture: Image.Image, screen: Screen) -> str:
    """A PNG as an inline image of iTerm2, as many rows high as the picture is."""
    data = _png(picture)
    about = f"inline=1;size={len(data)};height={_rows(picture, screen)};preserveAspectRatio=1"
    return f"{ESC}]1337;File={about}:{base64.b64encode(data).decode()}{BEL}"


def sixel(picture: Image.Image, screen: Screen) -> str:
    """Sixels, one pixel for each pixel of the picture, of a palette that is made for it."""
    reduced = picture.quantize(SIXEL_COLOURS, Image.Quantize.MEDIANCUT)
    palette = rearrange(np.array(reduced.getpalette("RGB")), "(n c) -> n c", c=3)
    pixels = np.asarray(reduced)  # (h, w)
    percent = np.round(palette * (100 / 255)).astype(int).tolist()
    used = np.unique(pixels).tolist()
    colours = "".join(f"#{n};2;{';'.join(map(str, percent[n]))}" for n in used)
    bands = [_band(pixels[top : top + BAND]) for top in range(0, len(pixels), BAND)]
    return f'{ESC}P0;1q"1;1;{picture.width};{picture.height}{colours}{"-".join(bands)}{ST}'


def _band(pixels: np.ndarray) -> str:
    """Up to six rows of pixels (r, w) as sixels, colour by colour."""
    weights = 1 << np.arange(len(pixels))[:, None]
    parts = []
    for colour in np.unique(pixels).tolist():
        codes = ((pixels == colour) * weights).sum(0).tolist()
        runs = ((code, len(list(run))) for code, run in groupby(codes))
        parts.append(f"#{colour}" + "".join(_run(chr(63 + code), count) for code, count in runs))
    return "$".join(parts)


def _run(character: str, count: int) -> str:
    return f"!{count}{character}" if count > 3 else character * count


def blocks(picture: Image.Image, screen: Screen) -> str:
    """Half blocks, two rows of pixels in a line. A missing last row has the terminal's background."""
    pixels = np.asarray(picture)
    colours = pixels if screen.true_colours else _nearest(pixels)[..., None]
    kind = 2 if screen.true_colours else 5
    lines = []
    for top in range(0, len(pixels), 2):
        line, before = [], ""
        for column in range(picture.width):
            upper = ";".join(map(str, colours[top, column].tolist()))
            lower = ";".join(map(str, colours[top + 1, column].tolist())) if top + 1 < len(pixels) else ""
            style = f"{ESC}[38;{kind};{upper}" + (f";48;{kind};{lower}m" if lower else "m")
            line.append(("" if style == before else style) + "▀")
            before = style
        lines.append("".join(line) + f"{ESC}[0m")
    return "\n".join(lines)


def _nearest(pixels: np.ndarray) -> np.ndarray:
    """(h, w), the number of the nearest of xterm's 256 colours for each pixel (h, w, 3). The first 16 are not used."""
    distance = ((pixels[:, :, None].astype(int) - _XTERM) ** 2).sum(-1)
    return distance.argmin(-1) + 16


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _rows(picture: Image.Image, screen: Screen) -> int:
    return -(-picture.height // screen.cell[1])
