"""Image input: whatever a user names becomes one upright RGB photograph, or one clear line that says why not.

`decoding.py` reads files, `photos.py` those of telephones and cameras; `tones.py` brings deep pixels to 8 bits, and
`colours.py` colours to sRGB.
"""

import glob
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from lrm_base.frame import Frame
from steering import photos, tones
from steering.decoding import MAX_PIXELS as MAX_PIXELS
from steering.decoding import decode, one_line, one_line_errors, upright_rgb
from steering.errors import ImageError, printable

MAX_BYTES = 1_000_000_000  # the largest file that is read: eight bytes for each pixel, and more
SUFFIXES = (
    *(".avif", ".bmp", ".dib", ".gif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"),
    *(".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tif", ".tiff", ".webp"),
    *photos.SUFFIXES,
)
SAMPLES = {"cat": "chelsea.png", "coffee": "coffee.png"}
SAMPLES_FOLDER = Path(__file__).parent / "samples"  # their sources stand in its README.md
SAMPLE_PREFIX = "sample:"


def sample_names() -> tuple[str, ...]:
    """The samples that need no file, by the names that `open_image` takes."""
    first, second = SAMPLES
    return tuple(SAMPLE_PREFIX + name for name in (*SAMPLES, f"{first}+{second}", f"{first}|{second}"))


def image_name(image: Any) -> str:
    """What an image is called in a `Look`: its path, or the file that a PIL image came from."""
    if isinstance(image, str | os.PathLike):
        return os.fsdecode(image)
    return os.fsdecode(getattr(image, "filename", "") or "image")


def open_image(source: str | os.PathLike | bytes | Image.Image | np.ndarray) -> Image.Image:
    """One upright sRGB image, 8 bits a channel, at its full size. The result is a new object; `source` is not changed.

    The file's rotation and its colour profile (ICC) are applied. Of camera RAW the embedded preview is taken; without
    one of use, the mosaic is developed at half its size. HEIC, camera RAW and JPEG XL need the packages of the extra
    `photos`. 16 bits are scaled to 8: over the range that the file tells, over their full range, or as
    10, 12 or 14 bits where all values lie that low. Transparency is put on white. A file with several frames gives its
    first frame, and a PIL image gives the frame that it stands at. A JPEG or JPEG 2000 file of more than 100 megapixels
    is shrunk while it is decoded. Of a JPEG or PNG file that lacks its last bytes, what is there is taken if that is
    more than half. `.info["note"]` tells of each of these, except of rotation, of profiles and ranges that the file
    tells, and of previews. It also tells of a profile that was ignored.

    Args:
        source: one of these:
            - the name of a file;
            - a sample: `sample:cat`, `sample:cat+coffee` (a 50/50 blend) or `sample:cat|coffee` (side by side);
            - the bytes of a file;
            - a PIL image;
            - an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) of uint8, uint16, bool, or of floats from 0 to 1.

    Raises:
        ImageError: the file is missing, not a regular file, empty, damaged or not an image; it has more than 100
            megapixels and cannot be shrunk; it needs a package that is not installed; there is no such sample; or
            `source` is something else.
    """
    if isinstance(source, np.ndarray):
        picture, note = _from_array(source)
        return upright_rgb(picture, "array", note)
    if isinstance(source, Image.Image):
        label = printable(getattr(source, "filename", "") or "image")
        try:
            return upright_rgb(source, label)
        except OSError as error:  # opened elsewhere, and decoded only here
            raise ImageError(f"{label}: {one_line(error)}") from None
    if isinstance(source, bytes):
        return decode(source, "image")
    if not isinstance(source, str | os.PathLike):
        raise ImageError(_unknown_kind(source))
    name = os.fsdecode(source)
    if name.startswith(SAMPLE_PREFIX):
        return _sample(name)
    return _open_file(name)


def _unknown_kind(source: Any) -> str:
    shape = getattr(source, "shape", None)
    got = type(source).__name__ if shape is None else f"{type(source).__name__} of shape {tuple(shape)}"
    hint = (
        "; a tensor (3, h, w) becomes an array by tensor.permute(1, 2, 0).numpy()" if hasattr(source, "permute") else ""
    )
    return f"image: got {got}, expected a file's name, a PIL image, an array (h, w, 3) or the bytes of a file{hint}"


