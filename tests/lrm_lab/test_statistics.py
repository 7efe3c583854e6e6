"""The arithmetic of the evaluation: rates at equal absent rates, bootstraps, areas under the ROC curve."""

import pytest
import torch

from lrm_lab.statistics import (
    against_controls,
    auroc,
    auroc_difference,
    interval,
    mean_interval,
    rate_at,
    resampling,
)
from lrm_lab.trials import TopOne


def rates(*values):
    return torch.tensor([list(map(float, values))])


@pytest.mark.parametrize(
    ("level", "expected"),
    [(0.05, 0.1), (0.1, 0.2), (0.15, 0.35), (0.2, 0.5), (0.9, 0.5), (0.0, 0.0)],
)
def test_a_rate_is_read_off_the_curve_between_its_settings(level, expected):
    found = rate_at(rates(0, 0.2, 0.5), rates(0, 0.1, 0.2), level)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_each_row_has_its_own_curve():
    present = torch.tensor([[0.0, 1.0], [0.0, 0.5]])
    absent = torch.tensor([[0.0, 0.1], [0.0, 0.2]])
    torch.testing.assert_close(rate_at(present, absent, 0.05), torch.tensor([0.5, 0.125]))


def test_a_curve_that_dips_or_stands_still_is_read_where_it_first_reaches_the_level():
    assert rate_at(rates(0, 0.4, 0.6, 0.8), rates(0, 0.1, 0.02, 0.2), 0.1).item() == pytest.approx(0.4)
    assert rate_at(rates(0.3, 0.4), rates(0.02, 0.02), 0.05).item() == pytest.approx(0.4)


def test_a_curve_whose_most_cautious_setting_is_too_eager_earns_no_more_than_its_share():
    assert rate_at(rates(0.6, 0.8), rates(0.2, 0.4), 0.05).item() == pytest.approx(0.15)


def test_bootstrap_weights_sum_to_one_and_repeat_for_the_same_seed():
    weights = resampling(20)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    assert torch.equal(weights, resampling(20))
    assert not torch.equal(weights, resampling(20, seed=1))
    torch.testing.assert_close(weights.mean(0), torch.full((20,), 0.05), atol=0.006, rtol=0)


def test_an_interval_covers_as_the_normal_theory_says():
    hits = (torch.arange(400) < 120).float()
    low, high = interval(resampling(400) @ hits)
    margin = 1.96 * (0.3 * 0.7 / 400) ** 0.5
    assert low == pytest.approx(0.3 - margin, abs=0.01)
    assert high == pytest.approx(0.3 + margin, abs=0.01)


def curve(shift, count=300):
    """More and more goals win along nine settings, `shift` moves those that are present."""
    generator = torch.Generator().manual_seed(0)
    settings = torch.linspace(0, 1, 9)
    luck = torch.rand(count, 1, generator=generator)
    present = (luck < 0.2 + shift + 0.5 * settings).float()
    absent = (torch.rand(count, 1, generator=generator) < 0.3 * settings).float()
    return TopOne(tuple(settings.tolist()), present, absent)


def test_against_itself_there_is_no_difference():
    result = against_controls(curve(0.0), {"itself": curve(0.0)})
    assert set(result) == {"5%", "10%"}
    for entry in result.values():
        assert entry["best"] == "itself"
        assert entry["controls"]["itself"]["difference"] == 0
        assert entry["controls"]["itself"]["interval"] == [0.0, 0.0]


def test_a_control_that_is_as_good_by_other_luck_has_an_interval_that_holds_zero():
    alike = TopOne(curve(0.0).settings, curve(0.0).present.flip(0), curve(0.0).absent.flip(0))
    for entry in against_controls(curve(0.0), {"alike": alike})["10%"]["controls"].values():
        assert entry["difference"] == pytest.approx(0, abs=1e-6)
        assert entry["interval"][0] < 0 < entry["interval"][1]


def test_steering_is_held_against_every_control_and_the_best_is_named():
    result = against_controls(curve(0.2), {"weak": curve(-0.1), "strong": curve(0.05)})
    for entry in result.values():
        assert entry["best"] == "strong"
        assert set(entry["controls"]) == {"weak", "strong"}
        assert entry["interval"][0] < entry["steered"] < entry["interval"][1]
        strong, weak = entry["controls"]["strong"], entry["controls"]["weak"]
        assert strong["difference"] == pytest.approx(0.15, abs=0.04)
        assert weak["difference"] == pytest.approx(0.3, abs=0.05)
        for control in (strong, weak):
            assert 0 < control["interval"][0] < control["difference"] < control["interval"][1]
            assert entry["steered"] - control["rate"] == pytest.approx(control["difference"])
    worse = against_controls(curve(0.0), {"better": curve(0.2)})
    assert all(entry["controls"]["better"]["interval"][1] < 0 for entry in worse.values())


