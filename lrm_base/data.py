"""Labelled images for training, through `datasets`: local parquet files, an ImageFolder, or a data set of the hub.

Unusual: images are decoded in loader processes, or once into memory. They are augmented on the device, a whole batch at
a time, from an explicit generator. So a run depends on its seed and step alone, and resuming is exact.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from lrm_base.checks import MOST_TRAINING_SEED, finite_number, whole_number
from lrm_base.config import Config, Count, Whole

HUB_TINY_IMAGENET = "zh-plus/tiny-imagenet"


class DataConfig(Config):
    """Where labelled images come from.

    Attributes:
        source: a folder of parquet files (`train-*.parquet`, `valid-*.parquet` with columns `image`, `label`), an
            ImageFolder (`train/<class>/*`, `valid/<class>/*`), or a hub data set with the same columns.
        num_holdout: training leaves out that many rows at the end of the training split. Calibration uses them, since
            it needs images that the network has not seen.
        size: side of the stored squares, in pixels.
        in_memory: whether to decode every image once, at the start.
        workers: number of loader processes; 0 loads in the calling process.
    """

    source: str = HUB_TINY_IMAGENET
    num_holdout: Whole = 5000
    size: Count = 64
    in_memory: bool = True
    workers: Whole = 0


Split = Literal["train", "holdout", "valid"]


def load_images(config: DataConfig, split: Split) -> Any:
    """A `datasets.Dataset` with columns `image` (decoded on access to a PIL image) and `label` (int).

    Raises:
        ValueError: the folder holds neither parquet files nor an ImageFolder, or `num_holdout` leaves no image.
    """
    import datasets

    part = "valid" if split == "valid" else "train"
    folder = Path(config.source).expanduser()
    if folder.is_dir():
        files = sorted(map(str, folder.glob(f"{part}-*.parquet")))
        if files:  # `datasets` takes paths for patterns
            data = datasets.Dataset.from_parquet([glob.escape(file) for file in files], split=part)
        elif (folder / part).is_dir():
            data = datasets.load_dataset("imagefolder", data_dir=glob.escape(str(folder / part)), split="train")
            if part == "train":  # it lists class by class, so the last rows would be whole classes
                data = data.shuffle(seed=0)
        else:
            raise ValueError(
                f"source: {folder}: got {_listing(folder)}, expected {part}-*.parquet or a folder {part}/<class>/…"
            )
    else:
        data = datasets.load_dataset(config.source, split=part)
    data = data.cast_column("image", datasets.Image(mode="RGB"))
    if split == "valid":
        return data
    first = len(data) - config.num_holdout
    if first <= 0:
        raise ValueError(f"num_holdout: got {config.num_holdout}, expected less than {len(data)}, the training images")
    return data.select(range(first) if split == "train" else range(first, len(data)))


def only_rows(data: Any, wanted: Mapping[str, str]) -> Any:
    """The rows of a data set that have certain values in its columns. Raises ValueError for an unknown column."""
    for column, value in wanted.items():
        if column not in data.column_names:
            raise ValueError(f"only: got the column {column!r}; choices: {', '.join(data.column_names)}")
        data = data.select([row for row, found in enumerate(data[column]) if found == value])
    return data


def _listing(folder: Path) -> str:
    """The first names in a folder, for a message."""
    return ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "an empty folder"


class Images(Dataset):
    """Pixels (3, size, size) uint8 and label (int) of each image. The whole frame is squashed to a square.

    With `in_memory` each image is decoded only once (12 kB each at 64 px), so that training on small images is fast.
    """

    def __init__(self, data: Any, size: int, *, in_memory: bool = False) -> None:
        from torchvision.transforms import v2

        size = whole_number("size", size, 1)
        self.data = data
        self.transform = v2.Compose([v2.PILToTensor(), v2.Resize((size, size), antialias=True)])
        self.pixels: Tensor | None = None
        if in_memory:
            self.labels = list(data["label"])
            self.pixels = torch.empty(len(data), 3, size, size, dtype=torch.uint8)
            for index, row in enumerate(tqdm(data, desc="decoding", unit="image", disable=None)):
                self.pixels[index] = self.transform(row["image"])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.pixels is not None:
            return self.pixels[index], self.labels[index]
        row = self.data[index]
        return self.transform(row["image"]), row["label"]


def augment(
    pixels: UInt8[Tensor, "b 3 h w"], size: int, generator: torch.Generator, *, min_scale: float = 0.35
) -> Float[Tensor, "b 3 size size"]:
    """Random resized crop and horizontal flip of a whole batch, on its device. Float pixels in 0–1.

    Each image gets its own crop (area `min_scale` to 1, aspect ratio 3/4 to 4/3) and flip (Szegedy et al. 2015).
    `generator` is on the CPU, so every device gets the same crops.
    """
    size, min_scale = whole_number("size", size, 1), finite_number("min_scale", min_scale, 0, 1)
    count = len(pixels)
    area = torch.empty(count).uniform_(min_scale, 1.0, generator=generator)
    ratio = torch.empty(count).uniform_(-0.2877, 0.2877, generator=generator).exp()  # log(3/4) … log(4/3)
    half_width = (area * ratio).sqrt().clamp(max=1.0)
    half_height = (area / ratio).sqrt().clamp(max=1.0)
    shift = torch.rand(2, count, generator=generator) * 2 - 1
    flip = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = half_width * flip
    theta[:, 1, 1] = half_height
    theta[:, 0, 2] = shift[0] * (1 - half_width)
    theta[:, 1, 2] = shift[1] * (1 - half_height)
    grid = F.affine_grid(theta, [count, 3, size, size], align_corners=False).to(pixels.device)
    floats = pixels.to(torch.float32) / 255
    return F.grid_sample(floats, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


class EpochSampler(Sampler[int]):
    """The indices of one epoch, in random order. The order depends on the seed and the epoch alone."""

    def __init__(self, length: int, seed: int, epoch: int) -> None:
        self.length = whole_number("length", length, 0)
        self.seed = whole_number("seed", seed, 0, MOST_TRAINING_SEED)
        self.epoch = whole_number("epoch", epoch, 0)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self.length, generator=generator).tolist()


def training_batches(
    images: Images, batch_size: int, seed: int, epoch: int, workers: int = 0
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled batches of one epoch. An incomplete last batch is dropped.

    Raises:
        ValueError: a number is out of range. `batch_size` is at least 1, `workers` and `epoch` are at least 0, and
            `seed` is from 0 to 2**32 − 1.
    """
    return DataLoader(
        images,
        whole_number("batch_size", batch_size, 1),
        sampler=EpochSampler(len(images), seed, epoch),
        num_workers=whole_number("workers", workers, 0),
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_one_thread,
    )


