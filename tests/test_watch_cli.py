"""`steer index --watch` in a process of its own, with real files: the gallery follows the folder until Ctrl-C."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steering.images import open_image
from steering.search.store import Store
from tests.commands import steer

ROOT = Path(__file__).resolve().parent.parent
COUNTS = ("new", "changed", "renamed", "deleted", "skipped")


class Watching:
    """`steer index --watch` as a process, and the lines that it prints."""

    def __init__(self, folder: Path, gallery: Path, *options: str) -> None:
        line = [sys.executable, str(ROOT / "steer_cli.py"), "index", str(folder), "--watch", "--gallery", str(gallery)]
        self.process = subprocess.Popen(
            [*line, "--interval", "0.2", "--workers", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def line(self, seconds: float = 100) -> str:
        return self._lines.get(timeout=seconds)

    def counts(self) -> dict[str, int]:
        """What the next batch did: the counts that are not 0."""
        report = json.loads(self.line())
        numbers = {key: report[key] if key != "skipped" else len(report[key]) for key in COUNTS}
        return {key: count for key, count in numbers.items() if count}

    def is_silent(self, seconds: float) -> bool:
        time.sleep(seconds)
        return self._lines.empty()

    def interrupt(self) -> str:
        """Ctrl-C. Returns what was written to stderr, if the process ends well."""
        self.process.send_signal(signal.SIGINT)
        _, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, err
        assert "Traceback" not in err
        return err


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    open_image("sample:cat").save(folder / "cat.png")
    return folder


@pytest.fixture
def watching(photos: Path, tmp_path: Path) -> Iterator[Watching]:
    process = Watching(photos, tmp_path / "gallery", "--json", "--quiet")
    yield process
    process.process.kill()
    process.process.communicate()


def rows(gallery: Path) -> dict[str, Any]:
    """The hash of each image of a gallery, by its file's name."""
    return {Path(name).name: sha for name, _, _, sha in Store.open(gallery).known()}


def test_the_gallery_follows_the_folder_until_ctrl_c(photos: Path, tmp_path: Path, watching: Watching):
    gallery = tmp_path / "gallery"
    first = json.loads(watching.line())
    assert (first["gallery"], first["new"], first["images"]) == (str(gallery), 1, 1)

    open_image("sample:coffee").save(photos / "coffee.png")
    assert watching.counts() == {"new": 1}
    before = rows(gallery)
    assert set(before) == {"cat.png", "coffee.png"}

    open_image("sample:cat").rotate(180).save(photos / "cat.png")
    assert watching.counts() == {"changed": 1}
    assert rows(gallery)["cat.png"] != before["cat.png"]

    (photos / "sub").mkdir()
    (photos / "coffee.png").rename(photos / "sub" / "cup.png")
    assert watching.counts() == {"renamed": 1}
    assert rows(gallery)["cup.png"] == before["coffee.png"]

    (photos / "cat.png").unlink()
    assert watching.counts() == {"deleted": 1}
    assert set(rows(gallery)) == {"cup.png"}

    (photos / "bad.jpg").write_bytes(b"no image")
    assert watching.counts() == {"skipped": 1}
    open_image("sample:cat").save(photos / "again.png")
    assert watching.counts() == {"new": 1}  # the bad file is not told again

    os.utime(photos / "again.png")  # touched, with the same content
    assert watching.is_silent(3)
    assert watching.interrupt() == ""
    assert steer("index", photos, "--gallery", gallery, "--workers", "0", "--json") == 0
    assert set(rows(gallery)) == {"cup.png", "again.png", "bad.jpg"}


