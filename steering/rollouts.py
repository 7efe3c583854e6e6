"""Many scenes through a network, in batches: what calibration and the laboratory share.

Unusual: scenes are given as pixels in 0–1 and brought to the network's size here, so that one set of scenes serves
networks of every size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lrm_core.feedback import Strength
from steering.evidence import Seen
from steering.network import Glance, Network

if TYPE_CHECKING:
    from steering.steerer import Steerer

BATCH = 250  # images of 96 × 96 pixels; larger ones come in smaller batches


@dataclass(frozen=True)
class Unsteered:
    """All passes over scenes without a goal.

    Attributes:
        glances: the first pass, a glance for each batch.
        first: (b, M), logits of the first pass.
        places: (b, M), class evidence by places of the first pass; see `lrm_core.places`.
        last: (b, M), what `Network.unsteered` gives of the last pass.
    """

    glances: tuple[Glance, ...]
    first: Tensor
    places: Tensor
    last: Tensor

    @cached_property
    def seen(self) -> Seen:
        """What the first pass says."""
        return Seen.cat(self.glances)


def fit(pixels: Float[Tensor, "b 3 h w"], size: int) -> Float[Tensor, "b 3 _ _"]:
    """Squares brought to the side that a network takes. Squares that have it, and other shapes, stay as they are."""
    if pixels.shape[-1] == size or pixels.shape[-1] != pixels.shape[-2]:
        return pixels
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


def inputs_of(network: Network, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 _ _"]:
    """Pixels in 0–1 as the network takes them: on its device, of its size, normalised."""
    return network.preprocessing.normalise(fit(pixels, network.preprocessing.size).to(network.device))


def batch_of(network: Network, pixels: Float[Tensor, "b 3 h w"]) -> int:
    """How many of these images a network takes at a time."""
    height, width = fit(pixels[:1], network.preprocessing.size).shape[-2:]
    return max(1, BATCH * 96 * 96 // (height * width))


@torch.no_grad()
def run_unsteered(network: Network, pixels: Float[Tensor, "b 3 h w"], batch: int | None = None) -> Unsteered:
    """All passes without a goal over pixels in 0–1. Batches have `batch` images, or a number that fits their size."""
    glances, last = [], []
    for part in pixels.split(batch or batch_of(network, pixels)):
        glance = network.glance(inputs_of(network, part))
        glances.append(glance)
        last.append(network.unsteered(glance)[-1])
    first, places = (torch.cat(each) for each in zip(*((g.output, g.places) for g in glances), strict=True))
    return Unsteered(tuple(glances), first, places, torch.cat(last))


@torch.no_grad()
def run_steered(
    network: Network,
    unsteered: Unsteered,
    goals: Float[Tensor, "b m"],
    strength: Strength | None = None,
    passes: int | None = None,
) -> Seen:
    """What the last steered pass says, with one goal for each scene."""
    parts = goals.split([len(glance.output) for glance in unsteered.glances])
    seen = [
        network.steer(glance, part, strength=strength, passes=passes)
        for glance, part in zip(unsteered.glances, parts, strict=True)
    ]
    return Seen.cat(seen)


def class_goals(steerer: Steerer, seed: int = 0) -> Float[Tensor, "c m"]:
    """The goal of every class by its name in words: row = class."""
    from prior.captions import with_article

    goals = steerer.goals([with_article(name) for name in steerer.class_names], seed=seed)
    return torch.stack([goal.vector for goal in goals])
