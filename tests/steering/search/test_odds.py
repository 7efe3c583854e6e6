"""From one look to many: simulated galleries with known contents."""

import numpy as np
import pytest

from steering.search.odds import corrected, frequency


def looks(rng: np.random.Generator, present: int, absent: int) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts calibrated for even odds: log-odds of two normal distributions of variance v, 2·v apart... and truth."""
    log_odds = np.concatenate([rng.normal(2, 2, present), rng.normal(-2, 2, absent)])  # their ratio at x is exp(x)
    truth = np.arange(present + absent) < present
    return 1 / (1 + np.exp(-log_odds)), truth


@pytest.mark.parametrize("present", [0, 5, 50, 500])
def test_the_frequency_of_a_goal_is_recovered(present: int):
    rng = np.random.default_rng(0)
    probabilities, _ = looks(rng, present, 5000 - present)
    assert frequency(probabilities, 5000) == pytest.approx(present / 5000, abs=0.004, rel=0.25)


def test_corrected_probabilities_are_calibrated_where_the_others_are_far_too_sure():
    rng = np.random.default_rng(1)
    probabilities, truth = looks(rng, 10_000, 490_000)
    fixed = corrected(probabilities, frequency(probabilities, 500_000))
    for low, high in ((0.2, 0.5), (0.5, 0.8), (0.8, 1.0)):
        inside = (fixed >= low) & (fixed < high)
        assert truth[inside].mean() == pytest.approx(fixed[inside].mean(), abs=0.05)
    raw = probabilities > 0.8
    assert truth[raw].mean() < 0.3  # a verdict for even odds finds the goal everywhere


def test_of_many_images_without_the_goal_none_is_said_to_show_it():
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(100):
        probabilities, _ = looks(rng, 0, 1000)
        assert (probabilities > 0.8).any()
        wrong += (corrected(probabilities, frequency(probabilities, 1000)) > 0.8).any()
    assert wrong <= 10


def test_what_was_not_looked_at_counts_as_absent():
    sure = np.full(10, 0.999)
    assert frequency(sure, 10) == pytest.approx(10.5 / 11, abs=0.01)
    assert frequency(sure, 1000) == pytest.approx(0.0095, abs=0.002)


def test_even_odds_change_nothing_and_certainty_stays_finite():
    probabilities = np.array([0.0, 0.25, 0.9, 1.0])
    np.testing.assert_allclose(corrected(probabilities, 0.5), probabilities, atol=1e-5)
    assert np.isfinite(corrected(probabilities, 1e-9)).all()
    assert frequency(np.zeros(0), 0) == pytest.approx(0.5)
