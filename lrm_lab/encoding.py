"""Encoding models: how well the activations of a pass predict measured responses, by cross-validated ridge regression.

A ridge regression (Hoerl & Kennard 1970) reads each unit out of one layer in one pass. Naselaris et al. (2011) describe
the method. The penalty is chosen for each unit inside the training folds alone (leave-one-out). The score is Pearson's
r on images that were not trained on. With repeated responses, it is also r divided by the most that noise allows.

Unusual: r is taken within each fold and averaged. If predictions were pooled over folds, those of a useless model would
correlate negatively with the responses, because each fold's intercept is the mean of the other folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from lrm_lab.activations import MAX_FEATURES, layer_names, pass_features, random_projection
from lrm_lab.responses import load_responses
from lrm_lab.statistics import percentiles
from steering.errors import QueryError
from steering.steerer import Steerer

ALPHAS = tuple(float(alpha) for alpha in np.logspace(-4, 4, 17))  # features have mean square 1/p: the kernel's is 1
MIN_FOLD = 4  # images; with fewer of them a correlation says nothing
MIN_RELIABILITY = 0.1  # the noise ceiling of less reliable units is not used


def reliability(values: Float[np.ndarray, "n u r"]) -> Float[np.ndarray, " u"]:
    """Reliability of each unit's mean over its repeats: Cronbach's alpha (1951), the mean over all split halves.

    Its square root is the correlation of that mean with the response free of noise. No model can reach more.
    """
    repeats = values.shape[2]
    if repeats < 2:
        raise ValueError(f"repeats: got {repeats}, expected at least 2")
    total = values.sum(2).var(0, ddof=1)
    return repeats / (repeats - 1) * (1 - values.var(0, ddof=1).sum(1) / np.maximum(total, 1e-300))


def fold_correlation(
    predicted: Float[np.ndarray, "n u"],
    measured: Float[np.ndarray, "n u"],
    fold: np.ndarray,
    weights: Float[np.ndarray, "b n"],
) -> Float[np.ndarray, "b u"]:
    """Pearson's r of each unit within each fold, averaged over folds. It is 0 where it is undefined.

    Args:
        weights: weights of the images; each row gives an r of its own.
    """
    total = np.zeros((len(weights), measured.shape[1]))
    for index in np.unique(fold):
        rows = fold == index
        w = weights[:, rows] / weights[:, rows].sum(1, keepdims=True)
        x = predicted[rows] - predicted[rows].mean(0)
        y = measured[rows] - measured[rows].mean(0)
        mean_x, mean_y = w @ x, w @ y
        floor_x, floor_y = 1e-12 * (x**2).mean(0), 1e-12 * (y**2).mean(0)
        var_x, var_y = w @ x**2 - mean_x**2, w @ y**2 - mean_y**2
        defined = (var_x > floor_x) & (var_y > floor_y)
        scale = np.sqrt(np.where(defined, var_x * var_y, 1.0))
        total += np.where(defined, (w @ (x * y) - mean_x * mean_y) / scale, 0.0)
    return total / len(np.unique(fold))


def _predict(features: Float[np.ndarray, "n p"], measured: Float[np.ndarray, "n u"], fold: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    predicted = np.empty_like(measured)
    for index in np.unique(fold):
        train, test = fold != index, fold == index
        scaler = StandardScaler().fit(features[train])
        x, new = (scaler.transform(features[rows]) / np.sqrt(features.shape[1]) for rows in (train, test))
        if x.shape[1] > len(x):  # ridge weights lie in the span of the images; a basis of it is as good and faster
            basis = np.linalg.qr(x.T)[0]
            x, new = x @ basis, new @ basis
        predicted[test] = RidgeCV(ALPHAS, alpha_per_target=True).fit(x, measured[train]).predict(new)
    return predicted


def encode(
    features_by_layer: Mapping[str, Float[np.ndarray, "_ _"]],
    responses: Float[np.ndarray, "_ _"] | Float[np.ndarray, "_ _ _"],
    *,
    folds: int = 5,
    seed: int = 0,
    num_bootstrap: int = 500,
    compare: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Predict every unit from every set of features. The module's docstring tells the method.

    Args:
        features_by_layer: name → features, (n, p). Each set is tested on the same folds.
        responses: (n, units) or (n, units, repeats).
        compare: pairs of names. For each pair, the second's median r minus the first's is reported.

    Returns:
        Plain values for JSON. `layers` holds, for each name, `r` (one for each unit), `median`, `interval` and, with
        repeats, `normalised`: the median of r / ceiling over units whose reliability is at least 0.1. `differences` has
        an entry for each pair of `compare`. `reliability` and `ceiling` have a value for each unit, or are None.
        Intervals are 95 %, over images; the regressions are not fitted again for them.

    Raises:
        ValueError: there are no features, shapes do not agree, there are too few images, or `compare` has an unknown
            name.
    """
    from sklearn.model_selection import KFold

    values = np.asarray(responses, dtype=np.float64)
    if values.ndim not in (2, 3):
        raise ValueError(f"responses: got shape {values.shape}, expected (n, units) or (n, units, repeats)")
    values = values.reshape(*values.shape[:2], -1)
    count = len(values)
    if not features_by_layer:
        raise ValueError("features_by_layer: got none, expected at least one set of features")
    for name, features in features_by_layer.items():
        if features.ndim != 2 or len(features) != count:
            raise ValueError(f"features_by_layer: {name!r}: got shape {features.shape}, expected ({count}, features)")
    unknown = [name for pair in compare for name in pair if name not in features_by_layer]
    if unknown:
        raise ValueError(f"compare: got {unknown[0]!r}, expected {', '.join(features_by_layer)}")
    if folds < 2 or count < MIN_FOLD * folds:
        raise ValueError(
            f"folds: got {folds} of {count} images, expected at least 2 folds with at least {MIN_FOLD} images each"
        )
    fold = np.empty(count, dtype=int)
    for index, (_, test) in enumerate(KFold(folds, shuffle=True, random_state=seed).split(values)):
        fold[test] = index
    measured = values.mean(2)
    generator = np.random.default_rng(seed)
    weights = np.zeros((num_bootstrap, count))
    for index in range(folds):  # images are drawn within their fold, so that every fold keeps its size
        rows = np.flatnonzero(fold == index)
        weights[:, rows] = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), num_bootstrap)
    alpha = reliability(values) if values.shape[2] > 1 else None
    reliable = np.zeros(values.shape[1], bool) if alpha is None else alpha >= MIN_RELIABILITY
    ceiling = None if alpha is None else np.sqrt(np.clip(alpha, 0, 1))
    layers: dict[str, Any] = {}
    medians: dict[str, np.ndarray] = {}
    for name, features in tqdm(features_by_layer.items(), desc="encoding", disable=None):
        predicted = _predict(np.asarray(features, dtype=np.float64), measured, fold)
        r = fold_correlation(predicted, measured, fold, np.ones((1, count)))[0]
        medians[name] = np.median(fold_correlation(predicted, measured, fold, weights), axis=1)
        layers[name] = {"median": float(np.median(r)), "interval": percentiles(medians[name]), "r": r.tolist()}
        if ceiling is not None:
            normalised = r[reliable] / ceiling[reliable]
            layers[name]["normalised"] = float(np.median(normalised)) if len(normalised) else None
    differences = [
        {
            "from": first,
            "to": second,
            "difference": layers[second]["median"] - layers[first]["median"],
            "interval": percentiles(medians[second] - medians[first]),
        }
        for first, second in compare
    ]
    return {
        "images": count,
        "units": values.shape[1],
        "repeats": values.shape[2],
        "folds": folds,
        "seed": seed,
        "num_bootstrap": num_bootstrap,
        "reliability": None if alpha is None else alpha.tolist(),
        "ceiling": None if ceiling is None else ceiling.tolist(),
        "reliable_units": None if alpha is None else int(reliable.sum()),
        "layers": layers,
        "differences": differences,
    }


