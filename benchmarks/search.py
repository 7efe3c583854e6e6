"""Speed and memory of galleries: indexing against decoding plus one bare pass, and queries over 10 k and 1 M images.

    python benchmarks/search.py index [FOLDER]       images a second; over made-up photographs unless a FOLDER is given
    python benchmarks/search.py query --rows 1000000    synthetic vectors: latency, memory, recall of the index
    python benchmarks/search.py query --rows 10000
    python benchmarks/search.py query --rows 100000 --embeddings 512    embeddings of a CLIP, in single precision

Every measurement runs in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

CLASSES = 1000
CLUSTERS = 1000  # of synthetic embeddings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("index", "query", *STEPS), help="index or query; the others are their steps")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--images", type=int, default=1500, help="made-up photographs (default 1500)")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), help="width, height (default 640 480)")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--embeddings", type=int, metavar="WIDTH", help="embeddings of this width, not class evidence")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int)
    given = parser.parse_args()
    if given.what in STEPS:
        print(json.dumps(STEPS[given.what](given)))
    elif given.what == "index":
        index(given)
    else:
        query(given)


def step(name: str, *arguments: str) -> dict[str, Any]:
    """One measurement in a fresh process, which prints it as JSON."""
    command = [sys.executable, __file__, name, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


class Memory:
    """Peak resident memory in MB inside the `with` block: of this process, and of all its workers together."""

    def __enter__(self) -> Memory:
        self.own = self.workers = 0.0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        me = psutil.Process()
        while not self.done.wait(0.1):
            self.own = max(self.own, me.memory_info().rss / 2**20)
            total = 0.0
            for child in me.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += child.memory_info().rss / 2**20
            self.workers = max(self.workers, total)

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()

    def as_dict(self) -> dict[str, int]:
        return {"MB": round(self.own), "MB_workers": round(self.workers)}


# indexing


def index(given: argparse.Namespace) -> None:
    """Images a second of all that `steer index` does, and of only reading and one bare pass. They run in turn."""
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or photographs(Path(made), given.images, tuple(given.size))
        workers = [] if given.workers is None else ["--workers", str(given.workers)]
        rates: dict[str, list[float]] = {"bare": [], "gallery": []}
        memory: dict[str, dict[str, float]] = {}
        for turn in range(given.rounds):
            for name in ("bare", "gallery") if turn % 2 == 0 else ("gallery", "bare"):
                measured = step(name, str(folder), *workers)
                rates[name].append(measured["images"] / measured["seconds"])
                memory[name] = measured["memory"]
                print(f"{name}: {rates[name][-1]:.0f} images/s, {measured['memory']}", flush=True)
        ratios = [ours / bare for ours, bare in zip(rates["gallery"], rates["bare"], strict=True)]
        print(f"gallery / (decoding + bare pass): median {statistics.median(ratios):.2f}, {sorted(map(_two, ratios))}")
        print(f"peak memory: gallery {memory['gallery']}, bare {memory['bare']}")


def _two(value: float) -> float:
    return round(value, 2)


def photographs(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """JPEG files of enlarged crops of the samples."""
    from steering.images import open_image

    samples = [open_image("sample:cat"), open_image("sample:coffee")]
    rng = np.random.default_rng(0)
    for number in range(count):
        sample = samples[number % 2]
        left, top = rng.integers(0, sample.width // 2), rng.integers(0, sample.height // 2)
        part = sample.crop((left, top, left + sample.width // 2, top + sample.height // 2)).resize(size)
        part.save(folder / f"{number:06d}.jpg", quality=90)
    return folder


def gallery_step(given: argparse.Namespace) -> dict[str, Any]:
    from steering import Gallery, Steerer

    steerer = Steerer.load()
    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery.open(folder, steerer)
        start = time.perf_counter()
        with Memory() as memory:
            report = gallery.add(given.folder, workers=given.workers)
        seconds = time.perf_counter() - start
    return {"images": report.new, "seconds": seconds, "memory": memory.as_dict()}


def bare_step(given: argparse.Namespace) -> dict[str, Any]:
    """The same workers decode and shrink, and the bare backbone runs over the same batches. Nothing is kept."""
    import os

    import torch
    from loky.process_executor import ProcessPoolExecutor

    from steering import Steerer
    from steering.search.decode import CHUNK
    from steering.search.engine import batch_size

    network = Steerer.load().network
    backbone, frame = network.model.backbone, network.preprocessing.frame
    batch = batch_size(network)
    files = sorted(str(path) for path in Path(given.folder).rglob("*") if path.is_file())
    workers = given.workers or os.cpu_count() or 1
    start = time.perf_counter()
    pool = ProcessPoolExecutor(workers)
    parts = [files[i : i + CHUNK] for i in range(0, len(files), CHUNK)]
    waiting: list[np.ndarray] = []
    with torch.no_grad(), Memory() as memory:
        for shrunk in pool.map(shrink, parts, [frame] * len(parts)):
            waiting += shrunk
            while len(waiting) >= batch:
                backbone(network.as_input(np.stack(waiting[:batch])))
                waiting = waiting[batch:]
        if waiting:
            backbone(network.as_input(np.stack(waiting)))
    seconds = time.perf_counter() - start
    pool.shutdown(kill_workers=True)
    return {"images": len(files), "seconds": seconds, "memory": memory.as_dict()}


def shrink(files: list[str], frame: Any) -> list[np.ndarray]:
    """Only decode and shrink, to the frame that the network sees."""
    from steering.images import framed, open_image

    return [np.asarray(framed(open_image(f), frame)) for f in files]


# queries


def query(given: argparse.Namespace) -> None:
    """Search a synthetic gallery: evidence for goals of the embedded model's class names, or embeddings."""
    queries = near_centres(200, given.embeddings, np.random.default_rng(1)) if given.embeddings else class_directions()
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/queries.npy", queries)
        seconds = fill(f"{folder}/gallery", given.rows, given.embeddings)
        print(f"{given.rows:,} rows made in {seconds['rows']:.0f} s, index in {seconds['index']:.0f} s", flush=True)
        measured = step("nearest", folder, "--rounds", str(given.rounds))
    for key, value in measured.items():
        print(f"{key}: {value}")


