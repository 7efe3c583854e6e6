"""CLIP and its kin: one model with an image tower and a text tower that share a space (Radford et al. 2021).

They come from OpenCLIP (Cherti et al. 2023), by name and tag, by name and file, from a hub or from a folder that
OpenCLIP saved; or from a folder of `transformers.CLIPModel`. A tag is fetched once, when it was asked for. Nothing else
is.

Unusual: a text is encoded as it stands, unless templates were asked for. A text that is too long is an error and is not
cut.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrm_base.building import no_random_start
from lrm_base.card import sha256_of
from prior.clip_text import AnyText, AutoTokens, Bpe, CausalText, ClipText, HuggingFaceText, TokenShape
from prior.open_clip_models import create, first_line
from prior.templates import TEMPLATES
from prior.text import text_tower

PREFIX = "clip:"
HUB = "hf-hub:"
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class Pixels:
    """How a tower was trained to see a photograph.

    Attributes:
        size: side of the square, in pixels.
        mean, std: of each channel, for pixels in 0–1.
        crops: whether the middle square is cut out; otherwise the photograph is squashed.
        bicubic: whether it is resampled bicubically, otherwise bilinearly.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crops: bool
    bicubic: bool


@dataclass(frozen=True, eq=False)
class Clip:
    """Both towers.

    Attributes:
        name: as it was asked for, without the prefix.
        visual: image tower, (b, 3, size, size), normalised → (b, M), of any length.
        text: text tower with its tokenizer.
        pixels: how the image tower sees a photograph.
        scale: by which cosines are multiplied before a softmax; it was learned.
        sha256: hash of the file of weights.
    """

    name: str
    visual: nn.Module
    text: ClipText
    pixels: Pixels
    scale: float
    sha256: str


def is_clip(model: str) -> bool:
    """Whether the name of a model, such as `clip:ViT-B-32:openai`, is that of a CLIP."""
    return model.startswith(PREFIX)


