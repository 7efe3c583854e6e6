"""Models of OpenCLIP with their weights: from a tag, which is fetched once, or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lrm_base.building import no_random_start


def create(name: str, pretrained: str, device: str | torch.device) -> tuple[Any, Path]:
    """An OpenCLIP model with the weights of a tag or a file, and that file.

    A tag's weights get the activation that they need. A file's do so by the name (`ViT-B-16-quickgelu`).

    Raises:
        ValueError: there is neither such a tag nor such a file; the weights cannot be fetched (the message says from
            where); or they do not fit.
    """
    import open_clip

    given = open_clip.get_pretrained_cfg(name, pretrained)
    if not given and not Path(pretrained).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(f"OpenCLIP model {name}: {pretrained!r} is neither a file nor one of its tags: {tags}")
    quick = bool(given.get("quick_gelu") or (open_clip.get_model_config(name) or {}).get("quick_gelu"))
    if given:
        pretrained = _fetch(name, pretrained, given, quick)
    try:
        with no_random_start():
            model = open_clip.create_model(name, pretrained=pretrained, device=device, force_quick_gelu=quick)
    except Exception as error:  # OpenCLIP, torch and safetensors raise errors of many kinds
        reason = first_line(error)
        raise ValueError(f"{pretrained} does not hold weights of {name} as OpenCLIP reads them: {reason}") from None
    return model, Path(pretrained)


def _fetch(name: str, tag: str, given: dict[str, Any], quick: bool) -> str:
    from open_clip.pretrained import HF_SAFE_WEIGHTS_NAME, download_pretrained

    try:
        return str(download_pretrained(given))
    except Exception as error:  # each hub raises errors of its own
        hub, _, file = given.get("hf_hub", "").rpartition("/")
        address = given.get("url")
        if hub:
            address = f"https://huggingface.co/{hub}/resolve/main/{file or HF_SAFE_WEIGHTS_NAME}"
        right = f"{name.removesuffix('-quickgelu')}{'-quickgelu' if quick else ''}"
        raise ValueError(
            f"OpenCLIP model {name}: the weights {tag!r} cannot be downloaded ({first_line(error)}). Download "
            f"{address} by hand, and give it as {right}:FILE"
        ) from None


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
