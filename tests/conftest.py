"""What all tests share: one thread each, no display, no downloads, the optional `../shared`, the embedded model."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; one worker, one thread
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test never downloads

if TYPE_CHECKING:
    from steering import Steerer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The developers' material beside the project; a test that needs it is skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared, which only developers and CI have")
    return folder


@pytest.fixture(scope="session")
def toy_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder's folder in the format of the embedded one: OpenCLIP, random weights, 24-D, 16 tokens."""
    import json

    import open_clip
    import torch

    from lrm_base.card import save_weights

    folder = tmp_path_factory.mktemp("text")
    shape = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "toy_clip.json").write_text(json.dumps(shape))
    open_clip.add_model_config(folder / "toy_clip.json")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model("toy_clip")
        torch.nn.init.normal_(model.token_embedding.weight)
    attention = model.transformer.resblocks[0].attn  # even attention: the end token reads a bag of words
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([torch.zeros(32, 16), 4 * torch.eye(16)]))
        attention.out_proj.weight.copy_(torch.eye(16))
    save_weights(folder / "text.safetensors", model.state_dict(), {"name": "toy_clip"})
    return folder


@pytest.fixture(scope="session")
def steerer() -> "Steerer":
    """The embedded model on the CPU, as a user loads it."""
    from steering import Steerer

    return Steerer.load(device="cpu")
