"""What all tests share: one thread each, no display, no downloads, `../shared`, a toy model and the mini model.

The mini model, trained and small, is the default of all tests, whatever users get by default. Tests of what users get
ask for `shipped_default` or `shipped_steerer`.
"""

import io
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; one worker, one thread
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test never downloads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from steering import Steerer

ROOT = Path(__file__).resolve().parent.parent
MINI = ROOT / "tests" / "models" / "lrm_mini"
os.environ["STEER_MODEL"] = str(MINI)  # of subprocesses, too


@pytest.fixture(scope="session")
def shared() -> Path:
    """The developers' material beside the project; a test that needs it is skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared, which only developers and CI have")
    return folder


@pytest.fixture(scope="module")
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[None]":
    """A cache for torch.hub and a folder for data of the tests of one file."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "_hub_dir", str(tmp_path_factory.mktemp("hub")))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def write_colours() -> "Callable[[Path, int, int], None]":
    """Writes a data set of five colours with noise, to train on: (folder, side in pixels, number to validate)."""
    import datasets
    import numpy as np
    from PIL import Image

    colours = {
        "red": (220, 30, 30),
        "green": (30, 220, 30),
        "blue": (30, 30, 220),
        "black": (20, 20, 20),
        "white": (240, 240, 240),
    }

    def encoded(label: int, seed: int, side: int) -> dict[str, object]:
        pixels = np.random.default_rng(seed).normal(list(colours.values())[label], 25, (side, side, 3))
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    def write(folder: Path, side: int, validate: int) -> None:
        for part, count in (("train", 165), ("valid", validate)):
            rows = {"image": [encoded(i % 5, i, side) for i in range(count)], "label": [i % 5 for i in range(count)]}
            datasets.Dataset.from_dict(rows).to_parquet(folder / f"{part}-00000-of-00001.parquet")
        classes = [{"name": name, "is_a": ["colour"] if name in ("red", "green", "blue") else []} for name in colours]
        (folder / "classes.json").write_text(json.dumps(classes))

    return write


@pytest.fixture(scope="session")
def toy_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder's folder in the format of the embedded one: OpenCLIP, random weights, 24-D, 16 tokens."""
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
    """The mini model on the CPU, as a user loads a folder."""
    from steering import Steerer

    return Steerer.load(MINI, device="cpu")


@pytest.fixture(scope="session")
def mini_folder() -> Path:
    """The folder of the mini model."""
    return MINI


@pytest.fixture
def shipped_default(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the model that users get. Meanwhile it is the default, in subprocesses too."""
    from steering.catalogue import DEFAULT_MODEL, MODEL_VARIABLE, find_model

    monkeypatch.delenv(MODEL_VARIABLE)
    return find_model(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def shipped_steerer() -> "Steerer":
    """The model that users get, on the CPU, for tests of what it answers."""
    from steering import Steerer
    from steering.catalogue import DEFAULT_MODEL

    return Steerer.load(DEFAULT_MODEL, device="cpu")


NAMES = ("cat", "beagle", "lemon", "teapot", "bridge", "sweater")


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory, toy_text: Path) -> Path:
    """A whole model folder in the format of the embedded one, untrained and small.

    It has six classes, 32 px (two by two places to choose from), random weights and feedback that acts. Its
    verdicts read the support after steering.
    """
    import torch

    from lrm_base.card import save_weights
    from lrm_core.backbones import Preprocessing
    from lrm_core.prototypes import Prototypes
    from lrm_core.weights import build, save_model
    from prior.captions import with_article
    from prior.model import Prior
    from prior.network import PriorNetwork
    from prior.text import TextEncoder
    from steering.evidence import FEATURES, Verdict, save_verdicts

    folder = tmp_path_factory.mktemp("models") / "toy"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, entry = build("mini", len(NAMES))
        for path in model.paths.values():
            torch.nn.init.normal_(path.projection.weight, std=0.2)
        torch.nn.init.normal_(model.backbone.fc.weight)
        torch.nn.init.normal_(model.backbone.attend.weight)  # templates that answer somewhere
        network = PriorNetwork(24, len(NAMES), 16, 1)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    save_model(
        folder / "backbone.safetensors",
        model,
        name="toy",
        backbone="mini",
        preprocessing=Preprocessing(32),
        output=entry.output,
        classes=[{"name": name} for name in NAMES],
        training={"data": {"num_holdout": 40}},
        measured={},
    )
    sha = json.loads((folder / "backbone.json").read_text())["sha256"]
    prior = Prior(network, torch.zeros(len(NAMES)), torch.full((len(NAMES),), 4.0), 50)
    prior.save(folder / "prior.safetensors", {"name": "toy_prior", "backbone_sha256": sha})
    shutil.copytree(toy_text, folder / "text")
    embeddings = TextEncoder.load(toy_text).encode([with_article(name) for name in NAMES])
    save_weights(folder / "vocabulary.safetensors", {"embeddings": embeddings}, {"name": "vocabulary"})
    (folder / "steering.json").write_text(json.dumps({"strength": 1.0, "passes": 3, "num_samples": 4}))
    count = len(FEATURES)
    weights = [0.0] * (1 + count + count * (count + 1) // 2)
    weights[1 + FEATURES.index("support after")] = 1.0
    verdict = Verdict((0.0,) * count, (1.0,) * count, tuple(weights))
    save_verdicts(folder / "verdict.json", dict.fromkeys(("diffusion", "prototype"), verdict), sha)
    mean = 6 * torch.eye(len(NAMES)).expand(3, -1, -1).contiguous()
    count_of_each = torch.ones(len(NAMES), dtype=torch.long)
    prototypes = Prototypes(NAMES, count_of_each, mean, torch.ones_like(mean), {"backbone_sha256": sha})
    prototypes.save(folder / "prototypes.safetensors")
    return folder


@pytest.fixture(scope="session")
def toy(toy_folder: Path) -> "Steerer":
    """That folder, loaded as a user loads one."""
    from steering import Steerer

    return Steerer.load(toy_folder, device="cpu")


@pytest.fixture(scope="session")
def labelled() -> "tuple[torch.Tensor, torch.Tensor]":
    """Noise images of 32 px, pixels in 0–1, five of each class; every class has its own mean colour."""
    import torch

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(5 * len(NAMES)) % len(NAMES)
    colours = torch.rand(len(NAMES), 3, 1, 1, generator=generator)
    return (colours[labels] + 0.1 * torch.rand(len(labels), 3, 32, 32, generator=generator)).clamp(0, 1), labels
