"""Where a search ends: thresholds against all that could be chosen, what is counted, and the toy network."""

import pytest
import torch

from lrm_lab import cut_off, cut_off_report
from steering import Steerer
from steering.cutoff import LEAST


@pytest.fixture(scope="module")
def found(toy: Steerer, labelled):
    pixels, labels = labelled
    rows = labels < 5  # no image shows a sweater
    return cut_off.measure(toy, pixels[rows], labels[rows], queries=4, seed=1)


def f1_from(threshold, scores, truth):
    said = scores >= threshold
    return 2 * (said & truth).sum() / (said.sum() + truth.sum())


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better_than_the_best(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 12, (30, 3), generator=generator).float()  # many are equal
    truth = torch.rand(30, 3, generator=generator) < 0.2
    best = cut_off.best_threshold(scores, truth)
    rivals = [float(f1_from(threshold, scores, truth)) for threshold in (*range(13), float("inf"))]
    assert float(f1_from(best, scores, truth)) == pytest.approx(max(rivals))


def test_where_nothing_is_relevant_nothing_passes_the_best_threshold():
    assert cut_off.best_threshold(torch.rand(5, 2), torch.zeros(5, 2, dtype=torch.bool)) == float("inf")


def test_f1_of_a_query_that_no_image_shows_is_whether_nothing_was_said():
    truth = torch.tensor([[True, False, False], [True, False, False]])
    said = torch.tensor([[True, False, True], [False, False, False]])
    counts = cut_off.Counts.of(said, truth)
    assert counts.f1.tolist() == pytest.approx([2 / 3, 1.0, 0.0])
    assert (counts.said.tolist(), counts.shown.tolist()) == ([1, 0, 1], [2, 0, 0])


def test_every_way_is_measured_on_all_queries(found):
    assert (found["images"], found["queries"], found["queries_of_nothing"]) == (25, 4, 1)
    assert found["shown_by"] == 5
    assert set(found["ways"]) == {cut_off.SEARCH, *cut_off.SCORES, cut_off.ORACLE}
    for entry in found["ways"].values():
        assert 0 <= entry["recall"] <= 1
        assert entry["f1_interval"][0] <= entry["f1"] <= entry["f1_interval"][1]
        assert entry["silent"] in (0.0, 1.0)
    best = found["ways"][cut_off.ORACLE]["mean_f1"]
    assert best >= found["ways"][cut_off.SCORES[0]]["mean_f1"]
    own = found["ways"][cut_off.SEARCH]["mean_f1"]
    for name, entry in found["against"].items():
        assert entry["mean_f1"] == pytest.approx(own - found["ways"][name]["mean_f1"], abs=1e-6)


def test_what_a_search_calls_relevant_is_what_it_gives_a_probability_of_one_half_or_more(toy, labelled, monkeypatch):
    pixels, asked = labelled[0], []

    def relevant(hits):
        chosen = [hit.path for hit in hits if hit.probability >= LEAST]
        asked.append((hits.query, chosen))
        return own(hits)

    own = cut_off.relevant
    monkeypatch.setattr(cut_off, "relevant", relevant)
    said, calibrated = cut_off._searched(toy, pixels, ["a cat", "a lemon"])
    assert calibrated
    assert [query for query, _ in asked] == ["a cat", "a lemon"]
    for column, (_, chosen) in enumerate(asked):
        assert sorted(map(int, chosen)) == said[:, column].nonzero()[:, 0].tolist()


def test_the_report_tells_every_way_and_whether_the_end_is_a_guess(found):
    ((text, figures),) = cut_off_report.sections(found)
    assert figures == {}
    assert text.count("\n|") == 7
    assert f"{found['ways'][cut_off.SEARCH]['f1']:.3f}" in text
    assert "guess" not in text
    ((guessed, _),) = cut_off_report.sections({**found, "calibrated": False, "first_stage": "cosine"})
    assert "is not calibrated: its search ends by a guess" in guessed
    assert "one threshold on the cosine of text and image" in guessed


def test_images_of_one_class_are_refused(toy, labelled):
    with pytest.raises(ValueError, match="labels: got images of 1 class, expected at least two"):
        cut_off.measure(toy, labelled[0][:3], torch.zeros(3, dtype=torch.long), queries=2)
