"""A prior that says which classes words mean: from a text embedding (N-D) to a membership of each class (M-D).

`prior.train_meaning` trains it on WordNet. "A dog" means 118 breeds at once, "a tabby" means one class, and
"happiness" means none. The classes that are meant are then mixed into a goal.

Unusual: a goal is graded by membership. The softmax of a goal says how much each class counts, and whatever the words
do not mean lies `GAP` nats below the best class, even if it looks like one that they mean.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lrm_base.building import no_random_start
from lrm_base.card import load_weights, save_weights
from prior.class_names import checked_samples

LEAST = 0.05  # a class of a lower membership does not count, unless all are lower
GAP = 6.0  # nats: how far a goal's best class stands above every class that is not meant


class MeaningPrior(nn.Module):
    """A trained membership prior.

    Args:
        text_width: N, width of the text embedding, which has unit length.
        profiles: (M, M), logits; row j is the mean output of the backbone over images of class j.
        width: inner width of the network.
        dropout: how often an inner unit is hidden in training.

    Raises:
        ValueError: the profiles are not square.
    """

    source = "meaning"
    profiles: Tensor

    def __init__(self, text_width: int, profiles: Float[Tensor, "m k"], width: int = 768, dropout: float = 0.0) -> None:
        super().__init__()
        if profiles.shape[0] != profiles.shape[1]:
            raise ValueError(f"profiles: expected as many rows as columns, got {tuple(profiles.shape)}")
        self.text_width, self.width = text_width, width
        self.network = nn.Sequential(
            nn.Linear(text_width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, len(profiles) + 1)
        )
        self.register_buffer("profiles", profiles)

    @property
    def dim(self) -> int:
        """M, width of the goals that it gives."""
        return len(self.profiles)

    def forward(self, text_embed: Float[Tensor, "b n"]) -> Float[Tensor, "b m_and_1"]:
        """Logits of the membership of each class, and in the last column of whether the words are of the vocabulary.

        Raises:
            ValueError: the embeddings have another width than in training.
        """
        if text_embed.shape[-1] != self.text_width:
            raise ValueError(
                f"text embedding: expected width {self.text_width}, got {text_embed.shape[-1]}; "
                "was the prior trained with another text encoder?"
            )
        # Entries of unit-length embeddings are about 1/sqrt(N). This brings them to about 1.
        return self.network(F.normalize(text_embed.to(self.profiles), dim=-1) * math.sqrt(self.text_width))

    @torch.no_grad()
    def members(self, text_embed: Float[Tensor, "b n"]) -> Float[Tensor, "b m"]:
        """How likely each class is a kind of what the words name. Raises ValueError as `forward`."""
        return self(text_embed)[:, :-1].sigmoid()

    @torch.no_grad()
    def known(self, text_embed: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
        """How likely the words name anything that the classes can show, 0–1. Raises ValueError as `forward`.

        It is the product of the network's own answer and the largest membership. The first generalises better to words
        that were not trained on, and the second tells trained words better from all others. It ranks; it is not
        calibrated.
        """
        probabilities = self(text_embed).sigmoid()
        return probabilities[:, -1] * probabilities[:, :-1].amax(1)

    @torch.no_grad()
    def sample(
        self,
        text_embed: Float[Tensor, "b n"],
        *,
        num_samples: int = 1,
        steps: int = 1,
        guidance: float = 1.0,
        seed: int = 0,
    ) -> Float[Tensor, "b s m"]:
        """Goals in logits, in the shape that `Prior.sample` returns. Nothing is random: a text's samples are all alike.

        `steps`, `guidance` and `seed` are checked as in `Prior.sample`, but change nothing.

        Raises:
            ValueError: the embeddings have another width than in training, or a number is out of range.
        """
        num_samples = checked_samples(num_samples, steps, guidance, seed)
        return goals_of(self.members(text_embed), self.profiles)[:, None].repeat(1, num_samples, 1)

    def goals(self, text_embed: Float[Tensor, "b n"], **options: Any) -> Float[Tensor, "b m"]:
        """One goal for each text, in logits of the backbone. Options as in `sample`."""
        return self.sample(text_embed, **options)[:, 0]

    def save(self, path: str | Path, card: dict[str, Any]) -> None:
        """Write the weights and the card, floating-point numbers in half precision. The widths go into the card."""
        shape = {"text_width": self.text_width, "dim": len(self.profiles), "width": self.width}
        save_weights(path, self.state_dict(), {**card, "kind": self.source, "network": shape}, half=True)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> tuple[MeaningPrior, dict[str, Any]]:
        """A prior in evaluation mode, and its card.

        Raises:
            ValueError: a file is missing, was altered, or does not hold a membership prior.
        """
        tensors, card = load_weights(path)
        try:
            if card["kind"] != cls.source:
                raise ValueError(f"{path} holds a prior of kind {card['kind']!r}, expected {cls.source!r}")
            given = card["network"]
            with no_random_start():
                prior = cls(given["text_width"], torch.zeros(given["dim"], given["dim"]), given["width"])
            prior.load_state_dict(tensors, assign=True)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{path} does not hold a membership prior as its card says: {error}") from None
        return prior.eval().requires_grad_(False).to(device), card


def goals_of(members: Float[Tensor, "b m"], profiles: Float[Tensor, "m m"]) -> Float[Tensor, "b m"]:
    """Goals in logits from memberships, 0–1.

    The profiles of the classes that are meant are mixed, and the best class gives the height of the goal. A class of at
    least half of the largest membership stands as many nats below that height as its membership's logarithm. All others
    are lowered together until the best of them stands `GAP` below it: which of them look like what is meant stays
    visible, but a thousand of them together hardly count.
    """
    members = members.clamp(min=1e-6)
    largest = members.amax(1, keepdim=True)
    counted = members * ((members > LEAST) | (members == largest))
    base = (counted / counted.sum(1, keepdim=True)) @ profiles
    top = base.amax(1, keepdim=True)
    graded = top + (members / largest).log()
    meant = members >= largest / 2
    others = base.masked_fill(meant, -torch.inf).amax(1, keepdim=True)
    lowered = base - (others - (top - GAP)).clamp(min=0)
    return torch.where(meant, graded, lowered)
