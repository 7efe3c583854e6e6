"""How words become goals: a text encoder, a prior, and the words that are known.

A prior is trained for one backbone and one text encoder. Where there is none, the backbone's class names serve instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from prior.captions import normal
from prior.class_names import ClassNamesPrior
from prior.clip_text import ClipText
from prior.meaning import MeaningPrior
from prior.model import Prior
from prior.text import TextEncoder
from prior.trained import KINDS, open_prior
from steering.errors import QueryError
from steering.familiarity import Unfamiliar, single_words, unfamiliar

NEAREST = 3  # known things that are named where a query is unfamiliar


@runtime_checkable
class AnyPrior(Protocol):
    """What turns text embeddings into goals: a diffusion prior, a published one, or the class names alone."""

    source: str

    @property
    def goals(self) -> Callable[..., Tensor]:
        """(text embeddings (b, n), options) → goals (b, m)."""


@dataclass(frozen=True, eq=False)
class Language:
    """A text encoder, the prior that leads from it to a backbone, and the embeddings of the words that are known.

    Attributes:
        vocabulary: (v, n), unit length: embeddings of the names, synonyms and hypernyms of the backbone's classes. None
            where no verdict asks for them.
        known: (v,), the words of `vocabulary`, in the same order. Empty where they are not stored.
        least: the familiarity below which a query is unfamiliar; see `steering.familiarity`. None where it was not
            chosen; then no query is.
        judge: a prior that tells whether words name anything that the network can see. Its answer is then the
            familiarity of a query. None: the familiarity is the cosine with the nearest known words.
        sentences: name of a set of `prior.templates`. Each query is then read within these sentences, with the
            encodings of its tokens, as the published priors were trained. None reads the query as it stands.
    """

    text: TextEncoder | ClipText
    prior: AnyPrior
    vocabulary: Tensor | None
    device: torch.device
    sentences: str | None = None
    known: tuple[str, ...] = ()
    least: float | None = None
    judge: MeaningPrior | None = None

    def embed(self, queries: Sequence[str]) -> Float[Tensor, "q n"]:
        """Unit-length text embeddings. Raises QueryError for an empty query or one that is too long."""
        with _query_errors():
            return self.text.encode(list(queries)).to(self.device)

    def familiarity(self, embeddings: Float[Tensor, "q n"]) -> Float[Tensor, " q"]:
        """How likely each text names what the network can see, by the `judge`; else the cosine with the nearest words.

        It is 1 where there is neither a judge nor a vocabulary.
        """
        if self.judge is not None:
            return self.judge.known(embeddings)
        if self.vocabulary is None:
            return embeddings.new_ones(len(embeddings))
        return (embeddings @ self.vocabulary.T).amax(1)

    def unfamiliar(self, texts: Sequence[str], embeddings: Float[Tensor, "q n"]) -> list[Unfamiliar | None]:
        """Why no answer to each text can be given; None where there is no reason. See `steering.familiarity`."""
        if self.least is None or self.vocabulary is None or not self.known:
            return [None] * len(texts)
        best = (embeddings @ self.vocabulary.T).topk(min(NEAREST, len(self.known)))
        nearest = [[self.known[index] for index in row] for row in best.indices.tolist()]
        return [
            unfamiliar(text, certain, self.least, names, self._single_words, self._is_whole)
            for text, certain, names in zip(texts, self.familiarity(embeddings).tolist(), nearest, strict=True)
        ]

    def names(self) -> frozenset[str]:
        """The names that are known, by this network or to ImageNet, in the form of `prior.captions.normal`."""
        from lrm_base.imagenet import imagenet_names

        return frozenset(normal(name) for name in (*self.known, *imagenet_names()))

    def _single_words(self) -> frozenset[str]:
        return single_words(self.names())

    def _is_whole(self, word: str) -> bool:
        return isinstance(self.text, TextEncoder) and len(self.text.tokenizer.encode(word)) == 1

    def goals(self, queries: Sequence[str], **options: Any) -> Float[Tensor, "q m"]:
        """Goal vectors, in logits of the backbone, one for each query read as plain words.

        Args:
            options: `num_samples`, `steps` and `seed` of the prior's sampling.

        Raises:
            QueryError: a query is empty or too long.
        """
        if self.sentences is None or isinstance(self.text, ClipText):
            return self.prior.goals(self.embed(queries), **options)
        from prior.templates import encode_with_templates

        names = [_ARTICLE.sub("", query.strip()) for query in queries]
        if not all(names):
            raise QueryError("the query is empty: expected words, such as 'a dog'")
        with _query_errors():
            encoded = encode_with_templates(self.text, names, self.sentences)
        encodings = encoded.encodings.to(self.device)
        return self.prior.goals(encoded.embedding.to(self.device), text_encodings=encodings, **options)


@contextlib.contextmanager
def _query_errors() -> Iterator[None]:
    """What the text encoder refuses is a fault of the query."""
    try:
        yield
    except ValueError as error:
        raise QueryError(str(error)) from None


_ARTICLE = re.compile(r"^(an?|the)\s+(?=\S)", re.IGNORECASE)  # the sentences bring their own


def open_text(text: str, device: torch.device) -> TextEncoder:
    """One of OpenCLIP's text encoders, given as `NAME:TAG` or `NAME:FILE`. Raises like `TextEncoder.load`."""
    name, _, weights = text.partition(":")
    return TextEncoder.load(name, weights or None, device)


