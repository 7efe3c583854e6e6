"""Weights and their card: what was saved comes back, what was altered is refused."""

import json

import pytest
import torch

from lrm_base.card import load_card, load_weights, save_weights


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "m.safetensors"
    save_weights(path, {"w": torch.randn(3, 4), "n": torch.arange(3)}, {"name": "m"}, half=True)
    return path


def test_half_precision_comes_back_as_float32_and_integers_untouched(saved):
    tensors, card = load_weights(saved)
    assert tensors["w"].dtype == torch.float32
    assert tensors["n"].tolist() == [0, 1, 2]
    assert card["name"] == "m"


def test_altered_weights_are_refused(saved):
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    saved.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="was altered"):
        load_weights(saved)


def test_a_missing_card_or_file_is_named(saved, tmp_path):
    with pytest.raises(ValueError, match=r"no weight card: expected .*other\.json"):
        load_weights(tmp_path / "other.safetensors")
    saved.unlink()
    with pytest.raises(ValueError, match="no weights"):
        load_weights(saved)


@pytest.mark.parametrize("text", ["[]", "{"])
def test_a_card_that_is_no_json_object_is_refused(saved, text):
    saved.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match=r"m\.json"):
        load_card(saved)


def test_the_card_stands_in_the_weights_too(saved):
    from safetensors import safe_open

    with safe_open(saved, "pt") as file:
        assert json.loads(file.metadata()["card"])["name"] == "m"


def test_eight_bits_take_a_quarter_and_come_back_close(tmp_path):
    torch.manual_seed(0)
    value = torch.randn(50, 64) * torch.logspace(-3, 2, 50)[:, None]  # rows of very different size
    save_weights(tmp_path / "m.safetensors", {"w": value, "v": torch.ones(2)}, {}, eight_bits=["w"])
    tensors, _ = load_weights(tmp_path / "m.safetensors")
    assert tensors.keys() == {"w", "v"}
    assert ((tensors["w"] - value).abs() <= value.abs().amax(1, keepdim=True) / 127 / 2 + 1e-9).all()
    assert (tmp_path / "m.safetensors").stat().st_size < value.numel() * 1.6
