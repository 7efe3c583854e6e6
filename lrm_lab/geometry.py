"""Where the outputs of each pass lie: do classes lie further apart in a later pass, or when one is looked for?

Unusual: all passes are shown in one plane, that of the first pass's two principal components. But all
measures are taken on the whole outputs. The classes are those that are looked for, and others that the seed draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lrm_lab.named import over_classes
from lrm_lab.statistics import interval, resampling
from prior.captions import with_article
from steering.rollouts import run_steered, run_unsteered
from steering.steerer import Steerer


def measure(
    steerer: Steerer,
    pixels: Float[Tensor, "n 3 s s"],
    labels: Int[Tensor, " n"],
    goals_for: Sequence[str | int],
    *,
    num_classes: int = 6,
    per_class: int = 50,
    seed: int = 0,
) -> dict[str, Any]:
    """Outputs of single images in the first pass, in the last pass without a goal, and in the last pass for each goal.

    Args:
        pixels: labelled images, in 0–1.
        goals_for: queries, or numbers of classes, which are looked for by their names.
        num_classes: number of classes that are shown: those of the goals, and others that the seed draws.
        per_class: most images of each class.

    Returns:
        `classes` (index, name, images) and `labels` (for each point, its row in `classes`); `explained` (share of the
        variance by component); `images`, `seed`, `strength`, `passes`; and `panels`. A panel has a name, a goal, a
        target class and points (xy); the ratio of the variance between classes to that within them, and its difference
        from the first pass with a paired interval; the silhouette; the accuracy of the nearest neighbour; and the AUROC
        of the target's logit.

    Raises:
        ValueError: there is no such class, or fewer than two classes have two images.
    """
    from sklearn.decomposition import PCA

    vectors, queries = _goals(steerer, goals_for)
    targets = [int(over_classes(steerer.network, vector[None]).argmax()) for vector in vectors]
    for position, wanted in enumerate(goals_for):
        if isinstance(wanted, int):
            targets[position] = wanted  # the class that was asked for, even if its words mean another one to the prior
    generator = torch.Generator().manual_seed(seed)
    classes = _draw_classes(labels, targets, num_classes, generator)
    picks = [torch.nonzero(labels == label)[:, 0] for label in classes]
    picks = [own[torch.randperm(len(own), generator=generator)[:per_class]] for own in picks]
    places = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor([len(own) for own in picks]))
    unsteered = run_unsteered(steerer.network, pixels[torch.cat(picks)])
    runs: list[tuple[str, str | None, int | None, Tensor]] = [
        ("first pass", None, None, unsteered.first),
        ("last pass, no goal", None, None, unsteered.last),
    ]
    for words, vector, target in zip(queries, vectors, targets, strict=True):
        output = run_steered(steerer.network, unsteered, vector.expand(len(places), -1)).output
        runs.append((f"looking for {words}", words, target, output))
    outputs = [run[-1].double().cpu() for run in runs]
    plane = PCA(2, svd_solver="full").fit(outputs[0].numpy())
    weights = [resampling(len(own), seed + number) for number, own in enumerate(picks)]
    ratios = [_ratio(output, picks, weights) for output in outputs]
    panels: list[dict[str, Any]] = []
    for (name, query, aim, _), output, ratio in zip(runs, outputs, ratios, strict=True):
        panel: dict[str, Any] = {
            "name": name,
            "goal": query,
            "target": aim,
            "xy": [[round(v, 3) for v in point] for point in plane.transform(output.numpy()).tolist()],
            "ratio": float(ratio[0]),
            "difference": float(ratio[0] - ratios[0][0]),
            "interval": interval((ratio - ratios[0])[1:]),
            **_separation(output, places),
        }
        if aim in classes:
            own = (places == classes.index(aim)).numpy()
            stages = {"first": outputs[0], "last": outputs[1], "steered": output}
            panel["auroc"] = {stage: _auroc(own, seen, aim) for stage, seen in stages.items()}
        panels.append(panel)
    return {
        "classes": [
            {"index": label, "name": steerer.class_names[label], "images": len(own)}
            for label, own in zip(classes, picks, strict=True)
        ],
        "labels": places.tolist(),
        "explained": plane.explained_variance_ratio_.tolist(),
        "panels": panels,
        "images": len(places),
        "seed": seed,
        "strength": steerer.network.defaults.strength,
        "passes": steerer.network.defaults.passes,
    }


def _goals(steerer: Steerer, goals_for: Sequence[str | int]) -> tuple[list[Tensor], list[str]]:
    """Goal vectors, and the words that they were made from."""
    count = len(steerer.class_names)
    wrong = [wanted for wanted in goals_for if isinstance(wanted, int) and not 0 <= wanted < count]
    if wrong:
        raise ValueError(f"goals_for: got {wrong[0]}, expected 0 to {count - 1}, or a query in words")
    queries = [with_article(steerer.class_names[w]) if isinstance(w, int) else w for w in goals_for]
    return [goal.vector for goal in steerer.goals(queries)], queries


def _draw_classes(labels: Tensor, targets: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    """The targets that have images, then classes at random: `count` in all, or all targets if these are more."""
    shown, numbers = labels.unique(return_counts=True)
    usable = shown[numbers >= 2].tolist()
    chosen = [label for label in dict.fromkeys(targets) if label in usable]
    others = [label for label in usable if label not in chosen]
    order = torch.randperm(len(others), generator=generator).tolist()
    chosen += [others[i] for i in order[: max(count - len(chosen), 0)]]
    if len(chosen) < 2:
        raise ValueError(f"labels: got {len(chosen)} classes with two images, expected at least two such classes")
    return chosen


def _ratio(
    outputs: Float[Tensor, "n m"], groups: Sequence[Tensor], weights: Sequence[Float[Tensor, "r _"]]
) -> Float[Tensor, " r+1"]:
    """Variance between classes over variance within them (traces; every class counts alike).

    The first value belongs to the images as they are, the others to resampled images.
    """
    means, within = [], []
    for own, weight in zip(outputs.split([len(group) for group in groups]), weights, strict=True):
        plain = torch.full((1, len(own)), 1 / len(own), dtype=own.dtype)
        mixed = torch.cat([plain, weight.to(own.dtype)])
        centre = own.mean(0)  # values near zero lose no digits in the difference of squares
        mean = mixed @ (own - centre)
        within.append(mixed @ (own - centre).square().sum(1) - mean.square().sum(1))
        means.append(mean + centre)
    centres = torch.stack(means)  # (k, r + 1, m)
    between = (centres - centres.mean(0)).square().sum(-1).mean(0)
    return between / torch.stack(within).mean(0).clamp(min=1e-12)


def _separation(outputs: Float[Tensor, "n m"], places: Int[Tensor, " n"]) -> dict[str, float]:
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=1).fit(outputs.numpy()).kneighbors(return_distance=False)[:, 0]
    return {
        "silhouette": float(silhouette_score(outputs.numpy(), places.numpy())),
        "nearest_neighbour": float((places[torch.from_numpy(nearest)] == places).double().mean()),
    }


def _auroc(own: Any, outputs: Float[Tensor, "n m"], target: int) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(own, outputs[:, target].numpy()))
