"""Single images: top-1 of every pass beside a plain roll-out."""

import pytest
import torch

from lrm_core import Steer
from lrm_lab import single
from steering.rollouts import class_goals


def test_every_pass_is_counted_as_a_plain_roll_out_has_it(toy, labelled):
    pixels, labels = labelled
    measured = single.measure(toy, pixels, labels)
    inputs, model = toy.network.preprocessing.normalise(pixels), toy.network.model
    with torch.no_grad():
        outputs = model.rollout(inputs, 3)
        steered = model.rollout(inputs, 3, [Steer("fc", class_goals(toy)[labels], 1.0)])[-1]
    shares = [float((output.argmax(1) == labels).float().mean()) for output in outputs]
    assert measured["passes"] == pytest.approx(shares)
    assert (measured["first_pass"], measured["last_pass"]) == pytest.approx((shares[0], shares[-1]))
    assert measured["own_words"] == pytest.approx(float((steered.argmax(1) == labels).float().mean()))
    assert measured["images"] == 30
    for share, (low, high) in zip(shares[1:], measured["gain_intervals"], strict=True):
        assert low <= share - shares[0] <= high


def test_without_feedback_every_pass_is_the_first(silent, labelled):
    measured = single.measure(silent, *labelled)
    assert len({measured["own_words"], *measured["passes"]}) == 1
    assert measured["gain_intervals"] == [[0.0, 0.0]] * 2
