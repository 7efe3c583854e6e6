"""(text, vision-output) pairs: captions of the classes and of their hypernyms, joined with outputs of the backbone.

A hypernym's caption ("a dog") is paired with images of any of its classes, so the prior learns the whole mixture.

Unusual: thousands of further nouns are paired too. A noun is given to the classes whose names, synonyms or hypernyms
lie nearest in the text encoder's space, by a softmax over cosines. That fills the space between the class names, where
people's words fall. Held-out words never enter, in any form that `Vocabulary` recognises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prior.captions import Vocabulary, fill, normal

Encode = Callable[[Sequence[str]], Tensor]
NOUN_TEMPLATES = ("{name}", "{a}", "a photo of {a}")


@dataclass(frozen=True)
class Texts:
    """Embedded texts and what they mean.

    Attributes:
        embeddings: (t, N), unit length. meanings: (t, M), probabilities over classes. weights: (t,), how often to draw.
    """

    embeddings: Tensor
    meanings: Tensor
    weights: Tensor


def soft_labels(
    embeddings: Float[Tensor, "t n"],
    anchors: Float[Tensor, "a n"],
    members: Float[Tensor, "a m"],
    handicaps: Float[Tensor, " a"],
    temperature: float,
) -> Float[Tensor, "t m"]:
    """Probabilities over classes: a softmax over cosines with anchor nouns, shared among each anchor's classes.

    `handicaps` are subtracted from the cosines: rare synonyms ("bear cat") attract words that are not theirs.
    """
    share = members / members.sum(1, keepdim=True)
    parts = [((part @ anchors.T - handicaps) / temperature).softmax(1) @ share for part in embeddings.split(4096)]
    return torch.cat(parts)


def membership(labels: Sequence[tuple[int, ...]], num_classes: int) -> Float[Tensor, "t m"]:
    """1 where a text means a class."""
    members = torch.zeros(len(labels), num_classes)
    for row, classes in enumerate(labels):
        members[row, list(classes)] = 1.0
    return members


def vocabulary_anchors(vocabulary: Vocabulary, encode: Encode) -> tuple[Float[Tensor, "a n"], Float[Tensor, "a m"]]:
    """Embeddings of every noun that names a class or a hypernym, as "a noun", and the classes that each means."""
    nouns = vocabulary.nouns()
    embeddings = encode([fill("{a}", noun) for noun, _, _ in nouns])
    return embeddings, membership([labels for _, labels, _ in nouns], len(vocabulary.names))


def read_nouns(path: str | Path, vocabulary: Vocabulary, max_words: int = 3) -> list[str]:
    """Noun phrases of a `wnid<TAB>lemma, lemma` file, each once, without held-out words and the vocabulary's own."""
    known = {normal(noun) for noun, _, _ in vocabulary.nouns()}
    found: dict[str, None] = {}
    for line in Path(path).read_text().splitlines():
        for lemma in line.split("\t")[1].split(", "):
            if len(lemma.split()) <= max_words and normal(lemma) not in known and not vocabulary.holds_out(lemma):
                found[lemma] = None
    return list(found)


def build_texts(
    vocabulary: Vocabulary,
    encode: Encode,
    nouns: Sequence[str],
    *,
    group_share: float,
    noun_share: float,
    temperature: float,
    nearest: float,
    synonym_handicap: float,
) -> Texts:
    """Embed all captions and nouns.

    Args:
        group_share, noun_share: of the drawn texts that are hypernyms and further nouns; the rest name a class.
        temperature: of the softmax over cosines that gives a noun its classes.
        synonym_handicap: subtracted from cosines with synonyms.
        nearest: nouns whose best cosine with the vocabulary is lower are kept for one in ten only.
    """
    captions = vocabulary.captions()
    members = membership([caption.labels for caption in captions], len(vocabulary.names))
    embeddings = encode([caption.text for caption in captions])
    is_group = torch.tensor([caption.source == "is_a" for caption in captions])
    # Every class, and every hypernym, is drawn equally often however many captions it has.
    per_class = (members * ~is_group[:, None]).sum(0)
    weights = (members / per_class.clamp(min=1)).sum(1) * ~is_group
    counts: dict[str, int] = {}
    for caption in captions:
        counts[caption.noun] = counts.get(caption.noun, 0) + 1
    group_weights = is_group / torch.tensor([float(counts[caption.noun]) for caption in captions])
    weights = (1 - group_share - noun_share) * weights / weights.sum()
    if group_weights.sum() > 0:
        weights += group_share * group_weights / group_weights.sum()
    meanings = members / members.sum(1, keepdim=True)
    if nouns and noun_share:
        anchors, anchor_members = vocabulary_anchors(vocabulary, encode)
        handicaps = synonym_handicap * torch.tensor([float(kind == "synonym") for _, _, kind in vocabulary.nouns()])
        plain = encode([fill("{a}", noun) for noun in nouns])
        near = torch.cat([(part @ anchors.T).amax(1) for part in plain.split(4096)]) >= nearest
        kept = [i for i in range(len(nouns)) if near[i] or i % 10 == 0]
        noun_meanings = soft_labels(plain[kept], anchors, anchor_members, handicaps, temperature)
        for template in NOUN_TEMPLATES:
            embeddings = torch.cat([embeddings, encode([fill(template, nouns[i]) for i in kept])])
            meanings = torch.cat([meanings, noun_meanings])
            weights = torch.cat([weights, torch.full((len(kept),), noun_share / len(kept) / len(NOUN_TEMPLATES))])
    return Texts(embeddings, meanings, weights)


class Pairs:
    """Draws (text embedding, output of one image that the text fits) at random.

    Raises:
        ValueError: a class that a text means has no image, or a label is of no class.
    """

    def __init__(self, texts: Texts, outputs: Float[Tensor, "n m"], labels: Int[Tensor, " n"]) -> None:
        self.texts, self.outputs = texts, outputs
        self.order = labels.argsort()
        self.counts = torch.bincount(labels, minlength=texts.meanings.shape[1])
        self.starts = self.counts.cumsum(0) - self.counts
        meant = (texts.meanings * texts.weights[:, None]).sum(0) > 0
        empty = (meant & (self.counts[: len(meant)] == 0)).nonzero().flatten().tolist()
        if empty or len(self.counts) > len(meant):
            raise ValueError(
                f"outputs: expected images of classes 0 to {len(meant) - 1}, got labels up to {len(self.counts) - 1} "
                f"and no image of classes {empty}"
            )

    def draw(
        self, count: int, generator: torch.Generator, images: int = 1
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b m"]]:
        """`count` pairs: a text by weight, then `images` times a class by the text's meaning and an image of it.

        The second of a pair is the mean of the images' outputs: a goal stands for a thing, not for one photograph.
        """
        rows = torch.multinomial(self.texts.weights, count, replacement=True, generator=generator)
        classes = torch.multinomial(self.texts.meanings[rows], images, replacement=True, generator=generator)
        offsets = (torch.rand(classes.shape, generator=generator) * self.counts[classes]).long()
        outputs = self.outputs[self.order[self.starts[classes] + offsets]]  # (b, images, m)
        return self.texts.embeddings[rows], outputs.mean(1)
