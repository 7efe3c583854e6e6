"""The prior as it is used: files, widths, seeds, and independence of neighbours."""

import json

import pytest
import torch
import torch.nn.functional as F

from lrm_base.card import save_weights
from prior.model import Prior
from prior.network import PriorNetwork


@pytest.fixture
def prior():
    torch.manual_seed(0)
    network = PriorNetwork(8, 5, 16, 2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Prior(network, torch.randn(5) * 3, torch.rand(5) + 0.5, 100).eval()


@pytest.fixture
def text():
    return F.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), dim=1)


def test_what_was_saved_comes_back_with_its_card(prior, text, tmp_path):
    path = tmp_path / "prior.safetensors"
    prior.save(path, {"name": "toy"})
    loaded, card = Prior.load(path)
    assert card["name"] == "toy"
    assert card["kind"] == "diffusion"
    assert card["network"] == {"text_width": 8, "dim": 5, "width": 16, "depth": 2, "timesteps": 100}
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    prior.load_state_dict({key: value.half().float() for key, value in prior.state_dict().items()})
    assert torch.equal(loaded.sample(text), prior.sample(text))


def test_loading_leaves_the_callers_random_numbers_alone(prior, tmp_path):
    prior.save(tmp_path / "prior.safetensors", {})
    before = torch.get_rng_state()
    Prior.load(tmp_path / "prior.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_text_embedding_of_another_width_is_refused(prior):
    with pytest.raises(ValueError, match="expected width 8, got 7; was the prior trained with another text encoder"):
        prior.sample(torch.randn(2, 7))


def test_samples_do_not_depend_on_what_stands_beside_a_text(prior, text):
    together = prior.sample(text, num_samples=4)
    for index in range(3):
        torch.testing.assert_close(prior.sample(text[index : index + 1], num_samples=4)[0], together[index])
    torch.testing.assert_close(prior.sample(text.flip(0), num_samples=4).flip(0), together)


def test_the_seed_decides_the_samples_and_the_global_generator_does_not(prior, text):
    first = prior.sample(text, seed=3)
    torch.manual_seed(99)
    assert torch.equal(prior.sample(text, seed=3), first)
    assert not torch.equal(prior.sample(text, seed=4), first)


def test_a_goal_is_the_mean_of_its_samples(prior, text):
    samples = prior.sample(text, num_samples=6, steps=3, guidance=2.0, seed=1)
    assert samples.shape == (3, 6, 5)
    torch.testing.assert_close(prior.goals(text, num_samples=6, steps=3, guidance=2.0, seed=1), samples.mean(1))
    assert not torch.allclose(samples[:, 0], samples[:, 1])


def test_different_texts_and_different_guidance_give_different_goals(prior, text):
    goals = prior.goals(text)
    assert not torch.allclose(goals[0], goals[1])
    assert not torch.allclose(goals, prior.goals(text, guidance=3.0))


def test_samples_come_in_logits_of_the_backbone(prior, text):
    """Standardised values times std plus mean: moving the statistics moves the samples alike."""
    before = prior.sample(text)
    with torch.no_grad():
        prior.mean += 10
    torch.testing.assert_close(prior.sample(text), before + 10)


def test_an_altered_file_and_a_file_of_something_else_are_refused(prior, tmp_path):
    path = tmp_path / "prior.safetensors"
    prior.save(path, {})
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**card, "network": {**card["network"], "depth": 3}}))
    with pytest.raises(ValueError, match="does not hold a prior as its card says"):
        Prior.load(path)
    path.with_suffix(".json").write_text(json.dumps({**card, "sha256": "0"}))
    with pytest.raises(ValueError, match="was altered"):
        Prior.load(path)
    save_weights(path, {"w": torch.zeros(1)}, {"name": "no prior"})
    with pytest.raises(ValueError, match="does not hold a prior"):
        Prior.load(path)
