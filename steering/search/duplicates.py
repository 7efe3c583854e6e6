"""Images that occur twice: byte for byte, or to the eye."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from steering.search.files import to_path
from steering.search.store import Store

BITS, BANDS = 3, 4  # hashes that differ in 3 bits agree in one of 4 bands
APART = 0.06 * 255  # mean absolute difference of pixels


def groups(store: Store, *, near: bool) -> list[list[str]]:
    """Paths of images that are the same, grouped; see `Gallery.duplicates`."""
    names: list[str] = []
    shas: list[str] = []
    hashes: list[int] = []
    for batch in store.images.batches(("path", "sha256", "difference_hash")):
        names += batch["path"].to_pylist()
        shas += batch["sha256"].to_pylist()
        hashes += batch["difference_hash"].to_pylist()
    parent = list(range(len(names)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[str, int] = {}
    for index, sha in enumerate(shas):
        parent[root(index)] = root(first.setdefault(sha, index))
    if near:
        for one, other in _alike(store, names, np.array(hashes, np.int64).view(np.uint64)):
            parent[root(one)] = root(other)
    members: dict[int, list[str]] = defaultdict(list)
    for index, name in enumerate(names):
        members[root(index)].append(to_path(name))
    return sorted(sorted(group) for group in members.values() if len(group) > 1)


def _alike(store: Store, names: list[str], hashes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of positions of images that are the same to the eye. In a larger group, each image has one partner."""
    for band in range(BANDS):
        part = (hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(part, kind="stable")
        edges = np.flatnonzero(np.diff(part[order])) + 1
        for bucket in np.split(order, edges):
            while len(bucket) > 1:
                here, rest = bucket[0], bucket[1:]
                close = np.bitwise_count(hashes[rest] ^ hashes[here]) <= BITS
                same = list(_confirmed(store, names, int(here), rest[close].tolist())) if close.any() else []
                yield from same
                bucket = rest[~np.isin(rest, [other for _, other in same])]


def _confirmed(store: Store, names: list[str], here: int, others: list[int]) -> Iterator[tuple[int, int]]:
    """Pairs of `here` and each other image whose pixels agree. Where no pixels are stored, all agree."""
    first, *rest = store.pixels([names[index] for index in (here, *others)])
    for index, pixels in zip(others, rest, strict=True):
        if first is None or pixels is None or np.abs(pixels.astype(int) - first).mean() <= APART:
            yield here, index
