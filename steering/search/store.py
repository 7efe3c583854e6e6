"""Where a gallery lives: Lance tables on disk or in an object store, without a server.

There are two tables, `images.lance` and `skipped.lance`. The key of both is the image's name. Every write is an upsert
by that key and one atomic commit. So a process that is killed at any moment leaves what it committed, a reader sees one
version from begin to end, and two writers of the same image leave one row.

Unusual: this module imports no torch. A process that only searches by vectors needs 300 MB, not a gigabyte.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from einops import rearrange

from steering.errors import GalleryError, printable
from steering.search.schema import FORMAT, SHOWN, SKIPPED_SCHEMA, GalleryCard, image_schema
from steering.search.table import Table, first_line, quoted

INDEX_FROM = 100_000  # rows from which on there is an index; fewer are searched exactly, in tens of milliseconds
# Partitions that are searched, all of them up to 100,000 rows: with 24 of 316, a fifth of the 128 nearest is found.
PROBES, REFINE = 320, 2  # REFINE · k candidates are then compared exactly
MOST_BY_INDEX = 1000  # results of an approximate search; more than these come from an exact search


class Store:
    """The tables of one gallery. Open it with `Store.open`.

    Attributes:
        uri: the folder or address.
        card: what the gallery was made with.
        images, skipped: the tables.
    """

    def __init__(self, uri: str, card: GalleryCard, options: dict[str, str] | None) -> None:
        self.uri, self.card = uri, card
        self.images = Table(_join(uri, "images.lance"), options)
        self.skipped = Table(_join(uri, "skipped.lance"), options)

    @classmethod
    def open(
        cls, uri: str | os.PathLike, card: GalleryCard | None = None, options: dict[str, str] | None = None
    ) -> Store:
        """The gallery in a folder or at an address (`s3://bucket/gallery`). It is made with `card` if there is none.

        Args:
            options: how to reach the object store; see Lance's `storage_options`.

        Raises:
            GalleryError: there is no gallery and no card to make one with, or it is damaged or of another format.
        """
        address = os.fspath(uri)
        if "://" not in address:
            address = os.path.abspath(address)
        scheme, separator, rest = address.partition("://")
        if separator and not rest.strip("/"):
            raise GalleryError(
                f"{printable(address)}: nothing follows {scheme}://; expected for example {scheme}://bucket/gallery"
            )
        images = Table(_join(address, "images.lance"), options)
        metadata = images.metadata()
        if metadata is None:
            if card is None:
                raise GalleryError(f"{printable(address)}: no gallery there; index images into it first")
            metadata = {"gallery": json.dumps(asdict(card))}
            try:
                Table(_join(address, "skipped.lance"), options).create(SKIPPED_SCHEMA)
                images.create(image_schema(card.classes, card.full).with_metadata(metadata))
            except (OSError, ValueError) as error:
                if isinstance(error, GalleryError):
                    raise
                raise GalleryError(
                    f"{printable(address)}: a gallery cannot be made there: {first_line(error)}"
                ) from None
            metadata = images.metadata() or {}  # another process may have been first
        return cls(address, _card(address, metadata), options)

    def known(self) -> Iterator[tuple[str, int, int, str | None]]:
        """(name, size, modified in ns, SHA-256) of every image. The hash of a skipped image is None."""
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
        """The images whose class evidence is nearest to a query by cosine, best first, with the columns of a hit.

        `score` is the cosine. From `INDEX_FROM` rows on, the search is approximate unless `exact`.

        Args:
            query: (M,).
            where: an SQL condition on the columns, see `FILTERS`.

        Raises:
            GalleryError: the condition cannot be understood, or the gallery is damaged.
        """
        search: dict[str, Any] = {"column": "evidence", "q": query.astype(np.float32), "k": count, "metric": "cosine"}
        if exact or count > MOST_BY_INDEX:
            search["use_index"] = False
        else:
            search |= {"minimum_nprobes": PROBES, "refine_factor": REFINE}
            if where is None:
                search["maximum_nprobes"] = PROBES
        rows = self.images.nearest(SHOWN, search, where)
        score = 1 - rows["_distance"].to_numpy()
        return rows.drop_columns(["_distance"]).append_column("score", pa.array(score, pa.float32()))

    def rows(self, names: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Rows by name, in no order. Names without a row are passed over."""
        return [row for batch in self.named(names, columns) for row in batch.to_pylist()]

    def named(self, names: Sequence[str], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Like `rows`, in batches."""
        for start in range(0, len(names), 512):
            yield from self.images.keyed(columns, f"path IN ({quoted(names[start : start + 512])})")

    def sample(
        self, columns: Sequence[str], count: int, where: str | None = None, seed: int = 0
    ) -> list[dict[str, Any]]:
        """Up to `count` rows that are drawn at random, each at most once, in no order. Raises like `nearest`."""
        return self.images.sample(columns, count, where, seed)

    def first_passes(self, names: Sequence[str]) -> list[bytes | None]:
        """What a steered pass over images starts from, by name; None where it is not kept."""
        kept = {row["path"]: row["first_pass"] for row in self.rows(names, ("path", "first_pass"))}
        return [kept.get(name) for name in names]

    def pixels(self, names: Sequence[str]) -> list[np.ndarray | None]:
        """(h, w, 3) uint8 of images by name, in the frame of the card; None where none are kept."""
        kept: dict[str, np.ndarray] = {}
        for row in self.rows(names, ("path", "pixels", "width", "height")):
            if row["pixels"] is not None:
                high, wide = self.card.frame.shape(row["width"], row["height"])
                numbers = np.frombuffer(row["pixels"], np.uint8)
                kept[row["path"]] = rearrange(numbers, "(h w c) -> h w c", h=high, w=wide)
        return [kept.get(name) for name in names]

    def count(self, where: str | None = None) -> int:
        """Number of images that a condition lets through. Raises like `nearest`."""
        return self.images.count(where)

    def tidy(self) -> None:
        """Join fragments and drop old versions. Without this, a long run of writes takes twice the disk space."""
        for table in (self.images, self.skipped):
            table.tidy()

    def finish(self) -> None:
        """After writing: tidy, and keep the approximate index of a large gallery."""
        self.tidy()
        rows = self.images.count()
        if rows >= INDEX_FROM:
            with self.images.upkeep():
                self.build_index(rows)

    def build_index(self, rows: int) -> None:
        """Build the index (IVF, RaBitQ codes). It is built anew when a tenth of the rows is new.

        Rows that are not in the index are searched all the same.
        """
        data = self.images.now()
        names = [index.name for index in data.describe_indices()]
        if names:
            fresh = data.stats.index_stats(names[0])["num_unindexed_rows"]
            if fresh * 10 < rows:
                return
        partitions = max(round(rows**0.5), 1)
        kind = "IVF_FLAT" if self.card.classes % 8 else "IVF_RQ"  # RaBitQ takes multiples of 8
        data.create_index("evidence", kind, metric="cosine", num_partitions=partitions, replace=True)


def _card(address: str, metadata: dict[str, str]) -> GalleryCard:
    """The card in a table's metadata. Raises GalleryError if there is none, or if it is of another format."""
    try:
        values = json.loads(metadata["gallery"])
        made = values["format"]
        if made == FORMAT:
            return GalleryCard(**values)
    except (KeyError, TypeError, ValueError):
        raise GalleryError(
            f"{printable(address)}: is not a gallery: images.lance has no card of one; expected another folder"
        ) from None
    age = "an older" if isinstance(made, int) and made < FORMAT else "a newer"
    raise GalleryError(
        f"{printable(address)}: this gallery was made by {age} version of this program (format {made}, expected "
        f"{FORMAT}); index the images anew into another folder, or delete this one before"
    )


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"
