"""Photographs and all names: near misses, what counts as right, and the shares of the answers."""

import dataclasses

import pytest
import torch

from lrm_lab import names, names_report
from prior.captions import with_article


@pytest.fixture
def make_judge(toy):
    """The toy with a verdict that gives every question the same log-odds."""

    def judge(log_odds):
        verdict = dataclasses.replace(toy.verdict, weights=(log_odds, *(0.0 for _ in toy.verdict.weights[1:])))
        return toy.with_network(toy.network, {"diffusion": verdict})

    return judge


def test_each_photograph_is_asked_for_its_name_another_and_the_likeliest_wrong_one(toy, labelled, monkeypatch):
    asked = []
    table = torch.stack([goal.vector for goal in toy.goals([with_article(name) for name in toy.class_names])])

    def chances(steerer, seen, goals, familiarity):
        asked.append((goals[:, None] == table).all(2).long().argmax(1))
        assert len(familiarity) == len(goals)
        return torch.full((len(goals),), 0.5)

    monkeypatch.setattr(names, "chances", chances)
    pixels, labels = labelled
    names.measure(toy, pixels, labels, 3)
    right, random, alike, near = asked
    assert torch.equal(right, labels)
    assert (random != labels).all()
    assert len(random.unique()) > 2
    means = torch.stack([toy.prototype_goal(name).vector for name in toy.class_names])
    assert torch.equal(alike, means.argsort(1, descending=True)[:, 1][labels])
    output = toy.network.glance(toy.network.preprocessing.normalise(pixels)).output
    ranking = output.argsort(1, descending=True)
    assert torch.equal(near, torch.where(ranking[:, 0] == labels, ranking[:, 1], ranking[:, 0]))


@pytest.mark.parametrize(("log_odds", "present", "said"), [(5.0, 1.0, "present"), (-5.0, 0.0, "absent")])
def test_a_verdict_that_always_says_the_same_is_right_half_of_the_time(make_judge, labelled, log_odds, present, said):
    measured = names.measure(make_judge(log_odds), *labelled)
    assert (measured["photographs"], measured["classes"], measured["right_name_present"]) == (30, 6, present)
    for way in ("random", "alike", "near"):
        assert measured[way]["absent"] == 1 - present
        assert measured[way]["balanced_accuracy"] == 0.5
        assert measured[way]["interval"] == pytest.approx([0.5, 0.5])
        assert measured[way]["auroc"] == pytest.approx(0.5)
    for shares in measured["answers"].values():
        assert shares == {**dict.fromkeys(("present", "absent", "unsure", "unknown"), 0.0), said: 1.0}


def test_what_is_called_unknown_is_wrong_on_both_sides(toy, labelled, as_unfamiliar, monkeypatch):
    goals = [as_unfamiliar(goal) for goal in toy.goals(list(toy.class_names))]
    monkeypatch.setattr(toy, "goals", lambda queries: goals)
    measured = names.measure(toy, *labelled)
    assert measured["right_name_present"] == measured["near"]["absent"] == measured["random"]["balanced_accuracy"] == 0
    assert {shares["unknown"] for shares in measured["answers"].values()} == {1.0}


def test_batches_do_not_matter(toy, labelled, monkeypatch):
    whole = names.measure(toy, *labelled)
    monkeypatch.setattr(names, "BATCH", 7)
    parts = names.measure(toy, *labelled)
    assert parts["answers"] == whole["answers"]
    assert parts["near"]["auroc"] == pytest.approx(whole["near"]["auroc"], abs=0.02)


def test_without_a_verdict_nothing_is_asked(toy, labelled):
    with pytest.raises(ValueError, match="no calibrated verdict"):
        names.measure(toy.with_network(toy.network), *labelled)


def test_the_report_holds_each_way_to_its_own_bar(toy, labelled):
    measured = names.measure(toy, *labelled)
    for way, value in (("random", 0.95), ("alike", 0.85), ("near", 0.849)):
        measured[way] |= {"balanced_accuracy": value, "interval": [0.8, 1.0]}
    random, alike, near = names_report.rows(measured)
    assert random[0] == "30 photographs, 6 names: balanced accuracy against another name at random"
    assert (random[1].split(" (")[0], random[2]) == ("95.0 % [80.0, 100.0]", "≥ 95 %")
    assert alike[0].endswith("against the name that looks most like it")
    assert (alike[1].split(" (")[0], alike[2]) == ("85.0 % [80.0, 100.0]", "≥ 85 %")
    assert (near[1].split(" (")[0], near[2]) == ("84.9 % [80.0, 100.0]", "≥ 85 %, **missed**")
    ((text, figures),) = names_report.sections(measured)
    assert "| a near miss | 84.9 % [80.0, 100.0] |" in text
    assert "| its own name |" in text
    assert figures == {}
