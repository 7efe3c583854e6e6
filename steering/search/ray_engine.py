"""Index on a Ray cluster: tasks read images, actors hold the network and run the first pass, and this process writes.

The gallery is the same, to the last bit, as one that was made on one machine. Files are read where the worker is. So
folders must have the same names there (a network file system, or one machine). Needs the extra `ray`.

Unusual: Ray runs a task again when its worker dies, so an image that kills every worker would be read for ever. Such a
task is tried a few times. What is left then is read on this machine, where such an image costs only itself.
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

from lrm_base.checks import finite_number, whole_number
from lrm_base.frame import Frame
from steering.catalogue import default_model
from steering.loading import load
from steering.search.decode import Task, read
from steering.search.engine import BATCH, MOST_WORKERS, Engine, Indexed, Item, first_passes, local_engine

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray

WINDOW = 100_000  # images of one Ray data set, whose names this process holds
RETRIES = 3  # times that a task is run again after its worker died


class FirstPass:
    """An actor that holds the network and runs the first pass over images that were read."""

    def __init__(self, model: str, device: str | None, keep: bool) -> None:
        self.network, self.keep = load(model, device=device).network, keep

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        reads = map(pickle.loads, batch["item"])
        return {"item": _packed(first_passes(self.network, reads, keep=self.keep))}


def read_batch(batch: dict[str, Any], frame: Frame) -> dict[str, Any]:
    """A task: read images in this worker."""
    return {"item": _packed(read(pickle.loads(item), frame) for item in batch["item"])}


def _packed(items: Iterable[Any]) -> np.ndarray:
    """Values as an array of bytes, one row for each value."""
    packed = [pickle.dumps(item, protocol=5) for item in items]
    array = np.empty(len(packed), object)
    array[:] = packed
    return array


def ray_engine(
    model: str | None = None,
    *,
    address: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    gpus: float = 0.0,
    first_pass: bool = False,
) -> Engine:
    """An engine for `Gallery.add(engine=…)`.

    Args:
        model: the gallery's model, by name or folder; each actor loads it. None means `catalogue.default_model()`, as
            it is in this process.
        address: a running cluster (`auto`, `ray://host:10001`). By default a cluster is started on this machine and
            stopped at the end.
        workers: actors that hold the network; by default one for every two CPUs of the cluster.
        device: where the network of each actor runs.
        gpus: number of GPUs for each actor, which may be a fraction.
        first_pass: whether to keep what a steered pass starts from, as the gallery does.

    Raises:
        ValueError: a number is out of range; or, when images are added, no cluster answers at the address.
    """
    workers = None if workers is None else whole_number("workers", workers, 1, MOST_WORKERS)
    gpus = finite_number("gpus", gpus, 0)

    def run(tasks: Iterable[Task]) -> Iterator[Item]:
        network = load(model, device=device).network
        iterator = iter(tasks)
        started = _connect(address)
        try:
            cores = ray.cluster_resources().get("CPU", 1.0)
            count = workers or max(int(cores) // 2, 1)
            share = min(1.0, cores / 2 / count)  # the other half reads, or actors would wait for readers for ever
            name = default_model() if model is None else model  # the variable may differ where an actor runs
            actors = {"fn_constructor_args": (name, device, first_pass), "num_cpus": share, "num_gpus": gpus}
            while window := list(itertools.islice(iterator, WINDOW)):
                done = set()
                try:
                    for item in _pipeline(window, network.preprocessing.frame, count, actors):
                        done.add(item.image.name if isinstance(item, Indexed) else item.name)
                        yield item
                except ray.exceptions.RayError as error:
                    left = [task for task in window if task.entry.name not in done]
                    note = f"steer: Ray gave up ({type(error).__name__}); the last {len(left)} images here"
                    print(note, file=sys.stderr)
                    yield from local_engine(network, first_pass=first_pass)(left)
        finally:
            if started:
                ray.shutdown()

    return run


def _connect(address: str | None) -> bool:
    """Join a cluster, or start one. Returns whether this process did so."""
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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"address: got {address!r}, but no Ray cluster answers there ({reason})") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    return True


def _check(address: str | None) -> None:
    """Raises ValueError if nothing listens at host:port. Ray itself would try for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon:  # `auto`, or none
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ValueError(f"address: got {address!r}, but no Ray cluster answers there ({error})") from None


def _pipeline(window: list[Task], frame: Frame, workers: int, actors: dict[str, Any]) -> Iterator[Item]:
    items = [{"item": pickle.dumps(task, protocol=5)} for task in window]
    blocks = min(max(len(items) // BATCH, 1), 200)
    images = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        partial(read_batch, frame=frame),
        batch_size=BATCH,
        num_cpus=0.5,
        ray_remote_args_fn=lambda: {"max_retries": RETRIES},
    )
    pool = ray.data.ActorPoolStrategy(size=workers)
    seen = images.map_batches(FirstPass, batch_size=BATCH, compute=pool, **actors)
    for batch in seen.iter_batches(batch_size=None):
        yield from map(pickle.loads, batch["item"])
