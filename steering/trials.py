"""Trials with a known answer: composite scenes, a goal that is in each and a goal that is not.

Calibration runs them on held-out training images, evaluation on validation images; both through this one file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from lrm_core.feedback import Strength
from lrm_core.scenes import NUM_OBJECTS, Scenes, compose, random_squares
from steering.steerer import Glance, Steerer


@dataclass(frozen=True)
class Trials:
    """Scenes of one kind with a present and an absent goal each, as classes.

    present: (b,), the class of one of the objects (of an inset and a cutmix, what was pasted). absent: (b,), a class of
    none of them.
    """

    scenes: Scenes
    present: Tensor
    absent: Tensor


@dataclass(frozen=True)
class Unsteered:
    """The first pass over trials, what it says by places, and the output of the last pass without a goal."""

    glances: tuple[Glance, ...]
    first: Tensor
    places: Tensor
    last: Tensor


def make_trials(
    kind: str, pixels: Float[Tensor, "n 3 s s"], labels: Int[Tensor, " n"], num_classes: int, count: int, seed: int
) -> Trials:
    """`count` scenes of images of different classes, pixels in 0–1; the same for the same seed. Raises like `draw`."""
    return build(draw(kind, labels, num_classes, count, seed), pixels, labels)


@dataclass(frozen=True)
class Triplets:
    """What makes trials of one kind out of a labelled data set, before any pixel is touched.

    images: (b, k) rows of the data set. squares: (b, 4) or None, see `lrm_core.scenes.random_squares`. present, absent:
    as in `Trials`.
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
    """`count` triplets of one kind, the same for the same seed.

    Raises:
        ValueError: too few classes among the images for such a scene, or none is left to be absent.
    """
    number = NUM_OBJECTS[kind]
    shown = len(labels.unique())
    if shown < number or num_classes <= number:
        raise ValueError(
            f"{kind}: expected images of at least {number} of more than {number} classes, got {shown} of {num_classes}"
        )
    generator = torch.Generator().manual_seed(seed)
    picks = _distinct(labels, number, count, generator)
    squares = random_squares(kind, count, generator)
    place = torch.randint(0, number, (count,), generator=generator)
    if squares is not None:  # what was pasted has a place of its own
        place = torch.ones_like(place)
    inside = labels[picks]
    scores = torch.rand(count, num_classes, generator=generator).scatter(1, inside, -1.0)
    return Triplets(kind, picks, squares, inside[torch.arange(count), place], scores.argmax(1))


def build(triplets: Triplets, pixels: Float[Tensor, "n 3 s s"], labels: Int[Tensor, " n"]) -> Trials:
    """The scenes of triplets, from the pixels (0–1) and labels of their data set."""
    scenes = compose(triplets.kind, pixels[triplets.images], labels[triplets.images], triplets.squares)
    return Trials(scenes, triplets.present, triplets.absent)


def _distinct(labels: Tensor, number: int, count: int, generator: torch.Generator) -> Int[Tensor, "c k"]:
    """Indices of `number` images of different classes, `count` times."""
    found: list[Tensor] = []
    while sum(len(part) for part in found) < count:
        picks = torch.randint(0, len(labels), (2 * count, number), generator=generator)
        classes = labels[picks].sort(1).values
        found.append(picks[(classes.diff(dim=1) != 0).all(1)])
    return torch.cat(found)[:count]


def class_goals(steerer: Steerer, seed: int = 0) -> Float[Tensor, "m m"]:
    """The goal of every class by its name in words: row = class."""
    from prior.captions import with_article

    return steerer.goals([with_article(name) for name in steerer.class_names], seed=seed)


def fit(pixels: Float[Tensor, "b 3 h w"], size: int) -> Float[Tensor, "b 3 size size"]:
    """Images brought to the side that a network takes; those that have it stay as they are."""
    if pixels.shape[-1] == size:
        return pixels
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


@torch.no_grad()
def run_unsteered(steerer: Steerer, pixels: Float[Tensor, "b 3 s s"], batch: int = 250) -> Unsteered:
    """All passes without a goal, over pixels in 0–1."""
    size = steerer.preprocessing.size
    glances, last = [], []
    for part in pixels.split(batch):
        glance = steerer.glance(steerer.preprocessing.normalise(fit(part, size).to(steerer.device)))
        output, state = glance.output, glance.state
        for _ in range(steerer.defaults.passes - 1):
            output, state = steerer.model.step(glance.stem, state)
        glances.append(glance)
        last.append(output)
    first, places = (torch.cat(each) for each in zip(*((g.output, g.places) for g in glances), strict=True))
    return Unsteered(tuple(glances), first, places, torch.cat(last))


@torch.no_grad()
def run_steered(
    steerer: Steerer,
    unsteered: Unsteered,
    goals: Float[Tensor, "b m"],
    strength: Strength | None = None,
    passes: int | None = None,
) -> Float[Tensor, "b m"]:
    """Outputs of the last steered pass, one goal for each scene."""
    parts = goals.split([len(glance.output) for glance in unsteered.glances])
    outputs = [
        steerer.steer(glance, part, strength=strength, passes=passes)
        for glance, part in zip(unsteered.glances, parts, strict=True)
    ]
    return torch.cat(outputs)


def top1(outputs: Float[Tensor, "b m"], classes: Int[Tensor, " b"]) -> Bool[Tensor, " b"]:
    """Where a class is the output's best."""
    return outputs.argmax(1) == classes.to(outputs.device)


@dataclass(frozen=True)
class Hits:
    """Whether the goal is top-1: (scenes, settings) for goals that are present and that are absent."""

    settings: tuple[float, ...]
    present: Tensor
    absent: Tensor

    def rates(self, weights: Float[Tensor, "r b"] | None = None) -> tuple[Tensor, Tensor]:
        """Rates at every setting, (r, settings), for resampling weights that sum to 1 a row; all scenes if None."""
        if weights is None:
            weights = torch.full((1, len(self.present)), 1 / len(self.present))
        return weights @ self.present, weights @ self.absent


def steering_hits(
    steerer: Steerer, trials: Trials, unsteered: Unsteered, goals: Float[Tensor, "m m"], strengths: Sequence[float]
) -> Hits:
    """Top-1 of the goal at each strength."""
    found: dict[str, list[Tensor]] = {"present": [], "absent": []}
    for strength in tqdm(strengths, desc=f"{trials.scenes.kind}: strengths", leave=False, disable=None):
        for name, classes in (("present", trials.present), ("absent", trials.absent)):
            outputs = run_steered(steerer, unsteered, goals[classes], strength)
            found[name].append(top1(outputs, classes).float().cpu())
    return Hits(tuple(strengths), torch.stack(found["present"], 1), torch.stack(found["absent"], 1))


def constant_hits(
    present: Float[Tensor, "b m"], absent: Float[Tensor, "b m"], trials: Trials, constants: Sequence[float]
) -> Hits:
    """A constant in nats added to the goal's logit, of outputs for present goals and of outputs for absent ones.

    With unsteered outputs (the same for both) this is the control: it knows the goal without any feedback.
    """
    found = []
    for output, classes in ((present, trials.present), (absent, trials.absent)):
        own = output.gather(1, classes[:, None].to(output.device))
        others = output.scatter(1, classes[:, None].to(output.device), -torch.inf).amax(1, keepdim=True)
        found.append((own + torch.tensor(constants, device=output.device) > others).float().cpu())
    return Hits(tuple(constants), *found)
