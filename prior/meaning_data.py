"""Training texts of a membership prior: what every noun of WordNet says of the classes.

A name, a synonym or a hypernym means its own classes, and no other, in every template. The other nouns mean nothing
that the classes can show: abstractions, people, places, acts, and things that are far from all of them.

Unusual: a thing that photographs can show may lie near the nouns of the classes; a sofa bed is a studio couch. Such a
noun means what is nearest in the text encoder's space, and the less so, the farther it lies.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from lrm_base.card import write_atomically
from prior.captions import Vocabulary, fill, normal, query_variants, templates_for, with_article
from prior.data import Encode, membership
from prior.phrases import is_pictured, read_synsets
from prior.text import TextEncoder


class Embedder:
    """A frozen text encoder whose embeddings are computed once, and kept in a folder in half precision.

    Args:
        encoder: the text encoder.
        folder: where the embeddings are kept, one file for each list of texts.
    """

    def __init__(self, encoder: TextEncoder, folder: str | Path) -> None:
        self.encoder, self.folder = encoder, Path(folder)

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "b n"]:
        """Embeddings of unit length. Raises ValueError as `TextEncoder.encode`."""
        asked = json.dumps([self.encoder.name, self.encoder.card.get("sha256"), *texts])
        file = self.folder / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.f16"
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, self._embed(texts).tobytes())
        kept = np.frombuffer(file.read_bytes(), np.float16).reshape(len(texts), self.encoder.width)
        return F.normalize(torch.from_numpy(kept.astype(np.float32)), dim=-1)

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # texts of one length need no padding
        out = np.zeros((len(texts), self.encoder.width), np.float16)
        starts = range(0, len(order), 512)
        for start in tqdm(starts, desc="embedding texts", unit="batch", disable=len(starts) < 20, mininterval=5):
            part = order[start : start + 512]
            out[part] = self.encoder.encode([texts[index] for index in part]).cpu().numpy()
        return out


@dataclass(frozen=True)
class MeaningTexts:
    """Embedded texts and what they mean.

    Attributes:
        embeddings: (t, N), of unit length, in half precision.
        meanings: (t,), the row of each text in `members` and `known`.
        members: (r, M), how much each class is a kind of what the words name, 0–1, in half precision.
        known: (r,), how much the words name anything that the classes can show, 0–1.
        weights: (t,), how often to draw each text.
    """

    embeddings: Tensor
    meanings: Int[Tensor, " t"]
    members: Tensor
    known: Float[Tensor, " r"]
    weights: Float[Tensor, " t"]

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `count` texts: embeddings (b, N) and targets (b, M + 1). The last column is `known`."""
        rows = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        meanings = self.meanings[rows]
        targets = torch.cat([self.members[meanings].float(), self.known[meanings, None]], 1)
        return self.embeddings[rows].float(), targets


def read_other_nouns(path: str | Path, vocabulary: Vocabulary, max_words: int = 3) -> dict[str, bool]:
    """Nouns of a `wnid<TAB>lemma, lemma` file that the vocabulary does not have, and whether photographs can show them.

    A noun counts as pictured if one of its senses is. Left out are phrases of more than `max_words` words and held-out
    words.

    Raises:
        ValueError: as `read_synsets`.
    """
    known = {normal(noun) for noun, _, _ in vocabulary.nouns()}
    spelling: dict[str, str] = {}
    pictured: dict[str, bool] = {}
    for wnid, lemmas in read_synsets(path):
        for lemma in lemmas:
            key = normal(lemma)
            if key not in known and len(lemma.split()) <= max_words and not vocabulary.holds_out(lemma):
                spelling.setdefault(key, lemma)
                pictured[key] = pictured.get(key, False) or is_pictured(wnid)
    return {spelling[key]: shown for key, shown in pictured.items()}


def build_meaning_texts(
    vocabulary: Vocabulary,
    others: dict[str, bool],
    encode: Encode,
    *,
    group_share: float,
    near_share: float,
    far_share: float,
    temperature: float,
    far: float,
    near: float,
    seed: int,
) -> MeaningTexts:
    """Embed all queries for the vocabulary, and the other nouns with an article and in one drawn template each.

    Args:
        others: nouns, and whether photographs can show them.
        encode: function from texts to embeddings of unit length, (b, n).
        group_share, near_share, far_share: shares of hypernyms, of nouns that are near the vocabulary, and of those
            that mean nothing, among the drawn texts; the rest name a class.
        temperature: of the softmax over cosines that gives a near noun its classes.
        far, near: cosines with the nearest noun of the vocabulary. A pictured noun means nothing at `far`, and from
            `near` on it means what is nearest. A noun that is not pictured is left out from `near` on, since it may be
            another sense of the nearest.
        seed: number that fixes the drawn templates.
    """
    nouns = vocabulary.nouns()
    count = len(vocabulary.names)
    texts: dict[str, int] = {}
    for row, (noun, _, _) in enumerate(nouns):
        for text in query_variants(noun):
            texts.setdefault(text, row)
    is_group = torch.tensor([kind == "is_a" for _, _, kind in nouns])
    anchors = encode([with_article(noun) for noun, _, _ in nouns])
    anchor_members = membership([labels for _, labels, _ in nouns], count)

    plain = encode([with_article(noun) for noun in others]) if others else anchors[:0]
    nearest = torch.cat([(part @ anchors.T).amax(1) for part in plain.split(4096)])
    pictured = torch.tensor(list(others.values()), dtype=torch.bool)
    share = ((nearest - far) / (near - far)).clamp(0, 1)
    is_near = pictured & (share > 0)
    is_far = (pictured & (share == 0)) | (~pictured & (nearest < near))
    near_rows, far_rows = (rows.nonzero().flatten() for rows in (is_near, is_far))
    likeness = [(part @ anchors.T / temperature).softmax(1) for part in plain[near_rows].split(4096)]
    mixtures = torch.cat([part @ anchor_members for part in likeness]) * share[near_rows, None]

    # One row for each noun of the vocabulary, one for each near noun, and a last one that means nothing.
    members = torch.cat([anchor_members.half(), mixtures.half(), torch.zeros(1, count).half()])
    known = torch.cat([torch.ones(len(nouns)), share[near_rows], torch.zeros(1)])
    chooser = random.Random(seed)
    names = list(others)
    drawn = [fill(chooser.choice(templates_for(noun)), noun) for noun in names]
    chosen = torch.cat([near_rows, far_rows])
    other_meanings = torch.cat(
        [len(nouns) + torch.arange(len(near_rows)), torch.full((len(far_rows),), len(members) - 1)]
    )
    embeddings = [encode(list(texts)).half(), plain[chosen].half()]
    if len(chosen):
        embeddings.append(encode([drawn[index] for index in chosen.tolist()]).half())
    meanings = torch.cat([torch.tensor(list(texts.values())), other_meanings, other_meanings])

    shares = (1 - group_share - near_share - far_share, group_share, near_share, far_share)
    kinds = torch.cat(
        [is_group.long(), torch.full((len(near_rows),), 2), torch.tensor([3])]
    )  # by row: a name or synonym, a hypernym, a near noun, nothing
    per_row = torch.bincount(meanings, minlength=len(members)).float()
    rows_of_kind = torch.bincount(kinds, minlength=4).float()
    # Every noun of a kind is drawn equally often, however many texts it has.
    weight = torch.tensor(shares)[kinds] / rows_of_kind[kinds] / per_row.clamp(min=1)
    return MeaningTexts(torch.cat(embeddings), meanings, members, known, weight[meanings])
