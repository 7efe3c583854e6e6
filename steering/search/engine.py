"""An engine turns tasks into first passes: it reads images and runs the network over them.

Unusual: images are run through the network in batches of one size and one shape, and the last batch of each shape is
filled up. So a gallery is the same to the last bit, however often its making was interrupted. Frames that keep their
aspect have many shapes. On a CPU they go through one by one, since filling up would cost more than it gains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import loky
import numpy as np

from lrm_base.checks import whole_number
from steering.search.decode import Decoded, Read, Same, Task, read_all
from steering.search.files import Unreadable

if TYPE_CHECKING:
    from steering.network import Network

BATCH = 64  # small images in one pass
LARGE = 16  # images of more than 256 pixels a side in one pass, where there is an accelerator
WAITING = 256  # images that wait for others of their shape
MOST_BATCH = 4096
MOST_WORKERS = 1024


@dataclass(frozen=True)
class Indexed:
    """An image and its first pass.

    Attributes:
        image: as it was read.
        output: (M,) logits, float32; or an embedding. See `Network.kept`.
        evidence: (M,), of length 1, float32: what the first stage of a search compares with.
        sees: the likeliest class by places.
        packed: what a steered pass starts from, if it is kept.
    """

    image: Decoded
    output: np.ndarray
    evidence: np.ndarray
    sees: str
    packed: bytes | None = None


Item = Indexed | Same | Unreadable
Engine = Callable[[Iterable[Task]], Iterator[Item]]


def local_engine(
    network: Network, workers: int | None = None, batch: int | None = None, *, first_pass: bool = False
) -> Engine:
    """An engine that reads in worker processes of this machine and runs the first pass in this process.

    Args:
        workers: processes that read. All cores that this process may use by default; 0 reads in this process.
        batch: number of images in one pass; by default what suits the network and its device.
        first_pass: whether to keep what a steered pass starts from.

    Raises:
        ValueError: `workers` or `batch` is out of range.
    """
    count = loky.cpu_count() if workers is None else whole_number("workers", workers, 0, MOST_WORKERS)
    batch = batch_size(network) if batch is None else whole_number("batch", batch, 1, MOST_BATCH)

    def run(tasks: Iterable[Task]) -> Iterator[Item]:
        return first_passes(network, read_all(tasks, network.preprocessing.frame, count), batch, first_pass)

    return run


def batch_size(network: Network) -> int:
    """Number of images in one pass that suits a network and its device."""
    if network.preprocessing.keeps_aspect and network.device.type == "cpu":
        return 1
    return BATCH if network.preprocessing.size <= 256 else LARGE


def first_passes(
    network: Network, reads: Iterable[Read], batch: int | None = None, keep: bool = False
) -> Iterator[Item]:
    """The first pass over images that were read, in batches of one size and one shape. Other items come as they are."""
    batch = batch or batch_size(network)
    waiting: dict[tuple[int, ...], list[Decoded]] = {}
    for item in reads:
        if not isinstance(item, Decoded):
            yield item
            continue
        alike = waiting.setdefault(item.pixels.shape, [])
        alike.append(item)
        if len(alike) == batch:
            yield from _pass(network, waiting.pop(item.pixels.shape), batch, keep)
        elif sum(map(len, waiting.values())) >= max(WAITING, batch):
            longest = max(waiting, key=lambda shape: len(waiting[shape]))
            yield from _pass(network, waiting.pop(longest), batch, keep)
    for alike in waiting.values():
        yield from _pass(network, alike, batch, keep)


def _pass(network: Network, images: Sequence[Decoded], batch: int, keep: bool) -> Iterator[Indexed]:
    inputs = network.as_input(pad([image.pixels for image in images], batch))
    outputs, evidence, sees, packed = network.indexed(inputs, pack=keep)
    for row, image in enumerate(images):
        yield Indexed(image, outputs[row], evidence[row], sees[row], None if packed is None else packed[row])


def pad(pixels: Sequence[np.ndarray], batch: int) -> np.ndarray:
    """The images as one array (batch, h, w, 3), filled up with zeros."""
    filled = np.zeros((batch, *pixels[0].shape), np.uint8)
    filled[: len(pixels)] = np.stack(pixels)
    return filled
