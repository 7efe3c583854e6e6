"""Find a model and put it together: an embedded one, a folder, a CLIP, or a published AlexNet with the published prior.

Unusual: a published model loads nothing about language until words need to be understood. So prototypes and images
steer it without CLIP. The whole photograph is seen. The published evaluation crops the middle instead;
`lrm_core.published_backbones` and its transforms do that.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from lrm_base.imagenet import imagenet_names
from lrm_core.model import LRM
from lrm_core.prototypes import Prototypes
from lrm_core.weights import load_model
from steering.catalogue import MODELS as MODELS
from steering.catalogue import PUBLISHED_MODELS, default_model, find_model, is_clip
from steering.catalogue import model_names as model_names
from steering.evidence import load_verdicts
from steering.language import Language, by_class_names, by_trained_prior, folder_language, open_text
from steering.network import Defaults, Network
from steering.parts import Parts as Parts

PUBLISHED_PASSES = 2
PUBLISHED_PRIORS = ("published", "class-names")
PRECISIONS = ("float32", "bfloat16", "float16")


T = TypeVar("T")


def load(
    model: str | Path | None = None,
    *,
    prior: str | None = None,
    text: str | None = None,
    templates: str = "none",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Parts:
    """The parts of a model. See `steering.Steerer.load` for the arguments and the errors."""
    precision = find_precision(dtype)
    with torch.inference_mode(False):  # parameters made in inference mode would never take part in gradients
        place = find_device(device)
        name = str(default_model() if model is None else model)
        if not is_clip(name) and templates != "none":
            raise ValueError(f"templates: got {templates!r} for {name}, expected none: they are for models clip:…")
        if is_clip(name):
            from steering.open_words import load_clip

            parts = load_clip(name, place, prior=prior, text=text, templates=templates)
        elif name in PUBLISHED_MODELS:
            parts = _published(name, prior, text, place)
        else:
            parts = _folder(find_model(model, PUBLISHED_MODELS), prior, text, place)
        return parts if precision == torch.float32 else replace(parts, network=parts.network.in_precision(precision))


def find_device(name: str | torch.device | None) -> torch.device:
    """The named device, or the best that there is: CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: torch cannot use the device.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).item()  # `meta` makes tensors, too, but they hold no numbers
    except (RuntimeError, AssertionError, NotImplementedError):
        usable = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        usable += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(
            f"device: got {str(name)!r}, which cannot be used here; choices: {', '.join(usable)}"
        ) from None
    return torch.device(name)


def find_precision(dtype: str | torch.dtype | None) -> torch.dtype:
    """The numbers that a network computes with; float32 for None.

    Raises:
        ValueError: the name or the type is none of `PRECISIONS`.
    """
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in PRECISIONS:
        raise ValueError(f"dtype: got {str(dtype)!r}, expected one of {', '.join(PRECISIONS)}")
    found: torch.dtype = getattr(torch, name)
    return found


def _kept(value: T) -> T:
    """What was loaded already, as a function that can be pickled."""
    return value


def _folder(folder: Path, prior: str | None, text: str | None, device: torch.device) -> Parts:
    backbone, preprocessing, card = load_model(folder / "backbone.safetensors", device)
    prototypes = folder_prototypes(folder, card)
    outputs = None if prototypes is None else prototypes.mean[-1]
    classifier = _classifier(backbone, card)
    language = partial(folder_language, folder, card, classifier, outputs, device, prior=prior, text=text)
    verdicts = load_verdicts(folder / "verdict.json", card["sha256"]) if (folder / "verdict.json").is_file() else {}
    if not (folder / "text").is_dir():  # what `lrm_core.train` writes: a backbone alone
        network = Network(backbone, card, preprocessing, Defaults(1.0, 2), device)
        return Parts(network, language, verdicts, partial(_kept, prototypes))
    loaded = language()
    try:
        defaults = Defaults(**json.loads((folder / "steering.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'steering.json'} does not hold a model's defaults: {error}") from None
    network = Network(backbone, card, preprocessing, defaults, device)
    return Parts(network, partial(_kept, loaded), verdicts, partial(_kept, prototypes))


def folder_prototypes(folder: Path, card: dict[str, Any]) -> Prototypes | None:
    """The prototypes of a model folder, if it has any. Raises ValueError if they belong to another backbone."""
    path = folder / "prototypes.safetensors"
    if not path.is_file():
        return None
    prototypes = Prototypes.load(path)
    if prototypes.card.get("backbone_sha256") != card["sha256"]:
        raise ValueError(
            f"{path} belongs to another backbone: got SHA-256 {prototypes.card.get('backbone_sha256')}, "
            f"expected {card['sha256']}"
        )
    return prototypes


def _classifier(model: LRM, card: dict[str, Any]) -> torch.Tensor:
    classifier: Any = model.backbone.get_submodule(card["output"])
    weight: torch.Tensor = classifier.weight
    return weight.detach()  # stays in float32 if the network is converted


def _published(name: str, prior: str | None, text: str | None, device: torch.device) -> Parts:
    source = prior or ("published" if reads_published(text) else "class-names")
    if source not in PUBLISHED_PRIORS and not source.endswith(".safetensors"):
        choices = ", ".join(PUBLISHED_PRIORS)
        raise ValueError(f"prior: got {source!r} for {name}, expected {choices}, or a file ….safetensors")
    if source == "published" and not reads_published(text):
        raise ValueError(
            f"text: got {text!r}, but the published prior of {name} was trained with OpenAI's CLIP: expected "
            "ViT-B-16:openai or ViT-B-16-quickgelu:FILE, or the prior class-names, which takes any text encoder"
        )
    from lrm_core.published_backbones import open_backbone

    model, preprocessing, card = open_backbone(name, device)
    language = partial(_published_language, card, _classifier(model, card), source, text, device)
    network = Network(model, card, preprocessing, Defaults(1.0, PUBLISHED_PASSES), device)
    return Parts(network, language, {}, partial(published_prototypes, name))


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
    from lrm_core.published_backbones import load_vision_prototypes

    table, names = load_vision_prototypes(name), imagenet_names()
    rows = [table[index] for index in range(len(names))]
    mean, std = (torch.stack([row[key].float() for row in rows])[None] for key in ("mean", "std"))
    return Prototypes(names, torch.tensor([int(row["count"]) for row in rows]), mean, std, {"backbone": name})


def _published_language(
    card: dict[str, Any], classifier: torch.Tensor, source: str, text: str | None, device: torch.device
) -> Language:
    from prior.published_model import TEXT_ENCODER
    from prior.published_prior import load_prior

    try:
        encoder = open_text(":".join(TEXT_ENCODER) if text is None else text, device)
    except ValueError as error:
        raise ValueError(f"{error}. A file serves as text ViT-B-16-quickgelu:FILE") from None
    if source == "published":
        return Language(encoder, load_prior(card["name"], device=device), None, device, sentences="simple")
    if source == "class-names":
        return by_class_names(encoder, imagenet_names(), device, outputs=None, classifier=classifier)
    return by_trained_prior(Path(source), card, encoder, device)
