"""The ladder of ways from words to goals: what ridge and network learn, and what each rung is measured on."""

import dataclasses

import pytest
import torch

from lrm_lab import ladder, ladder_report
from lrm_lab.ladder import one_shot, ridge

WORDS = {"pup": ["n1"], "tom": ["n0"], "citrus": ["n2", "n3"]}


@pytest.fixture
def knowing(toy, monkeypatch):
    """The toy with WordNet ids, which knows the nouns of its vocabulary."""
    classes = [{**entry, "wnid": f"n{row}"} for row, entry in enumerate(toy.network.card["classes"])]
    monkeypatch.setitem(toy.network.card, "classes", classes)
    language = dataclasses.replace(toy.language, known=toy.class_names)
    monkeypatch.setattr(type(toy), "language", property(lambda steerer: language))
    return toy


@pytest.mark.parametrize("learn", [ridge, lambda texts, targets: one_shot(texts, targets, 0)])
def test_what_is_linear_is_learned(learn):
    generator = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(2000, 12, generator=generator), dim=1)
    weights = torch.randn(12, 7, generator=generator)
    rung = learn(texts[:1500], 5 + texts[:1500] @ weights)
    error = (rung(texts[1500:]) - (5 + texts[1500:] @ weights)).square().mean()
    assert error < 0.1 * (texts[1500:] @ weights).var()


def test_every_rung_is_measured_on_the_same_words_and_the_oracle_is_right(knowing, labelled):
    measured = ladder.measure(knowing, WORDS, *labelled, others={"class-names": knowing}, scenes=10)
    rungs = measured["rungs"]
    assert list(rungs) == ["class-names", "ridge", "one-shot", "diffusion", "oracle"]
    assert (measured["words"], measured["scenes"], measured["own"]) == (3, 10, "diffusion")
    # The toy's mean outputs name each class, so the oracle's goal is right for every word, wholly and by definition.
    oracle = rungs["oracle"]
    assert (oracle["R@1"], oracle["R@5"], oracle["milliseconds"]) == (1.0, 1.0, None)
    assert (oracle["cosine"], oracle["spread"]) == (pytest.approx(1), pytest.approx(1))
    for entry in rungs.values():
        assert 0 <= entry["R@1"] <= entry["R@5"] <= 1
        assert 0 <= entry["presence_auroc"] <= 1
    own = {key: value for key, value in rungs["diffusion"].items() if key != "milliseconds"}
    assert own == {key: rungs["class-names"][key] for key in own}  # the same prior by another name
    best = int(knowing.goal("a pup").vector.argmax())
    words = {"pup": [f"n{best}"], "tom": [f"n{(best + 1) % 6}"], "citrus": [f"n{(best + 2) % 6}"]}
    assert ladder.measure(knowing, words, *labelled, others={}, scenes=2)["rungs"]["diffusion"]["R@1"] >= 0.3


def test_words_for_blends_mean_what_is_there_and_what_is_not(labelled):
    meant = torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]])
    trials, (present, absent) = ladder._blends(meant, *labelled, 40, 0)
    rows = torch.arange(40)
    assert meant[present, trials.present].all()
    for column in range(2):
        assert not meant[absent, trials.scenes.labels[rows, column]].any()
    with pytest.raises(ValueError, match="no word that means a class of the images"):
        ladder._blends(torch.zeros(1, 6), *labelled, 4, 0)


def test_a_model_without_a_list_of_its_words_has_nothing_to_learn_from(knowing, labelled, monkeypatch):
    language = dataclasses.replace(knowing.language, known=())
    monkeypatch.setattr(type(knowing), "language", property(lambda steerer: language))
    with pytest.raises(ValueError, match="toy has no vocabulary to learn from"):
        ladder.measure(knowing, WORDS, *labelled, others={}, scenes=2)


def test_the_report_has_a_row_for_each_rung_and_tells_which_one_serves():
    entry = {"R@1": 0.5, "R@5": 0.75, "cosine": 0.4, "spread": 0.9, "presence_auroc": 0.8, "milliseconds": 2.0}
    rungs = {"ridge": entry, "meaning": {**entry, "R@1": 0.8}, "oracle": {**entry, "milliseconds": None}}
    ((text, figures),) = ladder_report.sections({"words": 200, "scenes": 9, "own": "meaning", "rungs": rungs})
    assert "| ridge regression | 50.0 % | 75.0 % | 0.40 | 0.90 | 0.800 | 2.0 |" in text
    assert "| memberships (used by default) | 80.0 % |" in text
    assert "| 0.800 | – |" in text
    assert figures == {}
