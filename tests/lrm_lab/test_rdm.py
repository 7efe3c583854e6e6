"""RDMs and the dual bootstrap beside rsatoolbox's own, and known contrasts."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("rsatoolbox", reason="needs the extra `evaluate`")

from rsatoolbox.data import Dataset
from rsatoolbox.inference import bootstrap_sample, eval_dual_bootstrap
from rsatoolbox.model import ModelFixed
from rsatoolbox.rdm import RDMs, calc_rdm
from scipy.spatial.distance import squareform

from lrm_lab.rdm import METHOD, category_contrast, correlation_rdm, dual_bootstrap


def random_rdms(count: int, images: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((count, images * (images - 1) // 2))


def draws(samples: int, people: int, images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, people, (samples, people)), generator.integers(0, images, (samples, images))


def test_rdms_are_those_of_rsatoolbox() -> None:
    features = np.random.default_rng(0).normal(size=(9, 30))
    expected = calc_rdm(Dataset(features), method="correlation").get_vectors()[0]
    np.testing.assert_allclose(correlation_rdm(features), expected, atol=1e-12)
    features[4] = 2.0
    with pytest.raises(ValueError, match="1 of 9 images"):
        correlation_rdm(features)


def test_bootstrap_is_that_of_rsatoolbox(monkeypatch: pytest.MonkeyPatch) -> None:
    models, people, single = (random_rdms(count, 12, seed) for seed, count in enumerate((3, 4, 2)))
    drawn: list[tuple[np.ndarray, np.ndarray]] = []

    def recorded(*given: Any, **named: Any) -> Any:
        sample = bootstrap_sample(*given, **named)
        drawn.append(sample[1:])
        return sample

    monkeypatch.setattr("rsatoolbox.inference.evaluate.bootstrap_sample", recorded)
    state = np.random.get_state()  # noqa: NPY002  # rsatoolbox draws from the global generator
    try:
        np.random.seed(0)  # noqa: NPY002
        fixed = [ModelFixed(str(i), rdm) for i, rdm in enumerate(models)]
        expected = eval_dual_bootstrap(fixed, RDMs(people), method=METHOD, N=15)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    found = dual_bootstrap(models, people, single, *(np.stack(draw) for draw in zip(*drawn, strict=True)))
    np.testing.assert_allclose(found.people, expected.evaluations[:, :, 0, 0], atol=1e-12)
    np.testing.assert_allclose(found.sd, expected.get_sem(), atol=1e-12)
    variances = squareform(expected.diff_var, checks=False)
    np.testing.assert_allclose(found.difference_sd**2, np.maximum(variances, 0), atol=1e-12)


def test_a_model_that_is_the_brain_beats_a_random_one() -> None:
    truth = random_rdms(1, 20, 0)
    people = truth + 0.1 * random_rdms(4, 20, 1)
    models = np.concatenate([truth, random_rdms(1, 20, 2)])
    found = dual_bootstrap(models, people, truth, *draws(60, 4, 20, 3))
    assert found.value(0, 0)["value"] > 0.9
    assert found.value(0, 1)["value"] == pytest.approx(1)  # rho-a of an RDM with itself
    low, high = found.value(1, 0)["interval"]
    assert low < 0 < high
    for data in (0, 1):
        assert found.difference(1, 0, data)["interval"][0] > 0
        assert found.difference(0, 1, data)["interval"][1] < 0


def test_contrast_finds_a_category_and_nothing_in_a_flat_rdm() -> None:
    flag = np.arange(10) < 4
    apart = np.where(flag[:, None] != flag[None], 1.5, 0.5)
    flat = np.full((10, 10), 0.7)
    weights = np.concatenate([np.ones((1, 10)), np.random.default_rng(0).multinomial(10, [0.1] * 10, 5)])
    found = category_contrast(np.stack([apart, flat]), flag, weights.astype(float))
    np.testing.assert_allclose(found[:, 0], 1.0)
    np.testing.assert_allclose(found[:, 1], 0.0, atol=1e-12)


def test_contrast_weights_are_resampled_images() -> None:
    generator = np.random.default_rng(0)
    flag, rdm = np.arange(8) < 4, squareform(generator.random(28))
    picks = np.array([0, 0, 1, 3, 5, 5, 6, 7])
    weights = np.bincount(picks, minlength=8)[None].astype(float)
    pairs = [(a, b) for i, a in enumerate(picks) for b in picks[i + 1 :] if a != b]
    between = np.mean([rdm[a, b] for a, b in pairs if flag[a] != flag[b]])
    within = np.mean([rdm[a, b] for a, b in pairs if flag[a] == flag[b]])
    assert category_contrast(rdm[None], flag, weights)[0, 0] == pytest.approx(between - within)
