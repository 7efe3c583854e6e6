"""Measure a cold look, the whole process, relative to importing torch: python benchmarks/cold.py

In a round each command runs once, so a slower machine affects both alike. The first round is not counted: it compiles
the bytecode of both. The look is what `steer --query "a dog" --json sample:cat` does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORT = "import torch"
LOOK = "import sys, steer_cli; sys.exit(steer_cli.main())"  # as the installed command starts


def measure(line: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds by the clock, and seconds of processors, that a process takes.

    Raises:
        subprocess.CalledProcessError: it fails.
    """
    before, start = os.times(), time.perf_counter()
    subprocess.run(line, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    after, seconds = os.times(), time.perf_counter() - start
    busy = (after.children_user + after.children_system) - (before.children_user + before.children_system)
    return seconds, busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", default="sample:cat")
    parser.add_argument("--query", default="a dog")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    commands = {
        "import torch": [sys.executable, "-c", IMPORT],
        "a cold look": [sys.executable, "-c", LOOK, "--query", given.query, "--json", given.image],
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for round_number in range(given.rounds + 1):
        for name, line in commands.items():
            measured = measure(line, environment)
            if round_number:
                taken[name].append(measured)
    threads = os.environ.get("OMP_NUM_THREADS", "as many as there are processors")
    print(f"{given.rounds} rounds, threads: {threads}")
    for kind, what in enumerate(("by the clock", "of processors")):
        plain, look = ([values[kind] for values in taken[name]] for name in commands)
        ratios = [b / a for a, b in zip(plain, look, strict=True)]
        told = [
            f"{name} {statistics.median(values):.2f} s" for name, values in zip(commands, (plain, look), strict=True)
        ]
        spread = f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{what:<14} {', '.join(told)}: {spread}")


if __name__ == "__main__":
    main()