def test_intervals_of_a_difference_are_paired():
    """The same luck on both sides cancels: the interval is narrower than that of either rate."""
    entry = against_controls(curve(0.05), {"control": curve(0.0)})["5%"]
    width, own = (high - low for low, high in (entry["controls"]["control"]["interval"], entry["interval"]))
    assert width < 0.8 * own


def test_the_interval_of_a_mean_holds_it():
    values = (torch.arange(100) < 40).float()
    low, high = mean_interval(values, resampling(100))
    assert low < 0.4 < high
    assert mean_interval(torch.ones(100), resampling(100)) == pytest.approx([1.0, 1.0])


def scored(count=400, shift=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    outcome = torch.arange(count) % 2
    return torch.randn(count, generator=generator) + shift * outcome, outcome


def test_the_area_under_the_curve_is_the_chance_that_a_present_goal_scores_higher():
    scores, outcome = scored(200)
    above = (scores[outcome == 1][:, None] > scores[outcome == 0][None]).float().mean()
    assert auroc(scores, outcome) == pytest.approx(float(above), abs=1e-6)
    assert auroc(outcome.float(), outcome) == 1
    assert auroc(-outcome.float(), outcome) == 0
    assert auroc(torch.zeros(200), outcome) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "transform",
    [torch.sigmoid, torch.exp, lambda x: 1000 * x - 7, lambda x: 1e-3 * x + 0.5, lambda x: x**3],
    ids=["sigmoid", "exp", "wide", "narrow", "cube"],
)
def test_only_the_order_of_scores_counts(transform):
    scores, outcome = scored()
    scores = scores.double()
    assert auroc(transform(scores), outcome) == pytest.approx(auroc(scores, outcome), abs=1e-9)
    assert auroc(-scores, outcome) == pytest.approx(1 - auroc(scores, outcome), abs=1e-9)


def test_the_interval_of_a_difference_of_areas_tells_better_from_alike():
    good, outcome = scored(shift=2.0)
    poor = scored(shift=0.5, seed=1)[0]
    low, high = auroc_difference(good, poor, outcome)
    assert 0 < low < auroc(good, outcome) - auroc(poor, outcome) < high
    assert auroc_difference(poor, good, outcome) == pytest.approx([-high, -low], abs=1e-6)
    low, high = auroc_difference(scored(seed=2)[0], scored(seed=3)[0], outcome)
    assert low < 0 < high
    assert auroc_difference(good, 5 * good + 1, outcome) == pytest.approx([0.0, 0.0], abs=1e-9)
    assert auroc_difference(good, poor, outcome, seed=1) != auroc_difference(good, poor, outcome, seed=2)


def test_identical_scores_have_no_difference_at_all():
    scores, outcome = scored()
    assert auroc_difference(scores, scores.clone(), outcome) == [0.0, 0.0]


def test_scenes_are_resampled_whole():
    """A scene that is drawn n times meets itself n² times; were goals drawn one by one, some would meet none."""
    present, absent = torch.arange(10.0) + 0.5, torch.arange(10.0)
    outcome = torch.tensor([1] * 10 + [0] * 10)
    for order in (torch.arange(20), torch.arange(20).reshape(2, 10).T.flatten()):  # apart, or goal by goal
        up, down = torch.cat([present, absent])[order], torch.cat([absent, present])[order]
        low, high = auroc_difference(up, down, outcome[order])
        assert 0.1 <= low < high < 0.4  # who wins differs within a scene only: the mean of n² over ten scenes, / 10
    constant = torch.cat([torch.full((10,), 2.0), torch.full((10,), 1.0)])
    assert auroc_difference(constant, -constant, outcome) == [1.0, 1.0]


@pytest.mark.parametrize("outcome", [[0, 0, 1], [1, 1, 1], [1, 1, 0, 1]])
def test_goals_that_are_not_pairs_are_refused(outcome):
    scores = torch.arange(float(len(outcome)))
    told = f"outcome: got {sum(outcome)} present goals and {len(outcome) - sum(outcome)} absent ones"
    with pytest.raises(ValueError, match=told):
        auroc_difference(scores, -scores, torch.tensor(outcome))
