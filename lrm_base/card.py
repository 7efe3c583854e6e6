"""Weights and their card: a safetensors file, and a JSON file that describes it and states its SHA-256.

A model folder holds `NAME.safetensors` and `NAME.json`. Nothing is unpickled. Each file is written under another name
and then renamed, so a reader never sees half a file. The weights are written before the card.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ROW_SCALE = ".row_scale"  # ends the name of the scales of a tensor that is stored in 8 bits


def sha256_of(path: str | Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file under another name, then rename it: it is complete under its own name or not there."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def to_eight_bits(value: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor (r, …) as whole numbers from -127 to 127, and the scale (r,) of each row."""
    import torch

    scale = value.float().flatten(1).abs().amax(1).clamp(min=1e-12) / 127
    return (value / _like(scale, value)).round().to(torch.int8), scale


def from_eight_bits(value: Tensor, scale: Tensor) -> Tensor:
    """The tensor of which `to_eight_bits` made `value` and `scale`, up to rounding."""
    return value * _like(scale, value)


def _like(scale: Tensor, value: Tensor) -> Tensor:
    """A number for each row, in a shape that can be multiplied with a tensor of these rows."""
    return scale.view(-1, *(1 for _ in value.shape[1:]))


def save_weights(
    path: str | Path,
    tensors: dict[str, Tensor],
    card: dict[str, Any],
    *,
    half: bool = False,
    eight_bits: Collection[str] = (),
) -> None:
    """Save tensors to `path` (….safetensors), and the card with the file's hash beside it (….json).

    The metadata of the safetensors file hold the card too, in case the two files are separated.
    `half=True` stores floating-point tensors as float16, in half the bytes. `eight_bits` names tensors that are stored
    in a quarter of the bytes, with a scale for each row. Both are read back as float32.
    """
    import torch
    from safetensors.torch import save

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {
        key: (value.detach().to(torch.float16) if half and value.is_floating_point() else value.detach())
        .cpu()
        .contiguous()
        for key, value in tensors.items()
    }
    for key in eight_bits:
        stored[key], stored[f"{key}{ROW_SCALE}"] = (part.cpu() for part in to_eight_bits(tensors[key].detach()))
    write_atomically(path, save(stored, metadata={"card": json.dumps(card, ensure_ascii=False)}))
    text = json.dumps({**card, "sha256": sha256_of(path)}, indent=1, ensure_ascii=False)
    write_atomically(path.with_suffix(".json"), (text + "\n").encode())


def load_card(path: str | Path) -> dict[str, Any]:
    """Read the card of a ….safetensors file.

    Raises:
        ValueError: the card is missing or is not a JSON object.
    """
    card_path = Path(path).with_suffix(".json")
    try:
        card = json.loads(card_path.read_text())
    except FileNotFoundError:
        raise ValueError(f"no weight card: expected a file {card_path}") from None
    except ValueError as error:
        raise ValueError(f"{card_path} is not JSON: {error}") from None
    if not isinstance(card, dict):
        raise ValueError(f"{card_path}: expected a JSON object, got {type(card).__name__}")
    return card


def load_stored(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors as they are stored, and their card. A tensor in 8 bits comes with the scales of its rows.

    Raises:
        ValueError: a file is missing, or the file's hash is not the one that its card states.
    """
    from safetensors.torch import load_file

    path = Path(path)
    card = load_card(path)
    if not path.is_file():
        raise ValueError(f"no weights: expected a file {path}")
    digest = sha256_of(path)
    if card.get("sha256") != digest:
        raise ValueError(f"{path} was altered: got SHA-256 {digest}, expected {card.get('sha256')} as its card states")
    return load_file(path), card


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and their card. Floating-point tensors come back as float32.

    Raises:
        ValueError: as `load_stored`.
    """
    import torch

    tensors, card = load_stored(path)
    for key in [key.removesuffix(ROW_SCALE) for key in tensors if key.endswith(ROW_SCALE)]:
        tensors[key] = from_eight_bits(tensors[key], tensors.pop(f"{key}{ROW_SCALE}"))
    return {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in tensors.items()}, card
