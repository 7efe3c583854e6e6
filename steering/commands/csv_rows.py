"""The hits of a search as CSV (RFC 4180): a header, a row for each hit, lines that end with CR LF.

Unusual: the numbers are those of `--json`. Paths are the bytes that they are, so that a program can open the files.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steering.search.hits import Hits
    from steering.search.store import Store

COLUMNS = (
    *("path", "rank", "verdict", "alone", "probability", "evidence", "score", "looked_at", "width", "height", "sees"),
    *("size", "modified", "sha256", "copies", "gone"),
)


def write_hits(hits: Hits, store: Store) -> None:
    """Write hits to stdout, the columns `COLUMNS`. What is not known is empty.

    `modified` is a time in UTC (ISO 8601, to the microsecond). `copies` is a number. `looked_at` and `gone` are `true`
    or `false`.
    """
    files = _files(hits, store)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\r\n")
    writer.writeheader()
    for hit in hits:
        row = {**hit.as_dict(), **files.get(hit.path, {}), "copies": len(hit.copies)}
        writer.writerow({key: _spelled(row.get(key)) for key in COLUMNS})
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(text.getvalue()))
    sys.stdout.buffer.flush()


def _files(hits: Hits, store: Store) -> dict[str, dict[str, Any]]:
    """Size, time and hash of each hit's file as it was indexed, by path."""
    import pyarrow as pa

    from steering.search.files import to_key, to_path

    found = {}
    for batch in store.named([to_key(hit.path) for hit in hits], ("path", "size", "modified", "sha256")):
        times = batch["modified"].cast(pa.int64()).to_pylist()
        names, sizes, hashes = (batch[key].to_pylist() for key in ("path", "size", "sha256"))
        for name, size, nanoseconds, sha256 in zip(names, sizes, times, hashes, strict=True):
            found[to_path(name)] = {"size": size, "modified": _time(nanoseconds), "sha256": sha256}
    return found


def _time(nanoseconds: int) -> str | None:
    """A time in UTC; None for 0, which stands for no time."""
    if not nanoseconds:
        return None
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=nanoseconds // 1000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _spelled(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value
