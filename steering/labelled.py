"""Photographs that a user has, and what each shows in words: folders by name, captions, parquet files, the hub.

Unusual: nothing is opened here. A photograph is decoded when it is asked for, so that too few of them, or of names, are
told at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from lrm_base.data import DataConfig, load_images
from lrm_base.extras import install_command, missing_packages
from prior.captions import with_article
from prior.class_table import class_table
from steering.errors import ImageError, printable
from steering.images import expand, open_image

CAPTIONS, CLASSES = "captions.txt", "classes.json"
_ARTICLE = re.compile(r"(an?|the)\s", re.IGNORECASE)
_WORDNET = re.compile(r"n\d{8}")
_SPLITS = {"train", "valid", "val", "validation", "test"}
_ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Labelled:
    """Photographs, and what each shows.

    Attributes:
        source: the folder, or the name on the hub.
        texts: what is shown, as a user would ask for it; each text once.
        labels: the row of `texts`, for each photograph.
        files: name of each photograph, for messages.
        open: the number of a photograph → an upright RGB image. It raises ImageError for a bad file.
        are_captions: whether the texts are captions, otherwise they are names of things.
        notes: what was left out, one sentence each.
    """

    source: str
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    files: tuple[str, ...]
    open: Callable[[int], Image.Image]
    are_captions: bool = False
    notes: tuple[str, ...] = ()

    def only(self, rows: Sequence[int]) -> Labelled:
        """Some of the photographs, by their numbers, and the texts of these."""
        texts = dict.fromkeys(self.texts[self.labels[row]] for row in rows)
        place = {text: number for number, text in enumerate(texts)}
        labels = tuple(place[self.texts[self.labels[row]]] for row in rows)
        files = tuple(self.files[row] for row in rows)
        return replace(self, texts=tuple(texts), labels=labels, files=files, open=partial(_nth, self.open, tuple(rows)))


def read_labelled(source: str) -> Labelled:
    """What is known of the photographs in a folder, or in a data set of the hub.

    Args:
        source: one of
            - a folder of folders: `NAME/*.jpg`, where NAME says what is shown and `_` stands for a space;
            - a folder of images with `captions.txt`, lines of a file and its caption with a tab or a comma between
              them, or with a text file beside each image;
            - a folder of parquet files, see `lrm_base.data.DataConfig`, with `classes.json` where the labels have no
              names;
            - `OWNER/NAME`, a data set of the hub with the columns `image` and `label`.

    Raises:
        ValueError: there is no such folder or data set, it holds no images, or what they show is not told.
    """
    folder = Path(source).expanduser()
    if not folder.exists():
        if _ON_HUB.fullmatch(source):
            return _table(source, None)
        raise ValueError(f"folder: got {printable(source)}, expected a folder, or a data set OWNER/NAME of the hub")
    if not folder.is_dir():
        raise ValueError(f"folder: got {printable(source)}, expected a folder, not a file")
    if any(folder.glob("train-*.parquet")):
        return _table(source, folder)
    if (folder / CAPTIONS).is_file():
        return _captions(source, folder)
    try:
        files = expand([folder])
    except ImageError as error:
        raise ValueError(f"folder: {error}") from None
    beside = {file: path for file in files if (path := Path(file).with_suffix(".txt")).is_file()}
    if beside:
        pairs = [(file, _caption_of(path)) for file, path in beside.items()]
        return _of_files(source, pairs, len(files) - len(beside), are_captions=True)
    return _named_folders(source, folder, files)


def _named_folders(source: str, folder: Path, files: Sequence[str]) -> Labelled:
    below = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    top = folder / "train" if "train" in below and below <= _SPLITS else folder  # a train may be a thing, too
    parts = [Path(file).relative_to(top).parts for file in files if Path(file).is_relative_to(top)]
    names = _by_wordnet(folder)
    pairs = [
        (str(top.joinpath(*part)), _name(names.get(part[0], part[0]).replace("_", " ")))
        for part in parts
        if len(part) > 1
    ]
    if not pairs:
        raise ValueError(
            f"folder: {printable(source)} does not tell what its images show: expected folders that are named like "
            f"it (dog/1.jpg), {CAPTIONS} with lines FILE<tab>CAPTION, a text file beside each image, or train-*.parquet"
        )
    return _of_files(source, pairs, len(files) - len(pairs))


def _captions(source: str, folder: Path) -> Labelled:
    """The images of `captions.txt`. Of several captions of an image, the first counts."""
    captions: dict[str, str] = {}
    lines = (folder / CAPTIONS).read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for number, line in enumerate(lines):
        file, mark, caption = line.partition("\t" if "\t" in line else ",")
        if not line.strip() or (number == 0 and not (folder / file.strip()).is_file()):  # a line of headings
            continue
        if not mark:
            raise ValueError(
                f"folder: {printable(str(folder / CAPTIONS))}, line {number + 1}: got {printable(line[:60])!r}, "
                "expected a file and its caption with a tab or a comma between them"
            )
        captions.setdefault(file.strip(), " ".join(caption.strip().strip('"').split()))
    pairs = [(str(folder / file), caption) for file, caption in captions.items() if (folder / file).is_file()]
    if not pairs:
        raise ValueError(f"folder: {printable(str(folder / CAPTIONS))} names no image that is there")
    return _of_files(source, pairs, len(captions) - len(pairs), are_captions=True)


def _table(source: str, folder: Path | None) -> Labelled:
    """Parquet files of a folder, or a data set of the hub, through `datasets`."""
    if missing_packages("datasets"):
        raise ValueError(f"folder: {source} needs datasets, not installed here: {install_command('train')}")
    try:
        data = load_images(DataConfig(source=source if folder is None else str(folder), num_holdout=0), "train")
    except Exception as error:  # the hub raises errors of many kinds
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = (
            "is no folder here, and cannot be read from the hub" if folder is None else "has no readable parquet files"
        )
        raise ValueError(f"folder: {printable(source)} {where}: {told}") from None
    if "label" not in data.column_names:
        raise ValueError(f"folder: got the columns {', '.join(data.column_names)}, expected image and label")
    known = None if folder is None else folder / CLASSES
    names: list[str | None] = [*(getattr(data.features["label"], "names", None) or [])]
    table = _classes(known) if known is not None and known.is_file() else ([], {})
    names = [table[1].get(str(name), name) for name in names] or [*table[0]]
    if not names:
        raise ValueError(f"folder: the labels of {printable(source)} have no names: expected {CLASSES} beside them")
    labels = list(data["label"])
    wordnet = list(data["wnid"]) if "wnid" in data.column_names else [""] * len(labels)
    said = [
        names[label] if 0 <= label < len(names) else table[1].get(str(wnid))
        for label, wnid in zip(labels, wordnet, strict=True)
    ]
    rows = [row for row, name in enumerate(said) if name]
    shown = [_name(str(said[row]).replace("_", " ")) for row in rows]
    files = [f"{source}, row {row}" for row in rows]
    return _labelled(source, shown, files, partial(_row, data, rows), len(said) - len(rows))


def _nth(opened: Callable[[int], Image.Image], rows: Sequence[int], number: int) -> Image.Image:
    return opened(rows[number])


def _row(data: Any, rows: Sequence[int], number: int) -> Image.Image:
    try:
        return open_image(data[rows[number]]["image"])
    except (OSError, ValueError) as error:
        raise ImageError(str(error)) from None


def _of_files(source: str, pairs: Sequence[tuple[str, str]], lacking: int, *, are_captions: bool = False) -> Labelled:
    told = [(file, text) for file, text in pairs if text]
    files = [file for file, _ in told]
    opened = partial(_open, files)
    lacking += len(pairs) - len(told)
    return _labelled(source, [text for _, text in told], files, opened, lacking, are_captions=are_captions)


def _open(files: Sequence[str], number: int) -> Image.Image:
    return open_image(files[number])


def _labelled(
    source: str,
    shown: Sequence[str],
    files: Sequence[str],
    opened: Callable[[int], Image.Image],
    lacking: int,
    *,
    are_captions: bool = False,
) -> Labelled:
    rows = {text: row for row, text in enumerate(dict.fromkeys(shown))}
    one = lacking == 1
    if are_captions:
        note = f"{lacking:,} {'image or caption' if one else 'images or captions'} without the other"
    else:
        note = f"{lacking:,} {'image' if one else 'images'} without a name"
    notes = (f"{note} {'was' if one else 'were'} left out",)
    return Labelled(
        source,
        tuple(rows),
        tuple(rows[text] for text in shown),
        tuple(files),
        opened,
        are_captions,
        notes if lacking else (),
    )


def _caption_of(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8", errors="replace").split())


def _name(name: str) -> str:
    """A name as a user would ask for it, with an article."""
    name = " ".join(name.split())
    if _WORDNET.fullmatch(name):
        raise ValueError(
            f"folder: got the name {name}, a number of WordNet; expected words, or {CLASSES} with its names"
        )
    return name if _ARTICLE.match(name) or not name else with_article(name)


def _by_wordnet(folder: Path) -> dict[str, str]:
    path = folder / CLASSES
    return _classes(path)[1] if path.is_file() else {}


def _classes(path: Path) -> tuple[list[str], dict[str, str]]:
    """The names in a classes.json: by label, and by WordNet's number. Its forms are those of `prior.class_table`."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        above = found.get("above", {}) if isinstance(found, dict) else {}
        entries = class_table(found) if isinstance(found, dict) else found
        names = [str(entry["name"]) for entry in entries]
        numbers: Iterable[str] = [str(entry.get("wnid", "")) for entry in entries]
        others = {wnid: str(words[0]) for wnid, words in above.items()}
        return names, {**others, **{number: name for number, name in zip(numbers, names, strict=True) if number}}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"folder: {path} does not hold names of classes: {error!r}") from None
