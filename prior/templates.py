"""Prompt templates: a name in several sentences, whose encodings are averaged.

CLIP's authors do this (Radford et al. 2021, section 3.1.4), and the published priors expect it. The sentences are
OpenAI's, as OpenCLIP carries them. Unusual: token encodings are averaged too, position by position, and then brought to
unit length, because the published priors were trained that way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prior.text import TextEncoder

TEMPLATES = ("none", "simple", "imagenet")
"""`none` is the name alone. `simple` is OpenAI's seven sentences, with which the published priors were trained.
`imagenet` is OpenAI's eighty sentences for ImageNet."""


class Encoded(NamedTuple):
    """Texts as a published prior reads them."""

    embedding: Float[Tensor, "b width"]
    """Of unit length."""
    encodings: Float[Tensor, "b t token_width"]
    """Token encodings, each of unit length. Behind the end are zeros, up to the encoder's context length."""


def templates(name: str) -> tuple[str, ...]:
    """The sentences of a set, with `{}` where a name goes.

    Raises:
        ValueError: there is no such set.
    """
    if name == "none":
        return ("{}",)
    import open_clip

    sets = {"simple": open_clip.SIMPLE_IMAGENET_TEMPLATES, "imagenet": open_clip.OPENAI_IMAGENET_TEMPLATES}
    if name not in sets:
        raise ValueError(f"templates: got {name!r}, choices: {', '.join(TEMPLATES)}")
    return tuple(sentence("{}") for sentence in sets[name])


def encode_with_templates(
    encoder: TextEncoder, names: Sequence[str], sentences: Sequence[str] | str = "simple"
) -> Encoded:
    """Embeddings and token encodings of names, averaged over sentences.

    Args:
        names: what is put into the sentences, without an article: "dog", not "a dog".
        sentences: a list of sentences with one `{}` each, or the name of a set.

    Raises:
        ValueError: there is no name, no such set or no sentence, or a sentence does not have exactly one `{}`. Or
            `TextEncoder.encode` raises it.
    """
    if isinstance(sentences, str):
        sentences = templates(sentences)
    wrong = [sentence for sentence in sentences if sentence.count("{}") != 1]
    if wrong or not sentences:
        raise ValueError(f"templates: expected sentences with one {{}} each, got {wrong[:3] or 'none'}")
    if isinstance(names, str) or not names:
        raise ValueError(f"expected a list of names, got {names!r}")
    rows = []
    for name in names:
        texts = [sentence.replace("{}", name) for sentence in sentences]
        encodings, _ = encoder.tokens(texts)
        mean = F.pad(encodings.mean(0), (0, 0, 0, encoder.context_length - encodings.shape[1]))
        rows.append(
            (F.normalize(encoder.encode(texts).mean(0), dim=-1), mean / (mean.norm(dim=-1, keepdim=True) + 1e-8))
        )
    embeddings, all_encodings = zip(*rows, strict=True)
    return Encoded(torch.stack(embeddings), torch.stack(all_encodings))
