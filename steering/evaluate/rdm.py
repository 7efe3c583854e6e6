"""Dissimilarity matrices (RDMs) of activations, how like those of brains they are, and how far apart categories lie.

An RDM is 1 − Pearson's r between the activations to two images, all positions of a map (Kriegeskorte et al. 2008). The
comparison is Spearman's rho-a, the expected rank correlation when ties are broken at random: unlike rho it does not
favour models that predict ties (Nili et al. 2014), and unlike tau-a it is fast enough for a bootstrap (Schütt et al.
2023).

Unusual: the dual bootstrap over people and images is rsatoolbox's (Schütt et al. 2023) with its variances and its
degrees of freedom (people − 1), but ranks all RDMs of a sample once; it gives the same samples, which a test holds it
to, in a fraction of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from steering.evaluate.statistics import percentiles

METHOD = "rho-a"


def correlation_rdm(features: Float[np.ndarray, "n p"]) -> Float[np.ndarray, " pairs"]:
    """Condensed RDM, 1 − Pearson's r between rows: rsatoolbox's `calc_rdm(…, method="correlation")`, many times faster.

    Raises:
        ValueError: a row is constant, so that its correlations are undefined.
    """
    from scipy.spatial.distance import squareform

    constant = int((np.ptp(features, axis=1) == 0).sum())
    if constant:
        raise ValueError(f"{constant} of {len(features)} images have the same activation in every unit: no correlation")
    return squareform(1 - np.corrcoef(features.astype(np.float64)), checks=False)


@dataclass(frozen=True)
class Bootstrap:
    """Samples of the comparison of m model RDMs.

    Attributes:
        values: (m, data), on all images: people averaged, then single RDMs.
        people: (samples, m, 3), resampled over both people and images, people alone, images alone.
        single: (samples, m, data), single RDMs, resampled over images.
        difference_sd: (m, m), standard error of a difference, for people; `sd`, (m,), of a value.
        quantile: of Student's t at 97.5 %, with people − 1 degrees of freedom.
    """

    values: Float[np.ndarray, "m d"]
    people: Float[np.ndarray, "b m 3"]
    single: Float[np.ndarray, "b m e"]
    sd: Float[np.ndarray, " m"]
    difference_sd: Float[np.ndarray, "m m"]
    quantile: float

    def value(self, model: int, data: int) -> dict[str, Any]:
        """The comparison of a model with a data RDM (0: people) and its 95 % interval."""
        value = float(self.values[model, data])
        if data == 0:
            return {"value": value, "interval": _around(value, self.quantile * self.sd[model])}
        return {"value": value, "interval": percentiles(self.single[:, model, data - 1])}

    def difference(self, first: int, second: int, data: int) -> dict[str, Any]:
        """The second model's comparison minus the first's, and its 95 % interval."""
        value = float(self.values[second, data] - self.values[first, data])
        if data == 0:
            return {"difference": value, "interval": _around(value, self.quantile * self.difference_sd[first, second])}
        samples = self.single[:, second, data - 1] - self.single[:, first, data - 1]
        return {"difference": value, "interval": percentiles(samples)}


def _around(value: float, half: float) -> list[float]:
    return [float(value - half), float(value + half)]


def dual_bootstrap(
    models: Float[np.ndarray, "m pairs"],
    people: Float[np.ndarray, "p pairs"],
    single: Float[np.ndarray, "e pairs"],
    person_draws: Int[np.ndarray, "b p"],
    image_draws: Int[np.ndarray, "b n"],
) -> Bootstrap:
    """rsatoolbox's `eval_dual_bootstrap` (Schütt et al. 2023) for many fixed models at once, with given draws.

    Pairs of an image with itself, which resampling makes, are left out, as there. `single` RDMs stand for one measured
    brain each and are resampled over images alone.
    """
    from rsatoolbox.inference import Result
    from rsatoolbox.model import ModelFixed
    from rsatoolbox.rdm import RDMs, compare
    from scipy.spatial.distance import squareform
    from scipy.stats import t

    count = len(models)
    data = np.concatenate([people, single])
    everything = RDMs(np.concatenate([models, data]))

    def compared(vectors: np.ndarray) -> np.ndarray:
        return compare(RDMs(vectors[:count]), RDMs(vectors[count:]), method=METHOD)  # (m, p + e)

    whole = compared(everything.get_vectors())
    num_people = len(people)
    values = np.concatenate([whole[:, :num_people].mean(1, keepdims=True), whole[:, num_people:]], 1)
    found = np.empty((len(image_draws), count, 3))
    found_single = np.empty((len(image_draws), count, len(single)))
    draws = zip(person_draws, image_draws, strict=True)
    for index, (persons, images) in enumerate(tqdm(draws, desc="bootstrap", total=len(found), disable=None)):
        vectors = everything.subsample_pattern("index", images).get_vectors()
        sample = compared(vectors)
        found[index] = np.stack(
            [sample[:, persons].mean(1), whole[:, persons].mean(1), sample[:, :num_people].mean(1)], 1
        )
        found_single[index] = sample[:, num_people:]
    centred = found - found.mean(0)
    variances = np.einsum("ijk,ilk->kjl", centred, centred, optimize=True) / (len(found) - 1)
    result = Result(
        [ModelFixed(str(index), rdm) for index, rdm in enumerate(models)],
        found[:, :, None, None, :],
        method=METHOD,
        cv_method="dual_bootstrap",
        noise_ceiling=np.full(2, np.nan),
        variances=variances,
        dof=min(num_people, image_draws.shape[1]) - 1,
        n_rdm=num_people,
        n_pattern=image_draws.shape[1],
    )
    difference_sd = np.sqrt(np.maximum(squareform(result.diff_var, checks=False), 0))
    return Bootstrap(values, found, found_single, result.get_sem(), difference_sd, float(t.ppf(0.975, result.dof)))


def category_contrast(
    rdms: Float[np.ndarray, "m n n"], flag: Bool[np.ndarray, " n"], weights: Float[np.ndarray, "b n"]
) -> Float[np.ndarray, "b m"]:
    """Mean dissimilarity between the category and the rest minus the mean within either, for weights of images."""
    between = flag[:, None] != flag[None]
    within = ~between & ~np.eye(len(flag), dtype=bool)

    def mean(mask: np.ndarray) -> np.ndarray:
        total = np.einsum("bi,mij,bj->bm", weights, np.where(mask, rdms, 0), weights, optimize=True)
        return total / np.einsum("bi,ij,bj->b", weights, mask.astype(float), weights, optimize=True)[:, None]

    return mean(between) - mean(within)
