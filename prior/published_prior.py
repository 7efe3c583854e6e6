"""The published files for language: priors from OpenAI's CLIP ViT-B/16 to the published LRM AlexNets, and prototypes.

The hash of a file is checked before the file is read. Weights load strictly: the error names keys that are missing,
unexpected or of another shape.
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
        name_or_path: a name of `PRIORS`, which is downloaded once, or a file in the published format. The name of a
            file must end in the first digits of its SHA-256, as the published names do.
        image_embed_scale: as in `PublishedPrior`. None means the file's own under `params`, if it has one.
        folder: where downloads are kept; torch.hub's folder if None.

    Raises:
        ValueError: there is no such name or file, the file has another hash, or it does not hold the weights of a
            prior. In the last case the message names the keys.
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
        wrong_keys = "; ".join(f"{problem}: {keys}" for problem, keys in problems.items() if keys)
        raise ValueError(f"{path} is not a prior in the published format; {wrong_keys}")
    prior.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)
    return prior.eval().requires_grad_(False).to(device)


def load_clip_prototypes(name_or_path: str | Path, *, folder: str | Path | None = None) -> dict[int, dict[str, Any]]:
    """Statistics of a published prior's goals for each class name, in the backbone's logits.

    Args:
        name_or_path: a name of `CLIP_PROTOTYPES`, or a file, as in `load_prior`.
        folder: as in `load_prior`.

    Returns:
        Class index → count, sum, sumsq, mean, std.

    Raises:
        ValueError: there is no such name or file, the file has another hash, or it holds something else.
    """
    path, payload = _read(name_or_path, CLIP_PROTOTYPES, folder)
    for index, entry in payload.items():
        if not isinstance(index, int) or not isinstance(entry, Mapping) or set(entry) != set(STATISTICS):
            held = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else type(entry).__name__
            raise ValueError(
                f"{path} does not hold prototypes: expected class index → {', '.join(STATISTICS)}; "
                f"got {index!r} → {held}"
            )
    return payload


def _read(name_or_path: str | Path, table: Mapping[str, str], folder: str | Path | None) -> tuple[Path, dict[Any, Any]]:
    """The path of the file, whose hash is checked, and what the file holds."""
    if str(name_or_path) in table:
        path = fetch(table[str(name_or_path)], folder=folder)
    elif Path(name_or_path).is_file():
        path = verify(name_or_path)
    else:
        raise ValueError(f"got {str(name_or_path)!r}, which is neither a file nor one of {', '.join(table)}")
    # The published training saved its results in a defaultdict(list). `weights_only` refuses that, so we read a dict.
    with torch.serialization.safe_globals([(_plain, "collections.defaultdict"), list]):
        payload = read_pth(path)
    if not isinstance(payload, dict) or not payload:
        raise ValueError(f"{path}: expected a dictionary, got {type(payload).__name__} of {len(payload)}")
    return path, payload


def _plain(*_default: Any) -> dict[Any, Any]:
    return {}


def _shape(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `PublishedPrior` that fit these tensors."""
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
