"""The report of one run of `Gallery.add`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Report:
    """What one run of indexing did. Each image of the source is new, changed, renamed, unchanged or skipped.

    Attributes:
        found: number of images of the source. A name that comes several times counts once, by its last image.
        new, changed, renamed, unchanged: how many images of the source are of each kind.
        deleted: number of images of the gallery that are gone from the source.
        skipped: images that could not be indexed, by path, and why.
        unlisted: folders that could not be listed, and why. What was indexed below them was kept.
        kept: folders that are empty now, with the number of their images in the gallery. These were kept, too.
        images: number of images in the gallery afterwards.
        seconds: how long the run took.
    """

    found: int = 0
    new: int = 0
    changed: int = 0
    renamed: int = 0
    unchanged: int = 0
    deleted: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    unlisted: dict[str, str] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    images: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        skipped = [{"path": path, "reason": reason} for path, reason in self.skipped.items()]
        values = {**self.__dict__, "unlisted": {**self.unlisted}, "kept": {**self.kept}}
        return {**values, "skipped": skipped, "seconds": round(self.seconds, 3)}
