"""Pictures for the training of a CLIP's feedback, and scenes of held-out ones that tell what it learned."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from lrm_core.scenes import KINDS, NUM_OBJECTS
from lrm_core.trials import build, draw, near_misses
from prior.clip_text import ClipText
from steering.errors import ImageError, printable
from steering.images import framed
from steering.joint import JointNetwork
from steering.labelled import Labelled
from steering.rollouts import batch_of, inputs_of

MOST_OBJECTS = max(NUM_OBJECTS.values())
LEAST_IMAGES = 20


def read_pictures(
    network: JointNetwork, text: ClipText, labelled: Labelled, images: int, seed: int
) -> tuple[UInt8[Tensor, "n 3 s s"], Labelled]:
    """At most `images` pictures, drawn at random, as the network sees them, and what they show.

    Captions that the text encoder would cut are left out with their pictures, and so are pictures that cannot be read.

    Raises:
        ValueError: fewer than 20 pictures can be read, or they show too few different things for scenes.
    """
    usable = [text.num_tokens(each) <= text.context_length for each in labelled.texts]
    order = torch.randperm(len(labelled.labels), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [row for row in order if usable[labelled.labels[row]]][:images]
    pixels, read = [], []
    for row in tqdm(rows, desc="reading", unit="image", disable=None):
        try:
            picture = np.asarray(framed(labelled.open(row), network.preprocessing.frame))
        except ImageError:
            continue
        pixels.append(rearrange(torch.from_numpy(picture.copy()), "h w c -> c h w"))
        read.append(row)
    found = labelled.only(read)
    if len(read) < LEAST_IMAGES or len(found.texts) <= MOST_OBJECTS:
        raise ValueError(
            f"source: got {len(read)} pictures of {len(found.texts)} different things in {printable(labelled.source)}, "
            f"expected at least {LEAST_IMAGES} of more than {MOST_OBJECTS}"
        )
    return torch.stack(pixels), found


def hold_out(labels: Int[Tensor, " n"], share: float, seed: int) -> Bool[Tensor, " n"]:
    """Which pictures are held out: that share of them, at random, and of more than so many things as a scene shows.

    Raises:
        ValueError: the share leaves too few things on either side.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed + 1))
    is_held = torch.zeros(len(labels), dtype=torch.bool)
    is_held[order[: round(share * len(labels))]] = True
    things = min(len(labels[is_held].unique()), len(labels[~is_held].unique()))
    if things < MOST_OBJECTS:
        raise ValueError(
            f"test_share: got {share} of {len(labels)} pictures, of {things} different things on one side; expected a "
            f"share that leaves {MOST_OBJECTS} on both"
        )
    return is_held


class Held:
    """Scenes of held-out pictures, each with a goal that is there and one that is not.

    Args:
        texts: (t, M), of unit length: what pictures show.
        pixels, labels: of the pictures; labels are rows of `texts`.
        trials: number of scenes of each kind.
        near: share of the absent goals that are near misses.

    Attributes:
        answers: for the supports: 1 where the goal is there, else 0.
    """

    def __init__(
        self,
        network: JointNetwork,
        texts: Float[Tensor, "t m"],
        pixels: UInt8[Tensor, "n 3 s s"],
        labels: Int[Tensor, " n"],
        trials: int,
        near: float,
        seed: int,
    ) -> None:
        self.network = network
        generator = torch.Generator().manual_seed(seed)
        alike = dataclasses.replace(network.bank, embeddings=texts).alike(texts)
        self.scenes: list[tuple[Tensor, Tensor, Tensor]] = []
        answers = []
        size = batch_of(network, pixels[:1].float())
        for number, kind in enumerate(kind for kind in KINDS if NUM_OBJECTS[kind] > 1):
            triplets = draw(kind, labels, len(texts), trials, seed + number)
            for start in range(0, trials, size):
                part = triplets[start : start + size]
                rows, within = part.images.unique(return_inverse=True)
                made = build(dataclasses.replace(part, images=within), pixels[rows].float() / 255, labels[rows])
                shown = made.scenes.labels.to(texts.device)
                likeness = self._likeness(made.scenes.pixels, texts)
                same = alike[shown].any(1)
                nearest = near_misses(likeness.masked_fill(same, -torch.inf), shown, generator)
                is_near = (torch.rand(len(shown), generator=generator) < near).to(nearest.device)
                absent = torch.where(is_near, nearest, made.absent.to(nearest))
                kept = (~same.gather(1, absent[:, None])[:, 0]).cpu()
                scenes = (made.scenes.pixels[kept] * 255).round().byte()
                self.scenes.append((scenes, texts[made.present[kept]], texts[absent.cpu()[kept]]))
                answers += [torch.ones(len(scenes)), torch.zeros(len(scenes))]
        self.answers = torch.cat(answers)

    @torch.no_grad()
    def _likeness(self, pixels: Tensor, texts: Tensor) -> Tensor:
        return F.normalize(self.network.model.backbone(inputs_of(self.network, pixels)), dim=-1) @ texts.T

    @torch.no_grad()
    def supports(self, strength: float) -> Float[Tensor, " n"]:
        """The support of each goal, in nats, after a look of that strength; of the first pass where it is 0."""
        found = []
        for pixels, present, absent in self.scenes:
            if not len(pixels):
                continue
            glance = self.network.glance(inputs_of(self.network, pixels.float() / 255))
            for goals in (present, absent):
                seen = glance if strength == 0 else self.network.steer(glance, goals, strength=strength, passes=2)
                found.append(self.network.support(seen, goals).cpu())
        return torch.cat(found)


def auroc(supports: Float[Tensor, " n"], answers: Float[Tensor, " n"]) -> float:
    """How often a goal that is there has the higher support than one that is not; ties count half."""
    present, absent = supports[answers > 0, None], supports[answers == 0]
    return float(((present > absent).float() + 0.5 * (present == absent).float()).mean())
