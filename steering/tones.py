"""Deep pixels become 8 bits: 16 and 32 bits, and floats.

Unusual: cameras and microscopes store 10, 12 or 14 bits in numbers of 16, and such a picture would come out black. The
file may tell its white (TIFF's tags, PNG's chunk sBIT). Otherwise values that end far below the full range are
stretched, and a note tells it. Pillow reads only the upper bytes of deep colours. For the lower ones the file
is decoded again, as if its bytes came in the other order.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

FULL = 65535
FAR_BELOW = 16383  # the largest value of 14 bits; a picture that ends at it or below is stretched
DEPTHS = (8, 10, 12, 14)
BITS_PER_SAMPLE, MAX_SAMPLE_VALUE = 258, 281  # tags of TIFF


def told_white(image: Image.Image) -> int | None:
    """The value of white that a file tells, or None. Ask before the pixels are read."""
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        white, bits = (_largest(tags.get(tag)) for tag in (MAX_SAMPLE_VALUE, BITS_PER_SAMPLE))
        return white or (2**bits - 1 if bits and 8 < bits < 16 else None)
    if image.format == "PNG":
        bits = _significant_bits(getattr(image, "fp", None))
        return 2**bits - 1 if bits else None
    tiles: Any = getattr(image, "tile", ())
    if image.format == "PPM" and image.mode == "I" and tiles and isinstance(tiles[0].args, tuple):
        return FULL  # Pillow knows the file's largest value, and scales by it
    return None


def _largest(value: Any) -> int | None:
    numbers = value if isinstance(value, tuple) else (value,)
    return int(max(numbers)) if numbers and all(isinstance(n, int | float) for n in numbers) else None


def _significant_bits(stream: Any) -> int | None:
    """The largest number in PNG's chunk sBIT, which stands before the pixels. Leaves the stream where it was."""
    if stream is None or stream.closed:
        return None
    place = stream.tell()
    try:
        stream.seek(8)
        while len(head := stream.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in (b"IDAT", b"IEND"):
                return None
            if kind == b"sBIT":
                return max(stream.read(min(length, 3)), default=0) or None
            stream.seek(length + 4, 1)
        return None
    finally:
        stream.seek(place)


def white_of(high: float, told: int | None) -> tuple[int, str | None]:
    """The value that becomes white, for values from 0 to `high`, at most 65535; and a note if they are stretched."""
    if told is not None and high <= told:
        return told, None
    if not 0 < high <= FAR_BELOW:
        return FULL, None
    bits = next(bits for bits in DEPTHS if high < 2**bits)
    return 2**bits - 1, f"has values up to {high:g} of {FULL}: stretched as {bits} bits"


def grey(image: Image.Image, told: int | None) -> tuple[Image.Image, str | None]:
    """Mode L from 16 or 32 bits or floats, and a note if the values were stretched.

    Raises:
        ValueError: a value is not a finite number.
    """
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("has pixels that are not finite numbers")
    low, high = float(values.min()), float(values.max())
    white: float = high
    note: str | None = f"has values from {low:g} to {high:g}: stretched"
    if image.mode == "F" and low >= 0 and high <= 1:
        if high == 0 or high >= FAR_BELOW / FULL:
            white, note = 1.0, None
        low = 0.0
    elif image.mode == "F" and low >= 0 and high <= 255:
        low, white, note = 0.0, 255.0, None
    elif low >= 0 and high <= FULL:
        white, note = white_of(high, told)
        low = 0.0
    elif told is not None and low >= 0 and high <= told:
        low, white, note = 0.0, told, None
    scaled = (values - low) * (255 / (white - low) if white > low else 0)
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8)), note


def deep_array(array: np.ndarray) -> tuple[np.ndarray, str | None]:
    """uint8 from uint16, (h, w) or (h, w, c), and a note if the values were stretched. A fourth channel is opacity."""
    return _by_channels(array, None)


def _by_channels(values: np.ndarray, told: int | None) -> tuple[np.ndarray, str | None]:
    colours = values[..., :3] if values.ndim == 3 else values
    white, note = white_of(float(colours.max()), told)
    scaled = (values.astype(np.float32) * (255 / white)).round().clip(0, 255)
    if values.ndim == 3 and values.shape[2] == 4:
        opaque, _ = white_of(float(values[..., 3].max()), told)
        scaled[..., 3] = (values[..., 3] * (255 / opaque)).round().clip(0, 255)
    return scaled.astype(np.uint8), note


def lower_bytes(image: Image.Image) -> list[Any] | None:
    """How Pillow reads the lower bytes of deep colours instead of the upper: tiles; None for other images."""
    tiles = []
    native = "B" if sys.byteorder == "little" else "L"
    for tile in getattr(image, "tile", None) or ():
        mode = tile.args if isinstance(tile.args, str) else tile.args[0] if isinstance(tile.args, tuple) else ""
        name, _, order = str(mode).rpartition(";")
        other = {"16B": "L", "16L": "B", "16N": native}.get(order)
        if other is None or name not in ("RGB", "RGBA", "RGBX", "LA"):
            return None
        swapped = f"{name};16{other}"
        tiles.append(tile._replace(args=swapped if isinstance(tile.args, str) else (swapped, *tile.args[1:])))
    return tiles or None


def stretch_colours(image: Image.Image, told: int | None, again: Callable[[], Image.Image]) -> str | None:
    """Stretch a picture of deep colours in place, of which Pillow read the upper bytes. Returns a note if it did.

    Args:
        image: its pixels were read.
        again: opens the same file again.
    """
    upper = np.asarray(image)
    if int(upper[..., :3].max()) > FAR_BELOW >> 8:
        return None
    values = upper.astype(np.uint16) << 8
    with again() as second:
        tiles = lower_bytes(second)
        try:
            second.tile = tiles  # type: ignore[attr-defined]
            values |= np.asarray(second)
        except ValueError:  # a layout that Pillow cannot turn round: the upper bytes serve
            pass
    pixels, note = _by_channels(values, told)
    image.paste(Image.fromarray(pixels))
    return note
