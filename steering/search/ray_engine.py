"""Indexing on a Ray cluster: reading in tasks, the first pass in actors that hold the network, writing in this process.

The gallery is the same, to the last bit, as one made on one machine. Files are read where the worker is: folders must
be visible there under the same names (a network file system, or one machine). Needs `pip install 'lrm-steering[ray]'`.

Unusual: Ray runs again what a dying worker took with it; an image that kills every worker that reads it would be read
for ever. It is tried a few times; what is left then is read on this machine, where such an image costs only itself.
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import socket
import sys
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from steering.search.decode import Task, read
from steering.search.indexing import BATCH, Engine, Indexed, Item, first_passes, local_engine
from steering.steerer import Steerer

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray

WINDOW = 100_000  # images a Ray data set: what the driver holds the names of
RETRIES = 3  # of a task whose worker died


class FirstPass:
    """An actor: the network, and the first pass over what was read."""

    def __init__(self, model: str, device: str | None, keep: bool) -> None:
        self.steerer, self.keep = Steerer.load(model, device=device), keep

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        reads = map(pickle.loads, batch["item"])
        return {"item": _packed(first_passes(self.steerer, reads, BATCH, self.keep))}


def read_batch(batch: dict[str, Any], side: int) -> dict[str, Any]:
    """A task: images read, in this worker."""
    return {"item": _packed(read(pickle.loads(item), side) for item in batch["item"])}


def _packed(items: Iterable[Any]) -> np.ndarray:
    """Values as an array of bytes, a row each."""
    packed = [pickle.dumps(item, protocol=5) for item in items]
    array = np.empty(len(packed), object)
    array[:] = packed
    return array


def ray_engine(
    model: str = "lrm_mini",
    *,
    address: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    gpus: float = 0.0,
    first_pass: bool = False,
) -> Engine:
    """What `Gallery.add(engine=…)` takes.

    Args:
        model: the gallery's, by name or folder; each actor loads it. address: of a running cluster (`auto`,
            `ray://host:10001`); by default one is started on this machine and stopped at the end.
        workers: actors that hold the network; by default one for every two CPUs of the cluster. gpus: of each.
        first_pass: whether to keep what a steered pass starts from, as the gallery does.

    Raises:
        ValueError: no cluster answers at the address.
    """

    def run(tasks: Iterable[Task]) -> Iterator[Item]:
        steerer = Steerer.load(model, device=device)
        iterator = iter(tasks)
        started = _connect(address)
        try:
            cores = ray.cluster_resources().get("CPU", 1.0)
            count = workers or max(int(cores) // 2, 1)
            share = min(1.0, cores / 2 / count)  # the other half reads, or actors would wait for readers for ever
            actors = {"fn_constructor_args": (model, device, first_pass), "num_cpus": share, "num_gpus": gpus}
            while window := list(itertools.islice(iterator, WINDOW)):
                done = set()
                try:
                    for item in _pipeline(window, steerer.preprocessing.size, count, actors):
                        done.add(item.image.name if isinstance(item, Indexed) else item.name)
                        yield item
                except ray.exceptions.RayError as error:
                    left = [task for task in window if task.found.name not in done]
                    note = f"steer: Ray gave up ({type(error).__name__}); the last {len(left)} images here"
                    print(note, file=sys.stderr)
                    yield from local_engine(steerer, first_pass=first_pass)(left)
        finally:
            if started:
                ray.shutdown()

    return run


def _connect(address: str | None) -> bool:
    """Join a cluster, or start one; returns whether this process did."""
    if ray.is_initialized():
        return False
    _check(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address is None:
        options["include_dashboard"] = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lance warns of every fork; what Ray forks becomes another program
            ray.init(address=address or "local", **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"--address {address}: no Ray cluster answers there ({str(error).splitlines()[0]})") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    return True


def _check(address: str | None) -> None:
    """Ray itself tries for minutes. Raises ValueError if nothing listens at host:port."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon:  # `auto`, or none
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ValueError(f"--address {address}: no Ray cluster answers there ({error})") from None


def _pipeline(window: list[Task], side: int, workers: int, actors: dict[str, Any]) -> Iterator[Item]:
    items = [{"item": pickle.dumps(task, protocol=5)} for task in window]
    blocks = min(max(len(items) // BATCH, 1), 200)
    images = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        partial(read_batch, side=side),
        batch_size=BATCH,
        num_cpus=0.5,
        ray_remote_args_fn=lambda: {"max_retries": RETRIES},
    )
    pool = ray.data.ActorPoolStrategy(size=workers)
    seen = images.map_batches(FirstPass, batch_size=BATCH, compute=pool, **actors)
    for batch in seen.iter_batches(batch_size=None):
        yield from map(pickle.loads, batch["item"])
