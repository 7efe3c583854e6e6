"""One search of a gallery: choose the images to look at, look, estimate, rank. See `steering.search.gallery`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from einops import rearrange

from lrm_core.feedback import Strength
from steering.cutoff import LEAST, SAMPLE, for_search, is_calibrated
from steering.goals import Goal
from steering.search.candidates import Candidate, choose
from steering.search.files import is_gone, to_key
from steering.search.hits import Hit, Hits, direction, ranked, unseen
from steering.search.looks import look_for
from steering.search.odds import prevalence, relevance
from steering.search.schema import SHOWN
from steering.search.store import Store
from steering.seek import is_unknown
from steering.steerer import Steerer


def find(
    store: Store,
    steerer: Steerer,
    goal: Goal,
    *,
    top: int,
    rerank: int,
    where: str | None,
    threshold: float | None,
    fold: bool,
    anyway: bool,
    strength: Strength | None,
    passes: int | None,
    seed: int,
) -> Hits:
    """Search a gallery for a goal. The arguments and errors are those of `Gallery.search`."""
    start = time.perf_counter()
    calibrated = True
    if steerer.network.is_open:
        calibrated = is_calibrated(steerer)
        if rerank and not calibrated:  # the sample is read only where it is used
            steerer = for_search(steerer, _some(store))
    total, unknown = store.count(where), is_unknown(steerer.verdicts, goal)
    if unknown and not anyway:
        return Hits([], goal, total, 0, None, time.perf_counter() - start, is_unknown=True)
    choice: dict[str, Any] = {"looks": rerank, "top": top, "where": where, "fold": fold, "seed": seed}
    chosen = choose(store, direction(steerer.network, goal), total, **choice)
    candidates = [*chosen.nearest, *chosen.drawn]
    rows = [candidate.row for candidate in candidates]
    looks = look_for(store, steerer, goal, rows, strength=strength, passes=passes)
    if threshold is not None and (unknown or looks.alone is None):
        lacks = f"eyes for {goal.name!r}" if unknown else f"calibrated verdict for goals by {goal.source!r}"
        raise ValueError(f"threshold: got {threshold:g}, but {store.card.model} has no {lacks}")
    estimate = None
    if looks.alone is not None and looks.seen.any() and not unknown:
        weights, strata = (np.array([getattr(c, key) for c in candidates]) for key in ("weight", "stratum"))
        estimate = prevalence(looks.alone[looks.seen], weights[looks.seen], strata[looks.seen])
        if steerer.network.is_open:
            estimate = relevance(looks.alone[looks.seen], weights[looks.seen])
    frequent = None if steerer.network.is_open else estimate  # standing among images has told of it already
    hits = ranked(candidates, looks, frequent, steerer.verdicts, goal)
    hits += map(unseen, chosen.unseen)
    if threshold is None and steerer.network.is_open and looks.alone is not None and candidates:
        threshold = LEAST
    if threshold is not None:
        hits = [hit for hit in hits if hit.probability is not None and hit.probability >= threshold]
    numbered = [_numbered(hit, rank) for rank, hit in enumerate(hits[:top], start=1)]
    seconds = time.perf_counter() - start
    guessed = looks.alone is not None and bool(candidates) and not calibrated
    return Hits(numbered, goal, total, len(candidates), estimate, seconds, unknown, is_calibrated=not guessed)


def pages(store: Store, steerer: Steerer, goal: Goal, where: str | None, page: int) -> Iterator[Hit]:
    """Every image of a gallery, the nearest first. Each page of images is looked at and ranked by itself."""
    scores, names = _scores(store, direction(steerer.network, goal), where)
    order = np.argsort(-scores, kind="stable")
    rank = 0
    for start in range(0, len(order), page):
        part = order[start : start + page]
        rows = _rows(store, names.take(part).to_pylist(), scores[part])
        looks = look_for(store, steerer, goal, rows)
        for hit in ranked([Candidate(row) for row in rows], looks, None, steerer.verdicts, goal):
            rank += 1
            yield _numbered(hit, rank)


def _some(store: Store) -> np.ndarray:
    """Some embeddings of a gallery, (n, M), of unit length."""
    rows = store.sample(("evidence",), SAMPLE)
    return np.array([row["evidence"] for row in rows], np.float32).reshape(len(rows), -1)


def matrix(column: pa.Array) -> np.ndarray:
    """A column of b vectors as (b, M), float32."""
    return rearrange(column.flatten().to_numpy(), "(b m) -> b m", b=len(column)).astype(np.float32)


def _scores(store: Store, query: np.ndarray, where: str | None) -> tuple[np.ndarray, pa.ChunkedArray]:
    """The first stage's score and the name of every image."""
    scores, names = [np.zeros(0, np.float32)], []
    for batch in store.images.batches(("path", "evidence"), where):
        vectors = matrix(batch["evidence"])
        scores.append(vectors @ query / np.linalg.norm(vectors, axis=1))
        names.append(batch["path"])
    return np.concatenate(scores), pa.chunked_array(names, pa.string())


def _rows(store: Store, names: Sequence[str], scores: np.ndarray) -> list[dict[str, Any]]:
    """Rows by name, in that order. Images that are gone by now are left out."""
    rows = {row["path"]: row for row in store.rows(names, SHOWN)}
    pairs = zip(names, scores.tolist(), strict=True)
    return [{**rows[name], "score": score} for name, score in pairs if name in rows]


def _numbered(hit: Hit, rank: int) -> Hit:
    return replace(hit, rank=rank, gone=is_gone(to_key(hit.path)))
