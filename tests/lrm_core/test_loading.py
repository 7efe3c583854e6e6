"""Models as they are loaded: `lrm_core.weights.load_model`."""

from pathlib import Path

import torch

from lrm_base.card import load_weights
from lrm_core.efficientnet import published_weights
from lrm_core.weights import build, load_model


def test_loaded_weights_lie_in_memory_as_new_ones_do(shipped_default: Path) -> None:
    """Otherwise convolutions round otherwise. Some published weights are stored with their channels last."""
    stored = published_weights("efficientnet_lite0")
    assert any(not value.is_contiguous() for value in stored.values())
    model, _, card = load_model(shipped_default / "backbone.safetensors")
    new = build(card["backbone"], len(card["classes"]))[0].state_dict()
    assert {key: value.stride() for key, value in model.state_dict().items()} == {
        key: value.stride() for key, value in new.items()
    }


def test_a_loaded_model_has_the_stored_weights_and_draws_none(shipped_default: Path) -> None:
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    model, _, _ = load_model(shipped_default / "backbone.safetensors")
    assert torch.equal(torch.rand(2), expected)
    stored = {f"backbone.{key}": value for key, value in published_weights("efficientnet_lite0").items()}
    stored |= load_weights(shipped_default / "backbone.safetensors")[0]
    found = model.state_dict()
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[key], value) for key, value in stored.items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
