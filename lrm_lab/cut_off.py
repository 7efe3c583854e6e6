"""Where a search ends: is what it calls relevant right, for each query, and would one threshold for all do as well?

Users of such searches ask for a cut-off. A fixed threshold on the cosine does not serve all queries: one query's
irrelevant images begin where another's relevant ones end. So the search's own cut-off is compared with the best single
threshold on each of three scores: the first stage's, and the log-odds of the goal before and after looking.

Unusual: a threshold is chosen on one half of the queries and measured on the other half, both ways round. Some queries
name what no image shows. The right answer to these is nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from lrm_lab.goals import supports_of
from lrm_lab.statistics import interval, mean_interval, resampling
from prior.captions import with_article
from steering.cutoff import LEAST
from steering.rollouts import run_steered, run_unsteered
from steering.search.gallery import Gallery
from steering.search.hits import Hits
from steering.steerer import Steerer

SEARCH, ORACLE = "search", "each query's own"
SCORES = ("first stage", "before looking", "after looking")


@dataclass(frozen=True)
class Counts:
    """What was called relevant, for each of q queries.

    Attributes:
        said: (q,), number of images that were called relevant.
        right: (q,), how many of these are.
        shown: (q,), number of relevant images.
    """

    said: Tensor
    right: Tensor
    shown: Tensor

    @classmethod
    def of(cls, relevant: Bool[Tensor, "n q"], truth: Bool[Tensor, "n q"]) -> Counts:
        """Counts over images."""
        return cls(*(flags.sum(0).float() for flags in (relevant, relevant & truth, truth)))

    @property
    def f1(self) -> Float[Tensor, " q"]:
        """F1 of each query. Where no image is relevant it is 1 if nothing was called so, otherwise 0."""
        return torch.where(self.said + self.shown > 0, 2 * self.right / (self.said + self.shown).clamp(min=1), 1.0)


def measure(
    steerer: Steerer,
    pixels: Float[Tensor, "n 3 s s"],
    labels: Int[Tensor, " n"],
    *,
    queries: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Precision, recall and F1 of what a search calls relevant, and of the best single thresholds.

    Precision, recall and their F1 are those of all pairs of an image and a query together. `mean_f1` is the mean over
    the queries that some image shows; `silent` is the share of the other queries to which the answer was nothing.

    Args:
        pixels: labelled images, in 0–1. They are the gallery.
        queries: number of names that some image shows. Half as many others are searched for that no image shows, where
            there are such names.
        seed: number that draws the names and the halves.

    Raises:
        ValueError: images of two classes at least are needed.
    """
    asked, truth = _asked(labels, len(steerer.class_names), queries, seed)
    words = [with_article(steerer.class_names[label]) for label in asked]
    scores = _scores(steerer, pixels, words)
    said, calibrated = _searched(steerer, pixels, words)
    half = torch.arange(len(asked)) % 2 == 0  # they were drawn in an order by chance
    ways = {SEARCH: Counts.of(said, truth)}
    thresholds: dict[str, list[float]] = {}
    for name, table in scores.items():
        thresholds[name] = [best_threshold(table[:, part], truth[:, part]) for part in (~half, half)]
        limit = torch.tensor(thresholds[name])[(~half).long()]
        ways[name] = Counts.of(table >= limit, truth)
    first = scores[SCORES[0]]
    own = torch.tensor([best_threshold(first[:, [q]], truth[:, [q]]) for q in range(len(asked))])
    ways[ORACLE] = Counts.of(first >= own, truth)
    shown = truth.any(0)
    against = {name: _difference(ways[SEARCH], ways[name], shown) for name in SCORES}
    return {
        "images": len(labels),
        "queries": int(shown.sum()),
        "queries_of_nothing": int((~shown).sum()),
        "shown_by": float(truth[:, shown].float().sum(0).mean()),
        "calibrated": calibrated,
        "first_stage": "cosine" if steerer.network.is_open else "places",
        "ways": {name: _entry(counts, shown) for name, counts in ways.items()},
        "thresholds": thresholds,
        "against": against,
    }


def best_threshold(scores: Float[Tensor, "n q"], truth: Bool[Tensor, "n q"]) -> float:
    """The score from which on images are best called relevant, by the F1 of all pairs; infinity where none is."""
    flat, order = scores.flatten().sort(descending=True)
    right = truth.flatten()[order].float().cumsum(0)
    f1 = 2 * right / (torch.arange(1, len(flat) + 1) + truth.sum())
    is_last = torch.cat([flat[1:] < flat[:-1], torch.ones(1, dtype=torch.bool)])  # of equal scores all or none
    best = f1.masked_fill(~is_last, -1).argmax()
    return float(flat[best]) if right[-1] > 0 else float("inf")


