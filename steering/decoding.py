"""Files of images become pixels: which formats, which limits, and what is done with files that are huge or cut off.

Unusual: only formats of photographs are opened, since EPS would start Ghostscript. The number of pixels is checked
before any pixel is decoded. JPEG and JPEG 2000 can be decoded at a fraction of their size, and huge ones are. Pillow's
warnings never reach the user, and its global switches are not touched. Colour profiles become sRGB (`colours.py`).
HEIC, camera RAW and JPEG XL need packages that may not be there (`photos.py`).
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile

from steering import colours, mending, photos, tones
from steering.errors import ImageError, UnavailableError, printable

MAX_PIXELS = 100_000_000  # after shrinking
MAX_SHRUNK = 1_000_000_000  # the largest picture that is shrunk, in pixels
MAX_BUFFERED = 250_000_000  # of a progressive JPEG or a mosaic, whose decoder keeps all pixels of the full size
COMMON = ("JPEG", "PNG")  # looked for first: to look for the others, Pillow imports the plugins of all formats
ALBUMS = ("MPO", "HEIF")  # one photograph and its auxiliaries, as telephones write them
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "TIFF", "WEBP")


def decode(source: str | bytes, label: str) -> Image.Image:
    """A file, or the bytes of one, as an upright RGB image; see `steering.images.open_image`."""
    with one_line_errors(label), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow warns of is refused below, or harmless
        try:
            return _read(source, label, None)
        except (ImageError, UnidentifiedImageError, MemoryError, Image.DecompressionBombError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            data = source if isinstance(source, bytes) else Path(source).read_bytes()
            for mended, share in mending.candidates(data):
                with contextlib.suppress(Exception):
                    return _read(mended, label, share)
            raise


class _TooLittle(Exception):
    """Half of a file or more is missing."""


def _read(source: str | bytes, label: str, share: float | None) -> Image.Image:
    """Read a file. Of a mended one `share` is how much is there, 0–1; NaN if the pixels must tell."""
    image, note = _open(source, label)
    with image:
        if share is not None:
            there = mending.share_of_rows(image) if share != share else share
            if there <= 0.5:
                raise _TooLittle
            missing = round(100 * (1 - there))
            lacking = (
                f"lacks its last bytes: {f'the lower {missing} % is empty' if missing else 'less sharp than it was'}"
            )
            note = f"{note}; {lacking}" if note else lacking
        return upright_rgb(image, label, note, lambda: _open(source, label)[0])


def _open(source: str | bytes, label: str) -> tuple[Image.Image, str | None]:
    """An opened image, and what is to be told of it."""
    kind = photos.kind_of(source)
    if kind is None:
        return _open_common(source)
    return photos.open_photo(kind, source, label, _open_common, most=MAX_PIXELS, most_developed=MAX_BUFFERED)


def _open_common(source: str | bytes) -> tuple[Image.Image, str | None]:
    """An opened image, not read yet. A huge one will be shrunk if its format can; then a note tells it."""

    def stream() -> str | BytesIO:
        return BytesIO(source) if isinstance(source, bytes) else source

    image: Image.Image
    try:
        image = Image.open(stream(), formats=(*COMMON, *FORMATS))
    except Image.DecompressionBombError:
        kind = _shrinkable(source)
        if kind is None:
            raise
        image = kind(stream())
    try:
        return image, _shrink(image)
    except BaseException:
        image.close()
        raise


def _shrinkable(source: str | bytes) -> type[JpegImageFile] | type[Jpeg2KImageFile] | None:
    if isinstance(source, bytes):
        start = source[:12]
    else:
        with open(source, "rb") as file:
            start = file.read(12)
    if start.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    return Jpeg2KImageFile if start.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")) else None


def _shrink(image: Image.Image) -> str | None:
    """Let the decoder of a huge image shrink it, if it can. Returns a note if it will."""
    width, height = image.size
    pixels = width * height
    if not MAX_PIXELS < pixels <= MAX_SHRUNK:
        return None
    scale = next((s for s in (2, 4, 8) if -(-width // s) * -(-height // s) <= MAX_PIXELS), None)
    if scale is None or min(width, height) < scale:
        return None
    if isinstance(image, JpegImageFile):
        if pixels > MAX_BUFFERED and mending.is_buffered(image):
            return None
        image.draft(None, (width // scale, height // scale))
    elif isinstance(image, Jpeg2KImageFile):
        image.reduce = scale.bit_length() - 1
        try:
            image.load()
        except OSError:  # it does not hold so small a picture, or is damaged
            raise Image.DecompressionBombError from None
    else:
        return None
    return f"has {_megapixels(width, height)}: shrunk to 1/{scale} while it was read"


def _megapixels(width: int, height: int) -> str:
    return f"{width * height / 1e6:.0f} megapixels ({width} × {height})"


@contextlib.contextmanager
def one_line_errors(label: str) -> Iterator[None]:
    """Whatever is raised becomes an ImageError of one line that begins with the image's name."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise UnavailableError(f"{label}: needs more memory than there is") from None
    except FileNotFoundError:
        raise UnavailableError(f"{label}: no such file") from None
    except PermissionError:
        raise UnavailableError(f"{label}: may not be read (permission denied)") from None
    except UnidentifiedImageError:
        read = ", ".join((*FORMATS, *(kind.name for kind in photos.KINDS)))
        raise ImageError(f"{label}: is not an image of a kind that is read ({read})") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{label}: more than the {MAX_PIXELS / 1e6:.0f} megapixels that are opened") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        if isinstance(error, OSError) and error.errno is not None:  # the system, not a decoder
            raise UnavailableError(f"{label}: cannot be read ({error.strerror})") from None
        raise ImageError(f"{label}: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """What a decoder complains of."""
    reason = printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)
    return f"is damaged ({reason[:160]})"


def upright_rgb(
    image: Image.Image, label: str, note: str | None = None, again: Callable[[], Image.Image] | None = None
) -> Image.Image:
    """8-bit sRGB, turned as its EXIF tag says, without transparency. Reads the pixels.

    Args:
        note: what is to be told of the image, beside what is found here.
        again: opens the same file again, if that can be done; then `image` may be changed.

    Raises:
        ImageError: the image has no pixels or too many.
    """
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{label}: has no pixels ({width} × {height})")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{label}: {_megapixels(width, height)}, more than the {MAX_PIXELS / 1e6:.0f} that are opened")
    notes = [note] if note else []
    if _is_animated(image):
        frame = image.tell() + 1
        notes.append(f"has several frames: {'the first' if frame == 1 else f'number {frame}'} is used")
    white, deep = tones.told_white(image), tones.lower_bytes(image) is not None
    image.load()
    if deep and again is not None:
        notes += [told] if (told := tones.stretch_colours(image, white, again)) else []
    try:
        turned = ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block does not spoil the pixels
        turned = image
    if turned.mode == "La":  # Pillow turns it into no other mode
        turned = turned.convert("LA")
    if turned.mode in ("I", "F") or turned.mode.startswith("I;16"):
        try:
            turned, told = tones.grey(turned, white)
        except ValueError as error:
            raise ImageError(f"{label}: {error}") from None
        notes += [told] if told else []
    if isinstance(profile := image.info.get("icc_profile"), bytes) and profile:
        turned, told = colours.to_srgb(turned, profile)
        notes += [told] if told else []
    if turned.has_transparency_data:
        rgba = turned.convert("RGBA")
        alpha = rgba.getchannel("A")
        if np.asarray(alpha).min() < 255:
            notes.append("is partly transparent: put on white")
        rgb = Image.new("RGB", rgba.size, "white")
        rgb.paste(rgba, mask=alpha)
    else:
        rgb = turned.convert("RGB")
        rgb = rgb.copy() if rgb is image else rgb
    rgb.info = {"note": "; ".join(notes)} if notes else {}
    return rgb


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False)) and image.format not in ALBUMS
    except Exception:  # counting the frames of a damaged file; its first may still be whole
        return False
