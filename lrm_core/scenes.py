"""Composite scenes of several labelled images, made on the fly, and where in them each object lies.

Kinds: `single`; `blend`, two images at half opacity (the publication's challenge); `side`, two images side by side;
`inset`, a small image pasted at a random place on another; `grid`, four images in quarters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

NUM_OBJECTS = {"single": 1, "blend": 2, "side": 2, "inset": 2, "grid": 4}
KINDS = tuple(NUM_OBJECTS)
INSET_SIDES = (0.375, 0.625)  # of the canvas


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes of one kind.

    Attributes:
        pixels: (b, 3, s, s) in 0–1.
        labels: (b, k) classes of the objects; for an inset the background first.
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
    generator: torch.Generator,
    *,
    squash: bool = False,
) -> Scenes:
    """Make scenes of one kind from `NUM_OBJECTS[kind]` images each, pixels in 0–1.

    Side by side shows the central half of each image, or with `squash` the whole image at half its width.

    Raises:
        ValueError: unknown kind, or a number of images that the kind does not take.
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
        pixels, boxes[:, 1] = _insets(images, generator)
    return Scenes(kind, pixels, labels, boxes.to(pixels.device))


def _insets(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Paste the second image of each pair, shrunk, at a random place on the first; and the boxes of the second."""
    count, size = len(images), images.shape[-1]
    low, high = (round(side * size) for side in INSET_SIDES)
    sides = torch.randint(low, high + 1, (count,), generator=generator).tolist()
    places = torch.rand(count, 2, generator=generator).tolist()
    pixels, boxes = images[:, 0].clone(), torch.empty(count, 4)
    for index, (side, (x, y)) in enumerate(zip(sides, places, strict=True)):
        left, top = int(x * (size - side + 1)), int(y * (size - side + 1))
        small = F.interpolate(images[index : index + 1, 1], (side, side), mode="bilinear", antialias=True)
        pixels[index, :, top : top + side, left : left + side] = small[0]
        boxes[index] = torch.tensor([left, top, left + side, top + side]) / size
    return pixels, boxes


def random_scenes(
    kind: str, count: int, pixels: Float[Tensor, "n 3 s s"], labels: Int[Tensor, " n"], generator: torch.Generator
) -> Scenes:
    """`count` scenes of images drawn from a batch, at random; side by side squashed or cropped by a coin toss."""
    picks = torch.randint(0, len(pixels), (count, NUM_OBJECTS[kind]), generator=generator)
    squash = bool(torch.rand((), generator=generator) < 0.5)
    return compose(kind, pixels[picks], labels[picks], generator, squash=squash)


def presence(labels: Int[Tensor, "b k"], num_classes: int) -> Float[Tensor, "b m"]:
    """1 where a class is in the scene, else 0."""
    return torch.zeros(len(labels), num_classes, device=labels.device).scatter_(1, labels, 1.0)
