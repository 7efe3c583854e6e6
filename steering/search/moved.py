"""Images that are known under a name whose file is gone: a new image of the same content takes over their rows.

Unusual: the old name may stand anywhere in the gallery, not only below the folder that is indexed. So a folder that was
renamed is recognised. It does not matter whether the old place is gone for ever or on a disk that is away: the content
was found at the new place. A copy, whose old file is still there, is an image of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from steering.search.decode import Same, Task
from steering.search.files import is_gone

Known = Mapping[str, tuple[int, int, str | None]]  # size, time and SHA-256 (None if it was skipped), by name


class Moves:
    """Which old row a new image takes over. Names are keys (`steering.search.files.to_key`).

    Args:
        known: what the gallery holds.
        tasks: images of the source that have to be read.
        seen: names that are in the source now.
        gone: names that are no longer in the source.

    Attributes:
        renamed: old names whose rows were taken over.
    """

    def __init__(
        self,
        known: Known | None = None,
        tasks: Sequence[Task] = (),
        seen: set[str] | None = None,
        gone: Sequence[str] = (),
    ) -> None:
        self.renamed: set[str] = set()
        self._known = known or {}
        self._olds: dict[str, list[str]] = defaultdict(list)  # by content
        vanished, sizes = set(gone), {task.entry.size for task in tasks if task.entry.name not in self._known}
        for name, (size, modified, sha) in self._known.items():
            if sha is None or size not in sizes or name in (seen or ()):
                continue
            if name in vanished or (modified and is_gone(name)):  # what has no time never was a file
                self._olds[sha].append(name)
        for names in self._olds.values():
            names.sort()

    def told(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """The tasks, told which vanished images a new one may be. Such an image is compared before it is decoded."""
        by_size: dict[int, set[str]] = defaultdict(set)
        for sha, names in self._olds.items():
            by_size[self._known[names[0]][0]].add(sha)
        for task in tasks:
            if task.entry.name not in self._known and task.entry.size in by_size:
                task = Task(task.entry, task.known | by_size[task.entry.size])
            yield task

    def take(self, sha: str) -> str:
        """The name of the row that a new image of this content takes over. The last row may be taken several times."""
        olds = self._olds[sha]
        old = olds.pop(0) if len(olds) > 1 else olds[0]
        if old in self._known:  # otherwise it was moved already, and stays
            self.renamed.add(old)
        return old

    def committed(self, moved: Iterable[tuple[str, Same]]) -> None:
        """Tell that rows were moved. From now on, another copy is made of a row under its new name."""
        for old, image in moved:
            if self._olds.get(image.sha256) == [old]:
                self._olds[image.sha256] = [image.name]
