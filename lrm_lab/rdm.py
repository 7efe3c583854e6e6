"""Dissimilarity matrices (RDMs) of activations, how like those of brains they are, and how far apart categories lie.

An RDM holds 1 − Pearson's r between the activations to two images, over all positions of a map (Kriegeskorte et al.
2008). RDMs are compared by Spearman's rho-a, the expected rank correlation when ties are broken at random. Unlike rho,
it does not favour models that predict ties (Nili et al. 2014). Unlike tau-a, it is fast enough for a bootstrap (Schütt
et al. 2023).

Unusual: the dual bootstrap over people and images is that of rsatoolbox (Schütt et al. 2023), with its variances and
its degrees of freedom (people − 1). But all RDMs of a sample are ranked at once. This gives the same samples in a
fraction of the time; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from lrm_lab.statistics import percentiles

METHOD = "rho-a"


def correlation_rdm(features: Float[np.ndarray, "n p"]) -> Float[np.ndarray, " pairs"]:
    """Condensed RDM, 1 − Pearson's r between rows: `calc_rdm(…, method="correlation")` of rsatoolbox, but faster.

    Raises:
        ValueError: a row is constant, so that its correlations are undefined.
    """
    from scipy.spatial.distance import squareform

    constant = int((np.ptp(features, axis=1) == 0).sum())
    if constant:
        raise ValueError(
            f"features: got {constant} of {len(features)} images whose units all have the same activation, expected "
            "none: they correlate with nothing"
        )
    return squareform(1 - np.corrcoef(features.astype(np.float64)), checks=False)


@dataclass(frozen=True)
class Bootstrap:
    """Samples of the comparison of m model RDMs.

    Attributes:
        values: (m, data), comparisons on all images: with people (their mean), then with each single RDM.
        people: (samples, m, 3), comparisons with people, resampled over people and images, over people alone, and over
            images alone.
        single: (samples, m, data), comparisons with each single RDM, resampled over images.
        sd: (m,), standard error of a comparison with people.
        difference_sd: (m, m), standard error of the difference between two of these.
        quantile: 97.5 % quantile of Student's t with people − 1 degrees of freedom.
    """

    values: Float[np.ndarray, "m d"]
    people: Float[np.ndarray, "b m 3"]
    single: Float[np.ndarray, "b m e"]
    sd: Float[np.ndarray, " m"]
    difference_sd: Float[np.ndarray, "m m"]
    quantile: float

    def value(self, model: int, data: int) -> dict[str, Any]:
        """The comparison of a model with a data RDM (0: people), and its 95 % interval."""
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
    """`eval_dual_bootstrap` of rsatoolbox (Schütt et al. 2023), for many fixed models at once and with given draws.

    Resampling makes pairs of an image with itself. They are left out, as in rsatoolbox.

    Args:
        models: RDMs of models.
        people: RDMs of people, one for each person.
        single: RDMs of other brains, which are resampled over images alone.
        person_draws, image_draws: which people and which images make each sample.
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
    people_samples = np.empty((len(image_draws), count, 3))
    single_samples = np.empty((len(image_draws), count, len(single)))
    draws = zip(person_draws, image_draws, strict=True)
    for index, (persons, images) in enumerate(tqdm(draws, desc="bootstrap", total=len(people_samples), disable=None)):
        vectors = everything.subsample_pattern("index", images).get_vectors()
        sample = compared(vectors)
        people_samples[index] = np.stack(
            [sample[:, persons].mean(1), whole[:, persons].mean(1), sample[:, :num_people].mean(1)], 1
        )
        single_samples[index] = sample[:, num_people:]
    centred = people_samples - people_samples.mean(0)
    variances = np.einsum("ijk,ilk->kjl", centred, centred, optimize=True) / (len(people_samples) - 1)
    result = Result(
        [ModelFixed(str(index), rdm) for index, rdm in enumerate(models)],
        people_samples[:, :, None, None, :],
        method=METHOD,
        cv_method="dual_bootstrap",
        noise_ceiling=np.full(2, np.nan),
        variances=variances,
        dof=min(num_people, image_draws.shape[1]) - 1,
        n_rdm=num_people,
        n_pattern=image_draws.shape[1],
    )
    difference_sd = np.sqrt(np.maximum(squareform(result.diff_var, checks=False), 0))
    return Bootstrap(
        values, people_samples, single_samples, result.get_sem(), difference_sd, float(t.ppf(0.975, result.dof))
    )


def category_contrast(
    rdms: Float[np.ndarray, "m n n"], flag: Bool[np.ndarray, " n"], weights: Float[np.ndarray, "b n"]
) -> Float[np.ndarray, "b m"]:
    """Mean dissimilarity between a category and the rest, minus the mean within either.

    Args:
        flag: which images are of the category.
        weights: weights of the images; each row gives a contrast of its own.
    """
    between = flag[:, None] != flag[None]
    within = ~between & ~np.eye(len(flag), dtype=bool)

    def mean(mask: np.ndarray) -> np.ndarray:
        total = np.einsum("bi,mij,bj->bm", weights, np.where(mask, rdms, 0), weights, optimize=True)
        return total / np.einsum("bi,ij,bj->b", weights, mask.astype(float), weights, optimize=True)[:, None]

    return mean(between) - mean(within)
