"""Captioned images as a CLIP reads them: embeddings of texts and of images, from which a prior learns the way between.

`python -m steering.pairs` writes them. A prior leads from the text's embedding to the image's, as in DALL·E 2 (Ramesh
et al. 2022).

Unusual: some texts are held out with all their images, since goals are made of words that training did not see. Of the
other texts some images are held out. What is measured is compared with the text embedding itself, with a ridge
regression, and with the mean image, which is near to every image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lrm_base.card import load_weights
from prior.data import Grouped
from prior.model import Prior

KIND = "pairs"  # of a file, in its card
NEW_TEXTS, KNOWN_TEXTS = "new texts", "known texts"
RIDGE = 1.0  # texts have unit length: as many pairs as this in every direction, with the mean image


@dataclass(frozen=True)
class Captioned:
    """Embeddings of texts and images, of unit length, and which belong together.

    Attributes:
        texts: (t, N).
        says: (t,), the number of what each text says. Several texts may say the same.
        images: (n, M).
        shows: (n,), the number of what each image shows.
    """

    texts: Tensor
    says: Tensor
    images: Tensor
    shows: Tensor

    @classmethod
    def load(cls, path: str | Path) -> tuple[Captioned, dict[str, Any]]:
        """The pairs that a file holds, and its card.

        Raises:
            ValueError: the file is missing or was altered, or it is not one of `steering.pairs`.
        """
        if Path(path).is_dir():
            raise ValueError(
                f"pairs: got the folder {path}, expected the file ….safetensors that `python -m steering.pairs {path} "
                "--model clip:… --output FILE` writes"
            )
        tensors, card = load_weights(path)
        if card.get("kind") != KIND:
            raise ValueError(f"pairs: {path} holds no pairs, expected a file of `python -m steering.pairs`")
        return cls(tensors["texts"], tensors["says"], tensors["images"], tensors["shows"]), card

    def of_images(self, rows: Tensor) -> Captioned:
        """Some of the images."""
        return replace(self, images=self.images[rows], shows=self.shows[rows])

    def held_out(self, share: float, seed: int) -> tuple[Captioned, dict[str, Captioned]]:
        """What is trained on, and what is held out of it, by name. A group without images is left out.

        Args:
            share: of the texts, with all their images; and of the images of the other texts, of which one at least is
                left.
        """
        generator = torch.Generator().manual_seed(seed)
        things = self.shows.unique()
        mixed = things[torch.randperm(len(things), generator=generator)]
        is_new = torch.isin(self.shows, mixed[: round(share * len(things))])
        order = torch.randperm(len(self.shows), generator=generator)
        first = torch.full((int(self.says.max()) + 1,), -1).scatter(0, self.shows[order], order)  # one of each thing
        spare = torch.ones(len(self.shows), dtype=torch.bool)
        spare[first[first >= 0]] = False
        is_held = spare & ~is_new & (torch.rand(len(self.shows), generator=generator) < share)
        groups = {NEW_TEXTS: self.of_images(is_new), KNOWN_TEXTS: self.of_images(is_held)}
        return self.of_images(~is_new & ~is_held), {name: group for name, group in groups.items() if len(group.shows)}


class CaptionPairs:
    """Draws pairs at random: the embedding of a text, and that of an image which it fits.

    Raises:
        ValueError: there are fewer than two different things to train on.
    """

    def __init__(self, given: Captioned) -> None:
        self.given = given
        self.things = given.shows.unique()
        if len(self.things) < 2:
            raise ValueError(f"pairs: got images of {len(self.things)} different texts, expected at least two")
        count = int(given.says.max()) + 1
        self.texts, self.images = Grouped(given.says, count), Grouped(given.shows, count)

    def draw(
        self, count: int, generator: torch.Generator, images: int = 1
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b m"]]:
        """Draw `count` pairs. What is shown is drawn first, each thing as often as any other.

        The second of a pair is the mean of `images` images, because a goal stands for a thing and not for a photograph.
        """
        things = self.things[torch.randint(0, len(self.things), (count,), generator=generator)]
        texts = self.given.texts[self.texts.draw(things, generator)]
        rows = self.images.draw(things[:, None].expand(-1, images), generator)
        return texts, self.given.images[rows].mean(1)


def ridge(given: Captioned) -> tuple[Float[Tensor, "n m"], Float[Tensor, " n"], Float[Tensor, " m"]]:
    """The linear way from texts to images, fitted on the mean text and each image: (weights, mean text, mean image)."""
    texts = _mean_texts(given)[given.shows].double()
    images = given.images.double()
    start, end = texts.mean(0), images.mean(0)
    texts = texts - start
    gram = texts.T @ texts + RIDGE * torch.eye(texts.shape[1], dtype=texts.dtype)
    return torch.linalg.solve(gram, texts.T @ (images - end)).float(), start.float(), end.float()


@torch.no_grad()
def measured(prior: Prior, trained_on: Captioned, held_out: dict[str, Captioned]) -> dict[str, float]:
    """How near what is predicted from texts comes to images that were held out, by `GROUP/NUMBER/WAY`.

    The ways are the prior (`diffusion`), the text embedding itself (`identity`), a ridge regression (`ridge`), and the
    mean image whatever the text says (`mean`). The numbers are `cosine`, the mean cosine with the images, and
    `nearest`, the share of the images that are nearer to their own prediction than to nine in ten of all predictions.
    """
    weights, start, end = ridge(trained_on)
    found = {}
    for name, group in held_out.items():
        things, shows = group.shows.unique(return_inverse=True)
        texts = _mean_texts(group)[things]
        predicted = {
            "diffusion": prior.goals(texts.to(prior.mean)).cpu(),
            "identity": texts,
            "ridge": (texts - start) @ weights + end,
            "mean": end.expand(len(texts), -1),
        }
        for way, goals in predicted.items():
            cosines = group.images @ F.normalize(goals, dim=-1).T  # (images, things)
            own = cosines.gather(1, shows[:, None])
            found[f"{name}/cosine/{way}"] = float(own.mean())
            if way != "mean":
                ahead = (cosines > own).float().mean(1)
                found[f"{name}/nearest/{way}"] = float((ahead < 0.1).float().mean())
    return found


def _mean_texts(given: Captioned) -> Float[Tensor, "c n"]:
    """The mean of the texts that say each thing, of unit length."""
    count = int(given.says.max()) + 1
    total = torch.zeros(count, given.texts.shape[1]).index_add(0, given.says, given.texts)
    return F.normalize(total, dim=-1)


def about(given: Captioned, card: dict[str, Any]) -> dict[str, Any]:
    """What a prior's card says of the pairs that it was trained on."""
    return {
        "backbone": card["model"],
        "backbone_sha256": card["backbone_sha256"],
        "passes": 1,
        "text_encoder": card["model"],
        "data": {"source": card["source"], "texts": len(given.texts), "images": len(given.images)},
    }
