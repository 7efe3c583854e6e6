"""Files as telephones and cameras write them: HEIC, camera RAW and JPEG XL, with the packages of extras.

Unusual: kinds are told by content, since a suffix may lie. A package is imported when a file of its kind is met.
Pillow is not changed by `pillow-heif` and `rawpy`; `pillow-jxl-plugin` registers itself when it is imported. AVIF needs
no extra, since Pillow reads it itself.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from typing import Any

from PIL import Image

from steering import jpeg_xl, raw
from steering.errors import UnavailableError

COMMON = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"BM")  # files that need no second look
HEVC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")  # brands of ISO/IEC 23008-12
NEUTRAL = (b"mif1", b"mif2", b"msf1")  # brands that do not tell the codec; the compatible ones do
AVIF = (b"avif", b"avis")
WIDE, DYNAMIC = (9, 12), (16, 18)  # of ITU-T H.273: primaries of BT.2020 and P3, transfer of PQ and HLG


@dataclass(frozen=True)
class Kind:
    """A kind of file that needs a package.

    Attributes:
        name: as messages call it.
        package: as it is installed.
        module: as it is imported.
        suffixes: that such files have, in lower case.
        extra: the extra that brings the package. JPEG XL has its own, since its package is under the GPL.
    """

    name: str
    package: str
    module: str
    suffixes: tuple[str, ...]
    extra: str = "photos"


HEIC = Kind("HEIC", "pillow-heif", "pillow_heif", (".heic", ".heif", ".hif"))
RAW = Kind("camera RAW", "rawpy", "rawpy", raw.SUFFIXES)
JPEG_XL = Kind("JPEG XL", "pillow-jxl-plugin", "pillow_jxl", jpeg_xl.SUFFIXES, "jxl")
KINDS = (HEIC, RAW, JPEG_XL)
SUFFIXES = tuple(suffix for kind in KINDS for suffix in kind.suffixes)


def kind_of(source: str | bytes) -> Kind | None:
    """The kind of a file, or of the bytes of one, if it needs a package. Raises OSError."""
    with _stream(source) as stream:
        start = stream.read(64)
        if start.startswith(COMMON):
            return None
        if _is_heic(start):
            return HEIC
        if jpeg_xl.is_jpeg_xl(start):
            return JPEG_XL
        return RAW if raw.is_raw(stream) else None


def _stream(source: str | bytes) -> BufferedIOBase:
    return BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _is_heic(start: bytes) -> bool:
    if start[4:8] != b"ftyp":
        return False
    length = min(max(int.from_bytes(start[:4], "big"), 16), len(start))
    compatible = [start[place : place + 4] for place in range(16, length, 4)]
    brand = start[8:12]
    return brand in HEVC or (brand in NEUTRAL and not any(other in AVIF for other in compatible))


def open_photo(
    kind: Kind,
    source: str | bytes,
    label: str,
    open_jpeg: Callable[[bytes], tuple[Image.Image, str | None]],
    *,
    most: int,
    most_developed: int,
) -> tuple[Image.Image, str | None]:
    """A file as an image whose EXIF tells how it becomes upright, and a note.

    Args:
        kind: what `kind_of` told.
        source: the file, or its bytes.
        label: what messages call it.
        open_jpeg, most, most_developed: as in `raw.open_raw`.

    Raises:
        UnavailableError: the package is not installed. ValueError: the file is damaged.
        Image.DecompressionBombError: it has too many pixels.
    """
    try:
        if kind is HEIC:
            return _open_heic(source)
        with _stream(source) as stream:
            if kind is JPEG_XL:
                return jpeg_xl.open_jpeg_xl(stream, most=most), None
            return raw.open_raw(stream, open_jpeg, most=most, most_developed=most_developed)
    except ImportError:
        raise UnavailableError(f"{label}: {needs(kind)}") from None


def _open_heic(source: str | bytes) -> tuple[Image.Image, str | None]:
    """The primary image, not decoded yet. libheif turns it, so that EXIF's orientation does not count."""
    import pillow_heif

    try:
        image = pillow_heif.HeifImageFile(BytesIO(source) if isinstance(source, bytes) else source)
    except SyntaxError as error:
        raise ValueError(str(error).strip()) from None
    return image, _unconverted(image.info)


def _unconverted(info: dict[Any, Any]) -> str | None:
    """A note where colours are told by numbers (nclx) for a wide gamut or for HDR, and not by a profile."""
    told = info.get("nclx_profile") or {}
    if "icc_profile" in info:
        return None
    if told.get("transfer_characteristics") in DYNAMIC:
        return "has HDR colours: taken for sRGB"
    return "has colours of a wide gamut: taken for sRGB" if told.get("color_primaries") in WIDE else None


def needs(kind: Kind) -> str:
    """What a file of a kind lacks to be read, and the command that installs it; one line."""
    from lrm_base.extras import install_command

    return f"is {kind.name}, which needs {kind.package}: {install_command(kind.extra)}"


@functools.cache
def lacking() -> dict[str, Kind]:
    """Suffixes of the kinds whose packages are not installed. Nothing is imported."""
    from lrm_base.extras import missing_packages

    return {suffix: kind for kind in KINDS if missing_packages(kind.module) for suffix in kind.suffixes}


def lacks(path: str) -> str | None:
    """Why a file cannot be read, if the package for it is not installed; None for all others. Raises OSError."""
    if os.path.splitext(path)[1].lower() not in lacking():
        return None
    kind = kind_of(path)
    return needs(kind) if kind is not None and kind in lacking().values() else None
