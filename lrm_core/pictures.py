"""Labelled pictures of several data sets, the scenes that are composed of them, and what is kept of each scene.

Unusual: small pictures and photographs are mixed. Photographs are few and sharp, small pictures many and blurred; in a
scene both become things of any size. Scenes are written in shards, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from lrm_base.config import Config, Count, Whole
from lrm_base.data import DataConfig, Images, Split, augment, load_images, only_rows
from lrm_core.frozen import Waist
from lrm_core.scenes import NUM_OBJECTS, random_scenes

SHARD = 512  # scenes
MOST_OBJECTS = max(NUM_OBJECTS.values())


class PictureConfig(Config):
    """One data set.

    Attributes:
        source, num_holdout: see `lrm_base.data.DataConfig`.
        split: the part of the data set; `holdout` are the rows that `num_holdout` leaves out of `train`.
        size: side of the stored squares, in pixels.
        share: weight of the data set when pictures are drawn.
        classes: a JSON table of the data set's labels, whose `wnid` finds the model's class; None if the labels are
            the model's own.
        only: values of columns of the data set; rows with other values are left out.
        limit: at most so many rows, from the first on; None means all.
        min_scale: smallest area of a crop, as part of the picture.
    """

    source: str
    num_holdout: Whole = 0
    split: Split = "train"
    size: Count
    share: float = 1.0
    classes: str | None = None
    only: dict[str, str] = {}
    limit: Count | None = None
    min_scale: float = 0.5


class Pictures:
    """The pictures of several data sets, with labels of one table of classes. Others are left out.

    They are read into memory when they are first drawn: a training whose scenes are kept needs none.
    """

    def __init__(self, configs: Sequence[PictureConfig], classes: Sequence[Mapping[str, Any]]) -> None:
        self.configs = tuple(configs)
        self.shares = torch.tensor([config.share for config in configs])
        self.classes = tuple(classes)

    @cached_property
    def sets(self) -> list[tuple[Tensor, Tensor]]:
        """Squares (n, 3, size, size) uint8 and labels (n,) of each data set.

        Raises:
            ValueError: a data set does not exist, has no such column, or no picture of the classes.
        """
        found = []
        for config in self.configs:
            data, labels = select(config, self.classes)
            images = Images(data, config.size, in_memory=True)
            assert images.pixels is not None
            found.append((images.pixels, labels))
        return found

    def frequencies(self, classes: int) -> Float[Tensor, " m"]:
        """The share of each class among the pictures that are drawn; see `frequencies`."""
        each = [frequencies(labels, classes) for _, labels in self.sets]
        return torch.stack(each).T @ (self.shares / self.shares.sum())

    def draw(self, count: int, size: int, generator: torch.Generator) -> tuple[Float[Tensor, "n 3 s s"], Tensor]:
        """`count` pictures, cropped and flipped at random, in 0–1, and their labels, in random order."""
        chosen = torch.multinomial(self.shares, count, replacement=True, generator=generator)
        numbers = torch.bincount(chosen, minlength=len(self.sets)).tolist()
        pixels, labels = [], []
        for config, (stored, known), number in zip(self.configs, self.sets, numbers, strict=True):
            if number:
                picks = torch.randint(0, len(known), (number,), generator=generator)
                pixels.append(augment(stored[picks], size, generator, min_scale=config.min_scale))
                labels.append(known[picks])
        order = torch.randperm(count, generator=generator)
        return torch.cat(pixels)[order], torch.cat(labels)[order]


def select(config: PictureConfig, classes: Sequence[Mapping[str, Any]]) -> tuple[Any, Tensor]:
    """The rows of a data set (`datasets.Dataset`) that show the model's classes, and their labels (n,)."""
    rows = {entry["wnid"]: row for row, entry in enumerate(classes) if "wnid" in entry}
    data = load_images(DataConfig(source=config.source, num_holdout=config.num_holdout), config.split)
    data = only_rows(data, config.only)
    labels = torch.tensor(list(data["label"]))
    if config.classes is not None:
        table = [rows.get(entry["wnid"], -1) for entry in json.loads(Path(config.classes).read_text())]
        labels = torch.tensor([*table, -1])[labels]
    known = torch.nonzero((labels >= 0) & (labels < len(classes)))[:, 0][: config.limit]
    if not len(known):
        raise ValueError(f"source: {config.source}: got no picture of the model's classes")
    return data.select(known.tolist()), labels[known]


