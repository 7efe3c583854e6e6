"""Composite scenes of several labelled images, made on the fly, and where in them each object lies.

Kinds: `single`; `blend`, two images at half opacity (the publication's challenge); `side`, two images side by side;
`cutmix`, a square of one image in its place on another (Yun et al., ICCV 2019); `inset`, a small image pasted at a
random place on another; `grid`, four images in quarters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

NUM_OBJECTS = {"single": 1, "blend": 2, "side": 2, "cutmix": 2, "inset": 2, "grid": 4}
KINDS = tuple(NUM_OBJECTS)
SQUARES = {"cutmix": (0.5, 0.8), "inset": (0.375, 0.625)}  # shortest and longest side, of the canvas


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes of one kind.

    Attributes:
        pixels: (b, 3, s, s) in 0–1.
        labels: (b, k) classes of the objects; for an inset and a cutmix the background first.
        boxes: (b, k, 4) left, top, right, bottom of each object in 0–1 of the canvas.
    """

    kind: str
    pixels: Tensor
    labels: Tensor
    boxes: Tensor


def compose(
    kind: str,
    images: Float[Tensor, "b k 3 s s"],
    labels: Int[Tensor, "b k"],
    squares: Float[Tensor, "b 4"] | None = None,
    *,
    squash: bool = False,
) -> Scenes:
    """Make scenes of one kind from `NUM_OBJECTS[kind]` images each, pixels in 0–1.

    Side by side shows the central half of each image, or with `squash` the whole image at half its width. squares:
    where the second image of an inset or a cutmix goes, as `random_squares` gives them; rounded to pixels.

    Raises:
        ValueError: unknown kind, a number of images that the kind does not take, or no squares where it needs them.
    """
    if kind not in NUM_OBJECTS:
        raise ValueError(f"no kind of scene {kind!r}; choices: {', '.join(KINDS)}")
    if images.shape[1] != NUM_OBJECTS[kind]:
        raise ValueError(f"{kind}: expected {NUM_OBJECTS[kind]} images a scene, got {images.shape[1]}")
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
        small = F.interpolate(images.flatten(0, 1), (size // 2, size // 2), mode="area")
        small = small.unflatten(0, images.shape[:2])
        pixels = torch.cat([torch.cat([small[:, 0], small[:, 1]], 3), torch.cat([small[:, 2], small[:, 3]], 3)], 2)
        for index, (left, top) in enumerate(((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5))):
            boxes[:, index] = torch.tensor([left, top, left + 0.5, top + 0.5])
    else:
        if squares is None:
            raise ValueError(f"{kind}: expected squares (b, 4) for the second image, got none")
        pixels, boxes[:, 1] = _paste(images, squares, shrink=kind == "inset")
    return Scenes(kind, pixels, labels, boxes.to(pixels.device))


def random_squares(kind: str, count: int, generator: torch.Generator) -> Float[Tensor, "b 4"] | None:
    """Left, top, right, bottom in 0–1 of the second image of an inset or a cutmix; None for other kinds."""
    if kind not in SQUARES:
        return None
    low, high = SQUARES[kind]
    side = low + (high - low) * torch.rand(count, 1, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * (1 - side)
    return torch.cat([corner, corner + side], 1)


def _paste(images: Tensor, squares: Tensor, *, shrink: bool) -> tuple[Tensor, Tensor]:
    """Paste the second image of each pair, or the part of it that lies there, on the first; and its boxes."""
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
    """`count` scenes of images drawn from a batch, at random; side by side squashed or cropped by a coin toss."""
    picks = torch.randint(0, len(pixels), (count, NUM_OBJECTS[kind]), generator=generator)
    squash = bool(torch.rand((), generator=generator) < 0.5)
    squares = random_squares(kind, count, generator)
    return compose(kind, pixels[picks], labels[picks], squares, squash=squash)


def presence(labels: Int[Tensor, "b k"], num_classes: int) -> Float[Tensor, "b m"]:
    """1 where a class is in the scene, else 0."""
    return torch.zeros(len(labels), num_classes, device=labels.device).scatter_(1, labels, 1.0)
