"""Images read, hashed and shrunk in worker processes, a bounded number at a time.

Unusual: a worker that dies (its decoder crashes, or memory runs out) costs one image. The images that were in flight
are read again, one at a time. An image that kills its worker again is reported like any other unreadable file.
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

from lrm_base.frame import Frame
from steering.errors import ImageError, UnavailableError, printable
from steering.images import framed, open_image, read_file
from steering.search.files import Entry, Unreadable

CHUNK = 16  # images that a worker gets at a time


@dataclass(frozen=True)
class Task:
    """An image to read.

    Attributes:
        entry: the image.
        known: SHA-256 of contents that are in the gallery. An image of such content is not decoded.
    """

    entry: Entry
    known: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Decoded:
    """An image as the network takes it.

    Attributes:
        name, size, modified: as in `Entry`.
        sha256: hash of its content.
        width, height: of the whole image, upright, in pixels.
        pixels: (h, w, 3) uint8, the whole picture in the frame of the network, as in `Network.pixels`.
        difference_hash: 64 bits; see the function of that name.
        note: what `open_image` tells of it, for example that its last bytes are missing. Empty if there is nothing.
    """

    name: str
    size: int
    modified: int
    sha256: str
    width: int
    height: int
    pixels: np.ndarray
    difference_hash: int
    note: str = ""


@dataclass(frozen=True)
class Same:
    """An image of known content, which was not decoded. Attributes: as in `Decoded`."""

    name: str
    size: int
    modified: int
    sha256: str


Read = Decoded | Same | Unreadable


def read(task: Task, frame: Frame) -> Read:
    """Read one image as a network with that frame sees it. Never raises for what is wrong with it."""
    entry = task.entry
    content, name, modified = entry.content, entry.name, entry.modified
    try:
        if isinstance(content, str | os.PathLike):
            content = read_file(content)
        digest = _digest(content)
        size = len(content) if isinstance(content, bytes) else entry.size
        if digest in task.known:
            return Same(name, size, modified, digest)
        picture = open_image(content)
        small = framed(picture, frame)
    except ImageError as error:
        label = printable(content) if isinstance(content, str | os.PathLike) else "image"
        reason, passing = str(error).removeprefix(f"{label}: "), isinstance(error, UnavailableError)
        return Unreadable(name, entry.size, modified, reason, passing=passing)
    except Exception as error:  # an object that is no image at all
        return Unreadable(name, entry.size, modified, f"is no image ({printable(str(error))[:160]})")
    pixels, note = np.asarray(small), printable(str(picture.info.get("note", "")))
    return Decoded(name, size, modified, digest, *picture.size, pixels, difference_hash(small), note)


def difference_hash(picture: Image.Image) -> int:
    """64 bits as a signed integer: for 8 × 8 cells, whether the next cell to the right is brighter (Krawetz 2013)."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    return int(np.packbits(np.diff(grey, axis=1) > 0).view(">i8")[0])


def _digest(content: Any) -> str:
    if isinstance(content, Image.Image):
        content = np.asarray(content.convert("RGBA") if content.mode == "P" else content)  # colours, not indices
    if isinstance(content, np.ndarray):
        shape = f"{content.shape}{content.dtype}".encode()
        return hashlib.sha256(shape + np.ascontiguousarray(content).tobytes()).hexdigest()
    return hashlib.sha256(content).hexdigest()


def _read_all(tasks: list[Task], frame: Frame) -> list[Read]:
    return [read(task, frame) for task in tasks]


def read_all(tasks: Iterable[Task], frame: Frame, workers: int) -> Iterator[Read]:
    """Every image, read in `workers` processes, in order. With 0 workers this process reads.

    At most `4 · CHUNK · workers` images are in memory.
    """
    if workers == 0:
        for task in tasks:
            yield read(task, frame)
        return
    pool = _pool(workers)
    flying: deque[tuple[list[Task], Future[list[Read]]]] = deque()
    chunks = _chunked(tasks)
    try:
        while True:
            while len(flying) < 3 * workers and (chunk := next(chunks, None)):
                try:
                    flying.append((chunk, pool.submit(_read_all, chunk, frame)))
                except BrokenProcessPool:  # noticed while submitting: the chunk is handled like those in flight
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
                yield from _again(lost, frame)
                pool = _pool(workers)
    finally:
        _stop(pool)


def _broken() -> Future[list[Read]]:
    future: Future[list[Read]] = Future()
    future.set_exception(BrokenProcessPool())
    return future


def _again(lost: Iterable[tuple[list[Task], Future[list[Read]]]], frame: Frame) -> Iterator[Read]:
    """What was in flight when a worker died: the ready results first, then the rest, one by one in a new process."""
    pool = _pool(1)
    try:
        for chunk, future in lost:
            if future.done() and not future.cancelled() and future.exception() is None:
                yield from future.result()
                continue
            for task in chunk:
                try:
                    yield pool.submit(read, task, frame).result()
                except BrokenProcessPool:
                    _stop(pool)
                    pool = _pool(1)
                    yield Unreadable(task.entry.name, task.entry.size, task.entry.modified, "made its reader crash")
    finally:
        _stop(pool)


def _pool(workers: int) -> ProcessPoolExecutor:
    """A pool of fresh interpreters that do not import the caller's script. Forking a process with threads may hang."""
    return ProcessPoolExecutor(workers, initializer=_serve, initargs=(os.getpid(),))


def _serve(parent: int) -> None:
    """In a worker: leave interrupts to the main process, and end when the main process is killed."""
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


def pixels_of(file: str | None, frame: Frame) -> np.ndarray | None:
    """(h, w, 3) uint8 of a file in a frame; None if it is not there or cannot be read."""
    if file is None:
        return None
    seen = read(Task(Entry(file, 0, 0, file)), frame)
    return seen.pixels if isinstance(seen, Decoded) else None
