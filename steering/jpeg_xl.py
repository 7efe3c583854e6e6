"""JPEG XL: the size that a file tells, and its picture (ISO/IEC 18181).

Unusual: the decoder, `pillow-jxl-plugin` (libjxl), decodes all pixels as soon as it opens a file. So the size is read
here before. Importing that package makes Pillow know the format in the whole process. The decoder turns the picture,
and the standard says that EXIF's orientation does not count then; it counts only where a JPEG file was packed without
loss and is unpacked again.
"""

from __future__ import annotations

import struct
from io import BufferedIOBase, BytesIO

from PIL import Image

SUFFIXES = (".jxl",)
CODESTREAM, CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}  # width to height
MOST_BOXES = 64  # before the pixels
ORIENTATION = 0x0112  # of EXIF


def is_jpeg_xl(start: bytes) -> bool:
    """Whether a file is JPEG XL, by its first 12 bytes."""
    return start.startswith((CODESTREAM, CONTAINER))


def size_of(stream: BufferedIOBase) -> tuple[int, int]:
    """Width and height in pixels, as they are stored. Moves the stream.

    Raises:
        ValueError: the file does not tell them.
    """
    stream.seek(0)
    header = stream.read(16)
    if not header.startswith(CODESTREAM):
        header = _codestream(stream)
    if not header.startswith(CODESTREAM) or len(header) < 12:
        raise ValueError("JPEG XL without a picture")
    bits = _Bits(header[2:])
    small = bits.take(1)

    def side() -> int:
        return 8 * (1 + bits.take(5)) if small else 1 + bits.take((9, 13, 18, 30)[bits.take(2)])

    height = side()
    ratio = bits.take(3)
    if ratio == 0:
        return side(), height
    wide, high = RATIOS[ratio]
    return height * wide // high, height


def _codestream(stream: BufferedIOBase) -> bytes:
    """The first bytes of the pixels' box in a container."""
    stream.seek(0)
    for _ in range(MOST_BOXES):
        place, head = stream.tell(), stream.read(8)
        if len(head) < 8:
            break
        length, kind = struct.unpack(">I4s", head)
        if length == 1:
            length = int.from_bytes(stream.read(8), "big")
        if kind in (b"jxlc", b"jxlp"):
            return stream.read(20)[4 if kind == b"jxlp" else 0 :]  # a part begins with its number
        if length < 8:
            break
        stream.seek(place + length)
    return b""


class _Bits:
    """Bits from the lowest of each byte on."""

    def __init__(self, data: bytes) -> None:
        self._left = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        value = self._left & ((1 << count) - 1)
        self._left >>= count
        return value


def open_jpeg_xl(stream: BufferedIOBase, *, most: int) -> Image.Image:
    """The picture, with EXIF's orientation only where it counts.

    Args:
        stream: the file.
        most: pixels that are decoded.

    Raises:
        ValueError: the file is damaged. Image.DecompressionBombError: it has too many pixels.
        ImportError: `pillow-jxl-plugin` is not installed.
    """
    from pillow_jxl import JpegXLImagePlugin  # type: ignore[import-untyped, import-not-found, unused-ignore]

    width, height = size_of(stream)
    if width * height > most:
        raise Image.DecompressionBombError
    stream.seek(0)
    data = stream.read()
    try:
        image = JpegXLImagePlugin.JXLImageFile(BytesIO(data))
        image.load()
    except (RuntimeError, SyntaxError):  # of many lines, that tell how to build the decoder
        raise ValueError("the decoder of JPEG XL gave up") from None
    if not image.jpeg:
        image.getexif().pop(ORIENTATION, None)
    return image
