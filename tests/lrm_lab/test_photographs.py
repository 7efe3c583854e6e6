"""Photographs: what they show counts as present, and another class as absent, by the verdict."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from lrm_lab import photographs


@pytest.fixture
def folder(tmp_path):
    for label, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{label}.png")
    entries = [{"file": f"{label}.png", "label": label} for label in range(3)]
    (tmp_path / "photos.json").write_text(json.dumps(entries))
    return tmp_path


def test_a_verdict_that_always_says_yes_is_right_half_of_the_time(toy, folder):
    yes = replace(toy.verdict, weights=(100.0, *(0.0 for _ in toy.verdict.weights[1:])))
    measured = photographs.measure(toy.with_network(toy.network, {"diffusion": yes}), folder)
    assert (measured["photographs"], measured["unsure"]) == (3, 0)
    assert (measured["right_name_present"], measured["other_name_absent"]) == (1.0, 0.0)
    assert measured["balanced_accuracy"] == 0.5


def test_the_seed_decides_what_else_is_asked_for(toy, folder):
    assert photographs.measure(toy, folder, 3) == photographs.measure(toy, folder, 3)


def test_without_a_verdict_nothing_is_asked(toy, folder):
    with pytest.raises(ValueError, match="no calibrated verdict"):
        photographs.measure(toy.with_network(toy.network), folder)


def test_a_name_that_is_called_unknown_is_wrong(toy, folder, as_unfamiliar, monkeypatch):
    goal = as_unfamiliar(toy.goal("a cat"))
    monkeypatch.setattr(toy, "goal", lambda query, seed: goal)
    assert photographs.measure(toy, folder)["balanced_accuracy"] == 0.0
