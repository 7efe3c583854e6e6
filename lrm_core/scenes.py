"""Scenes composed of several labelled images, and the box of each object in them.

Kinds: `single`; `blend`, two images at half opacity (the publication's challenge); `side`, two images side by side;
`cutmix`, a square of one image at the same position on another (Yun et al., ICCV 2019); `inset`, a small image pasted
at a random position on another; `grid`, four images in quarters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lrm_base.checks import whole_number

NUM_OBJECTS = {"single": 1, "blend": 2, "side": 2, "cutmix": 2, "inset": 2, "grid": 4}
KINDS = tuple(NUM_OBJECTS)
SQUARES = {"cutmix": (0.5, 0.8), "inset": (0.375, 0.625)}  # shortest and longest side, as parts of the canvas


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes of one kind.

    Attributes:
        pixels: (b, 3, s, s) in 0–1.
        labels: (b, k) classes of the objects. An inset and a cutmix have the background first.
        boxes: (b, k, 4) left, top, right, bottom of each object, in 0–1 of the canvas.
    """

    kind: str
    pixels: Tensor
    labels: Tensor
    boxes: Tensor


def num_objects(kind: str) -> int:
    """The number of images in a scene of that kind. Raises ValueError with the choices if there is no such kind."""
    if kind not in NUM_OBJECTS:
        raise ValueError(f"kind: no kind of scene {kind!r}; choices: {', '.join(KINDS)}")
    return NUM_OBJECTS[kind]


def compose(
    kind: str,
    images: Float[Tensor, "b k 3 s s"],
    labels: Int[Tensor, "b k"],
    squares: Float[Tensor, "b 4"] | None = None,
    *,
    squash: bool = False,
) -> Scenes:
    """Make scenes of one kind. Each takes `num_objects(kind)` images, pixels in 0–1.

    Args:
        squares: the squares of the second images of insets or cutmixes; see `random_squares`. They are rounded to
            pixels.
        squash: whether `side` shows the whole image at half its width. If not, it shows the central half of the image.

    Raises:
        ValueError: the kind is unknown or takes another number of images, or it needs squares and they are missing or
            lie outside the canvas.
    """
    number = num_objects(kind)
    if images.shape[1] != number:
        raise ValueError(f"images: got {images.shape[1]} images a scene, expected {number} for {kind}")
    count, size = len(images), images.shape[-1]
    boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(count, images.shape[1], 1)
    if kind == "single":
        pixels = images[:, 0]
    elif kind == "blend":
        pixels = images.mean(1)
    elif kind == "side":
        half = size // 2
        if squash:
            halves = [F.interpolate(images[:, i], (size, half), mode="area") for i in (0, 1)]
        else:
            halves = [images[:, i, :, :, (size - half) // 2 : (size - half) // 2 + half] for i in (0, 1)]
        pixels = torch.cat(halves, 3)
        boxes[:, 0, 2], boxes[:, 1, 0] = 0.5, 0.5
    elif kind == "grid":
        small = F.interpolate(rearrange(images, "b k c h w -> (b k) c h w"), (size // 2, size // 2), mode="area")
        pixels = rearrange(small, "(b rows columns) c h w -> b c (rows h) (columns w)", rows=2, columns=2)
        for index, (left, top) in enumerate(((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5))):
            boxes[:, index] = torch.tensor([left, top, left + 0.5, top + 0.5])
    else:
        if squares is None:
            raise ValueError(f"squares: got none, expected (b, 4) for the second image of {kind}")
        if squares.shape != (count, 4) or not ((squares >= 0) & (squares < 1 + 1e-4)).all():
            raise ValueError(f"squares: got shape {tuple(squares.shape)}, expected ({count}, 4) with numbers in 0–1")
        pixels, boxes[:, 1] = _paste(images, squares, shrink=kind == "inset")
    return Scenes(kind, pixels, labels, boxes.to(pixels.device))


def random_squares(kind: str, count: int, generator: torch.Generator) -> Float[Tensor, "b 4"] | None:
    """Left, top, right, bottom of the second image of an inset or a cutmix, in 0–1; None for other kinds.

    Raises:
        ValueError: the kind is unknown, or `count` is not a whole number above 0.
    """
    num_objects(kind)
    count = whole_number("count", count, 1)
    if kind not in SQUARES:
        return None
    low, high = SQUARES[kind]
    side = low + (high - low) * torch.rand(count, 1, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * (1 - side)
    return torch.cat([corner, corner + side], 1)


def _paste(images: Tensor, squares: Tensor, *, shrink: bool) -> tuple[Tensor, Tensor]:
    """Paste the second image of each pair on the first, shrunk or else cut to its square: (pixels, boxes)."""
    size = images.shape[-1]
    pixels = images[:, 0].clone()
    sides = ((squares[:, 2] - squares[:, 0]) * size).round().clamp(min=1).int()
    corners = (squares[:, :2] * size).round().int().minimum(size - sides[:, None])
    boxes = torch.cat([corners, corners + sides[:, None]], 1)
    for index, (left, top, right, bottom) in enumerate(boxes.tolist()):
        second = images[index, 1]
        if shrink:
            part = F.interpolate(second[None], (bottom - top, right - left), mode="bilinear", antialias=True)[0]
        else:
            part = second[:, top:bottom, left:right]
        pixels[index, :, top:bottom, left:right] = part
    return pixels, boxes / size


def random_scenes(
    kind: str, count: int, pixels: Float[Tensor, "n 3 s s"], labels: Int[Tensor, " n"], generator: torch.Generator
) -> Scenes:
    """`count` scenes of images drawn at random from a batch. A coin toss decides whether `side` is squashed.

    Raises:
        ValueError: the kind is unknown, or `count` is not a whole number above 0.
    """
    number, count = num_objects(kind), whole_number("count", count, 1)
    picks = torch.randint(0, len(pixels), (count, number), generator=generator)
    squash = bool(torch.rand((), generator=generator) < 0.5)
    squares = random_squares(kind, count, generator)
    return compose(kind, pixels[picks], labels[picks], squares, squash=squash)


def presence(labels: Int[Tensor, "b k"], num_classes: int) -> Float[Tensor, "b m"]:
    """1 if a class is in the scene, else 0, for each scene and class."""
    return torch.zeros(len(labels), num_classes, device=labels.device).scatter_(1, labels, 1.0)