def by_class_names(
    text: TextEncoder,
    names: Sequence[str],
    device: torch.device,
    *,
    outputs: Tensor | None,
    classifier: Tensor,
    vocabulary: Tensor | None = None,
) -> Language:
    """The language whose prior is the class names. `outputs`: their mean outputs (m, m); if None, the classifier."""
    if outputs is not None:
        prior = ClassNamesPrior.from_names(text.encode, names, outputs=outputs.to(device))
    else:
        prior = ClassNamesPrior.from_names(text.encode, names, classifier=classifier)
    return Language(text, prior, prior.embeddings if vocabulary is None else vocabulary, device)


def by_trained_prior(
    path: Path, card: dict[str, Any], text: TextEncoder, device: torch.device, vocabulary: Tensor | None = None
) -> Language:
    """The language whose prior is a file of `prior.train`. Raises ValueError if that was trained for other parts."""
    prior, trained = open_prior(path, device)
    widths = {prior.text_width, text.width} | (set() if vocabulary is None else {vocabulary.shape[1]})
    encoder, backbone = trained.get("text_encoder", text.name), trained.get("backbone_sha256")
    if (
        backbone != card["sha256"]
        or prior.dim != len(card["classes"])
        or len(widths) > 1
        or encoder.partition("/")[0] != text.name.partition("/")[0]  # a file may have any name
    ):
        raise ValueError(
            f"{path}: the parts were not trained for each other: the prior speaks to a backbone of "
            f"{prior.dim} classes, SHA-256 {backbone}, from texts of width {prior.text_width} by "
            f"{encoder}; got {len(card['classes'])} classes, SHA-256 {card['sha256']}, "
            f"width {text.width} by {text.name}"
        )
    return Language(text, prior, vocabulary, device)


def folder_language(
    folder: Path,
    card: dict[str, Any],
    classifier: Tensor,
    outputs: Tensor | None,
    device: torch.device,
    *,
    prior: str | None,
    text: str | None,
) -> Language:
    """The language of a model folder. A folder that holds a backbone alone needs `text`, a text encoder.

    Raises:
        ValueError: a part is missing or altered; the parts were not trained for each other; or there is no such prior.
    """
    from lrm_base.card import load_weights

    own = (folder / "text").is_dir()
    if own and text is not None:
        raise ValueError(f"{folder} has its own text encoder, got {text!r}")
    if not own and text is None:
        raise ValueError(f"{folder} has no text encoder: give one as NAME:TAG or NAME:FILE, such as ViT-B-16:openai")
    encoder = TextEncoder.load(folder / "text", device=device) if text is None else open_text(text, device)
    vocabulary: Tensor | None = None
    known: dict[str, Any] = {}
    if own:
        tensors, vocabulary_card = load_weights(folder / "vocabulary.safetensors")
        vocabulary = tensors["embeddings"].to(device)
        known = _known_words(folder / "vocabulary.json", vocabulary_card, len(vocabulary))
    own_priors = {kind: path for kind in KINDS if _is_there(path := prior_file(folder, kind))}
    source = prior or next(iter(own_priors), ClassNamesPrior.source)
    if source == ClassNamesPrior.source:
        names = [entry["name"] for entry in card["classes"]]
        language = by_class_names(encoder, names, device, outputs=outputs, classifier=classifier, vocabulary=vocabulary)
        return _judged(dataclasses.replace(language, **known), own_priors)
    path = own_priors.get(source, Path(source))
    if path.suffix != ".safetensors":
        choices = [*own_priors, ClassNamesPrior.source]
        raise ValueError(f"{folder} has no prior {source!r}; choices: {', '.join(choices)}, or a file ….safetensors")
    language = by_trained_prior(path, card, encoder, device, vocabulary)
    return _judged(dataclasses.replace(language, **known), own_priors, path)


def _judged(language: Language, own_priors: dict[str, Path], used: Path | None = None) -> Language:
    """The language with the judge of its model folder, if any. The file of the prior, `used`, is not read again."""
    path = own_priors.get(MeaningPrior.source)
    if path is None:
        return language
    judge = language.prior if path == used else open_prior(path, language.device)[0]
    assert isinstance(judge, MeaningPrior)
    return dataclasses.replace(language, judge=judge)


def prior_file(folder: Path, kind: str) -> Path:
    """Where a model folder keeps its prior of a kind. A diffusion prior has the plain name."""
    return folder / ("prior.safetensors" if kind == Prior.source else f"{kind}.safetensors")


def _is_there(path: Path) -> bool:
    return path.is_file() or path.with_suffix(".json").is_file()  # a card alone is a folder that lacks a file


def _known_words(path: Path, card: dict[str, Any], count: int) -> dict[str, Any]:
    """What a vocabulary's card says of its words. Raises ValueError if it does not fit the embeddings."""
    words, threshold = card.get("nouns", []), card.get("familiarity", {}).get("least")
    if words and len(words) != count:
        raise ValueError(f"{path}: got {len(words)} words, expected {count}, one for each embedding")
    if threshold is not None and not (isinstance(threshold, int | float) and -1 <= threshold <= 1):
        raise ValueError(f"{path}: got familiarity {threshold!r}, expected a cosine from -1 to 1")
    return {"known": tuple(words), "least": threshold}
