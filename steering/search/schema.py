"""What a gallery's tables hold: the card of a gallery, and the columns of its images and of what was skipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from lrm_base.frame import Frame

FORMAT = 2
KEY = {"lance-schema:unenforced-primary-key": "true"}  # without it concurrent upserts double rows


@dataclass(frozen=True)
class GalleryCard:
    """What a gallery was made with. Outputs of different networks cannot be compared.

    Attributes:
        model: name of the network.
        backbone_sha256: hash of its weights.
        classes: width M of a goal: of an output, or of an embedding.
        side: side of the stored images, in pixels, or the short side if they keep their aspect; 0 if none are stored.
        first_pass: whether what a steered pass starts from is stored.
        format: version of the tables' format.
        keeps_aspect: whether the stored images keep their aspect.
        full: whether vectors are kept in single precision. Embeddings are; outputs are kept in half precision.
    """

    model: str
    backbone_sha256: str
    classes: int
    side: int
    first_pass: bool = False
    format: int = FORMAT
    keeps_aspect: bool = False
    full: bool = False

    def is_of(self, other: GalleryCard) -> bool:
        """Whether both were made with the same network."""
        return (self.backbone_sha256, self.classes) == (other.backbone_sha256, other.classes)

    @property
    def frame(self) -> Frame:
        """The shape in which images are stored."""
        return Frame(self.side, self.keeps_aspect)


def image_schema(classes: int, full: bool = False) -> pa.Schema:
    """The columns of `images.lance`.

    - `path`: key of the image (`steering.search.files.to_key`).
    - `sees`: likeliest class by places.
    - `difference_hash`: see `steering.search.decode.difference_hash`.
    - `output`: logits of the first pass, or an embedding.
    - `evidence`: of length 1: the square root of the class evidence by places, or an embedding. See `Network.kept`.
    - `pixels`: (h, w, 3) bytes, what the network saw; null where they are not kept. The frame tells h and w.
    - `first_pass`: what a steered pass starts from (`Network.pack`); null where it is not kept.
    """
    vector = pa.list_(pa.float32() if full else pa.float16(), classes)
    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False, metadata=KEY),
            pa.field("size", pa.int64()),
            pa.field("modified", pa.timestamp("ns")),
            pa.field("sha256", pa.string()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("sees", pa.string()),
            pa.field("difference_hash", pa.int64()),
            pa.field("output", vector),
            pa.field("evidence", vector),
            pa.field("pixels", pa.binary()),
            pa.field("first_pass", pa.binary()),
        ]
    )


def timestamps(nanoseconds: Sequence[int]) -> pa.Array:
    """The column `modified`: times in nanoseconds since 1970, UTC."""
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
