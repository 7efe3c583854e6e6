"""Trials with a known answer: composite scenes, each with one goal that is in it and one goal that is not.

Calibration makes them from held-out training images, the laboratory from validation images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lrm_base.checks import seed as check_seed
from lrm_base.checks import whole_number
from lrm_core.scenes import Scenes, compose, num_objects, random_squares


@dataclass(frozen=True)
class Trials:
    """Scenes of one kind, each with a present and an absent goal.

    Attributes:
        present: (b,), the class of one of the objects. In an inset and a cutmix it is the pasted object.
        absent: (b,), a class that none of the objects has.
    """

    scenes: Scenes
    present: Tensor
    absent: Tensor


def make_trials(
    kind: str, pixels: Float[Tensor, "n 3 s s"], labels: Int[Tensor, " n"], num_classes: int, count: int, seed: int
) -> Trials:
    """Draw and build `count` trials, pixels in 0–1. The same seed gives the same trials. Raises as `draw`."""
    return build(draw(kind, labels, num_classes, count, seed), pixels, labels)


@dataclass(frozen=True)
class Triplets:
    """The choices that make trials of one kind from a labelled data set, before any pixel is read.

    Attributes:
        images: (b, k) rows of the data set.
        squares: (b, 4) or None; see `lrm_core.scenes.random_squares`.
        present, absent: as in `Trials`.
    """

    kind: str
    images: Tensor
    squares: Tensor | None
    present: Tensor
    absent: Tensor

    def __getitem__(self, rows: slice) -> Triplets:
        squares = None if self.squares is None else self.squares[rows]
        return Triplets(self.kind, self.images[rows], squares, self.present[rows], self.absent[rows])


def draw(kind: str, labels: Int[Tensor, " n"], num_classes: int, count: int, seed: int) -> Triplets:
    """Draw `count` triplets of one kind. The same seed gives the same triplets.

    Args:
        labels: (n,) class of each image of the data set.
        num_classes: absent goals come from this many classes.

    Raises:
        ValueError: the kind is unknown; `num_classes`, `count` or `seed` is out of range; the images have too few
            classes for a scene; or no class is left to be absent.
    """
    number = num_objects(kind)
    num_classes, count = whole_number("num_classes", num_classes, 1), whole_number("count", count, 1)
    seed = check_seed(seed)
    shown = len(labels.unique())
    if shown < number or num_classes <= number:
        raise ValueError(
            f"labels: got images of {shown} of {num_classes} classes, "
            f"expected images of at least {number} of more than {number} classes for {kind}"
        )
    generator = torch.Generator().manual_seed(seed)
    picks = _distinct(labels, number, count, generator)
    squares = random_squares(kind, count, generator)
    goal = torch.randint(0, number, (count,), generator=generator)  # which object is the present goal
    if squares is not None:  # the pasted object
        goal = torch.ones_like(goal)
    inside = labels[picks]
    scores = torch.rand(count, num_classes, generator=generator).scatter(1, inside, -1.0)
    return Triplets(kind, picks, squares, inside[torch.arange(count), goal], scores.argmax(1))


def build(triplets: Triplets, pixels: Float[Tensor, "n 3 s s"], labels: Int[Tensor, " n"]) -> Trials:
    """Make the scenes of triplets from the pixels (0–1) and labels of their data set."""
    scenes = compose(triplets.kind, pixels[triplets.images], labels[triplets.images], triplets.squares)
    return Trials(scenes, triplets.present, triplets.absent)


NEAREST = 20  # a near miss is one of so many absent classes that an output gives the highest logits


def near_misses(
    output: Float[Tensor, "b m"],
    labels: Int[Tensor, "b k"],
    generator: torch.Generator,
    weights: Float[Tensor, " m"] | None = None,
) -> Int[Tensor, " b"]:
    """A class for each scene that is not there but is easily taken for what is there, drawn from the likeliest.

    Args:
        output: logits of an unsteered pass.
        labels: the classes that are there; -1 stands for none.
        weights: how often each class is drawn when it is among the likeliest. By default the likeliest is drawn twice
            as often as the next, three times as often as the third, and so on.
    """
    count, classes = output.shape
    inside = torch.zeros(count, classes + 1, device=output.device)
    inside = inside.scatter_(1, labels.to(output.device) % (classes + 1), 1.0)[:, :-1]
    number = max(1, min(NEAREST, classes - labels.shape[1]))
    likeliest = output.masked_fill(inside > 0, -torch.inf).topk(number, 1).indices
    if weights is None:
        chances = (1 / torch.arange(1, number + 1)).repeat(count, 1)
    else:
        chances = weights.to(output.device)[likeliest].cpu()
    drawn = torch.multinomial(chances, 1, generator=generator)
    return likeliest.gather(1, drawn.to(likeliest))[:, 0]


def _distinct(labels: Tensor, number: int, count: int, generator: torch.Generator) -> Int[Tensor, "c k"]:
    """`count` draws of `number` images of different classes, as rows of the data set."""
    parts: list[Tensor] = []
    while sum(len(part) for part in parts) < count:
        picks = torch.randint(0, len(labels), (2 * count, number), generator=generator)
        classes = labels[picks].sort(1).values
        parts.append(picks[(classes.diff(dim=1) != 0).all(1)])
    return torch.cat(parts)[:count]


def top1(outputs: Float[Tensor, "b m"], classes: Int[Tensor, " b"]) -> Bool[Tensor, " b"]:
    """Whether the class has the highest output."""
    return outputs.argmax(1) == classes.to(outputs.device)
