"""Which models there are, and what each tells apart, read without torch."""

from __future__ import annotations

import os
from pathlib import Path

from lrm_base.card import load_card
from lrm_base.imagenet import imagenet_names
from steering.errors import printable

MODELS = Path(__file__).parent / "models"
DEFAULT_MODEL = "lrm_lite"
MODEL_VARIABLE = "STEER_MODEL"
PUBLISHED_MODELS = ("alexnet_lrm1", "alexnet_lrm2", "alexnet_lrm3")


CLIP = "clip:"  # begins the names of models that take any words; see `prior.clip.open_clip_model`
COMMON_THINGS = Path(__file__).parent / "common_things.txt"


def is_clip(model: str | Path) -> bool:
    """Whether a name is that of a CLIP, such as `clip:ViT-B-32:openai`."""
    return str(model).startswith(CLIP)


def common_things() -> tuple[str, ...]:
    """The bank of common things, against which a CLIP sets what is looked for."""
    lines = COMMON_THINGS.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


def calibration_folder(sha256: str) -> Path:
    """Where `steer calibrate` keeps what it fitted for a CLIP, by the hash of its weights."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data) / "steer" / "calibrated" / sha256[:16]


def model_names() -> tuple[str, ...]:
    """Names of the embedded models."""
    return tuple(sorted(path.name for path in MODELS.iterdir() if (path / "backbone.json").is_file()))


def default_model() -> str:
    """The model unless told otherwise, by name or folder: $STEER_MODEL, or the embedded model `DEFAULT_MODEL`."""
    return os.environ.get(MODEL_VARIABLE) or DEFAULT_MODEL


def find_model(name_or_folder: str | Path | None = None, others: tuple[str, ...] = ()) -> Path:
    """The folder of an embedded model, or the folder itself. None means `default_model()`.

    Raises:
        ValueError: there is no such model. The message lists the embedded models, and `others` that the caller takes.
            It names $STEER_MODEL if that is where the model was named.
    """
    wanted = default_model() if name_or_folder is None else name_or_folder
    for folder in (Path(wanted), MODELS / str(wanted)):
        if (folder / "backbone.json").is_file():
            return folder
    where = f"${MODEL_VARIABLE}" if name_or_folder is None and os.environ.get(MODEL_VARIABLE) else "model"
    raise ValueError(
        f"{where}: got {printable(str(wanted))!r}, expected a folder with backbone.safetensors and backbone.json "
        f"or one of {', '.join((*model_names(), *others))}, or clip:NAME:TAG"
    )


def class_names(model: str | Path | None = None) -> tuple[str, ...]:
    """What a model tells apart, in the order of its outputs, from its card alone. None means `default_model()`.

    Raises:
        ValueError: there is no such model, or its card does not name the classes.
    """
    name = str(default_model() if model is None else model)
    if name in PUBLISHED_MODELS:
        return imagenet_names()
    if is_clip(name):
        return common_things()
    path = find_model(model, PUBLISHED_MODELS) / "backbone.safetensors"
    try:
        return tuple(str(entry["name"]) for entry in load_card(path)["classes"])
    except (KeyError, TypeError):
        raise ValueError(f"{path.with_suffix('.json')} does not name the classes of the model") from None