def ordered_batches(images: Images, batch_size: int, workers: int = 0) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of every image once, in order. Raises ValueError as `training_batches`."""
    batch_size, workers = whole_number("batch_size", batch_size, 1), whole_number("workers", workers, 0)
    return DataLoader(images, batch_size, num_workers=workers, worker_init_fn=_one_thread)


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def image_tensors(
    source: str, split: Split, size: int, num_holdout: int = 0, classes: Sequence[dict[str, Any]] | None = None
) -> tuple[Float[Tensor, "n 3 s s"], Tensor]:
    """All images of a split, pixels in 0–1, and their labels (n,).

    Args:
        source, num_holdout: see `DataConfig`.
        size: side s of the squares, in pixels.
        classes: a model's table of classes. If it is given, the labels become rows of this table. The data set's class
            names are looked up in it as names or WordNet ids; without class names the labels are the rows.

    Raises:
        ValueError: the data set has a class that the table does not have. Or `load_images` raises it.
    """
    num_holdout = whole_number("num_holdout", num_holdout, 0)
    data = load_images(DataConfig(source=source, num_holdout=num_holdout), split)
    rows = None if classes is None else class_rows(data, classes)
    images = Images(data, size, in_memory=True)
    assert images.pixels is not None
    labels = torch.tensor(images.labels)
    return images.pixels.float() / 255, labels if rows is None else torch.tensor(rows)[labels]


def class_rows(data: Any, classes: Sequence[dict[str, Any]]) -> list[int]:
    """The row of each label of a data set in a model's table of classes. Raises as `image_tensors`."""
    names = getattr(data.features["label"], "names", None)
    if names is None:
        labels = data["label"][:]
        lowest, highest = min(labels), max(labels)
        if lowest < 0 or highest >= len(classes):
            raise ValueError(
                f"labels: got {lowest} to {highest}, expected 0 to {len(classes) - 1}, the model's classes"
            )
        return list(range(len(classes)))
    known = {entry[key]: row for row, entry in enumerate(classes) for key in ("wnid", "name") if key in entry}
    strange = [name for name in names if name not in known]
    if strange:
        raise ValueError(
            f"{len(strange)} of {len(names)} classes of the data set are not the model's: {', '.join(strange[:5])}; "
            "expected its names or their WordNet ids"
        )
    return [known[name] for name in names]
