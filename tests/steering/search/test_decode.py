"""Reading images in worker processes: what is wrong with one costs that one."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from lrm_base.frame import Frame
from steering.images import open_image
from steering.search import decode
from steering.search.decode import Decoded, Same, Task, difference_hash, pixels_of, read, read_all
from steering.search.files import Entry, Unreadable


def task(path: Path, *known: str) -> Task:
    return Task(Entry(str(path), path.stat().st_size, 1, str(path)), frozenset(known))


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    cat = open_image("sample:cat")
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for index, path in enumerate(paths):
        cat.crop((index, 0, 90 + index, 60)).save(path)
    return paths


def test_an_image_is_hashed_and_shrunk_as_the_steerer_does_it(photos: list[Path], toy):
    seen = read(task(photos[0]), Frame(32))
    assert isinstance(seen, Decoded)
    assert seen.sha256 == hashlib.sha256(photos[0].read_bytes()).hexdigest()
    assert (seen.width, seen.height, seen.size) == (90, 60, photos[0].stat().st_size)
    np.testing.assert_array_equal(toy.network.as_input(seen.pixels[None]), toy.network.pixels(open_image(photos[0])))
    np.testing.assert_array_equal(pixels_of(str(photos[0]), Frame(32)), seen.pixels)


def test_what_is_told_of_an_image_goes_with_it(photos: list[Path]):
    seen = read(task(photos[0]), Frame(32))
    assert isinstance(seen, Decoded)
    assert seen.note == ""
    clear = Image.open(photos[1]).convert("RGBA")
    clear.putalpha(99)
    clear.save(photos[1])
    seen = read(task(photos[1]), Frame(32))
    assert isinstance(seen, Decoded)
    assert seen.note == open_image(photos[1]).info["note"] != ""


def test_content_that_is_known_is_not_decoded(photos: list[Path]):
    sha = hashlib.sha256(photos[0].read_bytes()).hexdigest()
    assert read(task(photos[0], sha), Frame(32)) == Same(str(photos[0]), photos[0].stat().st_size, 1, sha)


def test_bytes_pictures_and_arrays_are_read_too(photos: list[Path]):
    picture = Image.open(photos[0])
    array = np.asarray(picture)
    seen = [read(Task(Entry("x", 0, 0, c)), Frame(32)) for c in (photos[0].read_bytes(), picture, array)]
    for item in seen:
        assert isinstance(item, Decoded)
        np.testing.assert_array_equal(item.pixels, seen[0].pixels)
    assert seen[1].sha256 == seen[2].sha256 != seen[0].sha256


def test_workers_give_the_same_in_the_same_order(photos: list[Path]):
    tasks = [task(path) for path in photos * 8]
    alone, together = list(read_all(tasks, Frame(32), 0)), list(read_all(iter(tasks), Frame(32), 2))
    assert [item.name for item in together] == [str(path) for path in photos * 8]
    for one, other in zip(alone, together, strict=True):
        assert isinstance(one, Decoded)
        assert isinstance(other, Decoded)
        assert one.sha256 == other.sha256
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_workers_end_with_a_process_that_was_killed(photos: list[Path]):
    code = """
import sys
from lrm_base.frame import Frame
from steering.search.decode import Task, read_all
from steering.search.files import Entry
results = read_all((Task(Entry(sys.argv[1], 0, 1, sys.argv[1])) for _ in range(10**6)), Frame(32), 2)
next(results)
print("ready", flush=True)
for _ in results:
    pass
"""
    with subprocess.Popen([sys.executable, "-c", code, str(photos[0])], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        workers = [p for p in psutil.Process(process.pid).children() if "popen_loky" in " ".join(p.cmdline())]
        assert len(workers) == 2
        process.kill()
        _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


class Deadly:
    """Kills the process that unpickles it, as a decoder that crashes does."""

    def __reduce__(self):
        return (os._exit, (1,))


def test_a_worker_that_dies_costs_the_image_that_killed_it_and_no_other(photos: list[Path]):
    tasks = [task(path) for path in photos]
    tasks.insert(2, Task(Entry("deadly", 0, 0, Deadly())))
    tasks += [task(path) for path in photos * 8]
    seen = list(read_all(tasks, Frame(32), 2))
    assert len(seen) == len(tasks)
    assert {item.name for item in seen} == {"deadly", *map(str, photos)}
    bad = [item for item in seen if not isinstance(item, Decoded)]
    assert bad == [Unreadable("deadly", 0, 0, "made its reader crash")]
    assert sum(item.name == str(photos[0]) for item in seen) == 9  # none read twice


def test_few_images_are_in_flight_however_many_there_are(photos: list[Path]):
    asked = 0

    def tasks():
        nonlocal asked
        for _ in range(2000):
            asked += 1
            yield task(photos[0])

    results = read_all(tasks(), Frame(32), 2)
    next(results)
    assert asked <= 2 * 4 * decode.CHUNK
    results.close()


def test_the_difference_hash_is_that_of_a_gradient_whatever_the_size():
    ramp = Image.fromarray(np.tile(np.arange(0, 180, 2, dtype=np.uint8), (60, 1)))
    assert difference_hash(ramp) == difference_hash(ramp.resize((31, 17))) == -1  # rises everywhere: all bits set
    assert difference_hash(ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0
