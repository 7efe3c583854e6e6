"""From looks to the gallery: simulated galleries with known contents."""

import numpy as np
import pytest

from steering.search.candidates import Candidate, draw
from steering.search.odds import Prevalence, corrected, prevalence

SHARES = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)


def verdicts(rng: np.random.Generator, truth: np.ndarray, apart: float = 6.0) -> np.ndarray:
    """Probabilities calibrated for even odds: log-odds of two normal distributions of variance v, v apart."""
    log_odds = rng.normal(np.where(truth, apart / 2, -apart / 2), apart**0.5)  # their ratio at x is exp(x)
    return 1 / (1 + np.exp(-log_odds))


def searched(
    rng: np.random.Generator, images: int, share: float, looks: int = 128
) -> tuple[np.ndarray, Prevalence, np.ndarray]:
    """Verdicts and truth of the looks of a search, best first stage first, and what they say of the gallery."""
    truth = np.arange(images) < round(images * share)
    alone = verdicts(rng, truth)
    first_stage = np.log(alone / (1 - alone)) + rng.normal(0, 3, images)
    order = np.argsort(-first_stage)
    rest = [Candidate({"place": place}) for place in range(looks, images)]
    drawn = draw(rest, [], 0, looks, rng)
    rows = order[[*range(min(looks, images)), *(c.row["place"] for c in drawn)]]
    weights = np.array([1.0] * min(looks, images) + [c.weight for c in drawn])
    strata = np.array([0] * min(looks, images) + [c.stratum for c in drawn])
    assert weights.sum() == pytest.approx(images)
    return alone[rows], prevalence(alone[rows], weights, strata), truth[rows]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("images", [100, 1000, 10_000])
def test_the_gallery_is_judged_rightly_for_every_share(images: int, share: float):
    rng = np.random.default_rng(0)
    found = [searched(rng, images, share)[1] for _ in range(12)]
    answers = [one.answer for one in found]
    if share == 0:
        assert answers.count("present") <= 0.1 * len(answers)
    else:
        assert "absent" not in answers
    if share >= 0.1:
        assert answers.count("present") >= 0.7 * len(answers)
    inside = np.mean([one.low <= share <= one.high + 1 / images for one in found])
    assert inside >= 0.75
    if share >= 0.1:
        assert np.median([one.share for one in found]) == pytest.approx(share, rel=0.5)  # cautious: rather too low


def test_images_that_nobody_looked_at_are_no_evidence_of_absence():
    for images in (128, 600, 3000, 100_000):  # near-identical pictures, each present at 94 % alone
        drawn = min(images - 128, 48)
        weights = np.array([1.0] * 128 + [(images - 128) / drawn] * drawn) if drawn else np.ones(128)
        strata = np.array([0] * 128 + [1] * drawn)
        found = prevalence(np.full(128 + drawn, 0.94), weights, strata)
        assert found.answer == "present"
        assert found.share > 0.95
        assert corrected(np.array([0.94]), found)[0] > 0.94


def test_one_picture_that_stands_for_many_counts_as_many():
    alone, strata = np.array([0.94, *[0.1] * 99]), np.zeros(100, int)
    many = prevalence(alone, np.array([900.0, *[1.0] * 99]), strata)
    one = prevalence(alone, np.ones(100), strata)
    assert many.share > 0.8 > 0.1 > one.share
    assert many.answer == "present"


def test_how_frequent_the_goal_is_cannot_make_a_cat_of_a_black_picture():
    alone = np.array([0.94] * 44 + [0.17, 0.15, 0.14, 0.16])
    found = prevalence(alone, np.ones(48), np.zeros(48, int))
    assert found.share > 0.85
    fixed = corrected(alone, found)
    np.testing.assert_allclose(fixed[44:], alone[44:])  # no evidence, no gain
    assert (fixed[:44] > 0.94).all()
    little = corrected(np.array([0.5, 0.6]), found)
    assert little[0] == pytest.approx(0.5)
    assert little[1] == pytest.approx(0.6**2 / (0.6**2 + 0.4**2))  # at most twice the log-odds


def test_where_the_goal_is_rare_a_hit_is_trusted_less():
    rng = np.random.default_rng(1)
    alone, found, truth = searched(rng, 10_000, 0.01)
    said = alone > 0.8
    assert truth[said].mean() < 0.75  # a verdict for even odds sees too much among so many
    assert corrected(alone, found)[said].sum() == pytest.approx(truth[said].sum(), rel=0.5)
    assert (corrected(alone, found) <= alone + 1e-9).all()


def test_the_more_certain_the_looks_the_more_can_be_ruled_out():
    weights, strata = np.ones(128), np.zeros(128, int)
    sure = prevalence(np.full(128, 0.001), weights, strata)
    assert (sure.answer, sure.low) == ("absent", 0.0)
    assert prevalence(np.full(128, 0.2), weights, strata).answer == "unsure"
    assert prevalence(np.array([*[0.001] * 127, 0.99]), weights, strata).answer == "unsure"
    assert sure.high < 0.05


def test_few_draws_from_many_leave_much_open():
    close = prevalence(np.full(128, 0.05), np.ones(128), np.zeros(128, int))
    far = prevalence(np.full(20, 0.05), np.array([1.0] * 8 + [1000.0] * 12), np.array([0] * 8 + [1] * 12))
    assert far.high > 3 * close.high


def test_certainty_stays_finite_and_the_seed_fixes_the_interval():
    alone = np.array([0.0, 0.25, 0.9, 1.0])
    found = prevalence(alone, np.ones(4), np.zeros(4, int))
    assert np.isfinite([found.share, found.low, found.high, found.factor]).all()
    assert np.isfinite(corrected(alone, found)).all()
    assert found == prevalence(alone, np.ones(4), np.zeros(4, int))
    assert 0 <= found.low <= found.share <= found.high <= 1


def test_draws_speak_for_every_image_of_their_stratum():
    rng = np.random.default_rng(0)
    rest = [Candidate({"place": place}) for place in range(5000)]
    far = [{"place": -1 - place} for place in range(60)]
    drawn = draw(rest, far, 90_000, 128, rng)
    assert sum(c.weight for c in drawn) == pytest.approx(95_000)
    assert len({c.row["place"] for c in drawn}) == len(drawn) <= 60
    strata = [c.stratum for c in drawn]
    assert strata == sorted(strata)
    assert {c.stratum for c in drawn if c.row["place"] < 0} == {max(strata)}
    copies = [Candidate({"place": 0}, copies=("a",) * 9), *rest[1:40]]
    assert sum(c.weight for c in draw(copies, [], 0, 128, rng)) == 49


def test_many_fair_looks_at_a_small_gallery_are_enough():
    alone = np.array([0.95, 0.93, 0.93, 0.91, *[0.2] * 14])
    found = prevalence(alone, np.ones(18), np.zeros(18, int))
    assert found.factor < 8
    assert found.answer == "present"
    assert prevalence(alone[3:], np.ones(15), np.zeros(15, int)).answer == "unsure"  # one may be a look-alike
    drawn = np.array([0] * 12 + [1] * 6)
    assert prevalence(alone, np.ones(18), drawn).answer == "unsure"  # so much is only guessed from a few draws
