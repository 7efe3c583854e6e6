"""Captioned images as embeddings: what is held out, how pairs are drawn, and what is measured."""

import pytest
import torch
import torch.nn.functional as F

from lrm_base.card import save_weights
from prior.among_texts import AmongTexts
from prior.model import Prior
from prior.network import PriorNetwork
from prior.pairs import KIND, KNOWN_TEXTS, NEW_TEXTS, Captioned, CaptionPairs, measured, ridge


def made(things: int = 40, images: int = 5, width: int = 16) -> Captioned:
    """Two texts and some images of each thing. Images are a rotation of the text, far from all texts, with noise."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(things, width, generator=generator)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    far = 3 * torch.randn(width, generator=generator)
    shows = torch.arange(things).repeat_interleave(images)
    noise = 0.3 * torch.randn(len(shows), width, generator=generator)
    texts = directions.repeat_interleave(2, 0) + 0.1 * torch.randn(2 * things, width, generator=generator)
    return Captioned(
        F.normalize(texts, dim=-1),
        torch.arange(things).repeat_interleave(2),
        F.normalize(directions[shows] @ rotation + far + noise, dim=-1),
        shows,
    )


def test_new_texts_are_held_out_with_all_their_images_and_known_ones_keep_some():
    given = made()
    trained_on, held_out = given.held_out(0.25, 3)
    new, known = held_out[NEW_TEXTS], held_out[KNOWN_TEXTS]
    assert len(new.shows.unique()) == 10
    assert len(new.shows) == 50
    assert not torch.isin(new.shows, trained_on.shows).any()
    assert torch.isin(known.shows, trained_on.shows).all()
    assert len(trained_on.shows) + len(new.shows) + len(known.shows) == len(given.shows)
    again, _ = given.held_out(0.25, 3)
    assert torch.equal(again.images, trained_on.images)
    everything, nothing = given.held_out(0.0, 3)
    assert len(everything.images) == len(given.images)
    assert nothing == {}


def test_a_pair_is_a_text_and_the_mean_of_images_that_it_fits():
    given = made(width=8)
    pairs = CaptionPairs(given)
    texts, images = pairs.draw(300, torch.Generator().manual_seed(1), 1)
    said = (texts @ given.texts.T).argmax(1)
    shown = (images @ given.images.T).argmax(1)
    assert torch.equal(given.says[said], given.shows[shown])
    assert len(said.unique()) > 70  # both texts of a thing
    _, means = pairs.draw(5, torch.Generator().manual_seed(1), 50)
    assert (means.norm(dim=1) < 1).all()
    with pytest.raises(ValueError, match="pairs: got images of 1 different texts, expected at least two"):
        CaptionPairs(given.of_images(given.shows == 3))


def test_a_ridge_regression_finds_a_linear_way():
    trained_on, held_out = made(things=200).held_out(0.2, 0)
    weights, start, end = ridge(trained_on)
    assert weights.shape == (16, 16)
    prior = Prior(PriorNetwork(16, 16, 8, 1), torch.zeros(16), torch.ones(16), 20)
    found = measured(prior, trained_on, held_out)
    assert (
        found[f"{NEW_TEXTS}/cosine/ridge"] > found[f"{NEW_TEXTS}/cosine/mean"] > found[f"{NEW_TEXTS}/cosine/identity"]
    )
    assert found[f"{NEW_TEXTS}/nearest/ridge"] > 0.9
    texts = F.normalize(held_out[NEW_TEXTS].texts, dim=-1)
    predicted = F.normalize((texts - start) @ weights + end, dim=-1)
    cosine = (held_out[NEW_TEXTS].images @ predicted.T).amax(1).mean()
    assert cosine >= found[f"{NEW_TEXTS}/cosine/ridge"] - 1e-3


def test_a_file_of_something_else_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"pairs: got the folder .*`python -m steering.pairs"):
        Captioned.load(tmp_path)
    save_weights(tmp_path / "o.safetensors", {"outputs": torch.zeros(2, 2)}, {"backbone": "toy"})
    with pytest.raises(ValueError, match="holds no pairs"):
        Captioned.load(tmp_path / "o.safetensors")
    given = made()
    tensors = {key: getattr(given, key) for key in ("texts", "says", "images", "shows")}
    save_weights(tmp_path / "p.safetensors", tensors, {"kind": KIND, "model": "toy"}, half=True)
    loaded, card = Captioned.load(tmp_path / "p.safetensors")
    assert (loaded.images - given.images).abs().max() < 1e-3
    assert torch.equal(loaded.shows, given.shows)
    assert card["model"] == "toy"


def test_goals_that_are_images_come_to_lie_among_the_texts():
    given = made()
    prior = Prior(PriorNetwork(16, 16, 8, 1), given.images.mean(0), torch.ones(16), 20).eval()
    moved = AmongTexts(prior, given.texts)
    goals = moved.goals(given.texts)
    assert (goals.mean(0) - given.texts.mean(0)).abs().max() < 1e-5
    difference = goals - F.normalize(prior.goals(given.texts), dim=-1)
    assert difference.std(0).max() < 1e-6  # the same for all
    assert moved.source == "diffusion"
