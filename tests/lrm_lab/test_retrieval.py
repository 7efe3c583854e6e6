"""The evaluation of search: ranks against known contents, on the toy network and on made-up scores."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from lrm_lab import retrieval, retrieval_report
from steering import Steerer
from steering.search.gallery import RERANK


@pytest.fixture(scope="module")
def found(toy: Steerer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pixels = torch.rand(40, 3, 32, 32)
    return retrieval.measure(toy, pixels, torch.arange(40) % 6, scenes=10, seed=1)


def test_every_way_to_rank_is_measured(found):
    assert (found["scenes"], found["queries"]) == (40, 6)
    ways = {"output", "class", "places", "prototype", "oracle", *(f"steered {depth}" for depth in retrieval.DEPTHS)}
    assert ways <= set(found["ways"]) <= {*ways, "unsteered", "zero_shot"}
    for entry in found["ways"].values():
        assert 0 <= entry["mAP_interval"][0] <= entry["mAP"] <= entry["mAP_interval"][1] <= 1
        assert 0 <= entry["P@1"] <= 1
    assert found["ways"]["oracle"]["mAP"] == 1  # 40 scenes, 128 looked at
    assert found["ways"]["steered 128"] == found["ways"]["steered 512"]


def test_gains_are_those_of_the_means(found):
    own = found["ways"][f"steered {RERANK}"]["mAP"]
    for name, entry in found["against"].items():
        other = found["ways"][name]["mAP"]
        assert entry["difference"] == pytest.approx(own - other, abs=1e-6)
        assert entry["relative"] == pytest.approx(own / other - 1, abs=1e-5)
        assert entry["interval"][0] <= entry["difference"] <= entry["interval"][1]
    assert found["ways"][found["best_of_output"]]["mAP"] == max(found["ways"][n]["mAP"] for n in ("output", "class"))


def test_what_is_said_is_counted(found):
    said = found["present"]
    assert 0 <= said["images_right"] <= said["images_said"]
    assert 0 <= said["images_expected"] <= said["images_said"]
    assert 0 <= said["present_rightly"] <= said["present"] <= 1
    assert 0 <= said["false"] <= 1
    assert 0 <= said["false_alone"] <= 1


def test_average_precision_is_scikit_learns():
    scores, truth = torch.randn(30, 3), torch.rand(30, 3) < 0.3
    own = retrieval.average_precision(scores, truth)
    for query in range(3):
        assert own[query] == pytest.approx(average_precision_score(truth[:, query], scores[:, query]))
    perfect = retrieval.average_precision(truth.float(), truth)
    np.testing.assert_allclose(perfect, 1)


def test_the_text_and_the_rows_say_what_was_measured(found):
    text = retrieval_report.section(found)
    assert f"{found['ways']['places']['mAP']:.3f}" in text
    assert text.count("\n|") >= 10
    first, second, third = retrieval_report.rows(found)
    own, best = found["ways"][f"steered {RERANK}"]["mAP"], found["ways"][found["best_of_output"]]["mAP"]
    assert f"{best:.3f} / {own:.3f}" in first[1]
    assert ("missed" in first[2]) == (found["against"][found["best_of_output"]]["relative"] < 0.25)
    assert "a hit alone" in third[1]
    assert f"{found['ways']['places']['mAP']:.3f}" in second[1]


def test_a_model_without_a_verdict_is_refused(toy: Steerer):
    with pytest.raises(ValueError, match="no calibrated verdict"):
        retrieval.measure(toy.with_network(toy.network), torch.rand(12, 3, 32, 32), torch.arange(12) % 6)