def frequencies(labels: Int[Tensor, "..."], classes: int) -> Float[Tensor, " m"]:
    """The share of each class among labels, as if each had one more. Labels below 0 do not count."""
    counts = torch.bincount(labels[labels >= 0], minlength=classes).float() + 1
    return counts / counts.sum()


def compose_scenes(
    pictures: Pictures, kinds: Mapping[str, float], size: int, count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "b 3 s s"], Int[Tensor, "b k"]]:
    """Scenes of kinds drawn by their weights, pixels in 0–1, and the labels of their objects; −1 fills up."""
    names = list(kinds)
    weights = torch.tensor([kinds[name] for name in names])
    drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
    numbers = torch.bincount(drawn, minlength=len(names)).tolist()
    pixels, known = pictures.draw(2 * count, size, generator)
    scenes, labels = [], []
    for name, number in zip(names, numbers, strict=True):
        if number:
            made = random_scenes(name, number, pixels, known, generator)
            scenes.append(made.pixels)
            labels.append(torch.nn.functional.pad(made.labels, (0, MOST_OBJECTS - made.labels.shape[1]), value=-1))
    return torch.cat(scenes), torch.cat(labels)


@dataclass(frozen=True)
class Kept:
    """Scenes that were composed before: their values at the waist (n, …), in half precision, and labels (n, k)."""

    values: Tensor
    labels: Tensor

    def frequencies(self, classes: int) -> Float[Tensor, " m"]:
        """The share of each class among the objects of the scenes; see `frequencies`."""
        return frequencies(self.labels, classes)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Values and labels of `count` scenes."""
        picks = torch.randint(0, len(self.labels), (count,), generator=generator)
        return self.values[picks].float(), self.labels[picks]


@dataclass(frozen=True)
class Fresh:
    """Scenes that are composed when they are drawn."""

    make: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    pictures: Pictures

    def frequencies(self, classes: int) -> Float[Tensor, " m"]:
        """The share of each class among the objects of the scenes; see `frequencies`."""
        return self.pictures.frequencies(classes)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Values and labels of `count` scenes."""
        return self.make(count, generator)


def kept_scenes(
    folder: Path,
    pictures: Pictures,
    kinds: Mapping[str, float],
    size: int,
    scenes: int | None,
    seed: int,
    waist: Waist,
    normalise: Callable[[Tensor], Tensor],
) -> Kept | Fresh:
    """Scenes to train on. With a number of `scenes` they are composed once and kept in `folder`.

    Raises:
        ValueError: the folder holds scenes of other settings.
    """
    device = next(waist.model.parameters()).device

    def make(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        pixels, labels = compose_scenes(pictures, kinds, size, count, generator)
        inputs = normalise(pixels.to(device)).contiguous(memory_format=torch.channels_last)
        return waist.keep(inputs).float(), labels

    if scenes is None:
        return Fresh(make, pictures)
    from safetensors.torch import load_file, save

    from lrm_base.card import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    asked = {"kinds": dict(kinds), "size": size, "seed": seed, "pictures": [c.to_dict() for c in pictures.configs]}
    settings = folder / "settings.json"
    if settings.is_file() and json.loads(settings.read_text()) != asked:
        raise ValueError(f"{folder} holds scenes of other settings: delete it, or choose another scenes_folder")
    write_atomically(settings, json.dumps(asked, indent=1).encode())
    numbers = range(-(-scenes // SHARD))
    for number in tqdm(numbers, desc="scenes", unit="shard", disable=None):
        path = folder / f"{number:05d}.safetensors"
        if path.is_file():
            continue
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        parts = [make(64, generator) for _ in range(SHARD // 64)]
        values, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        write_atomically(path, save({"values": values.half().cpu().contiguous(), "labels": labels}))
    shards = [load_file(folder / f"{number:05d}.safetensors") for number in numbers]
    return Kept(*(torch.cat([shard[key] for shard in shards])[:scenes] for key in ("values", "labels")))
