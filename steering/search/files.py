"""Which images there are: files below folders, and other things that can be indexed, each with a name that lasts.

Unusual: names are text in a gallery, although file systems allow any bytes. A name that is not UTF-8 (or looks like the
escape) is written `bytes:` and percent-encoded, so that no two files share a name and each is found again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

from PIL import Image

from steering.errors import ImageError, printable
from steering.images import SUFFIXES

ESCAPE = "bytes:"
LATEST = 2**63 - 1  # nanoseconds


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
    """What was found and cannot be indexed, and why in one line.

    passing: it may be read another time, although the file stays as it is.
    """

    name: str
    size: int
    modified: int
    reason: str
    kind: Literal["file", "folder"] = "file"
    passing: bool = False


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
        return Unreadable(name, 0, 0, f"cannot be read ({error.strerror})", passing=True)
    modified = min(max(status.st_mtime_ns, -LATEST), LATEST)  # some clocks say 2300
    if not stat.S_ISREG(status.st_mode):
        return Unreadable(name, 0, modified, "is not a regular file")
    return Found(name, status.st_size, modified, path)


def entries(source: Any) -> Iterator[Found | Unreadable]:
    """Anything that can be indexed: a path, paths, an ImageFolder, a `datasets.Dataset`, or (name, image) pairs.

    A data set's images are named `NAME-FINGERPRINT/SPLIT#ROW`, those of an ImageFolder by their files.

    Raises:
        ImageError: a path does not exist. ValueError: it is none of these.
    """
    if isinstance(source, str | os.PathLike):
        return scan([source])
    if hasattr(source, "samples") and hasattr(source, "classes"):  # torchvision's ImageFolder
        return (_stat(os.path.abspath(path)) for path, _ in source.samples)
    if isinstance(source, Mapping):
        raise ValueError(f"expected one data set, got several: index each of {', '.join(map(str, source))}")
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
            yield _given(to_text(os.fsdecode(item[0])), item[1])
        else:
            raise ValueError(f"expected files or (name, image) pairs, got {type(item).__name__}")


def _given(name: str, content: Any) -> Found | Unreadable:
    if isinstance(content, Image.Image):
        try:  # here: a picture that is not loaded cannot be sent to a worker
            content.load()
        except Exception as error:  # decoders raise nearly anything
            return Unreadable(name, 0, 0, f"is damaged ({printable(str(error))[:160]})")
    return Found(name, 0, 0, content)


def _dataset(data: Any) -> Iterator[Found | Unreadable]:
    """The first image column of a `datasets.Dataset`, undecoded."""
    from datasets import Image as ImageFeature

    columns = [name for name, feature in data.features.items() if isinstance(feature, ImageFeature)]
    if not columns:
        raise ValueError(f"no image column among {', '.join(data.features)}")
    # Two folders loaded by one builder share its name; their fingerprints, which say how they came about, differ.
    origin = f"{data.info.dataset_name or 'dataset'}-{data._fingerprint[:8]}/{data.split or 'all'}"
    for row, item in enumerate(data.select_columns(columns[:1]).cast_column(columns[0], ImageFeature(decode=False))):
        cell = item[columns[0]]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            yield Unreadable(f"{origin}#{row}", 0, 0, "holds no image")
            continue
        content = cell["bytes"] if cell["bytes"] is not None else cell["path"]
        yield Found(f"{origin}#{row}", 0 if cell["bytes"] is None else len(cell["bytes"]), 0, content)


def file_of(name: str) -> str | None:
    """The file that a name stands for, if there is one now. Names that were given to images are no files."""
    path = to_path(name)
    return path if os.path.isabs(path) and os.path.isfile(path) else None
