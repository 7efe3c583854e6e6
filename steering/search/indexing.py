"""Bring a gallery up to date with a source of images: what is new, changed, renamed or gone.

Unusual: a vanished image and a new one of the same content are one image under another name. Its row moves in one
commit, and the image is not decoded again. This holds for the whole gallery, so a folder that was renamed, or copied
from a disk that is away now, does not double its images.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from steering.search.decode import Same, Task
from steering.search.engine import Engine, Indexed, Item
from steering.search.files import Entry, Unreadable, entries, is_below, is_paths, missing, roots, to_path
from steering.search.moved import Known, Moves
from steering.search.report import Report
from steering.search.rows import moved_rows, new_rows
from steering.search.schema import SKIPPED_SCHEMA, timestamps
from steering.search.selection import Selection
from steering.search.store import Store

COMMIT_ROWS, COMMIT_SECONDS = 2048, 2.0  # a kill costs no more than this
TIDY_SECONDS = 60.0


class Indexer:
    """One run over one source; see `update`.

    Names are keys here (`steering.search.files.to_key`); the report holds paths.
    """

    def __init__(
        self,
        store: Store,
        selection: Selection,
        *,
        retry: bool,
        prune: bool,
    ) -> None:
        self.store, self.selection = store, selection
        self.retry, self.prune = retry, prune
        self.report = Report(**selection.counts())
        self._known: Known = {name: (size, modified, sha) for name, size, modified, sha in store.known()}
        self._reasons = store.reasons()
        self._rows: list[Indexed] = []
        self._moved: list[tuple[str, Same]] = []
        self._failed: list[Unreadable] = []
        self._unlisted: list[str] = []  # folders that could not be listed
        self._gone: list[str] = []  # names that are no longer in the source
        self._emptied: list[str] = []  # folders that are empty or gone, and may be forgotten
        self._moves = Moves()
        self._kinds: dict[str, str] = {}  # what each name was counted as, for a source whose names may come again
        self._repeated: dict[str, Entry | Unreadable] = {}  # the last image of each name that came again
        self._committed = self._tidied = time.monotonic()

    def plan(self, source: Any) -> tuple[Iterable[Task], int | None]:
        """The images that have to be read, and their number, or None if it is not known before."""
        folders = _folders(source)
        if folders is None:
            return self._first_of_each(entries(source, self.selection)), _length(source)
        paths = [source] if isinstance(source, str | os.PathLike) else source
        gone = missing(paths, self._known, prune=self.prune)
        tasks: list[Task] = []
        seen: set[str] = set()
        for entry in entries([to_path(folder) for folder in folders if folder not in gone], self.selection):
            if isinstance(entry, Unreadable) and entry.kind == "folder":
                self._unlisted.append(entry.name)
                self.report.unlisted[to_path(entry.name)] = entry.reason
                continue
            seen.add(entry.name)
            if task := self._task(entry):
                tasks.append(task)
        self._find_vanished(folders, seen)
        self._moves = Moves(self._known, tasks, seen, self._gone)
        return self._moves.told(tasks), len(tasks)

    def _first_of_each(self, source: Iterable[Entry | Unreadable]) -> Iterator[Task]:
        """Tasks for the first image of each name. The last image of a name waits for `repeats`."""
        for entry in source:
            if entry.name in self._kinds:
                self._repeated[entry.name] = entry
                continue
            self._kinds[entry.name] = ""
            if task := self._task(entry):
                yield task

    def repeats(self) -> list[Task]:
        """Tasks for the last image of each name that came again. Call this when all others are done.

        The last image of a name counts. So its first image is counted no longer.
        """
        if not self._repeated:
            return []
        self.commit()
        tasks = []
        for name, entry in self._repeated.items():
            kind = self._kinds[name]
            if kind == "skipped":
                self.report.skipped.pop(to_path(name), None)
            elif kind:
                self.report.notes.pop(to_path(name), None)
                setattr(self.report, kind, getattr(self.report, kind) - 1)
            if isinstance(entry, Unreadable):
                self._fail(entry)
            else:
                tasks.append(Task(entry))
        return tasks

    def _task(self, entry: Entry | Unreadable) -> Task | None:
        """The task for an image, or None if it need not be read."""
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
                self._count(entry.name, "unchanged")
                return None
            if not self.retry:
                reason = self._reasons.get(entry.name, "could not be read")
                self._skip(entry.name, f"{reason} (as before; retry=True reads it again)")
                return None
        return Task(entry, frozenset() if sha is None else frozenset([sha]))

    def _find_vanished(self, folders: Sequence[str], seen: set[str]) -> None:
        gone = [
            name
            for name in self._known
            if name not in seen and is_below(name, folders) and not is_below(name, self._unlisted)
        ]
        for folder in folders:
            rules = self.selection.rules_out
            inside = {n for n in gone if is_below(n, [folder]) and not rules(to_path(n), to_path(folder))}
            if not inside or any(is_below(name, [folder]) for name in seen):
                continue
            if self.prune:
                self._emptied.append(folder)
            else:  # a disk that is not mounted?
                self.report.kept[to_path(folder)] = len(inside)
                gone = [name for name in gone if name not in inside]
        self._gone = sorted(gone)

    def take(self, item: Item) -> None:
        """Account for one image. What has gathered is committed now and then."""
        if isinstance(item, Unreadable):
            self._fail(item)
        elif isinstance(item, Same):
            before = self._known.get(item.name)
            if before is not None and before[2] == item.sha256:
                self._count(item.name, "unchanged")
                if (item.size, item.modified) != before[:2]:
                    self._moved.append((item.name, item))
            else:
                self._count(item.name, "renamed")
                self._moved.append((self._moves.take(item.sha256), item))
        else:
            name = item.image.name
            before = self._known.get(name)
            if before is None or before[2] is None:
                self._count(name, "new")
            else:  # only the last image of a name that came again can be unchanged here
                self._count(name, "unchanged" if before[2] == item.image.sha256 else "changed")
            if item.image.note:
                self.report.notes[to_path(name)] = item.image.note
            self._rows.append(item)
        waiting = len(self._rows) + len(self._moved) + len(self._failed)
        if waiting >= COMMIT_ROWS or time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()

    def _count(self, name: str, kind: str) -> None:
        setattr(self.report, kind, getattr(self.report, kind) + 1)
        self._remember(name, kind)

    def _skip(self, name: str, reason: str) -> None:
        self.report.skipped[to_path(name)] = reason
        self._remember(name, "skipped")

    def _remember(self, name: str, kind: str) -> None:
        if name in self._kinds:
            self._kinds[name] = kind

    def _fail(self, item: Unreadable) -> None:
        self._skip(item.name, item.reason)
        if not item.passing:  # otherwise its row stays, and the next run tries again
            self._failed.append(item)

    def commit(self) -> None:
        """Write what has gathered.

        An image that changes its table leaves the one before it enters the other. A kill between the two commits
        forgets the image until the next run, and never leaves it in both tables.
        """
        store, rows = self.store, self._rows
        if not (rows or self._moved or self._failed):
            return
        store.skipped.delete([row.image.name for row in rows if self._may_be_skipped(row.image.name)])
        if rows:
            store.images.upsert(new_rows(rows, store.card))
        for copies, olds in moved_rows(store, self._moved, self._moves.renamed):
            store.images.upsert(copies, without=olds)
        self._moves.committed(self._moved)
        if self._failed:
            columns = {
                "path": [item.name for item in self._failed],
                "size": [item.size for item in self._failed],
                "modified": timestamps([item.modified for item in self._failed]),
                "reason": [item.reason for item in self._failed],
            }
            store.images.delete([item.name for item in self._failed if self._may_be_indexed(item.name)])
            store.skipped.upsert(pa.table(columns, schema=SKIPPED_SCHEMA))
        self._rows, self._moved, self._failed = [], [], []
        self._committed = time.monotonic()
        if self._committed - self._tidied > TIDY_SECONDS:
            store.tidy()
            self._tidied = time.monotonic()

    def _may_be_skipped(self, name: str) -> bool:
        return name in self._repeated or (name in self._known and self._known[name][2] is None)

    def _may_be_indexed(self, name: str) -> bool:
        return name in self._repeated or (name in self._known and self._known[name][2] is not None)

    def finish(self) -> Report:
        """Write the rest, and delete what is gone."""
        self.commit()
        gone, renamed = self._gone, self._moves.renamed
        forgotten = [name for name in gone if self._known[name][2] is not None and name not in renamed]
        self.report.deleted = len(forgotten)
        for folder in self._emptied:
            self.report.forgotten[to_path(folder)] = sum(is_below(name, [folder]) for name in forgotten)
        kept = {f: count - sum(is_below(n, roots([f])) for n in renamed) for f, count in self.report.kept.items()}
        self.report.kept = {folder: count for folder, count in kept.items() if count}
        for start in range(0, len(gone), 10_000):
            part = gone[start : start + 10_000]
            self.store.images.delete(part)
            self.store.skipped.delete([name for name in part if self._known[name][2] is None])
        self.store.finish()
        self.report.images = self.store.count()
        return self.report


def update(
    store: Store,
    source: Any,
    engine: Engine,
    *,
    retry: bool = False,
    prune: bool = False,
    exclude: str | Sequence[str] = (),
    include_all: bool = False,
    progress: Callable[[Iterator[Any], int | None, Report], Iterator[Any]] | None = None,
) -> Report:
    """Bring a store up to date with a source; see `steering.search.gallery.Gallery.add`."""
    start = time.monotonic()
    selection = Selection(exclude, include_all=include_all)
    indexer = Indexer(store, selection, retry=retry, prune=prune)
    tasks, count = indexer.plan(source)
    results = _results(indexer, engine, tasks)
    try:
        for item in results if progress is None else progress(results, count, indexer.report):
            indexer.take(item)
    except BaseException:
        indexer.commit()  # what was done stays done
        raise
    report = indexer.finish()
    report.seconds = time.monotonic() - start
    return report


def _results(indexer: Indexer, engine: Engine, tasks: Iterable[Task]) -> Iterator[Item]:
    yield from engine(tasks)
    if again := indexer.repeats():
        yield from engine(again)


def _folders(source: Any) -> tuple[str, ...] | None:
    """The keys of the folders and files of a source that is made of paths; None for other sources."""
    if isinstance(source, str | os.PathLike):
        return roots([source])
    return roots(source) if is_paths(source) else None


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:
        return None
