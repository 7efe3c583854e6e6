"""The composite challenge as a file: which images make each scene, what is in it and what is not.

The file is a CSV with one scene a row. `images` are rows of the labelled data set and `labels` are their classes, so
that a file can be checked against the images that it is used with. `square` is where the second image goes, in 0–1 of
the canvas. A checkout of the project has the file for Tiny ImageNet's validation images. Where it is absent, the seed
draws the same scenes again.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from lrm_core.scenes import KINDS
from lrm_core.trials import Triplets, draw

COLUMNS = ("kind", "images", "labels", "square", "present", "absent")
STORED = Path(__file__).parent.parent / "results" / "triplets" / "tiny_imagenet_valid.csv"
NUM_SCENES = 1000  # scenes of each kind in the stored file
SEED = 1000


def draw_all(labels: Int[Tensor, " n"], num_classes: int, count: int, seed: int) -> list[Triplets]:
    """`count` triplets of every kind of scene. Raises ValueError where there are too few classes."""
    return [draw(kind, labels, num_classes, count, seed + number) for number, kind in enumerate(KINDS)]


def write_triplets(path: str | Path, triplets: Iterable[Triplets], labels: Int[Tensor, " n"]) -> None:
    """Write triplets over a data set that has these labels."""
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for group in triplets:
            for row in range(len(group.present)):
                images = group.images[row].tolist()
                square = [] if group.squares is None else [f"{value:.9g}" for value in group.squares[row].tolist()]
                shown = [labels[image].item() for image in images]
                answer = (int(group.present[row]), int(group.absent[row]))
                writer.writerow((group.kind, _joined(images), _joined(shown), _joined(square), *answer))


def read_triplets(path: str | Path, labels: Int[Tensor, " n"], count: int | None = None) -> list[Triplets]:
    """The triplets of a file, for a data set that has these labels.

    Args:
        count: number of triplets of each kind, from the first on. None takes all.

    Raises:
        ValueError: the file is no such table, or was made for other images.
    """
    rows: dict[str, list[tuple[list[int], list[float], int, int]]] = {}
    with open(path, newline="") as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: expected columns {','.join(COLUMNS)}, got {','.join(reader.fieldnames or ())}")
        for line, row in enumerate(reader, start=2):
            try:
                if row["kind"] not in KINDS:
                    raise ValueError(f"kind: got {row['kind']!r}, expected {', '.join(KINDS)}")
                images, shown = ([int(value) for value in row[name].split()] for name in ("images", "labels"))
                square = [float(value) for value in row["square"].split()]
                answer = int(row["present"]), int(row["absent"])
            except (ValueError, AttributeError, TypeError) as error:
                raise ValueError(f"{path}, line {line}: {error}") from None
            if any(not 0 <= image < len(labels) for image in images) or labels[images].tolist() != shown:
                raise ValueError(
                    f"{path}, line {line}: made for other images: rows {images} are not of classes {shown}"
                )
            rows.setdefault(row["kind"], []).append((images, square, *answer))
    groups = []
    for kind, scenes in rows.items():
        columns = [torch.tensor([scene[i] for scene in scenes[:count]]) for i in range(4)]
        groups.append(Triplets(kind, columns[0], columns[1] if columns[1].numel() else None, columns[2], columns[3]))
    return groups


def triplets_for(
    labels: Int[Tensor, " n"], num_classes: int, *, count: int, seed: int = SEED, path: str | Path | None = None
) -> list[Triplets]:
    """Triplets of every kind: those of a file, or else those of the seed.

    Up to 1000 scenes of the default seed are the first of the same 1000. For Tiny ImageNet's validation images these
    are stored in a checkout of the project.

    Args:
        path: a file that `write_triplets` wrote.

    Raises:
        ValueError: the file does not fit the images, or there are too few classes to draw from.
    """
    if path is not None:
        return read_triplets(path, labels, count)
    if seed != SEED or count > NUM_SCENES:
        return draw_all(labels, num_classes, count, seed)
    if STORED.is_file():
        with contextlib.suppress(ValueError):  # the stored file was made for other images
            return read_triplets(STORED, labels, count)
    return [group[:count] for group in draw_all(labels, num_classes, NUM_SCENES, seed)]


def _joined(values: Iterable[object]) -> str:
    return " ".join(map(str, values))