def class_directions() -> np.ndarray:
    """What the first stage looks for, for every fifth class name of the embedded model; (200, M)."""
    from prior.captions import with_article
    from steering import Steerer
    from steering.search.hits import direction

    steerer = Steerer.load("lrm_lite")
    goals = steerer.goals([with_article(name) for name in steerer.class_names[::5]])
    return np.stack([direction(steerer.network, goal) for goal in goals])


def near_centres(rows: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Embeddings of unit length around the centres of some clusters; (rows, width) float32."""
    centres = np.random.default_rng(0).normal(size=(CLUSTERS, width)).astype(np.float32)
    vectors = centres[rng.integers(0, CLUSTERS, rows)] + rng.normal(size=(rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def evidence(rows: int, rng: np.random.Generator) -> np.ndarray:
    """Square roots of class evidence as crowded photographs give it: one to four classes, and noise; (rows, M)."""
    logits = rng.normal(0, 1.5, (rows, CLASSES)).astype(np.float32)
    for _ in range(4):
        here = rng.random(rows) < 0.6
        classes = rng.integers(0, CLASSES, rows)
        logits[np.arange(rows), classes] += here * rng.uniform(2, 7, rows).astype(np.float32)
    chances = np.exp(logits - logits.max(1, keepdims=True))
    return np.sqrt(chances / chances.sum(1, keepdims=True)).astype(np.float16)


def fill(folder: str, rows: int, embeddings: int | None) -> dict[str, float]:
    """Write a gallery in the store's own format, without pixels."""
    import lance
    import pyarrow as pa
    from einops import rearrange

    from steering.search.schema import GalleryCard, image_schema
    from steering.search.store import Store

    width, full = embeddings or CLASSES, embeddings is not None
    store = Store.open(folder, GalleryCard("synthetic", "", width, 0, full=full))
    schema, rng = image_schema(width, full), np.random.default_rng(0)

    def tables() -> Iterator[pa.RecordBatch]:
        for first in range(0, rows, 20_000):
            count = min(20_000, rows - first)
            made = near_centres(count, width, rng) if full else evidence(count, rng)
            flat = pa.array(rearrange(made, "b m -> (b m)"))
            vectors = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("evidence").type)
            columns = {name: pa.nulls(count, schema.field(name).type) for name in schema.names}
            columns["path"] = pa.array([f"/photos/{i // 1000:05d}/{i:08d}.jpg" for i in range(first, first + count)])
            columns["width"] = pa.array(rng.integers(200, 4000, count).astype(np.int32))
            yield pa.record_batch(columns | {"evidence": vectors, "output": vectors}, schema=schema)

    start = time.perf_counter()
    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, tables()), store.images.uri, mode="append")
    written = time.perf_counter()
    store.finish()
    return {"rows": written - start, "index": time.perf_counter() - written}


def nearest_step(given: argparse.Namespace) -> dict[str, Any]:
    """Latency and memory of the first stage in a process without torch, and the recall of the index."""
    from steering.search.store import Store

    store = Store.open(f"{given.folder}/gallery")
    queries = np.load(f"{given.folder}/queries.npy")
    for vector in queries[:5]:
        store.nearest(vector, 128)
    alone = [_time(lambda vector=vector: store.nearest(vector, 128)) for _ in range(given.rounds) for vector in queries]
    memory = round(psutil.Process().memory_info().rss / 2**20)
    filtered = [_time(lambda vector=vector: store.nearest(vector, 128, "width > 2000")) for vector in queries[:50]]
    recalls, deep, exact = [], [], []
    for vector in queries[:100]:
        start = time.perf_counter()
        true = store.nearest(vector, 128, exact=True)["path"].to_pylist()
        exact.append(time.perf_counter() - start)
        near = store.nearest(vector, 128)["path"].to_pylist()
        recalls.append(len(set(true[:10]) & set(near[:10])) / 10)
        deep.append(len(set(true) & set(near)) / 128)
    return {
        "rows": store.count(),
        "first stage, ms, median": round(statistics.median(alone) * 1000, 1),
        "first stage, ms, 95 %": round(float(np.quantile(alone, 0.95)) * 1000, 1),
        "queries a second": round(len(alone) / sum(alone), 1),
        "resident memory, MB": memory,
        "with --where, ms, median": round(statistics.median(filtered) * 1000, 1),
        "exact, ms, median": round(statistics.median(exact) * 1000, 1),
        "recall@10": round(float(np.mean(recalls)), 4),
        "recall@128": round(float(np.mean(deep)), 4),
        "torch imported": "torch" in sys.modules,
    }


def _time(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


STEPS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "gallery": gallery_step,
    "bare": bare_step,
    "nearest": nearest_step,
}

if __name__ == "__main__":
    main()