def relevant(hits: Hits) -> list[str]:
    """The paths of the hits that a search calls relevant: those before it ends."""
    return [hit.path for hit in hits if hit.probability is not None and hit.probability >= LEAST]


def _asked(labels: Int[Tensor, " n"], classes: int, count: int, seed: int) -> tuple[list[int], Bool[Tensor, "n q"]]:
    """Classes to search for, in an order by chance, and which images show each."""
    generator = torch.Generator().manual_seed(seed)
    shown = labels.unique()
    if len(shown) < 2:
        raise ValueError(f"labels: got images of {len(shown)} class, expected at least two classes")
    others = torch.tensor([label for label in range(classes) if label not in set(shown.tolist())], dtype=torch.long)
    picks = [
        group[torch.randperm(len(group), generator=generator)[:most]]
        for group, most in ((shown, count), (others, count // 2))
    ]
    drawn = torch.cat(picks)
    drawn = drawn[torch.randperm(len(drawn), generator=generator)]
    return drawn.tolist(), labels[:, None] == drawn


def _scores(steerer: Steerer, pixels: Float[Tensor, "n 3 s s"], words: Sequence[str]) -> dict[str, Tensor]:
    """Scores (n, q) of every image for every query, by each of `SCORES`."""
    network = steerer.network
    unsteered = run_unsteered(network, pixels)
    kept = torch.cat([torch.from_numpy(network.kept(glance)[1]) for glance in unsteered.glances])
    found: dict[str, list[Tensor]] = {name: [] for name in SCORES}
    for goal in tqdm(steerer.goals(words), desc="cut-off, scores", disable=None):
        many = goal.vector.to(network.device).expand(len(pixels), -1)
        after = run_steered(network, unsteered, many)
        each = (
            kept @ torch.from_numpy(network.direction(goal.vector)),
            supports_of(network, unsteered.seen, many),
            supports_of(network, after, many),
        )
        for name, values in zip(SCORES, each, strict=True):
            found[name].append(values.float().cpu())
    return {name: torch.stack(columns, 1) for name, columns in found.items()}


def _searched(
    steerer: Steerer, pixels: Float[Tensor, "n 3 s s"], words: Sequence[str]
) -> tuple[Bool[Tensor, "n q"], bool]:
    """Which images a search calls relevant for each query, and whether its probabilities were calibrated."""
    said, calibrated = torch.zeros(len(pixels), len(words), dtype=torch.bool), True
    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery.open(folder, steerer, keep="first-pass")
        report = gallery.add((str(row), to_pil_image(picture)) for row, picture in enumerate(pixels))
        if report.skipped or report.images != len(pixels):
            raise RuntimeError(f"{report.images} of {len(pixels)} images were indexed: {report.skipped}")
        for column, query in enumerate(tqdm(words, desc="cut-off, searches", disable=None)):
            hits = gallery.search(query, top=len(pixels), fold=False)
            said[[int(path) for path in relevant(hits)], column] = True
            calibrated = calibrated and hits.is_calibrated
    return said, calibrated


def _entry(counts: Counts, shown: Bool[Tensor, " q"]) -> dict[str, Any]:
    weights = resampling(len(shown))
    said, right, there = (each.sum() for each in (counts.said, counts.right, counts.shown))
    resampled = 2 * (weights @ counts.right) / (weights @ (counts.said + counts.shown)).clamp(min=1e-9)
    f1, silent = counts.f1[shown], (counts.said == 0).float()[~shown]
    return {
        "precision": float(right / said) if said > 0 else None,
        "recall": float(right / there),
        "f1": float(2 * right / (said + there)),
        "f1_interval": interval(resampled),
        "mean_f1": float(f1.mean()),
        "mean_f1_interval": mean_interval(f1, resampling(len(f1))),
        "silent": float(silent.mean()) if len(silent) else None,
    }


def _difference(own: Counts, other: Counts, shown: Bool[Tensor, " q"]) -> dict[str, Any]:
    """How much better the mean F1 of the queries that are shown is, with its paired interval."""
    gain = (own.f1 - other.f1)[shown]
    return {"mean_f1": float(gain.mean()), "interval": mean_interval(gain, resampling(len(gain)))}
