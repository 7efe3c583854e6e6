"""Memberships, and goals that are made of them."""

import pytest
import torch

from prior.meaning import GAP, MeaningPrior, goals_of


def toy(count=5):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        profiles = torch.randn(count, count) + 8 * torch.eye(count)
        prior = MeaningPrior(6, profiles, width=8)
    return prior.eval().requires_grad_(False)


def texts(count=3):
    return torch.nn.functional.normalize(torch.randn(count, 6, generator=torch.Generator().manual_seed(1)), dim=1)


def test_words_are_known_that_mean_a_class_and_are_of_the_vocabulary():
    prior, embeddings = toy(), texts()
    members, known = prior.members(embeddings), prior.known(embeddings)
    assert members.shape == (3, 5)
    assert known.shape == (3,)
    assert 0 < float(members.min()) <= float(members.max()) < 1
    torch.testing.assert_close(prior.members(3 * embeddings), members)
    own = prior(embeddings).sigmoid()
    torch.testing.assert_close(own[:, :-1], members)
    torch.testing.assert_close(own[:, -1] * members.amax(1), known)


def test_a_goal_is_graded_by_membership():
    profiles = toy().profiles
    members = torch.tensor([[0.8, 0.6, 0.3, 0.01, 0.0]])
    goal = goals_of(members, profiles)[0]
    shares = goal.softmax(0) / goal.softmax(0).max()
    torch.testing.assert_close(shares[1], torch.tensor(0.75))
    assert float(shares[2:].max()) <= torch.tensor(-GAP).exp() + 1e-6
    weights = torch.tensor([0.8, 0.6, 0.3, 0.0, 0.0]) / 1.7
    torch.testing.assert_close(goal.max(), (weights @ profiles).max())


def test_the_largest_membership_counts_even_if_it_is_small():
    profiles = toy().profiles
    goal = goals_of(torch.tensor([[0.001, 0.02, 0.004, 0.0, 0.001]]), profiles)[0]
    assert int(goal.argmax()) == 1
    torch.testing.assert_close(goal.max(), profiles[1].max())
    assert float(goal.topk(2).values.diff().abs()) >= GAP - 1e-5
    assert goals_of(torch.zeros(1, 5), profiles).isfinite().all()


def test_the_options_of_a_trained_prior_are_checked_and_change_nothing():
    prior, embeddings = toy(), texts()
    samples = prior.sample(embeddings, num_samples=3, steps=10, guidance=2.0, seed=5)
    assert samples.shape == (3, 3, 5)
    assert torch.equal(samples[:, 2], prior.goals(embeddings, num_samples=16, seed=1))
    torch.testing.assert_close(prior.goals(embeddings)[1:2], prior.goals(embeddings[1:2]))
    with pytest.raises(TypeError, match="step_count"):
        prior.goals(embeddings, step_count=3)
    with pytest.raises(ValueError, match="num_samples"):
        prior.goals(embeddings, num_samples=0)


def test_it_is_saved_and_loaded(tmp_path):
    prior = toy()
    prior.save(tmp_path / "prior.safetensors", {"name": "toy", "backbone_sha256": "abc"})
    loaded, card = MeaningPrior.load(tmp_path / "prior.safetensors")
    assert (card["kind"], card["backbone_sha256"]) == ("meaning", "abc")
    torch.testing.assert_close(loaded.goals(texts()), prior.goals(texts()), atol=2e-2, rtol=0)
    assert not loaded.training


def test_what_does_not_fit_is_refused(tmp_path):
    from prior.model import Prior
    from prior.network import PriorNetwork

    with pytest.raises(ValueError, match=r"text embedding: expected width 6, got 7"):
        toy().members(torch.zeros(1, 7))
    with pytest.raises(ValueError, match=r"profiles: expected as many rows as columns, got \(2, 3\)"):
        MeaningPrior(6, torch.zeros(2, 3))
    other = Prior(PriorNetwork(6, 5, 8, 1), torch.zeros(5), torch.ones(5), 10)
    other.save(tmp_path / "prior.safetensors", {"name": "other"})
    with pytest.raises(ValueError, match="a prior of kind 'diffusion', expected 'meaning'"):
        MeaningPrior.load(tmp_path / "prior.safetensors")
