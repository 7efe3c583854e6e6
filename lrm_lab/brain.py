"""Representational similarity with the brain: 92 object photographs in human and monkey inferior temporal cortex (IT).

A dissimilarity matrix (RDM; Kriegeskorte et al. 2008) is made for every layer, pass and goal. It is compared with the
RDMs of four people, of their mean, and of the mean monkey. `rdm` holds the comparison and its intervals.

Unusual: steering is the experiment. Any goal changes an RDM. So a goal such as "a face" is compared with the unsteered
pass, and with a control goal too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lrm_lab.activations import layer_names, pass_features
from lrm_lab.brain92 import load_brain92
from lrm_lab.rdm import METHOD, category_contrast, correlation_rdm, dual_bootstrap
from lrm_lab.statistics import percentiles
from steering.errors import QueryError
from steering.network import Network
from steering.steerer import Steerer

CONTRASTS = {"face": "faces against the rest", "animal": "animate against inanimate"}
DATA = {"people": "four people", "mean_human": "mean human", "mean_monkey": "mean monkey"}
PIXELS = "pixels"  # the baseline: the image as the network takes it


@dataclass(frozen=True)
class _Condition:
    """A layer in a pass, unsteered or with a goal. Each condition has an RDM."""

    layer: str
    number: int
    goal: str | None

    def row(self) -> dict[str, Any]:
        return {"layer": self.layer, "pass": self.number, "goal": self.goal}


def _model_rdms(network: Network, images: np.ndarray, goals: Mapping[str, Tensor]) -> dict[_Condition, np.ndarray]:
    """Condensed RDMs of the pixels, and of every layer in every pass, without a goal and with each."""
    from PIL import Image

    pixels = torch.cat([network.pixels(Image.fromarray(image)) for image in images])
    rdms = {_Condition(PIXELS, 1, None): correlation_rdm(pixels.flatten(1).cpu().numpy())}
    layers = layer_names(network)
    for goal, vector in tqdm([(None, None), *goals.items()], desc="activations", disable=None):
        for index, features in enumerate(pass_features(network, pixels, layers, goal=vector)):
            if goal is None or index > 0:  # the first pass is never steered
                for layer, values in features.items():
                    rdms[_Condition(layer, index + 1, goal)] = correlation_rdm(values)
    return rdms


def measure(
    steerer: Steerer,
    folder: str | Path,
    *,
    queries: Sequence[str] = ("a face", "an animal"),
    control: str = "a bottle",
    num_bootstrap: int = 1000,
    seed: int = 0,
    quick: bool = False,
) -> dict[str, Any]:
    """Compare every layer, pass and goal with human and monkey IT. The module's docstring tells the methods.

    Args:
        folder: see `load_brain92`.
        queries: goals in words.
        control: a goal in words that none of the contrasts is about.
        num_bootstrap: number of bootstrap samples.
        quick: take at most 50 bootstrap samples.

    Returns:
        Plain values for JSON. `similarity` and `contrasts` have a row for each layer, pass and goal. `pass_differences`
        are differences from pass 1. `goal_differences` compare a goal with the same pass without a goal (`against`
        "unsteered") and with the control goal. `noise_ceiling` is that of the four people. `goals` tells what each goal
        was understood as. Intervals are 95 %, for people by the dual bootstrap, otherwise over images.

    Raises:
        ValueError: there are too few samples, or `load_brain92` refuses the files. QueryError: there is no query, the
            control is among the queries, or `Steerer.goal` refuses one of them.
    """
    if isinstance(queries, str) or not queries:
        raise QueryError(f"queries: got {queries!r}, expected a list of at least one query")
    if control in queries:
        raise QueryError(f"control: got {control!r}, which is among the queries; expected another query")
    samples = min(num_bootstrap, 50) if quick else num_bootstrap
    if samples < 20:
        raise ValueError(f"num_bootstrap: got {samples}, expected at least 20")
    from rsatoolbox.inference import boot_noise_ceiling
    from rsatoolbox.rdm import RDMs, compare
    from scipy.spatial.distance import squareform

    network, data = steerer.network, load_brain92(folder)
    goals = {query: steerer.goal(query, seed=seed).vector for query in (*queries, control)}
    rdms = _model_rdms(network, data.images, goals)
    conditions = list(rdms)
    condensed = np.stack([squareform(person, checks=False) for person in data.people.mean(1)])
    sessions = [float(compare(RDMs(person[:1]), RDMs(person[1:]), method=METHOD)[0, 0]) for person in data.people]
    generator = np.random.default_rng(seed)
    people, count = len(data.people), len(data.images)
    image_draws = generator.integers(0, count, (samples, count))
    bootstrap = dual_bootstrap(
        np.stack(list(rdms.values())),
        condensed,
        np.stack([data.mean_human, data.mean_monkey]),
        generator.integers(0, people, (samples, people)),
        image_draws,
    )
    index = {condition: number for number, condition in enumerate(conditions)}
    weights = np.stack([np.bincount(draw, minlength=count) for draw in image_draws]).astype(float)
    squares = np.stack([squareform(rdm) for rdm in rdms.values()])
    contrasts = {
        name: category_contrast(squares, data.flags[name], np.concatenate([np.ones((1, count)), weights]))
        for name in CONTRASTS
    }
    lower, upper = boot_noise_ceiling(RDMs(condensed), method=METHOD)
    similarity, passes, against, values = [], [], [], []
    for condition, number in index.items():
        entry = {name: bootstrap.value(number, i) for i, name in enumerate(DATA)}
        similarity.append(condition.row() | entry)
        values.append(condition.row() | {name: _spread(contrasts[name][:, number], "value") for name in CONTRASTS})
        if condition.goal is None and condition.number > 1:
            first = index[_Condition(condition.layer, 1, None)]
            entry = {name: bootstrap.difference(first, number, i) for i, name in enumerate(DATA)}
            passes.append(condition.row() | entry)
        if condition.goal in queries:
            for name, other in (("unsteered", None), ("control", control)):
                base = index[_Condition(condition.layer, condition.number, other)]
                entry = {name: bootstrap.difference(base, number, i) for i, name in enumerate(DATA)}
                entry |= {
                    flag: _spread(samples_[:, number] - samples_[:, base], "difference")
                    for flag, samples_ in contrasts.items()
                }
                against.append(condition.row() | {"against": name} | entry)
    return {
        "model": network.card["name"],
        "images": count,
        "people": people,
        "passes": network.defaults.passes,
        "strength": network.defaults.strength,
        "seed": seed,
        "num_bootstrap": samples,
        "comparison": METHOD,
        "layers": list(layer_names(network)),
        "queries": list(queries),
        "control": control,
        "goals": {query: _understood(steerer, query, goal) for query, goal in goals.items()},
        "noise_ceiling": {"lower": float(lower), "upper": float(upper)},
        "session_reliability": dict(zip(data.names, sessions, strict=True)),
        "similarity": similarity,
        "pass_differences": passes,
        "contrasts": values,
        "goal_differences": against,
    }


def _spread(samples: Float[np.ndarray, " b"], name: str) -> dict[str, Any]:
    """A value with its interval. The first sample is of all images, the others are bootstrap samples."""
    return {name: float(samples[0]), "interval": percentiles(samples[1:])}


def _understood(steerer: Steerer, query: str, goal: Tensor) -> dict[str, Any]:
    spelled, names = steerer.network.spelled(goal[None])[0], steerer.network.names_for(query)
    best = spelled.topk(min(5, len(spelled)))
    return {
        "top": [[names[i], value] for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)],
        "familiarity": float(steerer.language.familiarity(steerer.language.embed([query]))[0]),
        "norm": float(goal.norm()),
    }
