"""Put a CLIP together: towers, feedback, the bank, a prior, and what was calibrated for it.

The feedback starts at the votes (`lrm_core.joint`), unless `steering.train_feedback` trained it for this tower.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lrm_core.backbones import Preprocessing
from lrm_core.joint import OUTPUT, HuggingFaceVisual, set_votes, wrap_tower
from lrm_core.joint_feedback import FEEDBACK, load_feedback
from lrm_core.prototypes import Prototypes
from prior.among_texts import AmongTexts
from prior.captions import with_article
from prior.clip import Clip, open_clip_model
from prior.identity import IdentityPrior
from prior.model import Prior
from prior.name_list import by_name_list
from prior.trained import open_prior
from steering.catalogue import calibration_folder, common_things
from steering.evidence import load_verdicts
from steering.joint import Bank, JointNetwork
from steering.language import Language
from steering.network import Defaults
from steering.parts import Parts

STRENGTH = 0.1  # the votes of the channels have a standard deviation of 1
VERDICTS, DEFAULTS, IMAGES = "verdict.json", "steering.json", "images.safetensors"


def load_clip(
    model: str, device: torch.device, *, prior: str | None = None, text: str | None = None, templates: str = "none"
) -> Parts:
    """The parts of a CLIP; see `prior.clip.open_clip_model` for its name and `steering.Steerer.load` for the rest.

    Raises:
        ValueError: there is no such model, prior or set of templates, or what was calibrated for it is damaged.
    """
    if text is not None:
        raise ValueError(f"text: got {text!r}, but {model} brings its own text encoder")
    clip = open_clip_model(model, device, templates)
    visual: Any = HuggingFaceVisual(clip.visual) if hasattr(clip.visual, "visual_projection") else clip.visual
    lrm, anatomy = wrap_tower(visual, clip.pixels.size)
    bank = _bank(clip, device)
    set_votes(lrm, anatomy, bank.embeddings)
    pixels = clip.pixels
    preprocessing = Preprocessing(pixels.size, pixels.mean, pixels.std, crops=pixels.crops, bicubic=pixels.bicubic)
    card = {
        "name": model,
        "sha256": clip.sha256,
        "output": OUTPUT,
        "classes": [{"index": index, "name": name} for index, name in enumerate(bank.names)],
    }
    folder = calibration_folder(clip.sha256)
    if (folder / FEEDBACK).is_file():
        card["feedback_sha256"] = load_feedback(folder / FEEDBACK, lrm, clip.sha256)["sha256"]
    verdicts = load_verdicts(folder / VERDICTS, clip.sha256) if (folder / VERDICTS).is_file() else {}
    defaults = _defaults(folder)
    images = _stored(folder / IMAGES)
    images = None if images is None else images.to(device, torch.float32)
    network = JointNetwork(lrm, card, preprocessing, defaults, device, anatomy, bank, clip.scale, images)
    if not verdicts:
        network.notes = ("no verdict yet: `steer calibrate FOLDER` fits one to this model",)
    language = Language(clip.text, _prior(prior, clip, bank, device), None, device)
    return Parts(network, partial(_kept, language), verdicts, _no_prototypes)


def _kept(language: Language) -> Language:
    return language


def _no_prototypes() -> Prototypes | None:
    return None


def _defaults(folder: Path) -> Defaults:
    path = folder / DEFAULTS
    if not path.is_file():
        return Defaults(STRENGTH, 2)
    try:
        return Defaults(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} does not hold a model's defaults: {error}") from None


def _prior(name: str | None, clip: Clip, bank: Bank, device: torch.device) -> Any:
    """The text embedding itself, a prior that `prior.train` made of pairs of embeddings, or a user's own names."""
    if name in (None, IdentityPrior.source):
        return IdentityPrior(clip.text.width)
    if str(name).endswith(".txt"):
        return by_name_list(str(name), clip.text).to(device)
    if not str(name).endswith(".safetensors"):
        raise ValueError(
            f"prior: got {name!r}, expected {IdentityPrior.source}, a file ….safetensors of prior.train, or a file "
            "….txt of names, one a line"
        )
    prior, card = open_prior(str(name), device)
    if prior.dim != clip.text.width or prior.text_width != clip.text.width or card["backbone_sha256"] != clip.sha256:
        raise ValueError(
            f"{name}: the prior was trained for a backbone of width {prior.dim}, SHA-256 {card['backbone_sha256']}; "
            f"got width {clip.text.width}, SHA-256 {clip.sha256}"
        )
    return AmongTexts(prior, bank.embeddings) if isinstance(prior, Prior) else prior


def _bank(clip: Clip, device: torch.device) -> Bank:
    """The bank as this model reads it. It is embedded once and kept in the cache."""
    names = common_things()
    told = json.dumps([clip.sha256, clip.text.templates, names])
    path = Path(torch.hub.get_dir()) / "steer" / f"bank-{hashlib.sha256(told.encode()).hexdigest()[:20]}.safetensors"
    embeddings = _stored(path)
    if embeddings is None or embeddings.shape != (len(names), clip.text.width):
        embeddings = clip.text.encode([with_article(name) for name in names]).cpu()
        _store(path, embeddings)
    embeddings = embeddings.to(device)
    return Bank(names, embeddings, embeddings.mean(0))


def _stored(path: Path) -> Float[Tensor, "c m"] | None:
    from safetensors.torch import load_file

    try:
        return load_file(path)["embeddings"] if path.is_file() else None
    except Exception:  # cut off: it is made again
        return None


def _store(path: Path, embeddings: Tensor) -> None:
    """Keep embeddings for the next time, where the cache can be written."""
    from safetensors.torch import save_file

    part = path.with_suffix(f".{id(embeddings)}.part")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"embeddings": embeddings.contiguous()}, part)
        part.replace(path)
