"""Keep a gallery in step with folders: scan them again and again, and index what has changed and come to rest.

Unusual: the file system is scanned, and no events of the operating system are used. A network drive sends no events,
and a queue of events can overflow, so that scans would be needed all the same. A scan of 100,000 files takes a second.
The pause after it is ten times as long, so that watching takes no more than a tenth of a core.

A file that somebody still writes is not read. It is at rest when its size and time are the same in two scans, a second
apart. What vanished rests as long before it is forgotten, so that a file that moves keeps its row.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import loky

from steering.errors import ImageError
from steering.search.decode import CHUNK, Task
from steering.search.engine import Engine, Item, local_engine
from steering.search.files import Unreadable, is_below, roots, scan, to_path
from steering.search.gallery import Gallery
from steering.search.report import Report
from steering.search.selection import Selection

REST = 1.0  # seconds
SHARE = 10  # a pause is at least so many times as long as a scan
AWAY = "is not there now; what was indexed below it was kept"

State = tuple[int, int]  # size in bytes and time in nanoseconds


class Watch:
    """Some folders and files, and a gallery that follows them. Iterate over `reports`.

    Args:
        gallery: the gallery.
        paths: folders and files. Each must be there at the start, unless `prune` forgets it.
        interval: least number of seconds between two scans.
        engine, workers, retry, prune, exclude, include_all, progress: as in `Gallery.add`. `retry` and `progress` are
            for the first batch. A folder that goes away later is waited for, even with `prune`.
    """

    def __init__(
        self,
        gallery: Gallery,
        paths: Sequence[str],
        *,
        interval: float = 1.0,
        engine: Engine | None = None,
        workers: int | None = None,
        retry: bool = False,
        prune: bool = False,
        exclude: Sequence[str] = (),
        include_all: bool = False,
        progress: Callable[[Iterator[Any], int | None, Report], Iterator[Any]] | None = None,
    ) -> None:
        self._gallery, self._paths, self._interval = gallery, list(paths), interval
        self._engine, self._workers = engine, workers
        self._first: dict[str, Any] = {"retry": retry, "progress": progress}
        self._rules: dict[str, Any] = {"exclude": exclude, "include_all": include_all}
        self._prune = prune
        self._taken: dict[str, State] = {}  # what the gallery is in step with, by key
        self._waiting: dict[str, tuple[State | None, float]] = {}  # what changed, and when that was first seen
        self._away: set[str] = set()  # paths that are not there
        self._standing = _standing(Report())

    def reports(self) -> Iterator[Report]:
        """The first report tells what brought the gallery up to date. Each later one tells of a batch of changes.

        It goes on until the caller ends it. `Report.skipped` of a later report lists the files of its batch only.

        Raises:
            ImageError, GalleryError, ValueError: as in `Gallery.add`.
        """
        states, _ = self._scan([path for path in self._paths if os.path.lexists(path)])
        latest = time.time_ns() - int(REST * 1e9)
        self._taken = {name: state for name, state in states.items() if state[1] <= latest}
        report = self._add(self._paths, len(states), self._taken, **self._first)
        self._away = {path for path in self._paths if not os.path.lexists(path)}  # these were forgotten
        self._standing = _standing(report)
        yield report
        while True:
            start = time.monotonic()
            later = self._step()
            if later is not None:
                yield later
            took = time.monotonic() - start
            time.sleep(max(REST, 3 * took) if self._waiting else max(self._interval, SHARE * took))

    def _step(self) -> Report | None:
        """Scan once, and index what has come to rest. None if there is nothing to tell."""
        there = [path for path in self._paths if os.path.lexists(path)]
        away = {path for path in self._paths if path not in there}
        fresh = away - self._away
        try:
            states, unlisted = self._scan(there)
            report = self._batch(there, self._rested(states, [*roots(away), *unlisted]))
        except ImageError:  # a path went away during this step: the next one sees that
            return None
        self._away = away
        if report is None and fresh:
            report = Report(images=len(self._gallery))
        if report is not None:
            report.unlisted |= dict.fromkeys(sorted(fresh), AWAY)
        return report

    def _batch(self, paths: Sequence[str], rested: dict[str, State | None]) -> Report | None:
        """Index what is at rest. None if there is nothing to tell.

        Args:
            paths: the folders and files that are there.
            rested: what has changed; see `_rested`.
        """
        if not rested:
            return None
        kept = {name: state for name, state in self._taken.items() if name not in rested}
        taken = kept | {name: state for name, state in rested.items() if state is not None}
        report = self._add(paths, len(rested), taken)
        self._taken = taken
        self._waiting = {name: since for name, since in self._waiting.items() if name not in rested}
        batch = set(map(to_path, rested))
        report.skipped = {path: reason for path, reason in report.skipped.items() if path in batch}
        standing, self._standing = self._standing, _standing(report)
        counts = (report.new, report.changed, report.renamed, report.deleted, len(report.skipped))
        return report if any(counts) or self._standing != standing else None

    def _scan(self, paths: Sequence[str]) -> tuple[dict[str, State], list[str]]:
        """Size and time of each image by its key, and the keys of the folders that cannot be listed."""
        states: dict[str, State] = {}
        unlisted = []
        for entry in scan(paths, Selection(**self._rules)):
            if isinstance(entry, Unreadable) and entry.kind == "folder":
                unlisted.append(entry.name)
            else:
                states[entry.name] = (entry.size, entry.modified)
        return states, unlisted

    def _rested(self, states: dict[str, State], hidden: Sequence[str]) -> dict[str, State | None]:
        """What has changed, and has been as it is for `REST` seconds. None stands for what vanished.

        Args:
            states: what is there now.
            hidden: keys of folders of which nothing is known now.
        """
        now = time.monotonic()
        changed: dict[str, State | None] = {n: state for n, state in states.items() if self._taken.get(n) != state}
        changed |= {n: None for n in self._taken if n not in states and not is_below(n, hidden)}
        before = self._waiting
        self._waiting = {
            name: (state, before[name][1] if name in before and before[name][0] == state else now)
            for name, state in changed.items()
        }
        return {name: state for name, (state, since) in self._waiting.items() if now - since >= REST}

    def _add(self, paths: Sequence[str], changes: int, states: dict[str, State], **options: Any) -> Report:
        """Bring the gallery in step with the files that are in these states, and forget what is gone.

        Args:
            changes: about how many files have to be read. A worker takes a second to start, so there are no more
                workers than these files need.
        """
        engine = self._engine
        if engine is None:
            most = loky.cpu_count() if self._workers is None else self._workers
            network, first_pass = self._gallery.steerer.network, self._gallery.store.card.first_pass
            engine = local_engine(network, min(most, max(-(-changes // CHUNK), 1)), first_pass=first_pass)
        return self._gallery.add(list(paths), engine=_only(engine, states), prune=self._prune, **self._rules, **options)


def _only(engine: Engine, states: dict[str, State]) -> Engine:
    """An engine that passes over the files that are not in one of these states."""

    def run(tasks: Iterable[Task]) -> Iterator[Item]:
        rested = (task for task in tasks if states.get(task.entry.name) == (task.entry.size, task.entry.modified))
        return engine(rested)

    return run


def _standing(report: Report) -> tuple[dict[str, int], dict[str, str]]:
    """What holds from batch to batch, and is told when it changes: folders that are empty, or cannot be listed."""
    return dict(report.kept), dict(report.unlisted)
