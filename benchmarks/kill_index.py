"""Check that killing `steer index` again and again does no harm: `python benchmarks/kill_index.py`.

There are 10,000 small files, and one in a hundred is no image. `steer index` is killed 20 times (SIGKILL) at random
moments and then runs to its end. It also runs once without a kill. The two galleries must agree in every column of
every row, and in the reasons why files were skipped.
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PROGRAM = Path(__file__).resolve().parent.parent / "steer_cli.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=12.0, help="seconds until a kill, at most (default 12)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as made:
        folder, killed, whole = (Path(made) / name for name in ("images", "killed", "whole"))
        images(folder, given.images)
        done = []
        for number in range(given.kills):
            process = start(folder, killed)
            time.sleep(chance.uniform(0.5, given.longest))
            ended = process.poll() is not None
            process.kill()
            process.wait()
            done.append(rows(killed))
            print(f"kill {number + 1}: {done[-1]:,} images{' (was done)' if ended else ''}", flush=True)
        if start(folder, killed).wait() or start(folder, whole).wait():
            return 1
        one, other = contents(killed), contents(whole)
        differ = [name for name in other if one.get(name) != other[name]]
        lost, doubled = len(other.keys() - one.keys()), len(one.keys() - other.keys())
        print(f"{len(one):,} of {len(other):,} images; lost {lost}, too many {doubled}, different {len(differ)}")
        backwards = sum(later < earlier for earlier, later in itertools.pairwise(done))
        print(f"committed images that a kill took away again: {backwards}")
        return 0 if one == other and not backwards else 1


def start(folder: Path, gallery: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(PROGRAM), "index", str(folder), "--gallery", str(gallery), "--quiet"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def images(folder: Path, count: int) -> None:
    from steering.images import open_image

    rng = np.random.default_rng(0)
    sample = open_image("sample:coffee")
    for number in range(count):
        below = folder / f"{number // 500:03d}"
        below.mkdir(parents=True, exist_ok=True)
        if number % 100 == 99:
            (below / f"{number:05d}.jpg").write_bytes(b"no image")
            continue
        left, top = int(rng.integers(0, sample.width - 80)), int(rng.integers(0, sample.height - 80))
        part = sample.crop((left, top, left + 64, top + 64))
        Image.blend(part, Image.new("RGB", part.size, tuple(rng.integers(0, 255, 3).tolist())), 0.3).save(
            below / f"{number:05d}.jpg"
        )


def rows(gallery: Path) -> int:
    from steering.errors import GalleryError
    from steering.search.store import Store

    try:
        return Store.open(gallery).count()
    except GalleryError:  # killed before there was a gallery
        return 0


def contents(gallery: Path) -> dict[str, Any]:
    """Every column of every row, and why other files were skipped. Fails if a name has two rows."""
    from steering.search.store import Store

    entries: list[dict[str, Any]] = []
    store = Store.open(gallery)
    for table in (store.images, store.skipped):
        names = [field.name for field in table.now().schema]
        entries += [row for batch in table.batches(names) for row in batch.to_pylist()]
    by_name = {row["path"]: row for row in entries}
    if len(by_name) < len(entries):
        raise SystemExit(f"{len(entries) - len(by_name)} names have two rows")
    return by_name


if __name__ == "__main__":
    sys.exit(main())
