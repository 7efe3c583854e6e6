"""One Lance table on disk or in an object store: upsert, delete, read. Every error is one clear line.

Unusual: no index is ever built on the key. Upserts through such an index double rows when several processes write (seen
with pylance 14). Lance's own errors end with lines of its source code and seldom name the file that is damaged. So
after an error the files are checked, and the first that is missing or damaged is named.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("LANCE_LOG", "error")  # its notes would stand between a user's lines
import lance
import numpy as np
import pyarrow as pa

from steering.errors import GalleryError, printable
from steering.search.files import to_key
from steering.search.schema import FILTERS

if TYPE_CHECKING:
    from lance import LanceDataset

KEEP_VERSIONS = timedelta(minutes=5)  # readers of an older version may still be at work
FRAGMENT_ROWS = 32_768  # fragments of fewer rows are joined; larger ones are never written again
MAGIC = b"LANC"  # the last bytes of every file of Lance


class Table:
    """One table. Threads may share it; every read sees the newest version."""

    def __init__(self, uri: str, options: dict[str, str] | None) -> None:
        self.uri, self.options = uri, options
        self._session = lance.Session(index_cache_size_bytes=256 << 20, metadata_cache_size_bytes=64 << 20)

    def create(self, schema: pa.Schema) -> None:
        """Make an empty table unless there is one. If several processes try at once on disk, one wins, whole.

        In an object store, two processes that make a table at the same moment may lose what one of them writes first.
        """
        folder = self._folder()
        if folder is None:
            if self.metadata() is None:
                lance.write_dataset(schema.empty_table(), self.uri, storage_options=self.options)
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as beside:
            made = os.path.join(beside, "table")
            lance.write_dataset(schema.empty_table(), made)
            try:
                os.rename(made, folder)
            except OSError:
                if not folder.is_dir():
                    raise

    def metadata(self) -> dict[str, str] | None:
        """The table's own metadata; None if there is no such table. Raises GalleryError if it cannot be opened."""
        folder = self._folder()
        if folder is not None and not (folder.is_dir() and any(folder.iterdir())):
            return None
        if folder is None:  # an object store has no folders, so a missing manifest means that there is no table
            try:
                lance.dataset(self.uri, storage_options=self.options)
            except (OSError, ValueError) as error:
                if "not found" in str(error).lower():
                    return None
        values = self.now().schema.metadata or {}
        return {key.decode(): value.decode() for key, value in values.items()}

    def now(self) -> LanceDataset:
        """The newest version. Raises GalleryError if it cannot be opened."""
        with self._one_line("opened"):
            return lance.dataset(self.uri, session=self._session, storage_options=self.options)

    def upsert(self, rows: pa.Table, without: Sequence[str] = ()) -> None:
        """Insert rows, or replace those of the same names; the last row of a name counts. One commit.

        Args:
            rows: the rows.
            without: names whose rows are deleted in the same commit, unless they are among `rows`.
        """
        if not len(rows):
            return
        last = {name: index for index, name in enumerate(rows["path"].to_pylist())}
        if len(last) < len(rows):  # Lance would insert both
            rows = rows.take(sorted(last.values()))
        with self._one_line("written"):
            merge = self.now().merge_insert("path").when_matched_update_all().when_not_matched_insert_all()
            if without:
                merge = merge.when_not_matched_by_source_delete(f"path IN ({quoted(without)})")
            merge.conflict_retries(50).use_index(False).execute(rows)

    def delete(self, names: Sequence[str]) -> None:
        """Delete the rows of these names. Names without a row are passed over. One commit."""
        if names:
            keys = pa.table({"path": pa.array(names, pa.string())})
            with self._one_line("written"):
                self.now().merge_insert("path").when_matched_delete().use_index(False).execute(keys)

    def batches(self, columns: Sequence[str], where: str | None = None, rows: int = 8192) -> Iterator[pa.RecordBatch]:
        """All rows of one version, in bounded memory. Raises like `count`."""
        with self._one_line("read", where):
            yield from self._scanner(columns, _stored(where), rows).to_batches()

    def keyed(self, columns: Sequence[str], where: str) -> Iterator[pa.RecordBatch]:
        """Rows that a condition lets through. This program wrote the condition, so its paths are keys already."""
        with self._one_line("read"):
            yield from self._scanner(columns, where, 8192).to_batches()

    def nearest(self, columns: Sequence[str], search: dict[str, Any], where: str | None) -> pa.Table:
        """The rows nearest to a vector by Lance's search, best first, with their `_distance`. Raises like `count`."""
        with self._one_line("read", where):
            options: dict[str, Any] = {"nearest": search, "filter": _stored(where), "prefilter": True}
            return self.now().scanner(columns=[*columns, "_distance"], **options).to_table()

    def sample(self, columns: Sequence[str], count: int, where: str | None, seed: int) -> list[dict[str, Any]]:
        """Rows that are drawn at random, each at most once, in no order. Raises like `count`.

        Args:
            count: number of rows; all rows are given if there are fewer.
            seed: number that fixes what is drawn from one version of the table.
        """
        rng = np.random.default_rng(seed)
        with self._one_line("read", where):
            data = self.now()
            if where is None:
                total = data.count_rows()
                picks = np.sort(rng.choice(total, min(count, total), replace=False))
                return data.take(picks.tolist(), columns=list(columns)).to_pylist()
            names = data.scanner(columns=["path"], filter=_stored(where)).to_table()["path"]
            chosen = names.take(rng.choice(len(names), min(count, len(names)), replace=False)).to_pylist()
            if not chosen:
                return []
            return data.scanner(columns=list(columns), filter=f"path IN ({quoted(chosen)})").to_table().to_pylist()

    def _scanner(self, columns: Sequence[str], condition: str | None, rows: int) -> Any:
        options: dict[str, Any] = {"batch_size": rows, "batch_readahead": 1, "io_buffer_size": 32 << 20}
        return self.now().scanner(columns=list(columns), filter=condition, **options)

    def count(self, where: str | None = None) -> int:
        """Number of rows that a condition lets through.

        Raises:
            GalleryError: the condition cannot be understood, or a file of the table is missing or damaged.
        """
        if where is not None and not (isinstance(where, str) and where.strip()):
            raise GalleryError(f'where: got {where!r}, expected an SQL condition such as "width > 500"')
        with self._one_line("read", where):
            return self.now().count_rows(_stored(where))

    def tidy(self) -> None:
        """Join small fragments and drop versions that no reader uses. What another writer prevents is left undone."""
        with self.upkeep():
            self.now().optimize.compact_files(target_rows_per_fragment=FRAGMENT_ROWS)
            self.now().cleanup_old_versions(older_than=KEEP_VERSIONS)

    @contextlib.contextmanager
    def upkeep(self) -> Iterator[None]:
        """For work that gives way to another writer; whoever finishes next does it."""
        with self._one_line("written"):
            try:
                yield
            except OSError as error:
                if "conflict" not in str(error).lower():
                    raise

    @contextlib.contextmanager
    def _one_line(self, doing: str, where: str | None = None) -> Iterator[None]:
        """Turn what Lance raises into a GalleryError of one line: about a file, the condition, or the whole table."""
        try:
            yield
        except GalleryError:
            raise
        except BaseException as error:
            panic = type(error).__name__ == "PanicException"  # Rust's; it does not derive from Exception
            if not (panic or isinstance(error, OSError | ValueError | RuntimeError)):
                raise
            raise self._explained(error, doing, where) from None

    def _explained(self, error: BaseException, doing: str, where: str | None) -> GalleryError:
        text = str(error)
        gallery, _, name = self.uri.rpartition("/")
        missing = re.search(rf"not found: .*?{re.escape(name)}/([\w./-]+)", text, re.IGNORECASE)
        damaged = missing[1].rstrip(".") if missing else self._damaged_file()
        if damaged is not None:
            return GalleryError(
                f"{printable(gallery)}: a file of the gallery is missing or damaged ({name}/{damaged}); "
                "index the images anew into another folder"
            )
        if where is not None and "LanceError(IO)" not in text:
            return GalleryError(f"where: got {where!r}: {first_line(error)} (columns: {', '.join(FILTERS)})")
        return GalleryError(f"{printable(self.uri)} cannot be {doing}: {first_line(error)}")

    def _folder(self) -> Path | None:
        """The folder of a table on disk; None in an object store."""
        path = self.uri.removeprefix("file://")
        return None if "://" in path else Path(path)

    def _damaged_file(self) -> str | None:
        """The first file of the newest version that is missing or not whole, relative to the table's folder."""
        folder = self._folder()
        if folder is None or not folder.is_dir():
            return None
        manifests = list(folder.glob("_versions/*.manifest"))
        if not manifests:
            return "_versions"
        files: list[tuple[str, int | None]] = []
        try:
            fragments = lance.dataset(self.uri).get_fragments()
        except (OSError, ValueError):
            files = [(f"_versions/{path.name}", None) for path in manifests]
        else:
            files = [(f"data/{file.path}", file.file_size_bytes) for part in fragments for file in part.data_files()]
            files += [(str(path.relative_to(folder)), None) for path in folder.glob("_indices/*/*.idx")]
        return next((name for name, size in files if not _is_whole(folder / name, size)), None)


def quoted(names: Iterable[str]) -> str:
    """Names as a list of SQL's texts."""
    return ", ".join("'" + name.replace("'", "''") + "'" for name in names)


def _stored(where: str | None) -> str | None:
    """A condition with the paths in it as the table holds them."""
    return None if where is None else to_key(where)


def _is_whole(path: Path, size: int | None) -> bool:
    """Whether a file of Lance can be read to its end, where its mark stands."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - len(MAGIC), 0))
            return file.read() == MAGIC and size in (None, end)
    except OSError:
        return False


def first_line(error: BaseException) -> str:
    """The first line of an error, without the parts that only Lance's developers can read."""
    lines = str(error).strip().splitlines()
    text = re.sub(r"[,:]?\s*\S+\.rs:\d+(:\d+)?", "", lines[0] if lines else type(error).__name__)
    text = re.sub(r"LanceError\(\w+\): |(Invalid user input|External error|Query Execution error): ", "", text)
    return printable(text.strip(" ,"))[:300]
