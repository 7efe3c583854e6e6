"""How words become goals: a text encoder, a prior, and the words that are known; put together from what there is.

A prior was trained for one backbone and one text encoder. Where none was, the backbone's class names serve.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from prior.class_names import ClassNamesPrior
from prior.model import Prior
from prior.text import TextEncoder


@runtime_checkable
class AnyPrior(Protocol):
    """What turns text embeddings into goals: trained by diffusion, published, or made of the class names alone."""

    source: str

    @property
    def goals(self) -> Callable[..., Tensor]:
        """(text embeddings (b, n), options) → goals (b, m)."""


@dataclass(frozen=True, eq=False)
class Language:
    """A text encoder, the prior that leads from it to a backbone, and the embeddings of the words that are known.

    vocabulary: (v, n), unit length, of names, synonyms and hypernyms of the backbone's classes; None if no verdict
    asks for it. sentences: a set of `prior.templates` in which each query is read, with the encodings of its tokens, as
    the published priors were trained; None reads the query alone, as it stands.
    """

    text: TextEncoder
    prior: AnyPrior
    vocabulary: Tensor | None
    device: torch.device
    sentences: str | None = None

    def embed(self, queries: Sequence[str]) -> Float[Tensor, "q n"]:
        """Unit-length text embeddings. Raises ValueError for an empty query or one that is too long."""
        return self.text.encode(list(queries)).to(self.device)

    def familiarity(self, embeddings: Float[Tensor, "q n"]) -> Float[Tensor, " q"]:
        """Cosine of each text with the nearest words that are known; 1 where no vocabulary tells."""
        if self.vocabulary is None:
            return embeddings.new_ones(len(embeddings))
        return (embeddings @ self.vocabulary.T).amax(1)

    def goals(self, queries: Sequence[str], **options: Any) -> Float[Tensor, "q m"]:
        """Goal vectors, in logits of the backbone. Options: `num_samples`, `steps`, `seed` of the prior's sampling."""
        if self.sentences is None:
            return self.prior.goals(self.embed(queries), **options)
        from prior.templates import encode_with_templates

        names = [_ARTICLE.sub("", query.strip()) for query in queries]
        if not all(names):
            raise ValueError("the query is empty: expected words, such as 'a dog'")
        encoded = encode_with_templates(self.text, names, self.sentences)
        encodings = encoded.encodings.to(self.device)
        return self.prior.goals(encoded.embedding.to(self.device), text_encodings=encodings, **options)


_ARTICLE = re.compile(r"^(an?|the)\s+(?=\S)", re.IGNORECASE)  # the sentences bring their own


def open_text(text: str, device: torch.device) -> TextEncoder:
    """A text encoder by `NAME:TAG` or `NAME:FILE`, of OpenCLIP's models. Raises as `TextEncoder.load`."""
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
    """Words through the names of the classes. `outputs`: mean outputs (m, m); without them the classifier serves."""
    if outputs is not None:
        prior = ClassNamesPrior.from_names(text.encode, names, outputs=outputs.to(device))
    else:
        prior = ClassNamesPrior.from_names(text.encode, names, classifier=classifier)
    return Language(text, prior, prior.embeddings if vocabulary is None else vocabulary, device)


def by_trained_prior(
    path: Path, card: dict[str, Any], text: TextEncoder, device: torch.device, vocabulary: Tensor | None = None
) -> Language:
    """Words through a prior of `prior.train`. Raises ValueError if it was not trained for this backbone and encoder."""
    prior, trained = Prior.load(path, device)
    widths = {prior.network.text_width, text.width} | (set() if vocabulary is None else {vocabulary.shape[1]})
    encoder, backbone = trained.get("text_encoder", text.name), trained.get("backbone_sha256")
    if (
        backbone != card["sha256"]
        or prior.network.dim != len(card["classes"])
        or len(widths) > 1
        or encoder.partition("/")[0] != text.name.partition("/")[0]  # a file may have any name
    ):
        raise ValueError(
            f"{path}: the parts were not trained for each other: the prior speaks to a backbone of "
            f"{prior.network.dim} classes, SHA-256 {backbone}, from texts of width {prior.network.text_width} by "
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
    """The language of a model folder, or of a folder that holds no more than a backbone and a text encoder beside it.

    Raises:
        ValueError: a part is missing or altered, or was not trained for the others; there is no such prior.
    """
    from lrm_base.card import load_weights

    own = (folder / "text").is_dir()
    if own and text is not None:
        raise ValueError(f"{folder} has its own text encoder, got {text!r}")
    if not own and text is None:
        raise ValueError(f"{folder} has no text encoder: give one as NAME:TAG or NAME:FILE, such as ViT-B-16:openai")
    encoder = TextEncoder.load(folder / "text", device=device) if text is None else open_text(text, device)
    vocabulary = load_weights(folder / "vocabulary.safetensors")[0]["embeddings"].to(device) if own else None
    trained = any((folder / f"prior.{suffix}").is_file() for suffix in ("json", "safetensors"))
    source = prior or (Prior.source if trained else ClassNamesPrior.source)
    if source == ClassNamesPrior.source:
        names = [entry["name"] for entry in card["classes"]]
        return by_class_names(encoder, names, device, outputs=outputs, classifier=classifier, vocabulary=vocabulary)
    path = folder / "prior.safetensors" if source == Prior.source and trained else Path(source)
    if path.suffix != ".safetensors":
        choices = [*([Prior.source] if trained else []), ClassNamesPrior.source]
        raise ValueError(f"{folder} has no prior {source!r}; choices: {', '.join(choices)}, or a file ….safetensors")
    return by_trained_prior(path, card, encoder, device, vocabulary)
