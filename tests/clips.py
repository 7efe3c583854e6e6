"""Small CLIPs that tests make themselves, in the formats in which real ones are published, and pictures for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SHAPES: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 64, "patch_size": 16, "width": 64, "head_width": 16, "layers": 4},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 2], "width": 16, "patch_size": None},
    "timm": {
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
        "image_size": 160,
    },
}
SIGLIP = {
    "context_length": 20,
    "vocab_size": 520,
    "hf_tokenizer_name": "in this folder",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "width": 32,
    "heads": 2,
    "layers": 2,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
}
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
WIDTH = {"vit": 48, "resnet": 48, "timm": 64, "siglip": 64}
SHAPES["siglip"] = SHAPES["timm"]


def configuration(kind: str) -> dict[str, Any]:
    """OpenCLIP's configuration of a small model: `vit`, `resnet`, `timm`, or `siglip`."""
    text = SIGLIP if kind == "siglip" else TEXT
    return {"embed_dim": WIDTH[kind], "vision_cfg": SHAPES[kind], "text_cfg": text, "custom_text": kind == "siglip"}


def make_open_clip(folder: Path, kind: str = "vit", seed: int = 0) -> Any:
    """Write a randomly initialised model as OpenCLIP saves it into a folder. Returns the model."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    name = f"test-{kind}-{seed}"
    path = folder / f"{name}.json"
    path.write_text(json.dumps(configuration(kind)))
    open_clip.add_model_config(path)
    path.unlink()
    torch.manual_seed(seed)
    model = open_clip.create_model(name).eval()
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    card = {
        "model_cfg": configuration(kind),
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(card))
    return model


def noisy_things(folder: Path, names: Sequence[str]) -> Path:
    """Write six pictures of each thing, noise around a colour of its own, as an ImageFolder. Returns the folder."""
    random = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir()
        colour = random.uniform(30, 220, 3)
        for index in range(6):
            pixels = random.normal(colour, 30, (40, 50, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder
