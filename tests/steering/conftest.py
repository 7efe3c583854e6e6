"""A whole model folder, untrained and small, in the format of the embedded one: what steering is tested on."""

import copy
import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from lrm_base.card import save_weights
from lrm_core.backbones import Preprocessing
from lrm_core.feedback import Connection
from lrm_core.model import LRM
from lrm_core.prototypes import Prototypes
from lrm_core.weights import build, save_model
from prior.captions import with_article
from prior.model import Prior
from prior.network import PriorNetwork
from prior.text import TextEncoder
from steering import Steerer
from steering.evaluate import composites, gallery, single, where
from steering.evaluate.triplets import draw_all
from steering.evidence import FEATURES, Verdict, save_verdicts
from steering.trials import Triplets

NAMES = ("cat", "beagle", "lemon", "teapot", "bridge", "sweater")


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory, toy_text: Path) -> Path:
    """Six classes, 32 px (two by two places to choose from), random weights, feedback that acts.

    Its verdicts read the support after steering.
    """
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
def toy(toy_folder: Path) -> Steerer:
    """That folder, loaded as a user loads one."""
    return Steerer.load(toy_folder, device="cpu")


@pytest.fixture(scope="session")
def labelled() -> tuple[torch.Tensor, torch.Tensor]:
    """Noise images of 32 px, pixels in 0–1, five of each class; every class has its own mean colour."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(5 * len(NAMES)) % len(NAMES)
    colours = torch.rand(len(NAMES), 3, 1, 1, generator=generator)
    return (colours[labels] + 0.1 * torch.rand(len(labels), 3, 32, 32, generator=generator)).clamp(0, 1), labels


@pytest.fixture(scope="session")
def challenge(labelled: tuple[torch.Tensor, torch.Tensor]) -> list[Triplets]:
    """Eight scenes of every kind."""
    return draw_all(labelled[1], len(NAMES), 8, 0)


@pytest.fixture(scope="session")
def silent(toy: Steerer) -> Steerer:
    """The same with feedback that is zero: every pass is the first, whatever the goal."""
    model = copy.deepcopy(toy.model)
    for path in model.paths.values():
        torch.nn.init.zeros_(path.projection.weight)
    return with_verdicts(toy, model)


def with_verdicts(steerer: Steerer, model: LRM) -> Steerer:
    """Another network under the same words, defaults and verdicts."""
    other = steerer.with_model(model)
    other.verdicts = steerer.verdicts
    return other


@pytest.fixture(scope="session")
def evaluated(toy: Steerer, challenge: list[Triplets], labelled: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Any]:
    """What `steer evaluate composites` keeps, as it is read back from a file."""
    adding = copy.deepcopy(toy.model)
    adding.rule = "add"
    results = {
        "model": "toy",
        "backbone_sha256": toy.card["sha256"],
        "prior": "diffusion",
        "seed": 0,
        "strength": toy.defaults.strength,
        "passes": toy.defaults.passes,
        "single": single.measure_single(toy, *labelled),
        "words": single.measure_words(toy),
        "composites": composites.measure(toy, challenge, *labelled, controls={"additive": adding}),
        "where": where.measure(toy, challenge, *labelled),
    }
    return json.loads(json.dumps(results, allow_nan=False))


@pytest.fixture(scope="session")
def make_network() -> Callable[[], nn.Sequential]:
    """Makes a plain network that is small, and with 128 inputs of its classifier."""

    def network() -> nn.Sequential:
        layers = {"conv": nn.Conv2d(3, 8, 8, 8), "relu": nn.ReLU(), "flatten": nn.Flatten(), "fc": nn.Linear(128, 6)}
        return nn.Sequential(OrderedDict(layers))

    return network


@pytest.fixture(scope="session")
def grey(labelled: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey noise with a shade of each class's colour, which a large ball of pixels can wash away."""
    return 0.45 + 0.1 * labelled[0], labelled[1]


@pytest.fixture(scope="session")
def small(toy: Steerer, grey: tuple[torch.Tensor, torch.Tensor], make_network: Callable[[], nn.Sequential]) -> Steerer:
    """Two passes of a network that knows the grey images in both."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        model = LRM(make_network(), [Connection("fc", "conv")], 32)
        nn.init.normal_(model.paths["fc->conv"].projection.weight, std=0.3)
        optimiser = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(60):
            outputs = model.rollout(toy.preprocessing.normalise(grey[0]), 2)
            loss = torch.stack([F.cross_entropy(output, grey[1]) for output in outputs]).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    steerer = toy.with_model(model.eval().requires_grad_(False))
    steerer.defaults = replace(steerer.defaults, passes=2)
    return steerer


@pytest.fixture(scope="session")
def attacked(small: Steerer, grey: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Any]:
    """Every part of `robustness`, quickly; the plain twin is another copy of the backbone."""
    from steering.evaluate import robustness

    return robustness.measure(small, small.model.backbone, *grey, quick=True, images=12, seed=3)


@pytest.fixture(scope="session")
def judge(toy: Steerer) -> Steerer:
    """With a verdict that says yes to about half of the toy's trials."""
    assert toy.verdict is not None
    weights = tuple(5.0 if weight else 0.0 for weight in toy.verdict.weights)
    other = toy.with_model(toy.model)
    other.verdicts = {"diffusion": replace(toy.verdict, weights=(13.5, *weights[1:]))}
    return other


@pytest.fixture(scope="session")
def everything(judge: Steerer, labelled: tuple[torch.Tensor, torch.Tensor]) -> gallery.Gallery:
    """Twelve trials, of which all are shown, and every failure."""
    return gallery.gather(judge, *labelled, per_kind=12, trials=12, seed=5)


@pytest.fixture(scope="session")
def make_item() -> Callable[..., gallery.Item]:
    """Makes one whose object fills the left half of the scene; `peak` is a row and a column of four by four."""

    def item(
        truth: Any = "present",
        probability: float = 0.2,
        peak: tuple[int, int] = (0, 0),
        trial: int = 0,
        kind: str = "side",
    ) -> gallery.Item:
        heatmap = torch.zeros(4, 4)
        heatmap[peak] = 1.0
        box = (0.0, 0.0, 0.5, 1.0) if truth == "present" else None
        names = ("cat", "lemon")
        return gallery.Item(kind, trial, Image.new("RGB", (8, 8)), heatmap, "a cat", truth, probability, names, box)

    return item


@pytest.fixture(scope="session")
def brain92(shared: Path) -> Path:
    """The folder of the 92 images and their RDMs."""
    return shared / "data" / "brain92"


@pytest.fixture(scope="session")
def stimuli(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sixty pictures of coloured noise, 16 px, as files."""
    folder = tmp_path_factory.mktemp("stimuli")
    generator = np.random.default_rng(0)
    names = []
    for index in range(60):
        noise = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((16, 16), Image.Resampling.BICUBIC)
        names.append(folder / f"{index:03}.png")
        picture.save(names[-1])
    return names


@pytest.fixture(scope="session")
def save_responses() -> Callable[..., Path]:
    """Writes `mine.npz` into a folder, as users are told to write their responses."""

    def save(folder: Path, responses: np.ndarray, names: Any, **more: Any) -> Path:
        path = folder / "mine.npz"
        np.savez(path, responses=responses, images=np.array([str(n) for n in names]), **more)
        return path

    return save
