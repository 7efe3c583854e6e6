"""Files that lack their last bytes, as from an interrupted copy, are completed so that what is there can be read.

Unusual: Pillow can do this only by a switch for the whole process. Here the bytes are completed instead: a JPEG by its
end marker, a PNG by empty rows.
"""

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"
JPEG, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's types of colour
PALETTE = 3
GREY = (127, 128)  # what libjpeg leaves where it has no data


def candidates(data: bytes) -> Iterator[tuple[bytes, float]]:
    """What a file that was cut off may be read as, best first, each with the share of its rows that is there.

    The share is NaN where the decoded pixels must tell. Nothing comes for a file that is whole or of another format.
    """
    if data.startswith(JPEG) and JPEG_END not in data[-64:]:
        yield data + JPEG_END, math.nan
        last = max(
            data.rfind(b"\xff\xc4"), data.rfind(b"\xff\xda")
        )  # a cut in a header: only the scans before it count
        if last > 0:
            yield data[:last] + JPEG_END, math.nan
    elif data.startswith(PNG):
        mended = _png(data)
        if mended is not None:
            yield mended


def share_of_rows(image: Image.Image) -> float:
    """How much of a mended JPEG is there, 0–1: all rows but the grey ones at its end. Reads the pixels."""
    pixels = np.asarray(image)
    filled = len(pixels)
    while filled and np.isin(pixels[filled - 1], GREY).all():
        filled -= 1
    return filled / len(pixels)


def is_buffered(image: Image.Image) -> bool:
    """Whether the decoder of a JPEG must keep the whole picture: it is progressive, or its colours come one by one."""
    stream = getattr(image, "fp", None)
    if "progressive" in image.info or stream is None:
        return True
    place = stream.tell()
    try:
        stream.seek(2)
        while len(head := stream.read(4)) == 4:
            marker, length = struct.unpack(">HH", head)
            if marker == 0xFFDA:
                return stream.read(1)[0] < len(image.getbands())
            if length < 2 or marker < 0xFF00:
                return True
            stream.seek(length - 2, 1)
        return True
    finally:
        stream.seek(place)


def _png(data: bytes) -> tuple[bytes, float] | None:
    """A PNG without its end, completed by empty rows; and the share of the rows that is there. None if it cannot be."""
    place, first, packed = len(PNG), None, []
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        if kind in (b"IEND", b"acTL"):
            return None
        if kind == b"IDAT":
            first = place if first is None else first
            packed.append(data[place + 8 : place + 8 + length])
        elif first is not None:
            break
        place += length + 12
    if first is None or data[12:16] != b"IHDR":
        return None
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    if interlaced or colour not in CHANNELS:
        return None
    row = 1 + (width * CHANNELS[colour] * depth + 7) // 8
    try:
        pixels = zlib.decompressobj().decompress(b"".join(packed), height * row)
    except zlib.error:
        return None
    whole = len(pixels) // row
    if 2 * whole <= height:
        return None
    empty = b"\0" + (b"\0" if colour == PALETTE or depth < 8 else b"\xff") * (row - 1)
    body = zlib.compress(pixels[: whole * row] + empty * (height - whole), 1)
    ends = [
        struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b))
        for k, b in ((b"IDAT", body), (b"IEND", b""))
    ]
    return data[:first] + b"".join(ends), whole / height
