"""Which images a search looks at: the nearest, each picture once, and a few of all others.

The first stage ranks the whole gallery. The nearest images are looked at. Images that are the same to the eye are one
candidate. A few images from further down are looked at as well, drawn at random. They tell how frequent the goal is
among the images that nobody looked at (stratified sampling; Cochran, Sampling Techniques, 1977, chapter 5). Strata
double in size, since the first stage ranks: what is far down matters less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from steering.search.duplicates import group_numbers
from steering.search.files import is_gone
from steering.search.schema import SHOWN
from steering.search.store import MOST_BY_INDEX, Store

DRAWN = 48  # images that are looked at beside the nearest, but at most twice as many as these
ALL = 10_000  # a gallery of so many images is ranked to its end


@dataclass(frozen=True)
class Candidate:
    """One image, or several that are the same to the eye.

    Attributes:
        row: of the nearest of them whose file is there: path (a key), width, height, sees, score.
        copies: keys of the others.
        weight: how many images of the gallery a look at this one speaks for.
        stratum: 0 for the images that were not drawn, else the number of the stratum.
    """

    row: dict[str, Any]
    copies: tuple[str, ...] = ()
    weight: float = 1.0
    stratum: int = 0

    @property
    def size(self) -> int:
        """Number of images."""
        return 1 + len(self.copies)


@dataclass(frozen=True)
class Candidates:
    """What a search looks at, and what it only ranks.

    Attributes:
        nearest: to look at, best first.
        drawn: to look at, from the rest.
        unseen: next in rank, not looked at, best first.
    """

    nearest: list[Candidate]
    drawn: list[Candidate]
    unseen: list[Candidate]


def choose(
    store: Store,
    direction: np.ndarray,
    total: int,
    *,
    looks: int,
    top: int,
    where: str | None,
    fold: bool,
    seed: int,
) -> Candidates:
    """Choose the images that are looked at.

    Args:
        direction: (M,), what the first stage compares images with.
        total: number of images that the condition `where` lets through.
        looks: number of candidates to look at. With 0, none is looked at, and none is drawn.
        top: number of candidates that are wanted in all.
        fold: whether images that are the same to the eye are one candidate.
        seed: number that fixes what is drawn.
    """
    if not total:
        return Candidates([], [], [])
    wanted = max(top, looks)
    count = total if total <= ALL else min(max(wanted, MOST_BY_INDEX), total)
    rows = store.nearest(direction, count, where).to_pylist()
    ranked = _folded(store, rows, wanted + (DRAWN if looks else 0)) if fold else [Candidate(row) for row in rows]
    nearest, rest = ranked[:looks], ranked[looks:]
    if not looks:
        return Candidates([], [], rest[:top])
    rng = np.random.default_rng(seed)
    deep = total - len(rows)
    far = _deep(store, direction, rows, deep, where, seed) if deep > 0 else []
    drawn = draw(rest, far, deep, looks, rng)
    chosen = {candidate.row["path"] for candidate in drawn}
    unseen = [candidate for candidate in rest[: max(top - looks, 0)] if candidate.row["path"] not in chosen]
    nearest = [replace(candidate, weight=float(candidate.size)) for candidate in nearest]
    return Candidates(nearest, drawn, unseen)


def _folded(store: Store, rows: Sequence[dict[str, Any]], wanted: int) -> list[Candidate]:
    """Rows as candidates, in their order. Copies are looked for until `wanted` candidates are different.

    Where no pixels are stored, only files that are the same byte for byte are folded: all flat images share one hash.
    """
    near, most = store.card.side > 0, 2 * wanted
    while True:
        part = rows[:most]
        numbers = group_numbers(store, [row["path"] for row in part], near=near)
        if len(set(numbers)) >= wanted or most >= len(rows):
            break
        most *= 2
    groups: dict[int, list[dict[str, Any]]] = {}
    for row, number in zip(part, numbers, strict=True):
        groups.setdefault(number, []).append(row)
    return [*map(_together, groups.values()), *map(Candidate, rows[most:])]


def _together(rows: list[dict[str, Any]]) -> Candidate:
    """Images that are the same to the eye as one candidate."""
    first = next((row for row in rows if not is_gone(row["path"])), rows[0]) if len(rows) > 1 else rows[0]
    return Candidate(first, tuple(row["path"] for row in rows if row is not first))


def _deep(
    store: Store, direction: np.ndarray, rows: Sequence[dict[str, Any]], deep: int, where: str | None, seed: int
) -> list[dict[str, Any]]:
    """Rows that are drawn from all images but those in `rows`, at most `DRAWN`."""
    near = {row["path"] for row in rows}
    spare = 2 * DRAWN if len(rows) < deep else len(rows) + DRAWN  # some of those that are drawn are near
    far = []
    for row in store.sample((*SHOWN, "evidence"), spare, where, seed):
        evidence = np.asarray(row.pop("evidence"), np.float32)
        if row["path"] not in near:
            length = float(np.linalg.norm(evidence)) or 1.0
            far.append({**row, "score": float(evidence @ direction) / length})
    return far[:DRAWN]


def draw(
    rest: Sequence[Candidate], far: Sequence[dict[str, Any]], deep: int, looks: int, rng: np.random.Generator
) -> list[Candidate]:
    """Some candidates of each stratum, by the square root of its size. Each speaks for its share of the stratum.

    The candidates that the first stage ranked are cut into strata that double in size. The last stratum holds the
    `deep` images that it did not rank, of which `far` were drawn.
    """
    most = min(DRAWN, 2 * looks)
    if not deep and len(rest) <= most:
        return [replace(candidate, weight=float(candidate.size)) for candidate in rest]
    edges = [0]
    while edges[-1] < len(rest):
        edges.append(min(2 * edges[-1] + looks, len(rest)))
    if len(edges) > 2 and edges[-1] - edges[-2] < (edges[-2] - edges[-3]) / 2:  # a remainder joins its neighbour
        del edges[-2]
    sizes = [stop - start for start, stop in pairwise(edges)] + ([deep] if deep > 0 else [])
    roots = np.sqrt(sizes)
    picks = np.maximum(np.round(most * roots / roots.sum()).astype(int), 2)
    drawn: list[Candidate] = []
    for number, (start, stop) in enumerate(pairwise(edges), start=1):
        chosen = rng.choice(stop - start, min(int(picks[number - 1]), stop - start), replace=False)
        some = [rest[start + pick] for pick in np.sort(chosen).tolist()]
        images = sum(candidate.size for candidate in rest[start:stop])
        each = images / sum(candidate.size for candidate in some)
        drawn += [replace(candidate, weight=each * candidate.size, stratum=number) for candidate in some]
    some_far = far[: int(picks[-1])]
    drawn += [Candidate(row, weight=deep / len(some_far), stratum=len(sizes)) for row in some_far]
    return drawn
