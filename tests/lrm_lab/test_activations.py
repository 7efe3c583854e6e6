"""Features of a pass are its activations; a random projection keeps their distances."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("sklearn", reason="needs the extra `evaluate`")

from lrm_lab.activations import layer_names, pass_features, random_projection
from steering import Steerer


@pytest.fixture(scope="module")
def pixels(toy: Steerer, stimuli: list[Path]) -> torch.Tensor:
    return torch.cat([toy.network.pixels(Image.open(name).convert("RGB")) for name in stimuli])


def test_features_of_a_pass_are_those_of_the_roll_out(toy: Steerer, pixels: torch.Tensor) -> None:
    features = pass_features(toy.network, pixels, layer_names(toy.network))
    with torch.no_grad():
        outputs = toy.network.model.rollout(pixels, toy.network.defaults.passes)
    for found, output in zip(features, outputs, strict=True):
        np.testing.assert_allclose(found[toy.network.output], output.numpy(), rtol=1e-4, atol=1e-4)
    goal = toy.goal("a cat").vector
    steered = pass_features(toy.network, pixels, [toy.network.output], goal=goal)
    last = toy.network.steer(toy.network.glance(pixels), goal.expand(len(pixels), -1))
    np.testing.assert_allclose(steered[-1][toy.network.output], last.output.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(steered[0][toy.network.output], features[0][toy.network.output], rtol=1e-4, atol=1e-4)
    assert np.abs(steered[-1][toy.network.output] - features[-1][toy.network.output]).max() > 0.01


def test_random_projection_keeps_distances() -> None:
    values = np.random.default_rng(0).normal(size=(10, 5000)).astype(np.float32)
    project = random_projection(1000, seed=0)
    small = project("a", values)
    assert small.shape == (10, 1000)
    np.testing.assert_array_equal(project("a", values[:3]), small[:3])  # the same for every batch and pass
    np.testing.assert_array_equal(project("b", values[:, :900]), values[:, :900])
    full, reduced = (np.linalg.norm(v[0] - v[1]) for v in (values, small))
    assert reduced == pytest.approx(full, rel=0.15)
