"""Weights travel with their card: safetensors beside a JSON that says what they are and carries their SHA-256.

A model folder holds `NAME.safetensors` and `NAME.json`. Nothing is unpickled. Both files are written beside and
renamed, weights first, so that a reader never meets half a file.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def sha256_of(path: str | Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file so that it either is complete under its name or does not exist."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def save_weights(path: str | Path, tensors: dict[str, Tensor], card: dict[str, Any], *, half: bool = False) -> None:
    """Save tensors to `path` (….safetensors) and the card, with the file's hash, beside it (….json).

    The card also stands in the safetensors file's own metadata, should the two be separated.
    `half=True` stores floating-point tensors in float16: half the bytes, read back as float32.
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
    write_atomically(path, save(stored, metadata={"card": json.dumps(card, ensure_ascii=False)}))
    text = json.dumps({**card, "sha256": sha256_of(path)}, indent=1, ensure_ascii=False)
    write_atomically(path.with_suffix(".json"), (text + "\n").encode())


def load_card(path: str | Path) -> dict[str, Any]:
    """The card that belongs to a ….safetensors file.

    Raises:
        ValueError: the card is missing or is not a JSON object.
    """
    card_path = Path(path).with_suffix(".json")
    try:
        card = json.loads(card_path.read_text())
    except FileNotFoundError:
        raise ValueError(f"no weight card: expected {card_path}") from None
    except ValueError as error:
        raise ValueError(f"{card_path} is not JSON: {error}") from None
    if not isinstance(card, dict):
        raise ValueError(f"{card_path}: expected a JSON object, got {type(card).__name__}")
    return card


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (floating point as float32) and card, after the file's hash was checked against the card.

    Raises:
        ValueError: a file is missing, or the hash of the weights is not the one that the card states.
    """
    import torch
    from safetensors.torch import load_file

    path = Path(path)
    card = load_card(path)
    if not path.is_file():
        raise ValueError(f"no weights: expected {path}")
    found = sha256_of(path)
    if card.get("sha256") != found:
        raise ValueError(f"{path} was altered: its card states SHA-256 {card.get('sha256')}, the file has {found}")
    tensors = load_file(path)
    return {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in tensors.items()}, card
