"""Images that occur twice: byte for byte, or to the eye.

Unusual: two images are the same to the eye only if their difference hashes *and* their stored pixels agree, since all
flat images share one hash. Hashes find the candidates, and the pixels of these alone are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from steering.search.files import to_path
from steering.search.store import Store

BITS, BANDS = 3, 4  # hashes that differ in 3 bits agree in one of 4 bands
APART = 0.06 * 255  # mean absolute difference of pixels
CELLS = 4  # cells a side whose sums are compared first
Pixels = Callable[[list[int]], list[np.ndarray | None]]


class Sets:
    """Positions 0 to `count` − 1 in sets that can be joined (union–find)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, index: int) -> int:
        """The position that stands for the set of this one."""
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(self, one: int, other: int) -> None:
        """Make one set of two."""
        self._parent[self.root(one)] = self.root(other)


def groups(store: Store, *, near: bool) -> list[list[str]]:
    """Paths of images that are the same, grouped; see `Gallery.duplicates`."""
    names: list[str] = []
    shas: list[str] = []
    hashes: list[int] = []
    for batch in store.images.batches(("path", "sha256", "difference_hash")):
        names += batch["path"].to_pylist()
        shas += batch["sha256"].to_pylist()
        hashes += batch["difference_hash"].to_pylist()

    def pixels(positions: list[int]) -> list[np.ndarray | None]:
        return store.pixels([names[position] for position in positions])

    sets = _joined(shas, hashes, pixels if near else None)
    members: dict[int, list[str]] = defaultdict(list)
    for index, name in enumerate(names):
        members[sets.root(index)].append(to_path(name))
    return sorted(sorted(group) for group in members.values() if len(group) > 1)


def group_numbers(store: Store, names: Sequence[str], *, near: bool = True) -> list[int]:
    """A number for each of a few hundred images. Images that are the same have the same number.

    Numbers count from 0 by first appearance. A name that has no row is alone. Memory holds the pixels of the images
    that may have a double: 27 KB each at 96 px.

    Args:
        store: the gallery's tables.
        names: keys of images, as in the column `path`.
        near: as in `Gallery.duplicates`.

    Raises:
        GalleryError: the gallery is damaged.
    """
    rows = {row["path"]: row for row in store.rows(names, ("path", "sha256", "difference_hash"))}
    known = list(rows)
    hashes = [rows[name]["difference_hash"] for name in known]
    kept: dict[int, np.ndarray | None] = {}
    if near:
        doubled = _doubled(_bits(hashes))
        kept = dict(zip(doubled, store.pixels([known[position] for position in doubled]), strict=True))

    def pixels(positions: list[int]) -> list[np.ndarray | None]:
        return [kept[position] for position in positions]

    sets = _joined([rows[name]["sha256"] for name in known], hashes, pixels if near else None)
    place = {name: sets.root(index) for index, name in enumerate(known)}
    numbers: dict[int | str, int] = {}
    return [numbers.setdefault(place.get(name, name), len(numbers)) for name in names]


def _joined(shas: Sequence[str], hashes: Sequence[int], pixels: Pixels | None) -> Sets:
    """Sets of the positions of images that are the same: byte for byte, and to the eye if there are pixels."""
    sets = Sets(len(shas))
    first: dict[str, int] = {}
    for index, sha in enumerate(shas):
        sets.join(index, first.setdefault(sha, index))
    if pixels is not None:
        for one, other in _alike(_bits(hashes), pixels, sets):
            sets.join(one, other)
    return sets


def _bits(hashes: Sequence[int]) -> np.ndarray:
    return np.array(hashes, np.int64).view(np.uint64)


def _doubled(hashes: np.ndarray) -> list[int]:
    """Positions of the hashes that are close to another one."""
    return [
        position
        for position, one in enumerate(hashes)
        if np.count_nonzero(np.bitwise_count(hashes ^ one) <= BITS) > 1  # a hash is close to itself
    ]


def _alike(hashes: np.ndarray, pixels: Pixels, sets: Sets) -> Iterator[tuple[int, int]]:
    """Pairs of positions of images that are the same to the eye. In a larger group, each image has one partner."""
    eye = Eye(len(hashes), pixels)
    for band in range(BANDS):
        part = (hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(part, kind="stable")
        edges = np.flatnonzero(np.diff(part[order])) + 1
        for bucket in np.split(order, edges):
            while len(bucket) > 1:
                here, rest = int(bucket[0]), bucket[1:]
                close = rest[np.bitwise_count(hashes[rest] ^ hashes[here]) <= BITS].tolist()
                same = {other for other in close if sets.root(other) == sets.root(here)}  # no need to look
                same.update(eye.confirmed(here, [other for other in close if other not in same]))
                yield from ((here, other) for other in same)
                bucket = np.array([other for other in rest.tolist() if other not in same], np.int64)


class Eye:
    """Compares the pixels of images.

    It keeps the sums of a few cells of each image that it has seen. Sums that are far apart prove that pixels are, and
    such pixels are not read again.

    Args:
        count: number of images.
        pixels: reads the images at some positions.
    """

    def __init__(self, count: int, pixels: Pixels) -> None:
        self.pixels = pixels
        self._seen = np.zeros(count, bool)
        self._sums = np.zeros((count, CELLS * CELLS * 3), np.int32)  # no memory is taken before a row is written
        self._most = np.inf  # the sum of absolute differences of two images that are the same

    def confirmed(self, here: int, others: list[int]) -> list[int]:
        """The other images whose pixels agree with those of `here`. Where no pixels are stored, all agree."""
        others = [other for other, may in zip(others, self._may_agree(here, others), strict=True) if may]
        if not others:
            return []
        first, *rest = self._read([here, *others])
        if first is None:
            return others
        may = self._may_agree(here, others)
        return [
            other
            for other, pixels, agree in zip(others, rest, may, strict=True)
            if pixels is None or (agree and np.abs(_in_shape(pixels, first).astype(np.int16) - first).mean() <= APART)
        ]

    def _may_agree(self, here: int, others: list[int]) -> np.ndarray:
        differences = np.abs(self._sums[others] - self._sums[here]).sum(1)
        return ~(self._seen[others] & self._seen[here]) | (differences <= self._most)

    def _read(self, positions: list[int]) -> list[np.ndarray | None]:
        pictures = self.pixels(positions)
        for position, picture in zip(positions, pictures, strict=True):
            if picture is not None and not self._seen[position]:
                edges = np.linspace(0, len(picture), CELLS, endpoint=False).astype(int)
                rows = np.add.reduceat(picture, edges, axis=0, dtype=np.int32)
                self._sums[position] = np.add.reduceat(rows, edges, axis=1).ravel()
                self._seen[position] = True
                self._most = APART * picture.size
        return pictures


def _in_shape(pixels: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pixels (h, w, 3) brought to the shape of others: frames of two sizes of a photograph may differ by a step."""
    if pixels.shape == other.shape:
        return pixels
    rows, columns = (np.arange(n) * m // n for n, m in zip(other.shape[:2], pixels.shape[:2], strict=True))
    return pixels[rows][:, columns]
