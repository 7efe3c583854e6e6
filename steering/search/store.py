"""Where a gallery lives: Lance tables on disk or in an object store, no server.

Two tables, `images.lance` and `skipped.lance`, whose key is the image's name. Every write is an upsert by that key and
one atomic commit: a process killed at any moment leaves what was committed, a reader sees one version from begin to
end, and two writers of the same image leave one row.

Unusual: no index is ever built on the key, since upserts through such an index double rows of concurrent writers (seen
with pylance 14). Imports no torch: a search service needs 300 MB, not a gigabyte.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

os.environ.setdefault("LANCE_LOG", "error")  # its notes would stand between a user's lines
import lance
import pyarrow as pa

from steering.errors import GalleryError

if TYPE_CHECKING:
    from lance import LanceDataset

FORMAT = 1
INDEX_FROM = 100_000  # rows; fewer are searched exactly, in tens of milliseconds
PROBES, REFINE = 24, 4  # partitions looked into, and how many times k candidates are compared exactly
MOST_BY_INDEX = 1000  # results; who wants more gets them from an exact search
KEEP_VERSIONS = timedelta(minutes=5)  # readers of an older version may still be at work
FRAGMENT_ROWS = 32_768  # fragments of fewer rows are joined; larger ones are never written again
KEY = {"lance-schema:unenforced-primary-key": "true"}  # without it concurrent upserts double rows


@dataclass(frozen=True)
class GalleryCard:
    """What a gallery was made with; a search by another network would compare apples with pears.

    classes: width M of an output. side: of the stored pixels, 0 if they are not stored. first_pass: whether what a
    steered pass starts from is stored.
    """

    model: str
    backbone_sha256: str
    classes: int
    side: int
    first_pass: bool = False
    format: int = FORMAT


def image_schema(classes: int) -> pa.Schema:
    """The columns of `images.lance`.

    output: logits of the first pass. evidence: square root of the class evidence by places, of length 1. pixels: (side,
    side, 3) bytes, what the network saw; first_pass: what a steered pass starts from (`Steerer.pack`); null where not
    kept. sees: likeliest class by places. look: difference hash.
    """
    vector = pa.list_(pa.float16(), classes)
    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False, metadata=KEY),
            pa.field("size", pa.int64()),
            pa.field("modified", pa.timestamp("ns")),
            pa.field("sha256", pa.string()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("sees", pa.string()),
            pa.field("look", pa.int64()),
            pa.field("output", vector),
            pa.field("evidence", vector),
            pa.field("pixels", pa.binary()),
            pa.field("first_pass", pa.binary()),
        ]
    )


def timestamps(nanoseconds: Sequence[int]) -> pa.Array:
    """Times since 1970, UTC, as `modified` holds them."""
    return pa.array(nanoseconds, pa.int64()).cast(pa.timestamp("ns"))


SKIPPED_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False, metadata=KEY),
        pa.field("size", pa.int64()),
        pa.field("modified", pa.timestamp("ns")),
        pa.field("reason", pa.string()),
    ]
)
SHOWN = ("path", "width", "height", "sees")
FILTERS = ("path", "size", "modified", "sha256", "width", "height", "sees")


class Table:
    """One Lance table: upsert, delete, read. Threads may share it; every read sees the newest version."""

    def __init__(self, uri: str, options: dict[str, str] | None) -> None:
        self.uri, self.options = uri, options
        self._session = lance.Session(index_cache_size_bytes=256 << 20, metadata_cache_size_bytes=64 << 20)

    @classmethod
    def create(cls, uri: str, schema: pa.Schema, options: dict[str, str] | None) -> None:
        """Make an empty table unless there is one. On disk, of several processes that try at once one wins, whole.

        In an object store, two that begin a gallery at the same moment may lose what one of them writes first.
        """
        if "://" in uri and not uri.startswith("file://"):
            if _metadata(uri, options) is None:
                lance.write_dataset(schema.empty_table(), uri, storage_options=options)
            return
        path = uri.removeprefix("file://")
        parent = os.path.dirname(path)
        os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".new-") as beside:
            lance.write_dataset(schema.empty_table(), os.path.join(beside, "table"))
            try:
                os.rename(os.path.join(beside, "table"), path)
            except OSError:
                if not os.path.isdir(path):
                    raise

    def now(self) -> LanceDataset:
        """The newest version. Raises GalleryError if it cannot be opened."""
        try:
            return lance.dataset(self.uri, session=self._session, storage_options=self.options)
        except (OSError, ValueError) as error:
            raise GalleryError(f"{self.uri} cannot be opened: {_first_line(error)}") from None

    def upsert(self, rows: pa.Table) -> None:
        """Insert rows, or replace those of the same names; the last of a name counts. One commit."""
        if not len(rows):
            return
        last = {name: index for index, name in enumerate(rows["path"].to_pylist())}
        if len(last) < len(rows):  # Lance would insert both
            rows = rows.take(sorted(last.values()))
        merge = self.now().merge_insert("path").when_matched_update_all().when_not_matched_insert_all()
        with self._writing():
            merge.conflict_retries(50).use_index(False).execute(rows)

    def delete(self, names: Sequence[str]) -> None:
        """Delete the rows of these names, those that there are. One commit."""
        if names:
            keys = pa.table({"path": pa.array(names, pa.string())})
            with self._writing():
                self.now().merge_insert("path").when_matched_delete().use_index(False).execute(keys)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise GalleryError(f"{self.uri} cannot be written: {_first_line(error)}") from None

    def batches(self, columns: Sequence[str], where: str | None = None, rows: int = 8192) -> Iterator[pa.RecordBatch]:
        """All rows of one version, in bounded memory."""
        scanner = self.now().scanner(
            columns=list(columns), filter=where, batch_size=rows, batch_readahead=1, io_buffer_size=32 << 20
        )
        yield from scanner.to_batches()

    def count(self, where: str | None = None) -> int:
        """Number of rows, of those that a filter lets through."""
        return self.now().count_rows(where)

    def tidy(self) -> None:
        """Join small fragments and drop versions that no reader can be at; what another writer prevents is left."""
        with _unless_another_writer():
            self.now().optimize.compact_files(target_rows_per_fragment=FRAGMENT_ROWS)
            self.now().cleanup_old_versions(older_than=KEEP_VERSIONS)


class Store:
    """The tables of one gallery. Open it with `Store.open`."""

    def __init__(self, uri: str, card: GalleryCard, options: dict[str, str] | None) -> None:
        self.uri, self.card = uri, card
        self.images = Table(_join(uri, "images.lance"), options)
        self.skipped = Table(_join(uri, "skipped.lance"), options)

    @classmethod
    def open(
        cls, uri: str | os.PathLike, card: GalleryCard | None = None, options: dict[str, str] | None = None
    ) -> Store:
        """The gallery at a folder or an address (`s3://bucket/gallery`); made with `card` where there is none.

        Args:
            options: of the object store, see Lance's `storage_options`.

        Raises:
            GalleryError: there is none and no card to make it with, it is damaged, or of another format.
        """
        place = os.fspath(uri)
        if "://" not in place:
            place = os.path.abspath(place)
        images = _join(place, "images.lance")
        found = _metadata(images, options)
        if found is None:
            if card is None:
                raise GalleryError(f"{place}: no gallery there; `steer index FOLDER --gallery {place}` makes one")
            metadata = {"gallery": json.dumps(asdict(card))}
            try:
                Table.create(_join(place, "skipped.lance"), SKIPPED_SCHEMA, options)
                Table.create(images, image_schema(card.classes).with_metadata(metadata), options)
            except OSError as error:
                raise GalleryError(f"{place}: a gallery cannot be made there: {_first_line(error)}") from None
            found = _metadata(images, options) or {}
        try:
            values = json.loads(found["gallery"])
            if values["format"] != FORMAT:
                raise GalleryError(f"{place} has format {values['format']}; this program reads {FORMAT}: index anew")
            kept = GalleryCard(**values)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, GalleryError):
                raise
            raise GalleryError(f"{place} is not a gallery: {_first_line(error)}") from None
        return cls(place, kept, options)

    def known(self) -> Iterator[tuple[str, int, int, str | None]]:
        """(name, size, modified in ns, SHA-256) of every image; of the skipped ones without a hash."""
        for table, columns in (
            (self.images, ("path", "size", "modified", "sha256")),
            (self.skipped, ("path", "size", "modified")),
        ):
            for batch in table.batches(columns):
                names, sizes = batch["path"].to_pylist(), batch["size"].to_pylist()
                times = batch["modified"].cast(pa.int64()).to_pylist()
                hashes = batch["sha256"].to_pylist() if len(columns) == 4 else [None] * len(names)
                yield from zip(names, sizes, times, hashes, strict=True)

    def reasons(self) -> dict[str, str]:
        """Why images were skipped, by name."""
        batches = self.skipped.batches(("path", "reason"))
        return {row["path"]: row["reason"] for batch in batches for row in batch.to_pylist()}

    def nearest(self, query: np.ndarray, count: int, where: str | None = None, *, exact: bool = False) -> pa.Table:
        """The images whose class evidence is nearest to a query by cosine, best first: what a hit tells of each.

        `score` is the cosine. From `INDEX_FROM` rows on the search is approximate unless `exact`.

        Args:
            query: (M,). where: an SQL condition on the columns, see `FILTERS`.

        Raises:
            GalleryError: the condition cannot be understood.
        """
        search: dict[str, Any] = {"column": "evidence", "q": query.astype(np.float32), "k": count, "metric": "cosine"}
        if exact or count > MOST_BY_INDEX:
            search["use_index"] = False
        else:
            search |= {"minimum_nprobes": PROBES, "refine_factor": REFINE}
            if where is None:
                search["maximum_nprobes"] = PROBES
        with _condition(where):
            found = (
                self.images.now()
                .scanner(columns=[*SHOWN, "_distance"], nearest=search, filter=where, prefilter=True)
                .to_table()
            )
        score = 1 - found["_distance"].to_numpy()
        return found.drop_columns(["_distance"]).append_column("score", pa.array(score, pa.float32()))

    def rows(self, names: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Rows by name, in no order; those that there are."""
        return [row for batch in self.named(names, columns) for row in batch.to_pylist()]

    def named(self, names: Sequence[str], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Rows by name, in no order."""
        for start in range(0, len(names), 512):
            quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in names[start : start + 512])
            yield from self.images.batches(columns, f"path IN ({quoted})")

    def first_passes(self, names: Sequence[str]) -> list[bytes | None]:
        """What a steered pass over images starts from, by name; None where it is not kept."""
        return self._kept(names, "first_pass")

    def _kept(self, names: Sequence[str], column: str) -> list[bytes | None]:
        found = {row["path"]: row[column] for row in self.rows(names, ("path", column))}
        return [found.get(name) for name in names]

    def pixels(self, names: Sequence[str]) -> list[np.ndarray | None]:
        """(side, side, 3) uint8 of images by name, None where none are kept."""
        side = self.card.side
        kept = self._kept(names, "pixels")
        return [None if p is None else np.frombuffer(p, np.uint8).reshape(side, side, 3) for p in kept]

    def count(self, where: str | None = None) -> int:
        """Number of images, of those that a condition lets through. Raises GalleryError for a bad condition."""
        with _condition(where):
            return self.images.count(where)

    def tidy(self) -> None:
        """Now and then while writing: join fragments and drop old versions, or the disk holds everything twice."""
        for table in (self.images, self.skipped):
            table.tidy()

    def finish(self) -> None:
        """After writing: tidy, and keep the approximate index of a large gallery."""
        self.tidy()
        rows = self.images.count()
        if rows >= INDEX_FROM:
            with _unless_another_writer():
                self.build_index(rows)

    def build_index(self, rows: int) -> None:
        """Build the index (IVF, RaBitQ codes), anew when a tenth of the rows is new; they are searched all the same."""
        data = self.images.now()
        names = [index.name for index in data.describe_indices()]
        if names:
            fresh = data.stats.index_stats(names[0])["num_unindexed_rows"]
            if fresh * 10 < rows:
                return
        partitions = max(round(rows**0.5), 1)
        kind = "IVF_FLAT" if self.card.classes % 8 else "IVF_RQ"  # RaBitQ takes multiples of 8
        data.create_index("evidence", kind, metric="cosine", num_partitions=partitions, replace=True)


@contextlib.contextmanager
def _unless_another_writer() -> Iterator[None]:
    """Upkeep that gives way to a writer; whoever finishes next does it."""
    try:
        yield
    except OSError as error:
        if "conflict" not in str(error).lower():
            raise


class _condition:
    """Turns what Lance raises on a bad filter into one line."""

    def __init__(self, where: str | None) -> None:
        self.where = where

    def __enter__(self) -> None:
        if self.where is not None and not self.where.strip():
            raise GalleryError('--where: got an empty condition; expected for example "width > 500"')

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.where is None or error is None or isinstance(error, GalleryError | KeyboardInterrupt | SystemExit):
            return
        if isinstance(error, OSError | ValueError) or kind.__name__ == "PanicException":
            columns = ", ".join(FILTERS)
            raise GalleryError(f"--where {self.where!r}: {_first_line(error)} (columns: {columns})") from None


def _metadata(uri: str, options: dict[str, str] | None) -> dict[str, str] | None:
    """A table's own metadata; None if there is no such table."""
    try:
        found = lance.dataset(uri, storage_options=options).schema.metadata or {}
        return {key.decode(): value.decode() for key, value in found.items()}
    except (ValueError, OSError) as error:
        if "not found" in str(error).lower():
            return None
        raise GalleryError(f"{uri} cannot be opened: {_first_line(error)}") from None


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    for noise in ("LanceError(Schema): ", "Invalid user input: "):
        text = text.replace(noise, "")
    return text.split(", /")[0][:300]
