"""Bring a gallery up to date with a source of images: what is new, changed, renamed, gone.

Unusual: images are run through the network in batches of one size, the last filled up, so that a gallery is the same to
the last bit however often its making was interrupted.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import loky
import numpy as np
import pyarrow as pa

from steering.search.decode import Decoded, Read, Same, Task, read_all
from steering.search.files import Found, Unreadable, entries, is_below, roots, to_path
from steering.search.store import SKIPPED_SCHEMA, Store, image_schema, timestamps

if TYPE_CHECKING:
    from steering.steerer import Steerer

BATCH = 64  # images a pass
COMMIT_ROWS, COMMIT_SECONDS = 2048, 2.0  # what a kill may cost
TIDY_SECONDS = 60.0


@dataclass(frozen=True)
class Indexed:
    """An image and its first pass: logits (M,) and class evidence by places (M,), as float32.

    packed: what a steered pass starts from, if it is kept.
    """

    image: Decoded
    output: np.ndarray
    places: np.ndarray
    packed: bytes | None = None


@dataclass
class Report:
    """What an indexing did. Every image that was found is one of new, changed, renamed, unchanged or skipped.

    deleted: images that are gone. skipped: name and reason, in the order found. unlisted: folders that could not be
    listed, and why; what was indexed below them was kept. kept: folders that are empty now, with the number of their
    images, which were kept, too.
    """

    found: int = 0
    new: int = 0
    changed: int = 0
    renamed: int = 0
    unchanged: int = 0
    deleted: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    unlisted: dict[str, str] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    images: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        skipped = [{"path": to_path(name), "reason": reason} for name, reason in self.skipped.items()]
        values = {**self.__dict__, "seconds": round(self.seconds, 3), "skipped": skipped}
        folders: dict[str, dict[str, Any]] = {"unlisted": {**self.unlisted}, "kept": {**self.kept}}
        return {**values, **{key: {to_path(n): v for n, v in found.items()} for key, found in folders.items()}}


Item = Indexed | Same | Unreadable
Engine = Callable[[Iterable[Task]], Iterator[Item]]


def local_engine(
    steerer: Steerer, workers: int | None = None, batch: int = BATCH, *, first_pass: bool = False
) -> Engine:
    """Reading in worker processes of this machine (all cores by default, 0: in this process), passes in this one.

    first_pass: whether to keep what a steered pass starts from.
    """
    count = loky.cpu_count() if workers is None else workers  # those that this process may use

    def run(tasks: Iterable[Task]) -> Iterator[Item]:
        return first_passes(steerer, read_all(tasks, steerer.preprocessing.size, count), batch, first_pass)

    return run


def first_passes(steerer: Steerer, reads: Iterable[Read], batch: int = BATCH, keep: bool = False) -> Iterator[Item]:
    """The first pass over what was read, in batches of one size; the rest is passed on."""
    waiting: list[Decoded] = []
    for item in reads:
        if not isinstance(item, Decoded):
            yield item
            continue
        waiting.append(item)
        if len(waiting) == batch:
            yield from _pass(steerer, waiting, batch, keep)
            waiting = []
    if waiting:
        yield from _pass(steerer, waiting, batch, keep)


def _pass(steerer: Steerer, images: Sequence[Decoded], batch: int, keep: bool) -> Iterator[Indexed]:
    glance = steerer.glance(steerer.as_input(pad([image.pixels for image in images], batch)))
    outputs, places = glance.output.float().cpu().numpy(), glance.places.float().cpu().numpy()
    packed = steerer.pack(glance) if keep else [None] * batch
    for index, image in enumerate(images):
        yield Indexed(image, outputs[index], places[index], packed[index])


def pad(pixels: Sequence[np.ndarray], batch: int) -> np.ndarray:
    """(batch, s, s, 3): as many pixels as there are, then zeros."""
    filled = np.zeros((batch, *pixels[0].shape), np.uint8)
    filled[: len(pixels)] = np.stack(pixels)
    return filled


class Indexer:
    """One run over one source; see `update`."""

    def __init__(
        self, store: Store, class_names: Sequence[str], *, retry: bool, prune: bool, keep_pixels: bool
    ) -> None:
        self.store, self.class_names = store, class_names
        self.retry, self.prune, self.keep_pixels = retry, prune, keep_pixels
        self.report = Report()
        self._known = {name: (size, modified, sha) for name, size, modified, sha in store.known()}
        self._reasons = store.reasons()
        self._rows: list[Indexed] = []
        self._moved: list[tuple[str, Same]] = []
        self._failed: list[Unreadable] = []
        self._gone: list[str] = []  # names whose files are no longer there
        self._renamed: set[str] = set()
        self._committed = self._tidied = time.monotonic()
        self._movable: dict[str, list[str]] = {}

    def plan(self, source: Any) -> tuple[Iterable[Task], int | None]:
        """What has to be read, and how much that is if it is known before."""
        folders = _folders(source)
        if folders and self.prune:  # a folder that is gone may be forgotten
            gone = {
                f for f in folders if not os.path.lexists(to_path(f)) and any(is_below(n, [f]) for n in self._known)
            }
            source = [to_path(folder) for folder in folders if folder not in gone]
        if folders is None:
            return (task for task in map(self._task, entries(source)) if task), _length(source)
        tasks: list[Task] = []
        seen: set[str] = set()
        for entry in entries(source):
            if isinstance(entry, Unreadable) and entry.kind == "folder":
                self.report.unlisted[entry.name] = entry.reason
                continue
            seen.add(entry.name)
            if task := self._task(entry):
                tasks.append(task)
        self._find_vanished(folders, seen)
        return self._with_moved(tasks), len(tasks)

    def _task(self, entry: Found | Unreadable) -> Task | None:
        """What is to be done about an image; None if nothing."""
        self.report.found += 1
        before = self._known.get(entry.name)
        if isinstance(entry, Unreadable):
            self._fail(entry)
            return None
        if before is None:
            return Task(entry)
        size, modified, sha = before
        if entry.modified and (size, modified) == (entry.size, entry.modified):
            if sha is not None:
                self.report.unchanged += 1
                return None
            if not self.retry:
                reason = self._reasons.get(entry.name, "could not be read")
                self.report.skipped[entry.name] = f"{reason} (as before; --retry reads it again)"
                return None
        return Task(entry, frozenset() if sha is None else frozenset([sha]))

    def _find_vanished(self, folders: Sequence[str], seen: set[str]) -> None:
        gone = [
            name
            for name in self._known
            if name not in seen and is_below(name, folders) and not is_below(name, self.report.unlisted)
        ]
        if not self.prune:
            for folder in folders:
                inside = [name for name in gone if is_below(name, [folder])]
                if inside and not any(is_below(name, [folder]) for name in seen):  # a disk that is not mounted?
                    self.report.kept[folder] = len(inside)
                    gone = [name for name in gone if not is_below(name, [folder])]
        self._gone = sorted(gone)
        movable: dict[str, list[str]] = defaultdict(list)
        for name in gone:
            if (sha := self._known[name][2]) is not None:
                movable[sha].append(name)
        self._movable = dict(movable)

    def _with_moved(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """New images that may be vanished ones under another name: their content is compared before it is decoded."""
        by_size: dict[int, set[str]] = defaultdict(set)
        for sha, names in self._movable.items():
            by_size[self._known[names[0]][0]].add(sha)
        for task in tasks:
            if task.found.name not in self._known and task.found.size in by_size:
                task = Task(task.found, task.known | by_size[task.found.size])
            yield task

    def take(self, item: Item) -> None:
        """Account for one image; what has gathered is committed now and then."""
        if isinstance(item, Unreadable):
            self._fail(item)
        elif isinstance(item, Same):
            before = self._known.get(item.name)
            if before is not None and before[2] == item.sha256:
                self.report.unchanged += 1
                if (item.size, item.modified) != before[:2]:
                    self._moved.append((item.name, item))
            else:
                self.report.renamed += 1
                old = self._movable[item.sha256][0]
                self._renamed.add(old)
                self._moved.append((old, item))
        else:
            known = self._known.get(item.image.name)
            self.report.changed += known is not None and known[2] is not None
            self.report.new += known is None or known[2] is None
            self._rows.append(item)
        waiting = len(self._rows) + len(self._moved) + len(self._failed)
        if waiting >= COMMIT_ROWS or time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()

    def _fail(self, item: Unreadable) -> None:
        self.report.skipped[item.name] = item.reason
        if not item.passing:  # otherwise what is known of it stays, and the next run tries again
            self._failed.append(item)

    def commit(self) -> None:
        """Write what has gathered.

        What leaves a table leaves it first: a kill between two commits forgets an image, which the next run finds, and
        never leaves it in both.
        """
        store, known, rows = self.store, self._known, self._rows
        if not (rows or self._moved or self._failed):
            return
        store.skipped.delete([i.image.name for i in rows if known.get(i.image.name, (0, 0, ""))[2] is None])
        if rows:
            store.images.upsert(self._table(rows))
        if self._moved:
            self._move()
        if self._failed:
            columns = {
                "path": [item.name for item in self._failed],
                "size": [item.size for item in self._failed],
                "modified": timestamps([item.modified for item in self._failed]),
                "reason": [item.reason for item in self._failed],
            }
            store.images.delete([i.name for i in self._failed if known.get(i.name, (0, 0, None))[2] is not None])
            store.skipped.upsert(pa.table(columns, schema=SKIPPED_SCHEMA))
        self._rows, self._moved, self._failed = [], [], []
        self._committed = time.monotonic()
        if self._committed - self._tidied > TIDY_SECONDS:
            store.tidy()
            self._tidied = time.monotonic()

    def _move(self) -> None:
        """Rows under another name, or with another time."""
        schema = image_schema(self.store.card.classes)
        for start in range(0, len(self._moved), 256):
            part = self._moved[start : start + 256]
            batches = list(self.store.named([old for old, _ in part], schema.names))
            if not batches:
                continue
            table = pa.Table.from_batches(batches)
            place = {name: row for row, name in enumerate(table["path"].to_pylist())}
            part = [(old, item) for old, item in part if old in place]  # another writer may have been there
            if not part:
                continue
            copy = table.take([place[old] for old, _ in part])
            for name, values in (
                ("path", [item.name for _, item in part]),
                ("size", [item.size for _, item in part]),
                ("modified", timestamps([item.modified for _, item in part])),
            ):
                index = schema.get_field_index(name)
                copy = copy.set_column(index, schema.field(index), pa.array(values, schema.field(index).type))
            self.store.images.upsert(copy)

    def _table(self, rows: Sequence[Indexed]) -> pa.Table:
        schema = image_schema(self.store.card.classes)
        images = [row.image for row in rows]
        outputs = np.stack([row.output for row in rows]).astype(np.float16)
        places = np.stack([row.places for row in rows])

        def vectors(values: np.ndarray, name: str) -> pa.Array:
            return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=schema.field(name).type)

        columns = {
            "path": [image.name for image in images],
            "size": [image.size for image in images],
            "modified": timestamps([image.modified for image in images]),
            "sha256": [image.sha256 for image in images],
            "width": [image.width for image in images],
            "height": [image.height for image in images],
            "sees": [self.class_names[index] for index in places.argmax(1)],
            "look": [image.look for image in images],
            "output": vectors(outputs, "output"),
            "evidence": vectors(np.sqrt(places).astype(np.float16), "evidence"),
            "pixels": [image.pixels.tobytes() if self.keep_pixels else None for image in images],
            "first_pass": [row.packed for row in rows],
        }
        return pa.table(columns, schema=schema)

    def finish(self) -> Report:
        """The rest, and what is gone."""
        self.commit()
        gone = self._gone
        self.report.deleted = sum(self._known[n][2] is not None and n not in self._renamed for n in gone)
        for start in range(0, len(gone), 10_000):
            part = gone[start : start + 10_000]
            self.store.images.delete(part)
            self.store.skipped.delete([name for name in part if self._known[name][2] is None])
        self.store.finish()
        self.report.images = self.store.count()
        return self.report


def update(
    store: Store,
    class_names: Sequence[str],
    source: Any,
    engine: Engine,
    *,
    retry: bool = False,
    prune: bool = False,
    keep_pixels: bool = True,
    progress: Callable[[Iterator[Any], int | None, Report], Iterator[Any]] | None = None,
) -> Report:
    """Bring a store up to date with a source; see `steering.search.gallery.Gallery.add`."""
    start = time.monotonic()
    indexer = Indexer(store, class_names, retry=retry, prune=prune, keep_pixels=keep_pixels)
    tasks, count = indexer.plan(source)
    results = iter(engine(tasks))
    try:
        for item in results if progress is None else progress(results, count, indexer.report):
            indexer.take(item)
    except BaseException:
        indexer.commit()  # what was done stays done
        raise
    report = indexer.finish()
    report.seconds = time.monotonic() - start
    return report


def _folders(source: Any) -> tuple[str, ...] | None:
    """The folders and files that a source stands for, as text, if it stands for such."""
    if isinstance(source, str | os.PathLike):
        return roots([source])
    if isinstance(source, list | tuple) and all(isinstance(item, str | os.PathLike) for item in source):
        return roots(source)
    return None


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:
        return None
