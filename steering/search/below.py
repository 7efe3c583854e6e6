"""Search only below some folders: a condition for the store, which is joined to the user's own.

Unusual: the condition compares the beginning of a path, without patterns. So quotes, percent signs and underscores in a
folder's name mean themselves. The folder need not be there: a gallery outlives a disk that is away.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from steering.errors import GalleryError, printable
from steering.search.files import to_key, to_path
from steering.search.store import Store
from steering.search.table import quoted


def narrowed(store: Store, folders: Sequence[str], where: str | None = None) -> str | None:
    """A condition that lets through the images below any of the folders, and of these what `where` lets through.

    Args:
        store: the gallery's tables.
        folders: absolute, or relative to the current folder. With none, the condition is `where`.
        where: an SQL condition, as for `Gallery.search`.

    Raises:
        GalleryError: no image lies below one of the folders, or the condition cannot be understood.
    """
    if not folders:
        return where
    if where is not None:
        store.count(where)  # an error speaks of the condition that was given, not of the joined one
    parts = []
    for folder in folders:
        part = f"starts_with(path, {quoted([_beginning(folder)])})"
        if not folder or not store.count(part):
            raise GalleryError(_nothing(store, folder))
        parts.append(part)
    either = f"({' OR '.join(parts)})"
    return either if where is None else f"{either} AND ({where}\n)"  # the condition may end with a comment


def _beginning(folder: str) -> str:
    return os.path.abspath(folder).rstrip("/") + "/"


def _nothing(store: Store, folder: str) -> str:
    """The error about a folder that holds none of the gallery's images. It tells where the gallery's files lie."""
    got = f"folder: got '{printable(folder)}', expected a folder that holds images of the gallery"
    if not folder:
        return got
    below = f"{got}; none lies below {printable(os.path.abspath(folder))}"
    paths = [to_path(name) for batch in store.images.batches(("path",)) for name in batch["path"].to_pylist()]
    files = [os.path.dirname(path) for path in paths if os.path.isabs(path)]
    common = to_key(os.path.commonpath(files)) if files else "/"
    return below if common == "/" else f"{below}, and all of its files lie below {printable(to_path(common))}"
