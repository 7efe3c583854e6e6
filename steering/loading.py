"""Find a model and put it together: an embedded one, a folder, or a published AlexNet with the published prior.

Unusual: a published model loads nothing about language until words need to be understood. So prototypes and images
steer it without CLIP. The whole photograph is seen, squashed to a square, as everywhere in this project. The
published evaluation crops the middle instead; `lrm_core.published_backbones` and its transforms do that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrm_base.data import imagenet_names
from lrm_core.model import LRM
from lrm_core.prototypes import Prototypes
from lrm_core.published_backbones import WEIGHTS, load_vision_prototypes, open_backbone
from lrm_core.weights import load_model
from steering.errors import printable
from steering.evidence import Verdict, load_verdicts
from steering.language import Language, by_class_names, by_trained_prior, folder_language, open_text
from steering.network import Defaults, Network

MODELS = Path(__file__).parent / "models"
DEFAULT_MODEL = "lrm_mini"
PUBLISHED_MODELS = tuple(WEIGHTS)
PUBLISHED_PASSES = 2
PUBLISHED_PRIORS = ("published", "class-names")


@dataclass(frozen=True)
class Parts:
    """The parts of a `Steerer`.

    Attributes:
        network: the network, which looks at images.
        language: a function that loads the language. It is called once, when words first need to be understood.
        verdicts: a fitted verdict for each way of making goals; empty for a model that was not calibrated.
        prototypes: a function that loads the mean outputs of the classes, or gives None where the model has none. It is
            called once, when they are first needed.
    """

    network: Network
    language: Callable[[], Language]
    verdicts: Mapping[str, Verdict]
    prototypes: Callable[[], Prototypes | None]


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    prior: str | None = None,
    text: str | None = None,
    device: str | torch.device | None = None,
) -> Parts:
    """The parts of a model. See `steering.Steerer.load` for the arguments and the errors."""
    with torch.inference_mode(False):  # parameters made in inference mode would never take part in gradients
        place = find_device(device)
        if str(model) in PUBLISHED_MODELS:
            return _published(str(model), prior, text, place)
        return _folder(find_model(model, PUBLISHED_MODELS), prior, text, place)


def model_names() -> tuple[str, ...]:
    """Names of the embedded models."""
    return tuple(sorted(path.name for path in MODELS.iterdir() if (path / "backbone.json").is_file()))


def find_model(name_or_folder: str | Path, others: tuple[str, ...] = ()) -> Path:
    """The folder of an embedded model, or the folder itself.

    Raises:
        ValueError: there is no such model. The message lists the embedded models, and `others` that the caller takes.
    """
    for folder in (Path(name_or_folder), MODELS / str(name_or_folder)):
        if (folder / "backbone.json").is_file():
            return folder
    raise ValueError(
        f"model: got {printable(str(name_or_folder))!r}, expected a folder with backbone.safetensors and backbone.json "
        f"or one of {', '.join((*model_names(), *others))}"
    )


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


def _folder(folder: Path, prior: str | None, text: str | None, device: torch.device) -> Parts:
    backbone, preprocessing, card = load_model(folder / "backbone.safetensors", device)
    prototypes = folder_prototypes(folder, card)
    outputs = None if prototypes is None else prototypes.mean[-1]
    classifier = _classifier(backbone, card)

    def language() -> Language:
        return folder_language(folder, card, classifier, outputs, device, prior=prior, text=text)

    verdicts = load_verdicts(folder / "verdict.json", card["sha256"]) if (folder / "verdict.json").is_file() else {}
    if not (folder / "text").is_dir():  # what `lrm_core.train` writes: a backbone alone
        network = Network(backbone, card, preprocessing, Defaults(1.0, 2), device)
        return Parts(network, language, verdicts, lambda: prototypes)
    loaded = language()
    try:
        defaults = Defaults(**json.loads((folder / "steering.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'steering.json'} does not hold a model's defaults: {error}") from None
    network = Network(backbone, card, preprocessing, defaults, device)
    return Parts(network, lambda: loaded, verdicts, lambda: prototypes)


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
    return classifier.weight


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
    model, preprocessing, card = open_backbone(name, device)

    def language() -> Language:
        return _published_language(card, _classifier(model, card), source, text, device)

    def prototypes() -> Prototypes:
        return published_prototypes(name)

    network = Network(model, card, preprocessing, Defaults(1.0, PUBLISHED_PASSES), device)
    return Parts(network, language, {}, prototypes)


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
