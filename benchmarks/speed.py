"""Measure what feedback costs, relative to bare passes of the same network: python benchmarks/speed.py

The networks have random weights, and their paths too, so that feedback acts. In a round both sides of a row run once,
one after the other, so a slower machine affects both. A row gives the median of the rounds' ratios and their middle
half, by the clock and in seconds of processors. The second hardly depends on what else the machine does.

`--readme README.md` writes the table into the README.

Rows: two passes over two bare passes; eight goals on one image over eight bare passes, where the eight goals include
the first pass; a training step of two passes over two forward and backward passes of the bare network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lrm_base.markers import around, replace_between
from lrm_core import LRM, Connection, Steer
from lrm_core.backbones import find_backbone

GOALS, CLASSES = 8, 1000
BEGIN, END = "<!-- speed: written by `python benchmarks/speed.py --readme` -->", "<!-- end of speed -->"
NETWORKS = ("resnet18", "efficientnet_lite0", "alexnet")
LATE = (Connection("fc", "layer4.0.bn1"), Connection("fc", "layer3.0.bn1"))
Row = tuple[Callable[[], object], Callable[[], object], float]


def network(name: str, size: int, connections: Sequence[Connection] | None = None) -> LRM:
    """A network of the registry with random weights, and feedback that acts."""
    entry = find_backbone(name)
    torch.manual_seed(0)
    chosen = entry.connections if connections is None else connections
    model = LRM(entry.build(num_classes=CLASSES), chosen, size, feedback=entry.feedback, rule=entry.rule)
    with torch.no_grad():
        for path in model.paths.values():
            path.projection.weight.normal_(0, 0.02)
    return model.eval()


def two_passes(model: LRM, images: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """Two passes, and two bare passes."""
    return (lambda: model.rollout(images, 2)), (lambda: [model.backbone(images) for _ in range(2)])


def goals(model: LRM, images: Tensor, output: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """A first pass over one image and a second one for each of eight goals, and eight bare passes."""
    steer = [Steer(output, torch.randn(GOALS, CLASSES))]

    def looked() -> object:
        stem = model.stem(images)
        _, state = model.step(stem)
        return model.step(stem.expand(GOALS), state.expand(GOALS), steer)

    return looked, (lambda: [model.backbone(images) for _ in range(GOALS)])


def training(model: LRM, images: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """A training step of two passes, and one of two bare passes."""

    def step(run: Callable[[], Sequence[Tensor]]) -> None:
        model.train().zero_grad()
        sum(output.square().mean() for output in run()).backward()

    return (
        lambda: step(lambda: model.rollout(images, 2)),
        lambda: step(lambda: [model.backbone(images) for _ in range(2)]),
    )


def rows(size: int, batch: int) -> dict[str, Callable[[], Row]]:
    """How to make the two sides of each row, and the ratio that it should not exceed."""
    one, many = torch.randn(1, 3, size, size), torch.randn(batch, 3, size, size)
    output = {name: find_backbone(name).output for name in NETWORKS}
    made: dict[str, Callable[[], Row]] = {
        f"{name}: 2 passes": lambda name=name: (*two_passes(network(name, size), one), 1.05) for name in NETWORKS
    }
    for name in NETWORKS[:2]:
        made[f"{name}: {GOALS} goals"] = lambda name=name: (*goals(network(name, size), one, output[name]), 1.0)
    made[f"resnet18, late connections: {GOALS} goals"] = lambda: (
        *goals(network("resnet18", size, LATE), one, "fc"),
        0.45,
    )
    made[f"resnet18: training step, batch {batch}"] = lambda: (*training(network("resnet18", size), many), 1.05)
    return made


def measure(ours: Callable[[], object], bare: Callable[[], object], rounds: int) -> dict[str, Any]:
    """The ratios of both sides, after a round that is not counted."""
    taken: dict[str, list[float]] = {"clock": [], "processors": []}
    for round_number in range(rounds + 1):
        times = [(time.perf_counter(), time.process_time())]
        for run in (ours, bare):
            run()
            times.append((time.perf_counter(), time.process_time()))
        if round_number:
            for kind, (start, middle, end) in zip(taken, zip(*times, strict=True), strict=True):
                taken[kind].append((middle - start) / (end - middle))
    return {kind: {"ratio": statistics.median(found), "ratios": found} for kind, found in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=16, help="images of a training step")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--json", metavar="FILE", help="write all ratios to this file")
    parser.add_argument("--readme", metavar="FILE", help="write the table between the markers of this file")
    given = parser.parse_args()
    if given.readme:
        try:
            around(given.readme, BEGIN, END)
        except ValueError as error:  # now, and not after everything was measured
            raise SystemExit(f"--readme: {error}") from None
    torch.set_num_threads(given.threads)
    print(f"{given.size} px, {given.rounds} rounds, {given.threads} thread(s)")
    found: dict[str, dict[str, Any]] = {}
    for name, make in rows(given.size, given.batch).items():
        if given.only in name:
            ours, bare, bar = make()
            with torch.set_grad_enabled("training" in name):
                found[name] = measured = {"bar": bar, **measure(ours, bare, given.rounds)}
            told = [f"{kind} {_spread(measured[kind]['ratios'])}" for kind in ("clock", "processors")]
            print(f"{name:<40} {'  '.join(told)}  bar {bar:.2f}", flush=True)
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump({"size": given.size, "threads": given.threads, "rows": found}, file, indent=1)
    if given.readme:
        replace_between(given.readme, BEGIN, END, table(found))


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table of the ratios."""
    lines = ["| over bare passes | by the clock | processor time | bar |", "| --- | --- | --- | --- |"]
    for name, row in found.items():
        clock, processors = (_spread(row[kind]["ratios"]) for kind in ("clock", "processors"))
        missed = ", **missed**" if round(row["processors"]["ratio"], 2) > row["bar"] else ""
        lines.append(f"| {name} | {clock} | {processors} | ≤ {row['bar']:.2f}{missed} |")
    return "\n".join(lines)


def _spread(ratios: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
