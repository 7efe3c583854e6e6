"""Indexing on a Ray cluster of two workers on this machine: the same gallery, whoever dies on the way."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from steering import Gallery, Steerer

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.timeout(600),  # a cluster starts in ten seconds, and in minutes on a busy machine
    pytest.mark.filterwarnings("ignore"),  # Ray and Lance warn of each other's forks
    pytest.mark.xdist_group("ray"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One for all tests of this file, as a user's own would be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        yield
        ray.shutdown()


def test_a_killed_worker_loses_nothing_and_the_gallery_is_that_of_one_machine(
    tmp_path: Path, toy: Steerer, toy_folder: Path, photos, contents, counts, cluster
):
    from steering.search.ray_engine import ray_engine

    folder = photos(200)[0].parent
    (folder / "bad.png").write_bytes(b"no image")
    here, there = (Gallery.open(tmp_path / name, toy) for name in ("here", "there"))
    killed: list[int] = []

    def kill(results, count, report):
        for item in results:
            if not killed:
                workers = [p for p in psutil.process_iter(["cmdline"]) if _is_actor(p)]
                assert len(workers) == 2
                workers[0].kill()
                killed.append(workers[0].pid)
            yield item

    report = there.add(folder, engine=ray_engine(str(toy_folder), workers=2), progress=kill)
    assert killed
    assert counts(report) == {"new": 200, "skipped": 1}
    here.add(folder, workers=0)
    assert contents(there) == contents(here)
    assert there.skipped() == here.skipped()


def _is_actor(process: psutil.Process) -> bool:
    return (process.info["cmdline"] or [""])[0].startswith("ray::MapWorker")


class Deadly:
    """Kills the process that unpickles it a second time: the task reaches a worker, and takes it along."""

    def __reduce__(self):
        return (_die_in_a_worker, ())


def _die_in_a_worker() -> object:
    import os

    if "ray" in psutil.Process().cmdline()[0] or "loky" in " ".join(psutil.Process().cmdline()):
        os._exit(1)
    return Deadly()


def test_an_image_that_kills_every_reader_costs_only_itself(toy_folder: Path, toy: Steerer, gallery, photos, cluster):
    from steering.search.ray_engine import ray_engine

    pairs = [(path.name, path) for path in photos(20)]
    pairs.insert(5, ("deadly", Deadly()))
    report = gallery.add(pairs, engine=ray_engine(str(toy_folder), workers=1))
    assert report.new == 20
    assert report.skipped == {"deadly": "made its reader crash"}


def test_actors_load_the_model_that_is_the_default_in_this_process(toy_folder: Path, monkeypatch: pytest.MonkeyPatch):
    from steering.catalogue import MODEL_VARIABLE
    from steering.search import ray_engine
    from steering.search.decode import Task
    from steering.search.files import Entry

    given: list[tuple] = []
    monkeypatch.setenv(MODEL_VARIABLE, str(toy_folder))
    monkeypatch.setattr(ray_engine, "_connect", lambda address: False)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray_engine, "_pipeline", lambda *rest: given.append(rest[-1]["fn_constructor_args"]) or ())
    assert list(ray_engine.ray_engine(device="cpu")([Task(Entry("cat", 0, 0, "sample:cat"))])) == []
    assert given == [(str(toy_folder), "cpu", False)]


def test_a_cluster_that_does_not_answer_is_told(toy_folder: Path, toy: Steerer):
    from steering.search import ray_engine

    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(ValueError, match=r"address: got '127\.0\.0\.1:1', but no Ray cluster answers there"):
        ray_engine._connect("127.0.0.1:1")


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"workers": 10**9}, {"gpus": -1.0}, {"gpus": float("nan")}])
def test_numbers_of_a_cluster_are_checked_before_it_starts(wrong: dict):
    from steering.search.ray_engine import ray_engine

    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: got"):
        ray_engine(**wrong)
