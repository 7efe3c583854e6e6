"""Labelled images for training: Tiny ImageNet from local parquet or from the hub, and ImageFolder, through `datasets`.

Unusual: images are decoded in loader processes (or once, into memory) and augmented a whole batch at a time on the
device, from an explicit generator. A run is therefore a pure function of its seed and step, and resuming is exact.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from lrm_base.config import Config

HUB_TINY_IMAGENET = "zh-plus/tiny-imagenet"


class DataConfig(Config):
    """Where labelled images come from.

    `source`: a folder of parquet files (`train-*.parquet`, `valid-*.parquet` with columns `image`, `label`), an
    ImageFolder (`train/<class>/*`, `valid/<class>/*`), or a hub data set of the same columns. The last `num_holdout`
    rows of the training split are never trained on: calibration needs images that the network has not seen.
    `size`: side of the stored square, in pixels. `in_memory`: decode every image once, at the start.
    """

    source: str = HUB_TINY_IMAGENET
    num_holdout: int = 5000
    size: int = 64
    in_memory: bool = True
    workers: int = 0


Split = Literal["train", "holdout", "valid"]


def load_images(config: DataConfig, split: Split) -> Any:
    """A `datasets.Dataset` with columns `image` (decoded on access to a PIL image) and `label` (int).

    Raises:
        ValueError: the folder holds neither parquet files nor an ImageFolder.
    """
    import datasets

    part = "valid" if split == "valid" else "train"
    folder = Path(config.source).expanduser()
    if folder.is_dir():
        files = sorted(glob.glob(str(folder / f"{part}-*.parquet")))
        if files:
            data = datasets.Dataset.from_parquet(files, split=part)
        elif (folder / part).is_dir():
            data = datasets.load_dataset("imagefolder", data_dir=str(folder / part), split="train")
            if part == "train":  # listed class by class: the last rows, or the first, would be whole classes
                data = data.shuffle(seed=0)
        else:
            raise ValueError(
                f"{folder}: expected {part}-*.parquet or a folder {part}/<class>/…, got {_listing(folder)}"
            )
    else:
        data = datasets.load_dataset(config.source, split=part)
    data = data.cast_column("image", datasets.Image(mode="RGB"))
    if split == "valid":
        return data
    first = len(data) - config.num_holdout
    if first <= 0:
        raise ValueError(f"num_holdout: got {config.num_holdout}, expected less than the {len(data)} training images")
    return data.select(range(first) if split == "train" else range(first, len(data)))


def imagenet_names() -> tuple[str, ...]:
    """ImageNet's 1,000 class names in the order of the labels, as torchvision carries them."""
    from torchvision.models import AlexNet_Weights

    return tuple(AlexNet_Weights.IMAGENET1K_V1.meta["categories"])


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "an empty folder"


class Images(Dataset):
    """Pixels and labels: (3, size, size) uint8, int. The whole frame, squashed to a square.

    With `in_memory` the images are decoded once (12 kB each at 64 px), which is what makes small images train fast.
    """

    def __init__(self, data: Any, size: int, *, in_memory: bool = False) -> None:
        from torchvision.transforms import v2

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
    """Random resized crop and horizontal flip of a whole batch on its device; float pixels in 0–1.

    Each image gets its own crop (area `min_scale` to 1, aspect ratio 3/4 to 4/3) and flip (Szegedy et al. 2015). The
    random numbers are drawn on the CPU from `generator`, so that every device sees the same crops.
    """
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
    """The indices of one epoch, in an order that depends on the seed and the epoch alone."""

    def __init__(self, length: int, seed: int, epoch: int) -> None:
        self.length, self.seed, self.epoch = length, seed, epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self.length, generator=generator).tolist()


def training_batches(
    images: Images, batch_size: int, seed: int, epoch: int, workers: int = 0
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled batches of one epoch, the last incomplete one dropped."""
    return DataLoader(
        images,
        batch_size,
        sampler=EpochSampler(len(images), seed, epoch),
        num_workers=workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_one_thread,
    )


def ordered_batches(images: Images, batch_size: int, workers: int = 0) -> DataLoader[tuple[Tensor, Tensor]]:
    """Every image once, in order."""
    return DataLoader(images, batch_size, num_workers=workers, worker_init_fn=_one_thread)


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)
