"""List the images of a source: files below folders, or a data set. Each image has a key that lasts.

Unusual: a key is text, although file systems allow any bytes in a name. What UTF-8 text cannot hold is escaped, one
character at a time. So no two files share a key, each file is found again by its key, and the keys of files begin with
the key of their folder, whatever the names are. `where path LIKE '/photos/%'` therefore finds all of them.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from steering import photos
from steering.errors import ImageError, printable
from steering.images import SUFFIXES
from steering.search.selection import Selection, suffix_of

ESCAPE = "\x1a"  # ASCII's "substitute"; the code point follows in four hexadecimal digits
_UNSTORABLE = re.compile("[\0\x1a\ud800-\udfff]")  # a NUL in one of its errors makes Lance abort the process
_ESCAPED = re.compile(f"{ESCAPE}([0-9a-f]{{4}})")
LATEST = 2**63 - 1  # nanoseconds


def to_key(path: str) -> str:
    """A path, or another name, as UTF-8 text: one key for each path. Nearly all paths are their own keys."""
    return _UNSTORABLE.sub(lambda match: f"{ESCAPE}{ord(match[0]):04x}", path)


def to_path(key: str) -> str:
    """The path of which `to_key` made the key."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), key)


@dataclass(frozen=True)
class Entry:
    """An image that may be indexed.

    Attributes:
        name: its key, which `to_key` makes from its absolute path or from another lasting name.
        size: in bytes, or 0 where it is not known before reading.
        modified: nanoseconds since 1970, UTC; 0 where there is no such time.
        content: what `open_image` takes, or the bytes of a file.
    """

    name: str
    size: int
    modified: int
    content: Any


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be indexed, or a folder that cannot be listed.

    Attributes:
        name, size, modified: as in `Entry`.
        reason: why, in one line.
        kind: whether it is a file or a folder.
        passing: whether it may be readable another time, although the file stays as it is.
    """

    name: str
    size: int
    modified: int
    reason: str
    kind: Literal["file", "folder"] = "file"
    passing: bool = False


def scan(paths: Iterable[str | os.PathLike], selection: Selection | None = None) -> Iterator[Entry | Unreadable]:
    """The files that are given, and the image files below given folders. Each comes once, in a fixed order.

    Links to folders are not followed. A folder that cannot be listed comes as `Unreadable`, so that the images that
    were indexed below it are not taken for deleted. A folder that is named like an image comes as `Unreadable`, too. So
    does a file that needs a package which is not installed (`photos.py`); it is not read.

    Args:
        paths: files and folders.
        selection: the rules of what is left out, which also counts it. By default, hidden files and folders are left
            out, and the folders `selection.LEFT_OUT`.

    Raises:
        ImageError: a path that was given does not exist.
    """
    selection = selection or Selection()
    given_paths = [os.fsdecode(path) for path in paths]
    given_folders = [os.path.realpath(path) for path in given_paths if os.path.isdir(path)]
    seen: set[str] = set()
    for given in given_paths:
        path = os.path.abspath(given)
        if os.path.isdir(path):
            entries: Iterable[Entry | Unreadable] = _below(path, selection, given_folders)
        elif os.path.lexists(path):
            entries = [_stat(path)] if selection.takes(path, path) else []
        else:
            raise ImageError(f"{printable(given)}: no such file or folder")
        for entry in entries:
            if entry.name not in seen:
                seen.add(entry.name)
                yield entry


def roots(paths: Iterable[str | os.PathLike]) -> tuple[str, ...]:
    """The keys of paths, as `scan` gives them."""
    return tuple(to_key(os.path.abspath(os.fsdecode(path))) for path in paths)


def missing(paths: Sequence[str | os.PathLike], known: Iterable[str], *, prune: bool) -> set[str]:
    """The keys of the paths that are not there now. With `prune`, these may be forgotten.

    Args:
        paths: files and folders.
        known: the keys that a gallery holds. They are read only if a path is not there.
        prune: whether what is not there is to be forgotten.

    Raises:
        ImageError: a path is not there, and the gallery knows nothing below it or `prune` is not given.
    """
    gone = {key: path for key, path in zip(roots(paths), paths, strict=True) if not os.path.lexists(to_path(key))}
    names = list(known) if gone else []
    for key, path in gone.items():
        count = sum(is_below(name, [key]) for name in names)
        if not (count and prune):
            hint = f"; the gallery knows {count:,} files there, which prune=True forgets" if count else ""
            raise ImageError(f"{printable(path)}: no such file or folder{hint}")
    return set(gone)


def is_below(name: str, folders: Iterable[str]) -> bool:
    """Whether a key belongs to one of the folders or to something below one. The folders are given as keys, too."""
    return any(name == folder or name.startswith(folder.rstrip("/") + "/") for folder in folders)


def _below(folder: str, selection: Selection, given: Sequence[str]) -> Iterator[Entry | Unreadable]:
    """The images below a folder. `given`: the real paths of all folders of the source."""
    failed: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=failed.append):
        folders[:] = [
            name for name in sorted(folders) if selection.takes(os.path.join(parent, name), folder, folder=True)
        ]
        for name in sorted(files):
            path = os.path.join(parent, name)
            if not _is_image(name):
                selection.pass_over(path, folder)
            elif selection.takes(path, folder):
                yield _stat(path)
        for name in folders:
            path = os.path.join(parent, name)
            if os.path.islink(path) and not is_below(os.path.realpath(path), given):
                selection.pass_over_link(path)
            if _is_image(name):
                yield Unreadable(to_key(path), 0, 0, "is a folder, not an image")
    for error in failed:
        key = to_key(os.fsdecode(error.filename))
        yield Unreadable(key, 0, 0, f"folder cannot be listed ({error.strerror})", "folder")


def _is_image(name: str) -> bool:
    return suffix_of(name) in SUFFIXES


def _stat(path: str) -> Entry | Unreadable:
    name = to_key(path)
    try:
        status = os.stat(path)
    except OSError as error:
        return Unreadable(name, 0, 0, f"cannot be read ({error.strerror})", passing=True)
    modified = min(max(status.st_mtime_ns, -LATEST), LATEST)  # some clocks say 2300
    if not stat.S_ISREG(status.st_mode):
        return Unreadable(name, 0, modified, "is not a regular file")
    with suppress(OSError):  # told when the file is read
        if (reason := photos.lacks(path)) is not None:
            return Unreadable(name, status.st_size, modified, reason, passing=True)
    return Entry(name, status.st_size, modified, path)


def entries(source: Any, selection: Selection | None = None) -> Iterator[Entry | Unreadable]:
    """Anything that can be indexed: a path, paths, an ImageFolder, a `datasets.Dataset`, or (name, image) pairs.

    The images of a data set are named `NAME-FINGERPRINT/SPLIT#ROW`. Those of an ImageFolder are named by their files.
    Only paths are sure to come once each; a name among pairs may come again.

    Args:
        source: one of these.
        selection: as in `scan`. The names of other images than files below folders are compared with patterns alone.

    Raises:
        ImageError: a path does not exist. ValueError: the source is none of these.
    """
    selection = selection or Selection()
    if isinstance(source, str | os.PathLike):
        return scan([source], selection)
    if is_paths(source):
        return scan(source, selection)
    if isinstance(source, Mapping):
        raise ValueError(f"source: got several data sets, expected one: add each of {', '.join(map(str, source))}")
    if hasattr(source, "samples") and hasattr(source, "classes"):  # torchvision's ImageFolder
        named: Iterable[Entry | Unreadable] = (_stat(os.path.abspath(path)) for path, _ in source.samples)
    elif hasattr(source, "features") and hasattr(source, "cast_column"):
        named = _dataset(source)
    elif isinstance(source, Iterable):
        return _each(source, selection)
    else:
        kind = type(source).__name__
        raise ValueError(
            f"source: got {kind}, expected a folder, files, an ImageFolder, a data set or (name, image) pairs"
        )
    return (entry for entry in named if not selection.excludes(to_path(entry.name)))


def is_paths(source: Any) -> bool:
    """Whether a source is a list of paths and nothing else."""
    return isinstance(source, list | tuple) and all(isinstance(item, str | os.PathLike) for item in source)


def _each(source: Iterable[Any], selection: Selection) -> Iterator[Entry | Unreadable]:
    for item in source:
        if isinstance(item, str | os.PathLike):
            yield from scan([item], selection)
        elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str | os.PathLike):
            if not selection.excludes(os.fsdecode(item[0])):
                yield _given(to_key(os.fsdecode(item[0])), item[1])
        else:
            raise ValueError(
                f"source: got {type(item).__name__} among its items, expected files or (name, image) pairs"
            )


def _given(name: str, content: Any) -> Entry | Unreadable:
    if isinstance(content, Image.Image):
        try:  # load it here, because a picture that is not loaded cannot be sent to a worker
            content.load()
        except Exception as error:  # decoders raise nearly anything
            return Unreadable(name, 0, 0, f"is damaged ({printable(str(error))[:160]})")
    return Entry(name, 0, 0, content)


def _dataset(data: Any) -> Iterator[Entry | Unreadable]:
    """The first image column of a `datasets.Dataset`, undecoded."""
    from datasets import Image as ImageFeature

    columns = [name for name, feature in data.features.items() if isinstance(feature, ImageFeature)]
    if not columns:
        raise ValueError(f"source: got a data set with no image column among {', '.join(data.features)}")
    # Two folders that one builder loaded share its name; their fingerprints, which say how they came about, differ.
    origin = to_key(f"{data.info.dataset_name or 'dataset'}-{data._fingerprint[:8]}/{data.split or 'all'}")
    for row, item in enumerate(data.select_columns(columns[:1]).cast_column(columns[0], ImageFeature(decode=False))):
        cell = item[columns[0]]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            yield Unreadable(f"{origin}#{row}", 0, 0, "holds no image")
            continue
        content = cell["bytes"] if cell["bytes"] is not None else cell["path"]
        yield Entry(f"{origin}#{row}", 0 if cell["bytes"] is None else len(cell["bytes"]), 0, content)


def file_of(name: str) -> str | None:
    """The file that a key stands for, if it is there now. Names that were given to images are no files."""
    path = to_path(name)
    return path if os.path.isabs(path) and os.path.isfile(path) else None


def is_gone(name: str) -> bool:
    """Whether a key stands for a file that is not there now: deleted, moved, or on a disk that is away.

    False for names that were given to images, for addresses of object stores, and where nothing can be told because a
    folder may not be entered.
    """
    path = to_path(name)
    if not os.path.isabs(path):
        return False
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # permission, a disk that fails, or no name that a file can have
        return False
    return False