def measure(
    steerer: Steerer,
    path: str | Path,
    *,
    queries: Sequence[str] = (),
    folds: int = 5,
    num_bootstrap: int = 500,
    seed: int = 0,
    quick: bool = False,
) -> dict[str, Any]:
    """Encode your own responses from every layer in every pass, without a goal and with each query as goal.

    Args:
        path: see `load_responses`.
        quick: whether to take the first and the last pass alone, a quarter of the random features, and at most 100
            bootstrap samples.

    Returns:
        What `encode` returns, and `model`, `passes`, `strength`, `queries`, `file`, `subjects` (name → units) and
        `rows`: the layer, the pass and the goal of each set of features, and its name under `layers`.

    Raises:
        ValueError: `load_responses` or `encode` refuses the file. ImageError: an image cannot be read. QueryError:
            `Steerer.goal` refuses a query.
    """
    from steering.images import open_image

    if isinstance(queries, str):
        raise QueryError(f"queries: got {queries!r}, expected a list of queries")
    data = load_responses(path)
    if len(data.images) < MIN_FOLD * folds:  # before the images are read
        raise ValueError(
            f"{path}: got {len(data.images)} images, expected at least {MIN_FOLD} for each of {folds} folds"
        )
    network = steerer.network
    layers, passes = layer_names(network), network.defaults.passes
    project = random_projection(MAX_FEATURES // 4 if quick else MAX_FEATURES, seed)
    goals = {query: steerer.goal(query, seed=seed).vector for query in queries}
    pictures = tqdm(data.images, desc="images", disable=None)
    pixels = torch.cat([network.pixels(open_image(image)) for image in pictures])
    shown = [p for p in range(1, passes + 1) if not quick or p in (1, passes)]
    features: dict[str, np.ndarray] = {}
    rows: list[dict[str, Any]] = []
    for goal, vector in ((None, None), *goals.items()):
        by_pass = pass_features(network, pixels, layers, goal=vector, project=project)
        for layer in layers:
            for number in shown:
                if goal is None or number > 1:  # the first pass is never steered
                    name = f"{layer}, pass {number}" + (f", {goal}" if goal else "")
                    features[name] = by_pass[number - 1][layer]
                    rows.append({"name": name, "layer": layer, "pass": number, "goal": goal})
    compare = [(f"{row['layer']}, pass 1", row["name"]) for row in rows if row["goal"] is None and row["pass"] > 1]
    compare += [(f"{row['layer']}, pass {row['pass']}", row["name"]) for row in rows if row["goal"] is not None]
    samples = min(num_bootstrap, 100) if quick else num_bootstrap
    subjects: dict[str, list[int]] = {}
    for unit, subject in enumerate(data.subjects):
        subjects.setdefault(subject, []).append(unit)
    return {
        "model": network.card["name"],
        "file": Path(path).name,
        "passes": passes,
        "strength": network.defaults.strength,
        "queries": list(queries),
        "subjects": subjects,
        "rows": rows,
        **encode(features, data.values, folds=folds, seed=seed, num_bootstrap=samples, compare=compare),
    }
