"""The arithmetic of the evaluation: rates at equal absent rates, bootstraps, calibration error."""

import pytest
import torch

from steering.evaluate.bars import against_control, interval, presence, rate_at, resampling
from steering.trials import Hits


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
    return Hits(tuple(settings.tolist()), present, absent)


def test_against_itself_there_is_no_difference():
    result = against_control(curve(0.0), [curve(0.0)])
    assert set(result) == {"5%", "10%"}
    assert all(entry["difference"] == 0 and entry["interval"] == [0.0, 0.0] for entry in result.values())


def test_steering_is_held_against_the_better_control():
    result = against_control(curve(0.2), [curve(-0.1), curve(0.05)])
    for entry in result.values():
        assert entry["difference"] == pytest.approx(0.15, abs=0.04)
        assert entry["interval"][0] < entry["difference"] < entry["interval"][1]
        assert entry["steered"] - entry["control"] == pytest.approx(entry["difference"])
    worse = against_control(curve(0.0), [curve(0.2)])
    assert all(entry["interval"][1] < 0 for entry in worse.values())


def test_presence_tells_ranking_from_calibration():
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(20_000, generator=generator)
    outcome = (torch.rand(20_000, generator=generator) < probability).long()
    logit = torch.stack([torch.randn(20_000, generator=generator), probability])
    honest = presence(probability, logit, outcome)
    assert honest["calibration_error"] < 0.02
    assert honest["auroc_verdict"] == pytest.approx(honest["auroc_unsteered_logit"], abs=1e-3)  # the better row
    boastful = presence((probability > 0.5).float(), logit, outcome)
    assert boastful["calibration_error"] == pytest.approx(0.25, abs=0.02)
