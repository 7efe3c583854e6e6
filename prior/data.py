"""Training pairs (text, vision output): captions of classes and hypernyms, with the backbone's outputs for images.

A hypernym's caption ("a dog") is paired with images of any of its classes, so the prior learns the whole mixture.

Unusual: thousands of further nouns are paired too. Each noun is given to the classes whose names, synonyms or hypernyms
lie nearest in the text encoder's space, by a softmax over cosines. So the space between the class names is filled too,
where most of people's words fall. Held-out words never enter, in any form that `Vocabulary` recognises.
"""

from __future__ import annotations

import json
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
        embeddings: (t, N), of unit length.
        meanings: (t, M), probabilities over the classes.
        weights: (t,), how often to draw each text.
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
    """Probabilities over the classes, from a softmax over the cosines of each text with the anchor nouns.

    Args:
        members: 1 where an anchor means a class. The probability of an anchor is shared equally among its classes.
        handicaps: subtracted from the cosines with each anchor. Rare synonyms ("bear cat") need one, because they
            attract words that mean something else.
        temperature: temperature of the softmax.
    """
    share = members / members.sum(1, keepdim=True)
    parts = [((part @ anchors.T - handicaps) / temperature).softmax(1) @ share for part in embeddings.split(4096)]
    return torch.cat(parts)


def membership(labels: Sequence[tuple[int, ...]], num_classes: int) -> Float[Tensor, "t m"]:
    """A table of texts and classes: 1 where a text means a class, 0 elsewhere."""
    members = torch.zeros(len(labels), num_classes)
    for row, classes in enumerate(labels):
        members[row, list(classes)] = 1.0
    return members


def vocabulary_anchors(vocabulary: Vocabulary, encode: Encode) -> tuple[Float[Tensor, "a n"], Float[Tensor, "a m"]]:
    """Embeddings of all nouns of a vocabulary, each with its article, and the classes that each noun means."""
    nouns = vocabulary.nouns()
    embeddings = encode([fill("{a}", noun) for noun, _, _ in nouns])
    return embeddings, membership([labels for _, labels, _ in nouns], len(vocabulary.names))


def read_held_out(path: str | Path | None) -> tuple[str, ...]:
    """Words that must not be trained on: the keys of a JSON object, or of its object `held_out`. None gives none.

    Raises:
        ValueError: the file does not hold such an object.
    """
    if path is None:
        return ()
    given = json.loads(Path(path).read_text())
    words = given.get("held_out", given) if isinstance(given, dict) else given
    if not isinstance(words, dict):
        raise ValueError(f"{path}: expected an object whose keys are words, or one with such an object `held_out`")
    return tuple(words)


def read_nouns(path: str | Path, vocabulary: Vocabulary, max_words: int = 3) -> list[str]:
    """Noun phrases of a `wnid<TAB>lemma, lemma` file, each once.

    Left out are phrases of more than `max_words` words, held-out words, and nouns that the vocabulary already has.

    Raises:
        ValueError: a line has no tab.
    """
    known = {normal(noun) for noun, _, _ in vocabulary.nouns()}
    nouns: dict[str, None] = {}
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        _, tab, lemmas = line.partition("\t")
        if not tab:
            raise ValueError(f"{path}, line {number}: expected wnid<TAB>lemmas, got {line[:60]!r}")
        for lemma in lemmas.split(", "):
            if len(lemma.split()) <= max_words and normal(lemma) not in known and not vocabulary.holds_out(lemma):
                nouns[lemma] = None
    return list(nouns)


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
    """Embed all captions of the vocabulary, and further nouns in a few templates.

    Args:
        encode: function from texts to embeddings of unit length, (b, n).
        group_share, noun_share: shares of hypernyms and of further nouns among the drawn texts; the rest name a class.
        temperature: temperature of the softmax over cosines that gives a noun its classes.
        nearest: the least cosine with some noun of the vocabulary. One in ten of the nouns below it is kept.
        synonym_handicap: subtracted from the cosines with synonyms.
    """
    captions = vocabulary.captions()
    members = membership([caption.labels for caption in captions], len(vocabulary.names))
    embeddings = encode([caption.text for caption in captions])
    is_group = torch.tensor([caption.source == "is_a" for caption in captions])
    # Every class is drawn equally often, however many captions it has, and so is every hypernym.
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


class Grouped:
    """Rows by the group that each belongs to.

    Args:
        labels: (n,), the group of each row.
        groups: the number of groups.

    Attributes:
        counts: (groups,), how many rows each group has.
    """

    def __init__(self, labels: Int[Tensor, " n"], groups: int) -> None:
        self.order = labels.argsort()
        self.counts = torch.bincount(labels, minlength=groups)
        self.starts = self.counts.cumsum(0) - self.counts

    def draw(self, groups: Int[Tensor, "*b"], generator: torch.Generator) -> Int[Tensor, "*b"]:
        """A row of each of these groups, none of which may be empty."""
        offsets = (torch.rand(groups.shape, generator=generator) * self.counts[groups]).long()
        return self.order[self.starts[groups] + offsets]


class Pairs:
    """Draws pairs at random: a text embedding, and the output for an image that the text fits.

    Args:
        texts: embedded texts.
        outputs: (n, M), the backbone's outputs for n images.
        labels: (n,), the classes of these images.

    Raises:
        ValueError: a class that a text means has no image, or a label is beyond the classes.
    """

    def __init__(self, texts: Texts, outputs: Float[Tensor, "n m"], labels: Int[Tensor, " n"]) -> None:
        self.texts, self.outputs = texts, outputs
        self.images = Grouped(labels, texts.meanings.shape[1])
        counts = self.images.counts
        meant = (texts.meanings * texts.weights[:, None]).sum(0) > 0
        empty = (meant & (counts[: len(meant)] == 0)).nonzero().flatten().tolist()
        if empty or len(counts) > len(meant):
            raise ValueError(
                f"outputs: expected images of classes 0 to {len(meant) - 1}, got labels up to {len(counts) - 1} "
                f"and no image of classes {empty}"
            )

    def draw(
        self, count: int, generator: torch.Generator, images: int = 1
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b m"]]:
        """Draw `count` pairs: (text embeddings, outputs).

        A text is drawn by its weight. Then a class is drawn by the meaning of the text, and an image of that class,
        `images` times. The second of a pair is the mean of the outputs of these images, because a goal stands for a
        thing and not for one photograph.
        """
        rows = torch.multinomial(self.texts.weights, count, replacement=True, generator=generator)
        classes = torch.multinomial(self.texts.meanings[rows], images, replacement=True, generator=generator)
        outputs = self.outputs[self.images.draw(classes, generator)]  # (b, images, m)
        return self.texts.embeddings[rows], outputs.mean(1)
