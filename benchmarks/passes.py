"""Measure what feedback costs, relative to the plain backbone: python benchmarks/passes.py --backbone mini

Each figure is the median over rounds. In a round every variant runs once, so a slower machine affects all alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from lrm_core import Steer
from lrm_core.weights import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, entry = build(given.backbone, 200)
    model.eval().to(memory_format=torch.channels_last)
    size = entry.preprocessing.size
    images = torch.randn(given.batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    steer = Steer(entry.output, torch.randn(1, 200))
    many = Steer(entry.output, torch.randn(given.queries, 200))

    def queries() -> None:
        stem = model.stem(images[:1])
        _, state = model.step(stem)
        stem, state = stem.expand(given.queries), state.expand(given.queries)
        for _ in range(2):
            _, state = model.step(stem, state, [many])

    variants: dict[str, Callable[[], object]] = {
        "plain backbone": lambda: model.backbone(images),
        "first pass": lambda: model(images),
        "2 passes, steered": lambda: model.rollout(images, 2, [steer]),
        "3 passes, steered": lambda: model.rollout(images, 3, [steer]),
        "plain backbone, one image": lambda: model.backbone(images[:1]),
        f"one image, {given.queries} queries, 3 passes": queries,
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with torch.inference_mode():
        for round_number in range(given.rounds + 2):
            for name, run in variants.items():
                start = time.perf_counter()
                run()
                if round_number >= 2:
                    seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["plain backbone"])
    one = statistics.median(seconds["plain backbone, one image"])
    print(f"{given.backbone}, batch {given.batch}, {given.threads} thread(s): plain backbone {base * 1000:.1f} ms")
    for name, values in seconds.items():
        unit = one if "one image" in name else base
        print(f"{name:<36} {statistics.median(values) / unit:6.2f} x")


if __name__ == "__main__":
    main()
