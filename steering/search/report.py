"""The report of one run of `Gallery.add`."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Report:
    """What one run of indexing did. Each image of the source is new, changed, renamed, unchanged or skipped.

    Attributes:
        found: number of images of the source. A name that comes several times counts once, by its last image.
        new, changed, renamed, unchanged: how many images of the source are of each kind.
        deleted: number of images of the gallery that are gone from the source, or left out of it now.
        skipped: images that could not be indexed, by path, and why.
        notes: images that were indexed although something is wrong or unusual about them, by path, and what.
        unlisted: folders that could not be listed, and why. What was indexed below them was kept.
        kept: folders that are empty now, with the number of their images in the gallery. These were kept, too.
        forgotten: folders that are empty or gone, with the number of their images that `prune` removed.
        passed_over: number of files of kinds that are not read, by suffix (`.mov`).
        left_out: number of files and folders that were left out for their names, by what they are.
        excluded: number of files and folders that each pattern of `exclude` left out.
        linked: linked folders, which were not followed.
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
    notes: dict[str, str] = field(default_factory=dict)
    unlisted: dict[str, str] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    forgotten: dict[str, int] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    excluded: dict[str, int] = field(default_factory=dict)
    linked: list[str] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        skipped = [{"path": path, "reason": reason} for path, reason in self.skipped.items()]
        notes = [{"path": path, "note": note} for path, note in self.notes.items()]
        return {**deepcopy(self.__dict__), "skipped": skipped, "notes": notes, "seconds": round(self.seconds, 3)}
