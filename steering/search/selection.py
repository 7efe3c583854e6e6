"""Which files below a folder are indexed: what is left out by its name, by a pattern, or because it cannot be read.

Unusual: nothing is passed over without a word. Whatever might be a picture and is not indexed is counted by its kind.
Files that are no pictures (.txt, .json, .xmp) are not counted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

LEFT_OUT = (  # folders that other programs keep for themselves, by name; upper and lower case are the same
    *("@eaDir", "@AppleDouble", "__MACOSX", "#recycle", "@Recycle", "#snapshot", "$RECYCLE.BIN"),
    *("System Volume Information", "lost+found", "node_modules", "thumbnails", "Thumbs"),
)
HIDDEN_FOLDERS, HIDDEN_FILES, APPLE_DOUBLES = "hidden folders", "hidden files", "._ files"
_LEFT_OUT = frozenset(name.lower() for name in LEFT_OUT)

_UNREAD = {
    "convert them to JPEG, for example with: magick mogrify -format jpg *{suffix}": (
        *(".tga", ".exr", ".hdr", ".dds", ".icns", ".j2k", ".j2c", ".jpx", ".jpf", ".wmf", ".emf", ".djvu"),
    ),
    "export them as JPEG or PNG, for example with: magick FILE{suffix}[0] FILE.png": (".psd", ".psb", ".xcf", ".kra"),
    "draw them as PNG, for example with: rsvg-convert FILE{suffix} -o FILE.png": (".svg", ".svgz"),
    "draw their pages as JPEG, for example with: pdftoppm -jpeg FILE{suffix} FILE": (".pdf", ".ai"),
    "draw them as PNG, for example with: magick FILE{suffix} FILE.png": (".eps", ".ps"),
    "take stills from them, for example with: ffmpeg -i FILE{suffix} -vf fps=1 FILE-%05d.jpg": (
        *(".3gp", ".avi", ".flv", ".insv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv"),
        *(".vob", ".webm", ".wmv"),
    ),
}
# What to do with files of kinds that are not read, by suffix.
UNREAD = {suffix: advice for advice, suffixes in _UNREAD.items() for suffix in suffixes}


def suffix_of(name: str) -> str:
    """What a file's name ends with, in lower case, with its dot: `.jpg`."""
    return os.path.splitext(name)[1].lower()


def advice(suffix: str) -> str:
    """What to do with files of a kind that is not read; `suffix` is a key of `UNREAD`."""
    return UNREAD[suffix].format(suffix=suffix)


class Selection:
    """The rules of one run, and the count of what they left out.

    Args:
        exclude: patterns as in a shell (`*.gif`, `drafts`, `2019/*`). `*` stands for slashes, too. A pattern is
            compared with the name of a file or folder, and with its path relative to the source. One that begins with
            a slash is compared with the absolute path.
        include_all: whether to take hidden files and folders, and the folders `LEFT_OUT`.

    Attributes:
        passed_over: number of files of kinds that are not read, by suffix; see `UNREAD`.
        left_out: number of files and folders left out for their names, by what they are: a name of `LEFT_OUT`,
            `HIDDEN_FOLDERS`, `HIDDEN_FILES` or `APPLE_DOUBLES`. What lies inside such folders is not counted.
        excluded: number of files and folders that each pattern left out.
        linked: linked folders, which were not followed.

    Raises:
        ValueError: a pattern is empty.
    """

    def __init__(self, exclude: str | Sequence[str] = (), *, include_all: bool = False) -> None:
        patterns = [exclude] if isinstance(exclude, str) else list(exclude)
        for pattern in patterns:
            if not pattern.strip():
                raise ValueError(f"exclude: got {pattern!r}, expected a pattern such as '*.gif' or 'drafts'")
        self.include_all = include_all
        self._patterns = {pattern: pattern.removeprefix("./").rstrip("/") or pattern for pattern in patterns}
        self.passed_over: dict[str, int] = {}
        self.left_out: dict[str, int] = {}
        self.excluded: dict[str, int] = dict.fromkeys(self._patterns, 0)
        self.linked: list[str] = []
        self._told: set[str] = set()  # two sources may overlap

    def counts(self) -> dict[str, Any]:
        """What was left out, as the attributes of a `Report`. They go on counting."""
        names = ("passed_over", "left_out", "excluded", "linked")
        return {name: getattr(self, name) for name in names}

    def takes(self, path: str, source: str, *, folder: bool = False) -> bool:
        """Whether a file or folder below a source passes the rules. One that does not is counted.

        Args:
            path, source: both absolute. They are the same for a file that was given by itself, which patterns alone can
                leave out.
            folder: whether the path is that of a folder.
        """
        rule = self._rule(path, source, folder)
        if rule is None:
            return True
        counts, key = rule
        if path not in self._told:
            self._told.add(path)
            counts[key] = counts.get(key, 0) + 1
        return False

    def rules_out(self, path: str, source: str) -> bool:
        """Whether the rules leave out a file, or a folder between it and its source. Nothing is counted."""
        if path == source:
            return self._rule(path, source, folder=False) is not None
        folder = False
        while len(path) > len(source):
            if self._rule(path, source, folder) is not None:
                return True
            path, folder = os.path.dirname(path), True
        return False

    def pass_over(self, path: str, source: str) -> None:
        """Count a file below a source that is not read, if it is of a kind that might be expected to be."""
        suffix = suffix_of(path)
        if suffix in UNREAD and self.takes(path, source) and path not in self._told:
            self._told.add(path)
            self.passed_over[suffix] = self.passed_over.get(suffix, 0) + 1

    def pass_over_link(self, path: str) -> None:
        """Note a linked folder that is not followed."""
        if path not in self._told:
            self._told.add(path)
            self.linked.append(path)

    def excludes(self, name: str) -> bool:
        """Whether a pattern leaves out an image of a data set, or one that was given with a name."""
        return not self.takes(name, name)

    def _rule(self, path: str, source: str, folder: bool) -> tuple[dict[str, int], str] | None:
        """The count that a path belongs to, and its key there; None if no rule leaves it out."""
        name = os.path.basename(path)
        relative = path if path == source else path[len(source.rstrip(os.sep)) + 1 :]
        for pattern, cleaned in self._patterns.items():
            if any(fnmatchcase(text, cleaned) for text in (name, path if cleaned.startswith("/") else relative)):
                return self.excluded, pattern
        if self.include_all or path == source:
            return None
        if name.startswith("._") and not folder:
            return self.left_out, APPLE_DOUBLES
        if name.startswith("."):
            return self.left_out, HIDDEN_FOLDERS if folder else HIDDEN_FILES
        if folder and name.lower() in _LEFT_OUT:
            return self.left_out, name
        return None
