"""A whole model folder, untrained and small, in the format of the embedded one: what steering is tested on."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lrm_base.card import save_weights
from lrm_core.backbones import Preprocessing
from lrm_core.prototypes import Prototypes
from lrm_core.weights import build, save_model
from prior.captions import with_article
from prior.model import Prior
from prior.network import PriorNetwork
from prior.text import TextEncoder
from steering import Steerer
from steering.evidence import FEATURES, Verdict, save_verdicts

NAMES = ("cat", "beagle", "lemon", "teapot", "bridge", "sweater")


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory, toy_text: Path) -> Path:
    """Six classes, 16 px, random weights, feedback that acts; verdicts that read the support after steering."""
    folder = tmp_path_factory.mktemp("models") / "toy"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, entry = build("mini", len(NAMES))
        for path in model.paths.values():
            torch.nn.init.normal_(path.projection.weight, std=0.2)
        torch.nn.init.normal_(model.backbone.fc.weight)
        network = PriorNetwork(24, len(NAMES), 16, 1)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    save_model(
        folder / "backbone.safetensors",
        model,
        name="toy",
        backbone="mini",
        preprocessing=Preprocessing(16),
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
def toy(toy_folder: Path) -> Steerer:
    """That folder, loaded as a user loads one."""
    return Steerer.load(toy_folder, device="cpu")


@pytest.fixture(scope="session")
def labelled() -> tuple[torch.Tensor, torch.Tensor]:
    """Noise images of 16 px, pixels in 0–1, five of each class; every class has its own mean colour."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(5 * len(NAMES)) % len(NAMES)
    colours = torch.rand(len(NAMES), 3, 1, 1, generator=generator)
    return (colours[labels] + 0.1 * torch.rand(len(labels), 3, 16, 16, generator=generator)).clamp(0, 1), labels
