"""Images read, hashed and shrunk in worker processes, a bounded number at a time.

Unusual: a worker that dies (a decoder that crashes, a system out of memory) costs one image. What was in flight is read
again alone, one by one, and what kills its worker again is reported like any other unreadable file.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from loky.process_executor import ProcessPoolExecutor
from PIL import Image

from steering.errors import ImageError, UnavailableError, printable
from steering.images import open_image, read_file, squash
from steering.search.files import Found, Unreadable

CHUNK = 16  # images a task


@dataclass(frozen=True)
class Task:
    """An image to read. known: content hashes that need no decoding, because such content is in the gallery."""

    found: Found
    known: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Decoded:
    """An image as the network takes it.

    name, size, modified: as in `Found`. sha256: of its content. width, height: its own, upright. pixels: (s, s, 3)
    uint8, those of `Steerer.pixels`: the whole frame squashed to a square. look: its difference hash, 64 bits.
    """

    name: str
    size: int
    modified: int
    sha256: str
    width: int
    height: int
    pixels: np.ndarray
    look: int


@dataclass(frozen=True)
class Same:
    """An image whose content was known already: not decoded."""

    name: str
    size: int
    modified: int
    sha256: str


Read = Decoded | Same | Unreadable


def read(task: Task, side: int) -> Read:
    """Read one image. Never raises for what is wrong with it."""
    found = task.found
    content, name = found.content, found.name
    try:
        if isinstance(content, str | os.PathLike):
            content = read_file(content)
        digest = _digest(content)
        size = len(content) if isinstance(content, bytes) else found.size
        if digest in task.known:
            return Same(name, size, found.modified, digest)
        picture = open_image(content)
        small = squash(picture, side)
    except ImageError as error:
        label = printable(content) if isinstance(content, str | os.PathLike) else "image"
        reason, passing = str(error).removeprefix(f"{label}: "), isinstance(error, UnavailableError)
        return Unreadable(name, found.size, found.modified, reason, passing=passing)
    except Exception as error:  # an object that is no image at all
        return Unreadable(name, found.size, found.modified, f"is no image ({printable(str(error))[:160]})")
    return Decoded(name, size, found.modified, digest, *picture.size, np.asarray(small), difference_hash(small))


def difference_hash(picture: Image.Image) -> int:
    """64 bits, as a signed integer: whether grey rises from each of 8 × 8 places to its right (Krawetz 2013)."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    return int(np.packbits(np.diff(grey, axis=1) > 0).view(">i8")[0])


def _digest(content: Any) -> str:
    if isinstance(content, Image.Image):
        content = np.asarray(content.convert("RGBA") if content.mode == "P" else content)  # colours, not their numbers
    if isinstance(content, np.ndarray):
        shape = f"{content.shape}{content.dtype}".encode()
        return hashlib.sha256(shape + np.ascontiguousarray(content).tobytes()).hexdigest()
    return hashlib.sha256(content).hexdigest()


def _read_all(tasks: list[Task], side: int) -> list[Read]:
    return [read(task, side) for task in tasks]


def read_all(tasks: Iterable[Task], side: int, workers: int) -> Iterator[Read]:
    """Every image, read in `workers` processes, in order; 0 reads in this process.

    At most `4 · CHUNK · workers` images are in memory.
    """
    if workers == 0:
        for task in tasks:
            yield read(task, side)
        return
    pool = _pool(workers)
    flying: deque[tuple[list[Task], Future[list[Read]]]] = deque()
    chunks = _chunked(tasks)
    try:
        while True:
            while len(flying) < 3 * workers and (chunk := next(chunks, None)):
                try:
                    flying.append((chunk, pool.submit(_read_all, chunk, side)))
                except BrokenProcessPool:  # found out while submitting: the chunk is handled like those in flight
                    flying.append((chunk, _broken()))
            if not flying:
                return
            chunk, future = flying.popleft()
            try:
                yield from future.result()
            except BrokenProcessPool:
                _stop(pool)
                lost = [(chunk, future), *flying]
                flying.clear()
                yield from _again(lost, side)
                pool = _pool(workers)
    finally:
        _stop(pool)


def _broken() -> Future[list[Read]]:
    future: Future[list[Read]] = Future()
    future.set_exception(BrokenProcessPool())
    return future


def _again(lost: Iterable[tuple[list[Task], Future[list[Read]]]], side: int) -> Iterator[Read]:
    """What was in flight when a worker died: results that were there, the rest one by one in a process beside this."""
    pool = _pool(1)
    try:
        for chunk, future in lost:
            if future.done() and not future.cancelled() and future.exception() is None:
                yield from future.result()
                continue
            for task in chunk:
                try:
                    yield pool.submit(read, task, side).result()
                except BrokenProcessPool:
                    _stop(pool)
                    pool = _pool(1)
                    yield Unreadable(task.found.name, task.found.size, task.found.modified, "made its reader crash")
    finally:
        _stop(pool)


def _pool(workers: int) -> ProcessPoolExecutor:
    """Fresh interpreters that do not import the caller's script: forking a process with threads may hang."""
    return ProcessPoolExecutor(workers, initializer=_serve, initargs=(os.getpid(),))


def _serve(parent: int) -> None:
    """In a worker: interrupts are the main process's to handle, and one that was killed leaves no worker behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _stop(pool: ProcessPoolExecutor) -> None:
    with suppress(Exception):  # a broken pool
        pool.shutdown(wait=True, kill_workers=True)


def _chunked(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    iterator = iter(tasks)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        yield chunk


def pixels_of(file: str | None, side: int) -> np.ndarray | None:
    """(side, side, 3) uint8 of a file; None if it is not there or cannot be read."""
    if file is None:
        return None
    seen = read(Task(Found(file, 0, 0, file)), side)
    return seen.pixels if isinstance(seen, Decoded) else None
