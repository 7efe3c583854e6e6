"""Words above the classes: which photographs show them, AUROC, recall and false alarms."""

import pytest
import torch

from lrm_lab import above, above_report
from lrm_lab.statistics import auroc

WORDS = {"animal": (0, 1), "thing": (2, 3, 4, 5), "ghost": ()}


@pytest.fixture
def told(toy, labelled, monkeypatch):
    """Probabilities as given, (n, 3), instead of those of the toy."""

    def measure(probability):
        columns = iter([column for part in probability.split(above.BATCH) for column in part.T])
        monkeypatch.setattr(above, "chances", lambda *_: next(columns))
        return above.measure(toy, *labelled, WORDS)

    return measure


def test_a_perfect_answer_is_perfect_for_every_word(told, labelled):
    truth = torch.stack([labelled[1] < 2, labelled[1] >= 2, labelled[1] > 9], 1)
    measured = told(truth * 0.8 + 0.1)
    assert (measured["photographs"], measured["auroc"], measured["median_auroc"]) == (30, 1.0, 1.0)
    assert measured["auroc_interval"] == [1.0, 1.0]
    assert measured["recall"] == {"share": 1.0, "interval": [1.0, 1.0]}
    assert measured["false_present"] == {"share": 0.0, "interval": [0.0, 0.0]}
    assert measured["words"]["animal"] == {"shown": 10, "auroc": 1.0, "recall": 1.0, "false_present": 0.0}
    assert measured["words"]["ghost"] == {"shown": 0, "auroc": None, "recall": None, "false_present": 0.0}
    assert measured["unknown"] == []


def test_present_is_said_from_the_verdicts_own_threshold_on(told, labelled):
    probability = torch.full((30, 3), 0.79)  # more likely than not, and yet "unsure"
    probability[:15, 0] = 0.81
    measured = told(probability)
    animal = labelled[1] < 2
    assert measured["words"]["animal"]["recall"] == pytest.approx(float((animal[:15]).sum() / animal.sum()))
    assert measured["words"]["thing"]["false_present"] == 0.0
    assert measured["recall"]["share"] == pytest.approx(float(animal[:15].sum() / 30))
    assert measured["false_present"]["share"] == pytest.approx(float((~animal[:15]).sum() / 60))
    low, high = measured["false_present"]["interval"]
    assert low < measured["false_present"]["share"] < high


def test_the_probability_is_that_of_a_look(toy, labelled):
    pixels, labels = labelled
    measured = above.measure(toy, pixels, labels, {"animal": (0, 1)})
    from steering.seek import seek

    glance = toy.network.glance(toy.network.preprocessing.normalise(pixels))
    sought = seek(toy.network, toy.verdicts, glance, toy.goal("an animal"))
    assert measured["auroc"] == pytest.approx(auroc(sought.probability, labels < 2), abs=0.02)


def test_an_unknown_word_is_never_called_present_and_is_named(toy, labelled, as_unfamiliar, monkeypatch):
    goals = [as_unfamiliar(goal) for goal in toy.goals(["an animal"])]
    monkeypatch.setattr(toy, "goals", lambda queries: goals)
    measured = above.measure(toy, *labelled, {"animal": (0, 1)})
    assert measured["unknown"] == ["animal"]
    assert measured["recall"]["share"] == 0.0
    assert "It calls unknown: animal." in above_report.sections(measured)[0][0]


def test_words_that_nothing_can_be_told_of_are_refused(toy, labelled):
    with pytest.raises(ValueError, match="words: got 1, expected some that are shown"):
        above.measure(toy, *labelled, {"ghost": ()})


def test_the_report_names_every_word_and_both_bars(told):
    measured = told(torch.full((30, 3), 0.5))
    measured |= {"auroc": 0.98, "false_present": {"share": 0.031, "interval": [0.02, 0.04]}}
    area, false = above_report.rows(measured)
    assert (area[0], area[2]) == ("3 words for kinds of things, AUROC over 30 photographs", "≥ 0.98")
    assert (false[1], false[2]) == ("3.1 % [2.0, 4.0] (shown: 0.0 %)", "≤ 3 %, **missed**")
    text = above_report.sections(measured)[0][0]
    assert "| ghost | 0 | – | – | 0.0 % |" in text
