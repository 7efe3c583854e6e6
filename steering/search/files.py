"""Which images there are: files below folders, and other things that can be indexed, each with a name that lasts.

Unusual: names are text in a gallery, although file systems allow any bytes. A name that is not UTF-8 (or looks like the
escape) is written `bytes:` and percent-encoded, so that no two files share a name and each is found again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

from steering.errors import ImageError, printable
from steering.images import SUFFIXES

ESCAPE = "bytes:"


def to_text(path: str) -> str:
    """A file's name as UTF-8 text, one text for one name."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return ESCAPE + quote_from_bytes(os.fsencode(path))
    return path if not path.startswith(ESCAPE) else ESCAPE + quote_from_bytes(os.fsencode(path))


def to_path(text: str) -> str:
    """The name that `to_text` wrote."""
    return os.fsdecode(unquote_to_bytes(text.removeprefix(ESCAPE))) if text.startswith(ESCAPE) else text


@dataclass(frozen=True)
class Found:
    """An image that may be indexed.

    name: its path as text (`to_text`), or another lasting name. size: bytes, or 0 where it is not known before reading.
    modified: nanoseconds since 1970, UTC; 0 where there is no such time. content: what `open_image` takes, or the
    bytes of a file.
    """

    name: str
    size: int
    modified: int
    content: Any


@dataclass(frozen=True)
class Unreadable:
    """What was found and cannot be indexed, and why in one line."""

    name: str
    size: int
    modified: int
    reason: str
    kind: Literal["file", "folder"] = "file"


def scan(paths: Iterable[str | os.PathLike]) -> Iterator[Found | Unreadable]:
    """Image files by suffix: those named, and those below folders, in a fixed order, absolute, each once.

    Hidden files and folders are passed over, links to folders are not followed. A folder that cannot be listed comes
    as `Unreadable`, so that what was indexed below it is not taken for deleted; so does a folder named like an image.

    Raises:
        ImageError: a path that was given does not exist.
    """
    seen: set[str] = set()
    for given in paths:
        path = os.path.abspath(os.fsdecode(given))
        if os.path.isdir(path):
            found: Iterable[Found | Unreadable] = _below(path)
        elif os.path.lexists(path):
            found = [_stat(path)]
        else:
            raise ImageError(f"{printable(given)}: no such file or folder")
        for entry in found:
            if entry.name not in seen:
                seen.add(entry.name)
                yield entry


def roots(paths: Iterable[str | os.PathLike]) -> tuple[str, ...]:
    """The paths as `scan` names them, as text."""
    return tuple(to_text(os.path.abspath(os.fsdecode(path))) for path in paths)


def is_below(name: str, folders: Iterable[str]) -> bool:
    """Whether a name is one of the folders or lies below one."""
    return any(name == folder or name.startswith(folder.rstrip("/") + "/") for folder in folders)


def _below(folder: str) -> Iterator[Found | Unreadable]:
    failed: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=failed.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if _is_image(name):
                yield _stat(os.path.join(parent, name))
        for name in folders:
            if _is_image(name):
                yield Unreadable(to_text(os.path.join(parent, name)), 0, 0, "is a folder, not an image")
    for error in failed:
        place = to_text(os.fsdecode(error.filename))
        yield Unreadable(place, 0, 0, f"folder cannot be listed ({error.strerror})", "folder")


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def _stat(path: str) -> Found | Unreadable:
    name = to_text(path)
    try:
        status = os.stat(path)
    except OSError as error:
        return Unreadable(name, 0, 0, f"cannot be read ({error.strerror})")
    if not stat.S_ISREG(status.st_mode):
        return Unreadable(name, 0, status.st_mtime_ns, "is not a regular file")
    return Found(name, status.st_size, status.st_mtime_ns, path)


def entries(source: Any) -> Iterator[Found | Unreadable]:
    """Anything that can be indexed: a path, paths, an ImageFolder, a `datasets.Dataset`, or (name, image) pairs.

    A data set's images are named `NAME/SPLIT#ROW`, those of an ImageFolder by their files.

    Raises:
        ImageError: a path does not exist. ValueError: it is none of these.
    """
    if isinstance(source, str | os.PathLike):
        return scan([source])
    if hasattr(source, "samples") and hasattr(source, "classes"):  # torchvision's ImageFolder
        return scan(path for path, _ in source.samples)
    if hasattr(source, "features") and hasattr(source, "cast_column"):
        return _dataset(source)
    if isinstance(source, Iterable):
        return _each(source)
    raise ValueError(f"expected a folder, files, an ImageFolder, a data set or (name, image) pairs; got {type(source)}")


def _each(source: Iterable[Any]) -> Iterator[Found | Unreadable]:
    for item in source:
        if isinstance(item, str | os.PathLike):
            yield from scan([item])
        elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str | os.PathLike):
            yield Found(to_text(os.fsdecode(item[0])), 0, 0, item[1])
        else:
            raise ValueError(f"expected files or (name, image) pairs, got {type(item).__name__}")


def _dataset(data: Any) -> Iterator[Found]:
    """The first image column of a `datasets.Dataset`, undecoded."""
    from datasets import Image

    columns = [name for name, feature in data.features.items() if isinstance(feature, Image)]
    if not columns:
        raise ValueError(f"no image column among {', '.join(data.features)}")
    origin = "/".join(str(part) for part in (data.info.dataset_name or "dataset", data.split or "all"))
    for row, item in enumerate(data.select_columns(columns[:1]).cast_column(columns[0], Image(decode=False))):
        cell = item[columns[0]]
        content = cell["bytes"] if cell["bytes"] is not None else cell["path"]
        yield Found(f"{origin}#{row}", 0 if cell["bytes"] is None else len(cell["bytes"]), 0, content)


def file_of(name: str) -> str | None:
    """The file that a name stands for, if there is one now."""
    path = to_path(name)
    return path if Path(path).is_file() else None
