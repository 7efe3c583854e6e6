"""Make the rows of `images.lance`: from first passes, or as copies under another name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

import numpy as np
import pyarrow as pa
from einops import rearrange

from steering.search.decode import Same
from steering.search.engine import Indexed
from steering.search.schema import GalleryCard, image_schema, timestamps
from steering.search.store import Store

COPIED = 256  # rows that are copied at a time


def new_rows(images: Sequence[Indexed], card: GalleryCard) -> pa.Table:
    """A row for each image."""
    schema = image_schema(card.classes, card.full)
    read = [image.image for image in images]
    number = np.float32 if card.full else np.float16
    outputs, evidence = (np.stack([getattr(image, part) for image in images]) for part in ("output", "evidence"))

    def vectors(values: np.ndarray, name: str) -> pa.Array:
        flat = pa.array(rearrange(values, "b m -> (b m)"))
        return pa.FixedSizeListArray.from_arrays(flat, type=schema.field(name).type)

    columns = {
        "path": [image.name for image in read],
        "size": [image.size for image in read],
        "modified": timestamps([image.modified for image in read]),
        "sha256": [image.sha256 for image in read],
        "width": [image.width for image in read],
        "height": [image.height for image in read],
        "sees": [image.sees for image in images],
        "difference_hash": [image.difference_hash for image in read],
        "output": vectors(outputs.astype(number), "output"),
        "evidence": vectors(evidence.astype(number), "evidence"),
        "pixels": [image.pixels.tobytes() if card.side else None for image in read],
        "first_pass": [image.packed for image in images],
    }
    return pa.table(columns, schema=schema)


def moved_rows(store: Store, moved: Sequence[tuple[str, Same]], gone: Set[str]) -> Iterator[tuple[pa.Table, list[str]]]:
    """The rows of images that are the same under another name or with another time, in parts.

    Each part comes with the names that have no more use. They are to be deleted in the commit that writes the part.

    Args:
        moved: pairs of the old name in the gallery and the image as it is now. An old name may come again.
        gone: the old names that are not to stay.
    """
    schema = image_schema(store.card.classes, store.card.full)
    last = {old: image.name for old, image in moved}
    for start in range(0, len(moved), COPIED):
        part = moved[start : start + COPIED]
        batches = list(store.named([old for old, _ in part], schema.names))
        if not batches:
            continue
        table = pa.Table.from_batches(batches)
        rows = {name: row for row, name in enumerate(table["path"].to_pylist())}
        part = [(old, image) for old, image in part if old in rows]  # another writer may have deleted some
        if not part:
            continue
        copy = table.take([rows[old] for old, _ in part])
        for name, values in (
            ("path", [image.name for _, image in part]),
            ("size", [image.size for _, image in part]),
            ("modified", timestamps([image.modified for _, image in part])),
        ):
            index = schema.get_field_index(name)
            copy = copy.set_column(index, schema.field(index), pa.array(values, schema.field(index).type))
        yield copy, [old for old, image in part if old in gone and image.name == last[old]]
