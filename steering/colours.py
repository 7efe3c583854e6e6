"""Colours become sRGB: the ICC profile that a file carries is applied by LittleCMS, which Pillow brings along.

Unusual: a profile that is sRGB changes no pixel. Whether it is one is measured on a grid of colours, since such
profiles have many names and forms. A profile that cannot be read is ignored with a note. Grey pixels with a profile of
RGB are RGB pixels whose channels are equal, as programs leave them that turn a photograph grey.
"""

from __future__ import annotations

import functools
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of Pillow, for ICC's colour spaces
FITTING = {"RGB": ("RGB", "RGBA", "RGBX", "P", "PA", "1", "L", "LA"), "L": ("1", "L", "LA"), "CMYK": ("CMYK",)}
SAME = 2  # levels of 255 by which a profile of sRGB may differ; its curves are tables, and rounded
GRID = 17  # levels of each channel that are compared


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str | None]:
    """The image in sRGB, RGB or with opacity RGBA; and a note if the profile was ignored.

    An image whose profile is sRGB or is ignored comes back as it is, the same object.

    Args:
        image: 8 bits a channel, loaded. It is not changed.
        profile: the bytes of an ICC profile.
    """
    from PIL import ImageCms

    try:
        mode, transform = _transform(profile)
    except Exception:  # LittleCMS, and what a damaged profile makes of it
        return image, "has a colour profile that cannot be read: ignored"
    if transform is None:
        return image, None
    if image.mode not in FITTING[mode]:
        return image, "has a colour profile of another kind than its pixels: ignored"
    opacity = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opacity = image.getchannel("A")
    converted = ImageCms.applyTransform(image.convert(mode), transform)
    if converted is None:
        raise AssertionError("a transform that is not in place gives an image")
    if opacity is not None:
        converted.putalpha(opacity)
    return converted, None


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes) -> tuple[str, Any]:
    """Pillow's mode of the pixels that a profile is for, and the transform to sRGB; None if the profile is sRGB.

    Raises:
        Exception: the profile is damaged, or of a colour space that photographs do not have.
    """
    from PIL import ImageCms

    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    mode = MODES[source.profile.xcolor_space.strip()]
    target = ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(source, target, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
    if mode == "CMYK":
        return mode, transform
    levels = np.linspace(0, 255, GRID).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(GRID, -1, 3)
    colours = Image.fromarray(grid if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    made = np.asarray(ImageCms.applyTransform(colours, transform)).astype(int)
    differ = np.abs(made - np.asarray(colours.convert("RGB"))).max()
    return mode, transform if differ > SAME else None