def open_clip_model(model: str, device: str | torch.device = "cpu", templates: str = "none") -> Clip:
    """Both towers of a CLIP.

    Args:
        model: one of
            - `clip:NAME:TAG`, OpenCLIP's names; the weights are fetched once, into the hub's own cache;
            - `clip:NAME:FILE`, a file of weights for one of OpenCLIP's architectures. OpenAI's weights need the name
              that says their activation, such as `ViT-B-16-quickgelu`;
            - `clip:hf-hub:OWNER/NAME`, a model of OpenCLIP on the hub;
            - `clip:FOLDER`, a folder that OpenCLIP saved, or one of `transformers.CLIPModel`.
        templates: the sentences that texts are put into: `none`, `simple` (seven) or `imagenet` (eighty).

    Raises:
        ValueError: there is no such model, folder or set of sentences; weights or tokenizer cannot be fetched, and the
            message says from where; or a file does not hold weights of this architecture.
    """
    if templates not in TEMPLATES:
        raise ValueError(f"templates: got {templates!r}, expected one of {', '.join(TEMPLATES)}")
    given = model.removeprefix(PREFIX)
    if not given:
        raise ValueError(f"model: got {model!r}, expected for example clip:ViT-B-32:laion2b_s34b_b79k or clip:FOLDER")
    folder = Path(given).expanduser()
    if folder.is_dir():
        if (folder / OPEN_CLIP_CONFIG).is_file():
            return _open_clip_folder(folder, given, device, templates)
        if (folder / "config.json").is_file():
            return _hugging_face_folder(folder, given, device, templates)
        raise ValueError(
            f"model: {folder} is no model: expected {OPEN_CLIP_CONFIG} with weights beside it, or config.json of a "
            "transformers.CLIPModel"
        )
    if given.startswith(("/", ".", "~")) or "\\" in given:
        raise ValueError(f"model: there is no folder {folder}; expected clip:FOLDER or clip:NAME:TAG")
    import open_clip

    if given.startswith(HUB):
        return _from_hub(given, device, templates)
    name, _, weights = given.partition(":")
    name = name.replace("/", "-")
    if name not in open_clip.list_models():
        raise ValueError(
            f"model: got {model!r}, expected clip:NAME:TAG with one of OpenCLIP's names, or clip:FOLDER; "
            f"{_nearest(name, open_clip.list_models())}"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not weights:
        raise ValueError(f"model: got {model!r}, expected clip:{name}:TAG or a file; tags: {', '.join(tags) or 'none'}")
    towers, file = create(name, weights, device)
    known = {} if Path(weights).is_file() else open_clip.get_pretrained_cfg(name, weights) or {}
    if not known:  # a file does not say how it was trained; the tags of its name do, where they agree
        configurations = [open_clip.get_pretrained_cfg(name, tag) or {} for tag in tags]
        keys = ("mean", "std", "interpolation", "resize_mode")
        agreed = {key: {repr(each.get(key)) for each in configurations} for key in keys}
        known = {key: configurations[0].get(key) for key in keys if len(agreed[key]) == 1} if configurations else {}
    found = {**open_clip.get_model_preprocess_cfg(towers), **{k: v for k, v in known.items() if v is not None}}
    return _clip(towers, given, name, found, sha256_of(file), templates)


def _nearest(name: str, names: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, names, 3, 0.5)
    return f"did you mean {', '.join(near)}?" if near else f"for example {', '.join(names[:3])}"


def _from_hub(given: str, device: str | torch.device, templates: str) -> Clip:
    import open_clip
    from open_clip.pretrained import download_pretrained_from_hf

    try:
        file = download_pretrained_from_hf(given.removeprefix(HUB))
        with no_random_start():
            towers = open_clip.create_model(given, device=device)
    except Exception as error:  # the hub raises errors of many kinds
        raise ValueError(
            f"model: {given} cannot be fetched from https://huggingface.co/{given.removeprefix(HUB)} "
            f"({first_line(error)}). Download its files by hand into a folder, and give clip:FOLDER"
        ) from None
    return _clip(towers, given, given, open_clip.get_model_preprocess_cfg(towers), sha256_of(Path(file)), templates)


def _open_clip_folder(folder: Path, given: str, device: str | torch.device, templates: str) -> Clip:
    import open_clip

    weights = next((path for name in OPEN_CLIP_WEIGHTS if (path := folder / name).is_file()), None)
    if weights is None:
        raise ValueError(f"model: {folder} has no weights: expected {' or '.join(OPEN_CLIP_WEIGHTS)}")
    try:
        configuration = json.loads((folder / OPEN_CLIP_CONFIG).read_text())
        architecture, preprocessing = configuration["model_cfg"], configuration.get("preprocess_cfg", {})
        name = f"{re.sub(r'[^A-Za-z0-9_-]', '-', folder.name)}-{abs(hash(json.dumps(architecture, sort_keys=True))):x}"
        with tempfile.TemporaryDirectory() as place:  # OpenCLIP takes a configuration from a file that has its name
            path = Path(place) / f"{name}.json"
            path.write_text(json.dumps(architecture))
            open_clip.add_model_config(path)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"model: {folder / OPEN_CLIP_CONFIG} does not hold a model's configuration: {error}") from None
    towers, _ = create(name, str(weights), device)
    found = {**open_clip.get_model_preprocess_cfg(towers), **preprocessing}
    tokenizer = folder if "hf_tokenizer_name" in architecture.get("text_cfg", {}) else None
    return _clip(towers, given, name, found, sha256_of(weights), templates, tokenizer)


