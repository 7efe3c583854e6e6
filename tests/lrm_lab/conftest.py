"""What the laboratory's tests share: small scenes of the toy model, its measurements, attacked networks, responses."""

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torchmetrics", reason="needs the extra `evaluate`")

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from lrm_core.feedback import Connection
from lrm_core.model import LRM
from lrm_core.trials import Triplets
from lrm_lab import composites, examples, retrieval, single, where, words
from lrm_lab.triplets import draw_all
from steering import Goal, Steerer
from steering.network import Network

Labelled = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="session")
def challenge(toy: Steerer, labelled: Labelled) -> list[Triplets]:
    """Eight scenes of every kind."""
    return draw_all(labelled[1], len(toy.class_names), 8, 0)


@pytest.fixture(scope="session")
def silent(toy: Steerer) -> Steerer:
    """The toy with feedback that is zero: every pass is the first, whatever the goal."""
    model = copy.deepcopy(toy.network.model)
    for path in model.paths.values():
        torch.nn.init.zeros_(path.projection.weight)
    return toy.with_network(toy.network.with_model(model), toy.verdicts)


@pytest.fixture(scope="session")
def evaluated(toy: Steerer, challenge: list[Triplets], labelled: Labelled) -> dict[str, Any]:
    """Results with every part that the README's table needs, as they are read back from a file."""
    network = toy.network
    adding = copy.deepcopy(network.model)
    adding.rule = "add"
    results = {
        "model": "toy",
        "backbone_sha256": network.card["sha256"],
        "prior": "diffusion",
        "seed": 0,
        "strength": network.defaults.strength,
        "passes": network.defaults.passes,
        "single": single.measure(toy, *labelled),
        "words": words.measure(toy),
        "composites": composites.measure(toy, challenge, *labelled, controls={"additive": adding}),
        "where": where.measure(toy, challenge, *labelled),
        "search": retrieval.measure(toy, *labelled, scenes=5, queries=3),
    }
    return json.loads(json.dumps(results, allow_nan=False))


@pytest.fixture(scope="session")
def as_unfamiliar() -> Callable[[Goal], Goal]:
    """A copy of a goal, as if its words could not be judged."""

    def unfamiliar(goal: Goal) -> Goal:
        return Goal(goal.name, goal.vector, goal.source, goal.familiarity, unfamiliar="no such thing")

    return unfamiliar


@pytest.fixture(scope="session")
def make_network() -> Callable[[], nn.Sequential]:
    """Makes a plain network that is small. Its classifier has 128 inputs."""

    def network() -> nn.Sequential:
        layers = {"conv": nn.Conv2d(3, 8, 8, 8), "relu": nn.ReLU(), "flatten": nn.Flatten(), "fc": nn.Linear(128, 6)}
        return nn.Sequential(OrderedDict(layers))

    return network


@pytest.fixture(scope="session")
def grey(labelled: Labelled) -> Labelled:
    """Grey noise with a shade of each class's colour, which a large ball of pixels can wash away."""
    return 0.45 + 0.1 * labelled[0], labelled[1]


@pytest.fixture(scope="session")
def small(toy: Steerer, grey: Labelled, make_network: Callable[[], nn.Sequential]) -> Network:
    """Two passes of a network that knows the grey images in both."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        model = LRM(make_network(), [Connection("fc", "conv")], 32)
        nn.init.normal_(model.paths["fc->conv"].projection.weight, std=0.3)
        optimiser = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(60):
            outputs = model.rollout(toy.network.preprocessing.normalise(grey[0]), 2)
            loss = torch.stack([F.cross_entropy(output, grey[1]) for output in outputs]).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    network = toy.network.with_model(model.eval().requires_grad_(False))
    return network.with_defaults(replace(network.defaults, passes=2))


@pytest.fixture(scope="session")
def attacked(small: Network, grey: Labelled) -> dict[str, Any]:
    """Every measure of `robustness`, quickly. The plain twin is another copy of the backbone."""
    pytest.importorskip("art", reason="needs the extra `evaluate`")
    from lrm_lab import robustness

    return robustness.measure(small, small.model.backbone, *grey, quick=True, images=12, seed=3)


@pytest.fixture(scope="session")
def judge(toy: Steerer) -> Steerer:
    """The toy with a verdict that says yes to about half of its trials."""
    assert toy.verdict is not None
    weights = tuple(5.0 if weight else 0.0 for weight in toy.verdict.weights)
    return toy.with_network(toy.network, {"diffusion": replace(toy.verdict, weights=(13.5, *weights[1:]))})


@pytest.fixture(scope="session")
def everything(judge: Steerer, labelled: Labelled) -> examples.Examples:
    """Twelve trials, of which all are shown, and every failure."""
    return examples.gather(judge, *labelled, per_kind=12, trials=12, seed=5)


@pytest.fixture(scope="session")
def make_item() -> Callable[..., examples.Item]:
    """Makes an item whose object fills the left half of the scene. `peak` is a row and a column of four by four."""

    def item(
        truth: Any = "present",
        probability: float = 0.2,
        peak: tuple[int, int] = (0, 0),
        trial: int = 0,
        kind: str = "side",
    ) -> examples.Item:
        heatmap = torch.zeros(4, 4)
        heatmap[peak] = 1.0
        box = (0.0, 0.0, 0.5, 1.0) if truth == "present" else None
        names = ("cat", "lemon")
        return examples.Item(kind, trial, Image.new("RGB", (8, 8)), heatmap, "a cat", truth, probability, names, box)

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
