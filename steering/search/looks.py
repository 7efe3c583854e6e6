"""The second stage of a search: a steered pass over each candidate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrm_core.feedback import Strength
from steering.goals import Goal
from steering.network import Glance, Network
from steering.search.decode import pixels_of
from steering.search.files import file_of
from steering.search.store import Store
from steering.seek import seek
from steering.steerer import Steerer

PIXELS = 64 * 96 * 96  # in one steered pass


@dataclass(frozen=True)
class Looks:
    """What the second stage saw of each of b candidates.

    Attributes:
        seen: (b,), whether the image could be looked at.
        support: (b,), support of the goal after steering, in nats.
        evidence: (b,), change of the support by steering, in nats.
        alone: (b,), probability of each as if it were the only image; None without a calibrated verdict.
    """

    seen: np.ndarray
    support: np.ndarray
    evidence: np.ndarray
    alone: np.ndarray | None


def look_for(
    store: Store,
    steerer: Steerer,
    goal: Goal,
    rows: Sequence[dict[str, Any]],
    *,
    strength: Strength | None = None,
    passes: int | None = None,
) -> Looks:
    """Look for a goal in candidates.

    Args:
        rows: rows of the gallery, with `path`, `width` and `height` of each image.
        strength, passes: see `Steerer.look_many`.
    """
    if not rows:
        return Looks(np.zeros(0, bool), np.zeros(0), np.zeros(0), np.zeros(0))
    count = len(rows)
    seen, supports, evidence = np.zeros(count, bool), np.full(count, -np.inf), np.full(count, -np.inf)
    alone: np.ndarray | None = np.zeros(count)
    network, verdicts = steerer.network, steerer.verdicts
    for positions, glance in _glances(store, network, rows):
        sought = seek(network, verdicts, glance, goal, strength=strength, passes=passes)
        seen[positions] = True
        supports[positions], evidence[positions] = sought.support.cpu().numpy(), sought.evidence.cpu().numpy()
        if alone is not None and sought.probability is not None:
            alone[positions] = sought.probability.cpu().numpy()
        else:
            alone = None
    return Looks(seen, supports, evidence, alone)


def _glances(store: Store, network: Network, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[list[int], Glance]]:
    """First passes over images in batches of one shape, each with the positions of its images among the rows.

    Stored first passes are used. The others are made from pixels. Images without either are left out.
    """
    frame = network.preprocessing.frame
    shapes = [frame.shape(row["width"], row["height"]) for row in rows]
    names = [row["path"] for row in rows]
    packed = store.first_passes(names) if store.card.first_pass else [None] * len(names)
    for part, shape in _alike([position for position, kept in enumerate(packed) if kept is not None], shapes):
        yield part, network.unpack([kept for position in part if (kept := packed[position]) is not None], shape)
    rest = [position for position, kept in enumerate(packed) if kept is None]
    read = zip(rest, _pixels(store, network, [names[position] for position in rest]), strict=True)  # the table once
    pixels = {position: p for position, p in read if p is not None}
    for part, _ in _alike(list(pixels), shapes):
        yield part, network.glance(network.as_input(np.stack([pixels[position] for position in part])))


def _alike(positions: Sequence[int], shapes: Sequence[tuple[int, int]]) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Positions of images of one shape, so many that a pass fits in memory, and their shape."""
    groups: dict[tuple[int, int], list[int]] = {}
    for position in positions:
        groups.setdefault(shapes[position], []).append(position)
    for shape, members in groups.items():
        count = max(PIXELS // (shape[0] * shape[1]), 1)
        for start in range(0, len(members), count):
            yield members[start : start + count], shape


def _pixels(store: Store, network: Network, names: Sequence[str]) -> list[np.ndarray | None]:
    """What the network sees of images: stored, or read from their files. None where there is neither."""
    if store.card.side:
        return store.pixels(names)
    return [pixels_of(file_of(name), network.preprocessing.frame) for name in names]
