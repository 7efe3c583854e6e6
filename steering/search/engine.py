"""An engine turns tasks into first passes: it reads images and runs the network over them.

Unusual: images are run through the network in batches of one size, and the last batch is filled up. So a gallery is the
same to the last bit, however often its making was interrupted.
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

BATCH = 64  # images in one pass
MOST_BATCH = 4096
MOST_WORKERS = 1024


@dataclass(frozen=True)
class Indexed:
    """An image and its first pass.

    Attributes:
        image: as it was read.
        output: (M,) logits, float32.
        places: (M,) class evidence by places, float32.
        packed: what a steered pass starts from, if it is kept.
    """

    image: Decoded
    output: np.ndarray
    places: np.ndarray
    packed: bytes | None = None


Item = Indexed | Same | Unreadable
Engine = Callable[[Iterable[Task]], Iterator[Item]]


def local_engine(
    network: Network, workers: int | None = None, batch: int = BATCH, *, first_pass: bool = False
) -> Engine:
    """An engine that reads in worker processes of this machine and runs the first pass in this process.

    Args:
        workers: processes that read. All cores that this process may use by default; 0 reads in this process.
        batch: number of images in one pass.
        first_pass: whether to keep what a steered pass starts from.

    Raises:
        ValueError: `workers` or `batch` is out of range.
    """
    count = loky.cpu_count() if workers is None else whole_number("workers", workers, 0, MOST_WORKERS)
    batch = whole_number("batch", batch, 1, MOST_BATCH)

    def run(tasks: Iterable[Task]) -> Iterator[Item]:
        return first_passes(network, read_all(tasks, network.preprocessing.size, count), batch, first_pass)

    return run


def first_passes(network: Network, reads: Iterable[Read], batch: int = BATCH, keep: bool = False) -> Iterator[Item]:
    """The first pass over images that were read, in batches of one size. Other items are passed on as they are."""
    waiting: list[Decoded] = []
    for item in reads:
        if not isinstance(item, Decoded):
            yield item
            continue
        waiting.append(item)
        if len(waiting) == batch:
            yield from _pass(network, waiting, batch, keep)
            waiting = []
    if waiting:
        yield from _pass(network, waiting, batch, keep)


def _pass(network: Network, images: Sequence[Decoded], batch: int, keep: bool) -> Iterator[Indexed]:
    glance = network.glance(network.as_input(pad([image.pixels for image in images], batch)))
    outputs, places = glance.output.float().cpu().numpy(), glance.places.float().cpu().numpy()
    packed = network.pack(glance) if keep else [None] * batch
    for row, image in enumerate(images):
        yield Indexed(image, outputs[row], places[row], packed[row])


def pad(pixels: Sequence[np.ndarray], batch: int) -> np.ndarray:
    """The images as one array (batch, s, s, 3), filled up with zeros."""
    filled = np.zeros((batch, *pixels[0].shape), np.uint8)
    filled[: len(pixels)] = np.stack(pixels)
    return filled