def read_file(name: str | os.PathLike) -> bytes:
    """The bytes of an image file, for `open_image`. Raises ImageError if it is missing, empty, too large or no file."""
    label = printable(name)
    with one_line_errors(label):
        _check_file(os.fsdecode(name), label)
        return Path(name).read_bytes()


def framed(picture: Image.Image, frame: Frame) -> Image.Image:
    """The picture in the shape in which a network looks at it: the whole of it, unless the frame crops."""
    rows, columns = frame.scaled(*picture.size)
    how = Image.Resampling.BICUBIC if frame.bicubic else Image.Resampling.BILINEAR
    seen = picture.resize((columns, rows), how)
    return seen.crop(frame.window(*picture.size)) if frame.crops else seen


def expand(patterns: Iterable[str | os.PathLike]) -> list[str]:
    """Names of single images from files, folders (searched recursively, sorted), globs (`**` too) and samples.

    A plain name is passed on even if no such file exists, so that one missing file fails alone. A name that occurs
    twice is kept once.

    Raises:
        ImageError: a glob matches nothing, or a folder holds no images.
    """
    names: dict[str, None] = {}
    for pattern in map(os.fsdecode, patterns):
        if pattern.startswith(SAMPLE_PREFIX) or os.path.isfile(pattern):
            images = [pattern]
        elif os.path.isdir(pattern):
            images = _images_below(pattern)
            if not images:
                raise ImageError(f"{printable(pattern)}: no images in this folder (known: {' '.join(SUFFIXES)})")
        elif glob.has_magic(pattern):
            matches = sorted(glob.glob(pattern, recursive=True))
            images = [name for m in matches for name in (_images_below(m) if os.path.isdir(m) else [m])]
            if not images:
                raise ImageError(f"{printable(pattern)}: this pattern matches nothing")
        else:
            images = [pattern]
        names.update(dict.fromkeys(images))
    return list(names)


def _images_below(folder: str) -> list[str]:
    images = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        images += [
            os.path.join(parent, f)
            for f in sorted(files)
            if os.path.splitext(f)[1].lower() in SUFFIXES and not f.startswith(".")
        ]
    return images


def _open_file(name: str) -> Image.Image:
    label = printable(name)
    with one_line_errors(label):
        _check_file(name, label)
        return decode(name, label)


def _check_file(name: str, label: str) -> None:
    if "://" in name:
        raise ImageError(f"{label}: addresses are not fetched; download the image and name the file")
    status = os.stat(name)
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{label}: is a folder, not an image")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{label}: is not a regular file")
    if status.st_size == 0:
        raise ImageError(f"{label}: is empty (0 bytes)")
    if status.st_size > MAX_BYTES:
        raise ImageError(f"{label}: {status.st_size / 1e9:.1f} GB, more than the {MAX_BYTES / 1e9:.1f} that are read")


def _from_array(array: np.ndarray) -> tuple[Image.Image, str | None]:
    """The image, and a note if its values were stretched."""
    note = None
    got = f"array: got shape {array.shape} of {array.dtype}"
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise ImageError(f"{got}; expected (h, w), (h, w, 1), (h, w, 3) or (h, w, 4)")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array, note = tones.deep_array(array)
    elif np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ImageError(f"{got} with values from {array.min():g} to {array.max():g}; expected 0 to 1")
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"{got}; expected uint8, uint16, bool, or floats from 0 to 1")
    return Image.fromarray(np.ascontiguousarray(array)), note


def _sample(name: str) -> Image.Image:
    label = printable(name)
    body = name.removeprefix(SAMPLE_PREFIX)
    mark = next((m for m in "+|" if m in body), None)
    parts = body.split(mark) if mark else [body]
    if len(parts) > 2 or any(part not in SAMPLES for part in parts):
        raise ImageError(f"{label}: no such sample; choose from {', '.join(sample_names())}")
    photos = [_bundled(part, label) for part in parts]
    if mark is None:
        return photos[0]
    side = min(min(photo.size) for photo in photos)
    first, second = (ImageOps.fit(photo, (side, side), Image.Resampling.LANCZOS) for photo in photos)
    if mark == "+":
        return Image.blend(first, second, 0.5)
    both = Image.new("RGB", (2 * side, side))
    both.paste(first, (0, 0))
    both.paste(second, (side, 0))
    return both


def _bundled(sample: str, label: str) -> Image.Image:
    path = SAMPLES_FOLDER / SAMPLES[sample]
    if not path.is_file():
        raise ImageError(f"{label}: this installation lacks {path}; install the package again")
    return _open_file(str(path))
