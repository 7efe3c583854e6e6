"""Published files of language: priors from OpenAI CLIP ViT-B/16 to the published LRM AlexNets, and their prototypes.

A file's hash is checked before it is read, and it loads strictly: keys that are missing, unexpected or of another shape
are named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrm_base.download import fetch, read_pth, unwrapped, verify
from prior.published_model import METHODS, TEXT_ENCODER, PublishedPrior

__all__ = [
    "CLIP_PROTOTYPES",
    "METHODS",
    "PRIORS",
    "TEXT_ENCODER",
    "PublishedPrior",
    "load_clip_prototypes",
    "load_prior",
]

STATISTICS = ("count", "sum", "sumsq", "mean", "std")

_RELEASE = "https://github.com/harvard-visionlab/lrm-steering/releases/download/prototypes-v1/"
PRIORS = {
    "alexnet_lrm1": f"{_RELEASE}clip_diffusion_aligned_ep4_ViT_B16_to_alexnet_lrm1_40b29a3427-6016e8d4.pth",
    "alexnet_lrm2": f"{_RELEASE}clip_diffusion_aligned_ep4_ViT_B16_to_alexnet_lrm2_17b4229a30-59b5b992.pth",
    "alexnet_lrm3": f"{_RELEASE}clip_diffusion_aligned_ep4_ViT_B16_to_alexnet_lrm3_63ab1b3b06-749a3f15.pth",
}
CLIP_PROTOTYPES = {
    "alexnet_lrm1": f"{_RELEASE}clip_diffusion_prototypes_ViT_B16_to_alexnet_lrm1_40b29a3427-8729ac14.pth",
    "alexnet_lrm2": f"{_RELEASE}clip_diffusion_prototypes_ViT_B16_to_alexnet_lrm2_17b4229a30-97b050f0.pth",
    "alexnet_lrm3": f"{_RELEASE}clip_diffusion_prototypes_ViT_B16_to_alexnet_lrm3_63ab1b3b06-b710a264.pth",
}


def load_prior(
    name_or_path: str | Path,
    *,
    image_embed_scale: float | None = None,
    folder: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> PublishedPrior:
    """A published prior, in evaluation mode.

    Args:
        name_or_path: a name of `PRIORS`, which is downloaded once, or a file in the published format and name, which
            ends in the start of the file's SHA-256.
        image_embed_scale: as in `PublishedPrior`. If None, what the file says under `params`, where it does.
        folder: the cache; torch.hub's if None.

    Raises:
        ValueError: no such name or file, a file with another hash, or other weights than a prior's: the keys are named.
    """
    path, payload = _read(name_or_path, PRIORS, folder)
    given = unwrapped(payload)
    tensors = {key.removeprefix("module."): value for key, value in given.items() if torch.is_tensor(value)}
    params = payload.get("params")
    if image_embed_scale is None and isinstance(params, Mapping):
        image_embed_scale = params.get("model.image_embed_scale")
    with torch.device("meta"):
        prior = PublishedPrior(**_shape(path, tensors), image_embed_scale=image_embed_scale)
    expected = prior.state_dict()
    wrong = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    problems = {
        "missing": _list(expected.keys() - tensors.keys()),
        "unexpected": _list(tensors.keys() - expected.keys()),
        "of another shape": _list(wrong),
    }
    if any(problems.values()):
        found = "; ".join(f"{problem}: {keys}" for problem, keys in problems.items() if keys)
        raise ValueError(f"{path} is not a prior in the published format; {found}")
    prior.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)
    return prior.eval().requires_grad_(False).to(device)


def load_clip_prototypes(name_or_path: str | Path, *, folder: str | Path | None = None) -> dict[int, dict[str, Any]]:
    """Statistics of the goals that a published prior gives for each class name, in the backbone's logits.

    Args:
        name_or_path, folder: as in `load_prior`, a name of `CLIP_PROTOTYPES`.

    Returns:
        Class index → count, sum, sumsq, mean, std.

    Raises:
        ValueError: as `load_prior`, or a file of another format.
    """
    path, payload = _read(name_or_path, CLIP_PROTOTYPES, folder)
    for index, entry in payload.items():
        if not isinstance(index, int) or not isinstance(entry, Mapping) or set(entry) != set(STATISTICS):
            found = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else type(entry).__name__
            raise ValueError(
                f"{path} does not hold prototypes: expected class index → {', '.join(STATISTICS)}; "
                f"got {index!r} → {found}"
            )
    return payload


def _read(name_or_path: str | Path, table: Mapping[str, str], folder: str | Path | None) -> tuple[Path, dict[Any, Any]]:
    """The file, its hash checked, and what it holds."""
    if str(name_or_path) in table:
        path = fetch(table[str(name_or_path)], folder=folder)
    elif Path(name_or_path).is_file():
        path = verify(name_or_path)
    else:
        raise ValueError(f"got {str(name_or_path)!r}, which is neither a file nor one of {', '.join(table)}")
    # the published training saved its results as a defaultdict(list), which `weights_only` refuses: a plain one instead
    with torch.serialization.safe_globals([(_plain, "collections.defaultdict"), list]):
        payload = read_pth(path)
    if not isinstance(payload, dict) or not payload:
        raise ValueError(f"{path}: expected a dictionary, got {type(payload).__name__} of {len(payload)}")
    return path, payload


def _plain(*_default: Any) -> dict[Any, Any]:
    return {}


def _shape(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `PublishedPrior`, read off the tensors."""
    net = "diffusion_prior.net."
    first = f"{net}causal_transformer.layers.0."
    sources = {  # argument: (key, dimension)
        "text_width": ("project_text_embedding.weight", 1),
        "dim": (f"{net}learned_query", 0),
        "timesteps": ("diffusion_prior.noise_scheduler.betas", 0),
        "max_text_len": (f"{net}null_text_encodings", 1),
        "heads": (f"{net}causal_transformer.rel_pos_bias.relative_attention_bias.weight", 1),
        "buckets": (f"{net}causal_transformer.rel_pos_bias.relative_attention_bias.weight", 0),
        "head_width": (f"{first}0.null_kv", 1),
        "rotated": (f"{first}0.rotary_emb.freqs", 0),
        "feedforward": (f"{first}1.5.weight", 1),
    }
    missing = [key for key, dimension in sources.values() if key not in tensors or tensors[key].ndim <= dimension]
    if missing:
        got = _list(list(tensors)[:8]) or "no tensors"
        raise ValueError(f"{path} is not a prior in the published format; missing: {_list(missing)}; got {got}")
    shape: dict[str, Any] = {name: tensors[key].shape[dimension] for name, (key, dimension) in sources.items()}
    shape["rotated"] *= 2
    start = f"{net}causal_transformer.layers."
    numbers = [key.removeprefix(start).partition(".")[0] for key in tensors if key.startswith(start)]
    shape["depth"] = 1 + max(int(number) for number in numbers if number.isdecimal())
    shape["token_encodings"] = any(key.startswith("project_text_encoding.") for key in tensors)
    return shape


def _list(names: Iterable[str], most: int = 8) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