def _clip(
    towers: Any, given: str, name: str, found: dict[str, Any], sha256: str, templates: str, folder: Path | None = None
) -> Clip:
    """The parts of a model of OpenCLIP. A tokenizer comes from `folder`, if one is given."""
    towers = towers.eval().requires_grad_(False)
    resize, sampled = found.get("resize_mode", "shortest"), found.get("interpolation", "bicubic")
    size = found["size"] if isinstance(found["size"], int) else found["size"][0]
    square = isinstance(found["size"], int) or found["size"][0] == found["size"][-1]
    if resize not in ("shortest", "squash") or not square:
        raise ValueError(
            f"model: {given} sees {found['size']} by {resize!r}, expected squares by 'shortest' or 'squash'"
        )
    mean, std = (_three(found[key]) for key in ("mean", "std"))
    pixels = Pixels(size, mean, std, resize == "shortest", sampled in ("bicubic", "random"))
    tower = getattr(towers, "text", towers)
    width = int(towers.visual.output_dim) if hasattr(towers.visual, "output_dim") else 0
    length = int(getattr(tower, "context_length", getattr(towers, "context_length", 77)))
    with _tokenizer_errors(given):
        tokenize, padding = _tokenizer(name, folder, length)
    run: nn.Module = CausalText(towers)
    try:
        text_tower(towers)
    except ValueError:
        run = AnyText(towers)
    is_causal = isinstance(run, CausalText)
    if not width:
        with torch.no_grad():
            width = run(torch.zeros(1, length, dtype=torch.long, device=next(towers.parameters()).device)).shape[-1]
    text = ClipText(run, tokenize, given, width, TokenShape(length, padding, is_causal), templates)
    scale = float(towers.logit_scale.detach().exp())
    return Clip(given, towers.visual, text, pixels, scale, sha256)


def _tokenizer(name: str, folder: Path | None, length: int) -> tuple[Callable[[str], list[int]], int]:
    """What turns a text into tokens, and the number that fills up."""
    import open_clip
    from open_clip.tokenizer import get_clean_fn

    if folder is not None:
        from transformers import AutoTokenizer

        auto = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        said = open_clip.get_model_config(name)["text_cfg"].get("tokenizer_kwargs", {})
        return AutoTokens(auto, get_clean_fn(said.get("clean", "whitespace"))), auto.pad_token_id or 0
    tokenizer: Any = open_clip.get_tokenizer(name, context_length=length)
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return Bpe(tokenizer), 0
    return AutoTokens(tokenizer.tokenizer, tokenizer.clean_fn), tokenizer.tokenizer.pad_token_id or 0


@contextmanager
def _tokenizer_errors(given: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # hubs and tokenizers raise errors of many kinds
        raise ValueError(f"model: the tokenizer of {given} cannot be fetched or read: {first_line(error)}") from None


def _hugging_face_folder(folder: Path, given: str, device: str | torch.device, templates: str) -> Clip:
    from lrm_base.extras import install_command, missing_packages

    if missing_packages("transformers"):
        raise ValueError(f"model: {folder} needs transformers, not installed here: {install_command('train')}")
    from transformers import AutoTokenizer, CLIPModel

    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind != "clip":
        raise ValueError(f"model: {folder} is a model of type {kind!r}, expected 'clip' (transformers.CLIPModel)")
    weights = next((p for n in ("model.safetensors", "pytorch_model.bin") if (p := folder / n).is_file()), None)
    if weights is None:
        raise ValueError(f"model: {folder} has no weights: expected model.safetensors")
    try:
        model: Any = CLIPModel.from_pretrained(str(folder), local_files_only=True).float().to(device)
    except Exception as error:
        raise ValueError(f"model: {folder} does not hold a CLIPModel: {first_line(error)}") from None
    model = model.eval().requires_grad_(False)
    with _tokenizer_errors(given):
        auto = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    shape = TokenShape(model.config.text_config.max_position_embeddings, auto.pad_token_id or 0, is_causal=True)
    text = ClipText(HuggingFaceText(model), AutoTokens(auto), given, model.config.projection_dim, shape, templates)
    return Clip(
        given, model, text, _hugging_face_pixels(folder, model), float(model.logit_scale.exp()), sha256_of(weights)
    )


def _hugging_face_pixels(folder: Path, model: Any) -> Pixels:
    """What preprocessor_config.json says, otherwise what CLIP's authors did."""
    path = folder / "preprocessor_config.json"
    said: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    mean = said.get("image_mean", (0.48145466, 0.4578275, 0.40821073))
    std = said.get("image_std", (0.26862954, 0.26130258, 0.27577711))
    size, crops = int(model.config.vision_config.image_size), bool(said.get("do_center_crop", True))
    return Pixels(size, _three(mean), _three(std), crops, said.get("resample", 3) == 3)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue
