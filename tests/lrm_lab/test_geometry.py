"""The geometry of the passes beside what is computed by hand."""

import copy
import json

import pytest
import torch

pytest.importorskip("sklearn", reason="needs the extra `evaluate`")

from lrm_lab import geometry, geometry_report
from steering.rollouts import run_steered, run_unsteered


@pytest.fixture(scope="module")
def measured(toy, labelled):
    """Of three classes, two of them looked for: one by its number, one by words."""
    return geometry.measure(toy, *labelled, [2, "a cat"], num_classes=3, seed=1)


@pytest.fixture(scope="module")
def outputs(toy, labelled, measured):
    """Of each panel: (class, image, output), in the order of `classes`."""
    pixels, labels = labelled
    rows = torch.cat([(labels == entry["index"]).nonzero()[:, 0] for entry in measured["classes"]])
    unsteered = run_unsteered(toy.network, pixels[rows])
    goals = toy.goals(["a lemon", "a cat"])
    steered = [run_steered(toy.network, unsteered, goal.vector.expand(len(rows), -1)).output for goal in goals]
    found = (unsteered.first, unsteered.last, *steered)
    return [output.double().unflatten(0, (len(measured["classes"]), -1)) for output in found]


def test_the_panels_are_the_passes_and_the_goals(toy, measured):
    json.dumps(measured, allow_nan=False)
    names = ["first pass", "last pass, no goal", "looking for a lemon", "looking for a cat"]
    assert [panel["name"] for panel in measured["panels"]] == names
    assert [panel["target"] for panel in measured["panels"]][:3] == [None, None, 2]
    assert measured["classes"][0] == {"index": 2, "name": "lemon", "images": 5}
    assert len(measured["classes"]) == 3
    assert measured["labels"] == [0] * 5 + [1] * 5 + [2] * 5


def test_the_ratio_is_the_variance_between_classes_over_that_within(measured, outputs):
    for panel, values in zip(measured["panels"], outputs, strict=True):
        means = values.mean(1)
        between = (means - means.mean(0)).square().sum(1).mean()
        within = (values - means[:, None]).square().sum(2).mean()
        assert panel["ratio"] == pytest.approx(float(between / within), rel=1e-4)
        assert panel["difference"] == pytest.approx(panel["ratio"] - measured["panels"][0]["ratio"])
    assert measured["panels"][0]["interval"] == [0.0, 0.0]
    low, high = measured["panels"][2]["interval"]
    assert low < high


def test_neighbours_are_counted_and_logits_ranked(measured, outputs):
    for panel, values in zip(measured["panels"], outputs, strict=True):
        flat = values.flatten(0, 1)
        nearest = (torch.cdist(flat, flat) + torch.diag(torch.full((15,), torch.inf))).argmin(1)
        assert panel["nearest_neighbour"] == pytest.approx(
            float((nearest // 5 == torch.arange(15) // 5).double().mean())
        )
    panel = measured["panels"][2]
    for stage, values in (("first", outputs[0]), ("last", outputs[1]), ("steered", outputs[2])):
        own, others = values[0, :, 2], values[1:, :, 2].flatten()
        won = (own[:, None] > others).double().mean()
        assert panel["auroc"][stage] == pytest.approx(float(won), abs=1e-6)
    assert "auroc" not in measured["panels"][0]


def test_all_panels_lie_in_the_plane_of_the_first_pass(measured, outputs):
    flat = outputs[0].flatten(0, 1)
    _, size, axes = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    assert measured["explained"] == pytest.approx((size.square() / size.square().sum())[:2].tolist(), rel=1e-4)
    for panel, values in zip(measured["panels"], outputs, strict=True):
        expected = (values.flatten(0, 1) - flat.mean(0)) @ axes[:2].T
        found = torch.tensor(panel["xy"], dtype=torch.double)
        for label in range(3):  # within a class, images are in the order of the seed
            own = slice(5 * label, 5 * label + 5)
            for component in (0, 1):
                want, got = expected[own, component].sort().values, found[own, component].sort().values
                mirrored = (-expected[own, component]).sort().values
                assert min((want - got).abs().max(), (mirrored - got).abs().max()) < 2e-3


def test_feedback_that_is_silent_changes_nothing(silent, labelled):
    found = geometry.measure(silent, *labelled, [0], per_class=3, seed=1)
    assert found["images"] == 18
    assert all(panel["interval"] == pytest.approx([0.0, 0.0], abs=1e-6) for panel in found["panels"])
    assert len({panel["nearest_neighbour"] for panel in found["panels"]}) == 1


def test_a_seed_repeats_itself_and_another_draws_other_classes(toy, labelled, measured):
    assert geometry.measure(toy, *labelled, [2, "a cat"], num_classes=3, seed=1) == measured
    drawn = {
        tuple(entry["index"] for entry in geometry.measure(toy, *labelled, [], num_classes=2, seed=seed)["classes"])
        for seed in range(4)
    }
    assert len(drawn) > 1


def test_unknown_classes_and_too_few_images_are_refused(toy, labelled):
    for wrong in (6, -1):
        with pytest.raises(ValueError, match=f"goals_for: got {wrong}, expected 0 to 5"):
            geometry.measure(toy, *labelled, [wrong])
    pixels, labels = labelled
    rows = torch.cat([(labels == 0).nonzero()[:, 0], (labels == 1).nonzero()[:1, 0]])
    with pytest.raises(ValueError, match="labels: got 1 classes with two images"):
        geometry.measure(toy, pixels[rows], labels[rows], [])


def test_the_words_follow_the_intervals(measured):
    results = copy.deepcopy(measured)
    for panel, bounds in zip(results["panels"][1:], ([0.1, 0.3], [-0.3, -0.1], [-0.1, 0.3]), strict=True):
        panel.update(ratio=2.0, difference=0.5, interval=bounds)
    told = geometry_report.section(results)
    assert "last pass, no goal: 2.00, further apart (+0.50 [+0.10, +0.30])" in told
    assert "looking for a lemon: 2.00, closer together (+0.50 [-0.30, -0.10])" in told
    assert "looking for a cat: 2.00, no clear difference (+0.50 [-0.10, +0.30])" in told
    rows = [line for line in told.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 4
    assert rows[2].endswith("| – | – |")
    auroc = results["panels"][2]["auroc"]
    assert rows[4].endswith(f"| {auroc['last']:.3f} | {auroc['steered']:.3f} |")


def test_a_panel_for_each_run_shows_every_image_and_fills_what_is_looked_for(measured):
    (figure,) = geometry_report.figures(measured).values()
    figure.draw_without_rendering()
    assert len(figure.axes) == 4
    assert figure.get_label().startswith("Outputs of single images")
    for ax, panel in zip(figure.axes, measured["panels"], strict=True):
        points = [point for collection in ax.collections for point in collection.get_offsets().tolist()]
        torch.testing.assert_close(torch.tensor(points), torch.tensor(panel["xy"]))
        filled = [len(collection.get_facecolor()) > 0 for collection in ax.collections]
        assert filled == [panel["target"] in (None, entry["index"]) for entry in measured["classes"]]
        assert ax.get_title().startswith(panel["name"])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [entry["name"] for entry in measured["classes"]]
    five = {**measured, "panels": [*measured["panels"], measured["panels"][2]]}
    assert [ax.axison for ax in geometry_report.figures(five)["geometry"].axes] == [True] * 5 + [False] * 3
