"""What a look costs, relative to a bare pass of the backbone: python benchmarks/look.py

A look is all of it: opening the photo, both passes, heatmap and verdict. The goals are made before. Each figure is the
median over rounds. In a round every variant runs once, so a slower machine affects all alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from steering import Steerer
from steering.images import open_image

WORDS = ("a cat", "a dog", "a tabby", "a cup", "a vehicle", "a chair", "a bird", "a keyboard", "a flower")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument("--image", default="sample:cat")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    steerer = Steerer.load(given.model)
    goals, network = steerer.goals(list(WORDS)), steerer.network
    pixels = network.pixels(open_image(given.image))

    @torch.inference_mode()
    def bare() -> object:
        return network.model.backbone(pixels)

    def look(number: int) -> Callable[[], Sequence[object]]:
        return lambda: steerer.look_many(given.image, goals[:number])

    variants: dict[str, Callable[[], object]] = {
        "bare pass": bare,
        "first pass": lambda: network.glance(pixels),
        "look, 1 query": look(1),
        "look, 9 queries": look(9),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(given.rounds + 2):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if round_number >= 2:
                seconds[name].append(1000 * (time.perf_counter() - start))
    base = statistics.median(seconds["bare pass"])
    print(f"{network.card['name']}, {pixels.shape[-1]} × {pixels.shape[-2]} px, {given.threads} thread(s)")
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"{name:<16} {middle:7.1f} ms  ({min(times):.1f} to {max(times):.1f})  {middle / base:5.2f} bare passes")
    further = [(nine - one) / 8 for one, nine in zip(seconds["look, 1 query"], seconds["look, 9 queries"], strict=True)]
    middle = statistics.median(further)
    print(f"{'a further query':<16} {middle:7.1f} ms  ({min(further):.1f} to {max(further):.1f})  {middle / base:5.2f}")


if __name__ == "__main__":
    main()