def test_a_file_that_is_still_being_written_is_not_read(photos: Path, tmp_path: Path, watching: Watching):
    assert watching.counts() == {"new": 1}
    source = tmp_path / "coffee.jpg"
    open_image("sample:coffee").save(source, quality=95)
    whole = source.read_bytes()
    with (photos / "coffee.jpg").open("wb") as file:
        for part in range(16):  # it is cut off for four seconds, and could be read in part all the while
            file.write(whole[part * len(whole) // 16 : (part + 1) * len(whole) // 16])
            file.flush()
            time.sleep(0.25)
            assert watching.is_silent(0)
    report = json.loads(watching.line())
    assert (report["new"], report["changed"], report["notes"], report["skipped"]) == (1, 0, [], [])
    assert steer("index", photos, "--gallery", tmp_path / "other", "--workers", "0", "--quiet") == 0
    assert rows(tmp_path / "gallery") == rows(tmp_path / "other")
    assert watching.is_silent(2)


def test_what_is_half_written_at_the_start_waits_too(photos: Path, tmp_path: Path):
    source = tmp_path / "coffee.png"
    open_image("sample:coffee").save(source)
    ahead = time.time() + 3600  # the clock of a file server; otherwise the start is slower than a rest
    (photos / "coffee.png").write_bytes(source.read_bytes()[:200_000])
    os.utime(photos / "coffee.png", (ahead, ahead))
    watching = Watching(photos, tmp_path / "gallery", "--json", "--quiet")
    try:
        assert watching.counts() == {"new": 1}
        shutil.copy(source, photos / "coffee.png")
        report = json.loads(watching.line())
        assert (report["new"], report["changed"], report["notes"]) == (1, 0, [])
        watching.interrupt()
    finally:
        watching.process.kill()


def test_a_folder_that_goes_away_is_waited_for(photos: Path, tmp_path: Path, watching: Watching):
    assert watching.counts() == {"new": 1}
    photos.rename(tmp_path / "away")
    report = json.loads(watching.line())
    assert (report["unlisted"], report["deleted"], report["images"]) == (
        {str(photos): "is not there now; what was indexed below it was kept"},
        0,
        1,
    )
    assert watching.is_silent(1)
    open_image("sample:coffee").save(tmp_path / "away" / "coffee.png")
    (tmp_path / "away").rename(photos)
    assert watching.counts() == {"new": 1}
    assert watching.interrupt() == ""


def test_each_batch_is_a_line_and_notes_come_once(photos: Path, tmp_path: Path):
    (photos / "bad.jpg").write_bytes(b"no image")
    (photos / "old.psd").write_bytes(b"x")
    watching = Watching(photos, tmp_path / "gallery", "--exclude", "*.gif")
    try:
        assert "1 images (" not in (first := watching.line())
        assert "1 image (1 new, 0 changed, 0 renamed, 0 deleted, 0 unchanged; " in first
        assert "images/s" in watching.line()
        for name in ("a.png", "b.png"):
            shutil.copy(photos / "cat.png", photos / name)
        (photos / "c.gif").write_bytes(b"left out")
        assert watching.line().split("  ")[1] == "2 new; 3 images\n"
        (photos / "a.png").unlink()
        assert watching.line().split("  ")[1] == "1 deleted; 2 images\n"
        err = watching.interrupt()
    finally:
        watching.process.kill()
    assert err.count("bad.jpg: is not an image") == 1
    assert err.count(".psd: 1 file is not read") == 1
    assert f"steer: watching {photos}; Ctrl-C ends\n" in err


def test_an_interrupt_of_the_first_batch_ends_it_well_too(photos: Path, tmp_path: Path):
    for number in range(300):
        open_image("sample:cat").crop((number % 90, 0, 300, 200)).save(photos / f"{number}.png")
    stamp = time.time() - 60
    for path in photos.iterdir():
        os.utime(path, (stamp, stamp))
    watching = Watching(photos, tmp_path / "gallery")
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "gallery" / "images.lance").is_dir() and time.monotonic() < deadline:
            time.sleep(0.05)
        watching.interrupt()
    finally:
        watching.process.kill()
    assert steer("index", photos, "--gallery", tmp_path / "gallery", "--workers", "0", "--quiet") == 0
    assert len(rows(tmp_path / "gallery")) == 301


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--interval", "3"), "--interval: expected --watch with it"),
        (("--watch", "--interval", "0"), "expected a number of seconds from 0.1 to 86400"),
        (("--watch", "--exclude", ""), "--exclude: got '', expected a pattern"),
    ],
)
def test_mistakes_are_told_in_a_line(options: tuple[str, ...], message: str, photos: Path, tmp_path: Path, capsys):
    assert steer("index", photos, "--gallery", tmp_path / "gallery", *options) == 2
    assert message in capsys.readouterr().err
    assert steer("index", tmp_path / "phtos", "--watch", "--gallery", tmp_path / "gallery") == 2
    assert "phtos: no such file or folder" in capsys.readouterr().err
