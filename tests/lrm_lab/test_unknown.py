"""Words that the network has no eyes for: shares that are called unknown, and the words that were got wrong."""

import pytest

from lrm_lab import unknown, unknown_report


@pytest.fixture
def measured(toy, as_unfamiliar, monkeypatch):
    """A model that knows what has an `a` in it."""
    goal = toy.goal("a cat")

    def goals(queries):
        return [goal if "a" in query else as_unfamiliar(goal) for query in queries]

    monkeypatch.setattr(toy, "goals", goals)
    return unknown.measure(toy, ["joy", "Rome", "Paris", "red"], ["cat", "dog"])


def test_shares_and_mistakes_of_both_lists(measured):
    assert (measured["unknown"]["words"], measured["known"]["words"]) == (4, 2)
    assert (measured["unknown"]["called_unknown"], measured["unknown"]["wrong"]) == (0.75, ["Paris"])
    assert (measured["known"]["called_unknown"], measured["known"]["wrong"]) == (0.5, ["dog"])
    low, high = measured["unknown"]["interval"]
    assert low < 0.75 <= high


def test_a_model_that_judges_every_word_calls_none_unknown(toy):
    told = unknown.measure(toy, ["joy"], ["a cat"])
    assert (told["unknown"]["called_unknown"], told["known"]["called_unknown"]) == (0.0, 0.0)


def test_the_report_tells_the_mistakes_and_both_bars(measured):
    text = unknown_report.sections(measured)[0][0]
    assert "Taken for something that it knows: Paris." in text
    assert "Called unknown in spite of this: dog." in text
    measured["unknown"]["called_unknown"], measured["known"]["called_unknown"] = 0.9, 0.051
    no_eyes, eyes = unknown_report.rows(measured)
    assert (no_eyes[0], no_eyes[2]) == ("4 words for what it has no eyes for: called unknown", "≥ 90 %")
    assert (eyes[0], eyes[2]) == ("2 words for what it has eyes for: called unknown", "≤ 5 %, **missed**")
