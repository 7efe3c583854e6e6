"""The published AlexNets as Steerers: published weights, OpenAI's CLIP, and the published prior or the class names.

Unusual: nothing of language is fetched before words are to be understood, so that prototypes and images steer without
CLIP. As everywhere in this project the whole photograph is seen, squashed to a square; the published evaluation crops
its middle, which `lrm_core.alexnet_lrm3` and its transforms do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lrm_base.data import imagenet_names
from lrm_core.published import WEIGHTS, open_backbone

if TYPE_CHECKING:
    from lrm_core.model import LRM
    from lrm_core.prototypes import Prototypes
    from steering.language import Language
    from steering.steerer import Steerer

PUBLISHED_MODELS = tuple(WEIGHTS)
PASSES = 2  # as published
SOURCES = ("published", "class-names")


def load_published(name: str, *, prior: str | None, text: str | None, device: torch.device) -> Steerer:
    """A published model. See `Steerer.load` for `prior` and `text`; a prior is also `published`.

    Raises:
        ValueError: no such prior, or weights that cannot be had, have another hash or do not fit; tells the address and
            the place to put a file by hand.
    """
    from steering.steerer import Defaults, Steerer

    source = prior or ("published" if reads_published(text) else "class-names")
    if source not in SOURCES and not source.endswith(".safetensors"):
        raise ValueError(f"{name} has no prior {source!r}; choices: {', '.join(SOURCES)}, or a file ….safetensors")
    if source == "published" and not reads_published(text):
        raise ValueError(
            f"the published prior of {name} was trained with OpenAI's CLIP, ViT-B-16:openai or "
            f"ViT-B-16-quickgelu:FILE, got {text!r}; the prior class-names takes any text encoder"
        )
    model, preprocessing, card = open_backbone(name, device)

    def language() -> Language:
        return _language(card, model, source, text, device)

    def prototypes() -> Prototypes:
        return published_prototypes(name)

    return Steerer(model, card, preprocessing, language, {}, Defaults(1.0, PASSES), device, prototypes)


def reads_published(text: str | None) -> bool:
    """Whether a text encoder, `NAME:TAG` or `NAME:FILE`, is the one that the published priors were trained with.

    A file counts only under the name that brings the activation of OpenAI's weights.
    """
    from prior.published_model import TEXT_ENCODER

    if text is None:
        return True
    name, tag = TEXT_ENCODER
    encoder, _, weights = text.partition(":")
    encoder = encoder.replace("/", "-")
    if weights == tag:
        return encoder.removesuffix("-quickgelu") == name
    return encoder == f"{name}-quickgelu" and Path(weights).is_file()


def published_prototypes(name: str) -> Prototypes:
    """The published visual prototypes: mean outputs of the last pass over ImageNet's training images."""
    from lrm_core.prototypes import Prototypes
    from lrm_core.published import load_vision_prototypes

    table, names = load_vision_prototypes(name), imagenet_names()
    rows = [table[index] for index in range(len(names))]
    mean, std = (torch.stack([row[key].float() for row in rows])[None] for key in ("mean", "std"))
    return Prototypes(names, torch.tensor([int(row["count"]) for row in rows]), mean, std, {"backbone": name})


def _language(card: dict[str, Any], model: LRM, source: str, text: str | None, device: torch.device) -> Language:
    from prior.published import load_prior
    from prior.published_model import TEXT_ENCODER
    from steering.language import Language, by_class_names, by_trained_prior, open_text

    try:
        encoder = open_text(":".join(TEXT_ENCODER) if text is None else text, device)
    except ValueError as error:
        raise ValueError(f"{error}. A file serves as text ViT-B-16-quickgelu:FILE") from None
    if source == "published":
        return Language(encoder, load_prior(card["name"], device=device), None, device, sentences="simple")
    if source == "class-names":
        classifier: Any = model.backbone.get_submodule(card["output"]).weight
        return by_class_names(encoder, imagenet_names(), device, outputs=None, classifier=classifier)
    return by_trained_prior(Path(source), card, encoder, device)
