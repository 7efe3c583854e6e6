"""A small picture of a hit: from the stored pixels if they are large enough, else from its file."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from PIL import Image

from steering.errors import ImageError
from steering.images import open_image
from steering.search.files import file_of, to_key
from steering.search.hits import Hit
from steering.search.store import Store


def thumbnail(store: Store, hit: Hit, box: tuple[int, int]) -> Image.Image | None:
    """The whole picture of a hit, RGB, with its own aspect, as large as fits into a box, and never enlarged.

    The stored pixels show the image as it was searched. They are taken if they need not be enlarged, or if the file
    cannot be read.

    Args:
        store: the gallery's tables.
        hit: a hit of a search.
        box: width and height in pixels.

    Returns:
        None if the file cannot be read and no pixels are stored.
    """
    name = to_key(hit.path)
    stored, size = store.pixels([name])[0], fitted((hit.width, hit.height), box)
    if stored is None or stored.shape[1] < size[0] or stored.shape[0] < size[1]:
        file = file_of(name)
        with suppress(ImageError):
            if file is not None:
                picture = open_image(file)
                return _shrunk(picture, fitted(picture.size, box))
    return None if stored is None else _shrunk(Image.fromarray(np.ascontiguousarray(stored)), size)


def fitted(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """A size in pixels that fits into a box with the same aspect, at least one pixel a side, and never larger."""
    scale = min(box[0] / size[0], box[1] / size[1], 1.0)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def _shrunk(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
