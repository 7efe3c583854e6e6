"""Camera RAW: which files are one, and the picture in them.

Unusual: the picture is the preview that the camera embedded, a JPEG as the photographer saw it. Only where there is
none, or where it is tiny or damaged, is the sensor's mosaic developed, at half its size. Most kinds are TIFF files
whose first picture is a thumbnail of 160 × 120 pixels, so that Pillow would open that. They are told by their tags.
`rawpy` (LibRaw) reads them. It is imported when such a file is met.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BufferedIOBase
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image

SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc", ".mef", ".mos"),
    *(".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
LEAST_SIDE = 640  # of a preview, in pixels; what `--detail 2` looks at
ORIENTATION = 0x0112  # of EXIF
LYING = (5, 6, 7, 8)  # EXIF's orientations that exchange width and height
EXIF_OF_FLIP = {0: 1, 1: 2, 2: 4, 3: 3, 4: 5, 5: 8, 6: 6, 7: 7}  # LibRaw's flips as EXIF's orientations
STARTS = (b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"\0MRM", b"FOVb")  # RAF RW2 ORF ORF ORF MRW X3F
SUB_DIRECTORIES, PHOTOMETRIC, DNG_VERSION = 330, 262, 50706  # tags of TIFF
MOSAIC = 32803  # the photometric interpretation of a colour filter array
MOST_DIRECTORIES, MOST_TAGS = 16, 1000  # that are looked through


def is_raw(stream: BufferedIOBase) -> bool:
    """Whether a file is camera RAW, by its content. Moves the stream."""
    stream.seek(0)
    start = stream.read(16)
    if start.startswith(STARTS) or start[4:12] == b"ftypcrx " or start[6:14] == b"HEAPCCDR":  # CR3, CRW
        return True
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(start[:4])
    if order is None:
        return False
    if start[8:10] == b"CR" or start[8:12] in (b"IIII", b"MMMM"):  # CR2, IIQ
        return True
    try:
        return _has_mosaic(stream, order, struct.unpack(f"{order}I", start[4:8])[0])
    except struct.error:
        return False


def _has_mosaic(stream: BufferedIOBase, order: str, first: int) -> bool:
    """Whether a directory of a TIFF file, or one below it, tells of a mosaic or of DNG."""
    waiting, seen = [first], set[int]()
    while waiting and len(seen) < MOST_DIRECTORIES:
        place = waiting.pop(0)
        if place == 0 or place in seen:
            continue
        seen.add(place)
        stream.seek(place)
        (count,) = struct.unpack(f"{order}H", stream.read(2))
        if count > MOST_TAGS:
            continue
        body = stream.read(12 * count + 4)
        for tag, kind, number, value in struct.iter_unpack(f"{order}HHI4s", body[: 12 * count]):
            if tag == DNG_VERSION:
                return True
            if tag == PHOTOMETRIC and struct.unpack(f"{order}H", value[:2])[0] == MOSAIC:
                return True
            if tag == SUB_DIRECTORIES and kind in (4, 13):  # numbers of 32 bits
                (pointer,) = struct.unpack(f"{order}I", value)
                number = min(number, MOST_DIRECTORIES)
                if number > 1:
                    stream.seek(pointer)
                    waiting += struct.unpack(f"{order}{number}I", stream.read(4 * number))
                else:
                    waiting.append(pointer)
        waiting += struct.unpack(f"{order}I", body[12 * count :])
    return False


def open_raw(
    stream: BufferedIOBase,
    open_jpeg: Callable[[bytes], tuple[Image.Image, str | None]],
    *,
    most: int,
    most_developed: int,
) -> tuple[Image.Image, str | None]:
    """The picture in a camera RAW file, with the orientation that makes it upright in its EXIF; and a note.

    Args:
        stream: the file.
        open_jpeg: opens the bytes of the embedded preview. Returns an image and a note, or raises.
        most: pixels of a developed picture.
        most_developed: pixels of the mosaic of which it is made.

    Raises:
        ValueError: LibRaw cannot read it. Image.DecompressionBombError: there is no usable preview, and the mosaic has
            too many pixels. MemoryError: LibRaw lacks memory. ImportError: `rawpy` is not installed.
    """
    import rawpy

    stream.seek(0)
    try:
        with rawpy.imread(cast(BinaryIO, stream)) as photo:
            image, note = _preview(photo, open_jpeg)
            return (image, note) if image is not None else _developed(photo, note, most, most_developed)
    except (rawpy.LibRawUnsufficientMemoryError, rawpy.LibRawMemPoolOverflowError):
        raise MemoryError from None
    except rawpy.LibRawTooBigError:
        raise Image.DecompressionBombError from None
    except rawpy.LibRawFileUnsupportedError:
        raise ValueError("camera RAW of a kind that LibRaw does not know") from None
    except rawpy.LibRawError as error:
        reason = error.args[0] if error.args else ""
        raise ValueError(reason.decode() if isinstance(reason, bytes) else str(reason)) from None


def _preview(
    photo: Any, open_jpeg: Callable[[bytes], tuple[Image.Image, str | None]]
) -> tuple[Image.Image | None, str | None]:
    """The embedded preview and its note; or None, and why it does not serve."""
    import rawpy

    try:
        thumb = photo.extract_thumb()
        image, note = open_jpeg(thumb.data) if thumb.format == rawpy.ThumbFormat.JPEG else (_image(thumb.data), None)
        image.load()
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
        return None, "holds no preview"
    except MemoryError:
        raise
    except Exception:  # LibRaw's and Pillow's decoders raise nearly anything
        return None, "has a damaged preview"
    sizes = photo.sizes
    if min(image.size) < min(LEAST_SIDE, min(sizes.width, sizes.height) // 2):
        return None, f"has a small preview ({image.width} × {image.height})"
    image.getexif()[ORIENTATION] = _orientation(image, sizes)
    return image, note


def _image(pixels: np.ndarray) -> Image.Image:
    """An image from (h, w, 3), or from the (h, w, 1) of a camera that sees no colours; uint8."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _orientation(preview: Image.Image, sizes: Any) -> int:
    """EXIF's orientation of a preview: its own, else that of the mosaic. One that makes it lie is not believed."""
    flip = EXIF_OF_FLIP.get(sizes.flip, 1)
    own = preview.getexif().get(ORIENTATION)
    told: list[int] = [value for value in (own, flip, 1) if isinstance(value, int) and 1 <= value <= 8]
    if sizes.width == sizes.height or preview.width == preview.height:
        return told[0]
    tall = (sizes.height > sizes.width) != (flip in LYING)
    fitting = (value for value in told if ((preview.height > preview.width) != (value in LYING)) == tall)
    return next(fitting, told[0])


def _developed(photo: Any, why: str | None, most: int, most_developed: int) -> tuple[Image.Image, str]:
    """The mosaic as an upright sRGB picture of half its width and height. `why`: what is wrong with the preview."""
    pixels = photo.sizes.raw_width * photo.sizes.raw_height
    if pixels > most_developed or pixels > 4 * most:
        raise Image.DecompressionBombError
    developed = photo.postprocess(half_size=True, use_camera_wb=True, output_bps=8)
    return _image(developed), f"{why}: developed at half its size"
