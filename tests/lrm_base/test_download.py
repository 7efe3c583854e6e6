"""Published files over a local HTTP server: with and without ranges, cut, truncated, tampered with, or not there."""

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from lrm_base import download
from lrm_base.download import DownloadError, fetch, load_checkpoint, read_pth, verify

ROOT = Path(__file__).resolve().parents[2]
DATA = bytes(torch.randint(256, (700_001,), generator=torch.Generator().manual_seed(0)).tolist())
HASH = hashlib.sha256(DATA).hexdigest()
NAME = f"weights_final-{HASH[:10]}.pth"


class Server(ThreadingHTTPServer):
    """Serves `data` under every path. `cuts`: bytes after which each of the next answers breaks off."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.ranges, self.cuts, self.status, self.asked = DATA, True, [], 200, []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.url = f"http://127.0.0.1:{self.server_port}/some/where/{NAME}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        server.may_answer.wait(60)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        if server.status != 200:
            self.send_error(server.status)
            return
        if start and start >= len(server.data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if asked and server.ranges else 200)
        if asked and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}")
        self.send_header("Content-Length", str(len(server.data) - start))
        self.end_headers()
        self.wfile.write(server.data[start : start + server.cuts.pop(0)] if server.cuts else server.data[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.may_answer.set()
        server.shutdown()
        thread.join()


def part(folder, data):
    (folder / f"{NAME}.partial").write_bytes(data)


def left(folder):
    """What is in the cache but for the lock."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_fetched_once_and_then_found_in_the_cache(server, tmp_path):
    first = fetch(server.url, folder=tmp_path / "new" / "cache")
    assert first == tmp_path / "new" / "cache" / NAME
    assert first.read_bytes() == DATA
    assert fetch(server.url, folder=first.parent) == first
    assert server.asked == [None]
    assert left(first.parent) == [NAME]


def test_the_cache_is_that_of_torch_hub(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    assert fetch(server.url) == tmp_path / "hub" / "checkpoints" / NAME
    torch.hub.set_dir(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "checkpoints").mkdir(parents=True)
    (tmp_path / "elsewhere" / "checkpoints" / NAME).write_bytes(DATA)
    assert fetch(server.url) == tmp_path / "elsewhere" / "checkpoints" / NAME
    assert len(server.asked) == 1


def test_an_interrupted_download_goes_on_where_it_was_left(server, tmp_path):
    part(tmp_path, DATA[:250_000])
    assert fetch(server.url, folder=tmp_path).read_bytes() == DATA
    assert server.asked == ["bytes=250000-"]
    assert left(tmp_path) == [NAME]


def test_a_server_without_ranges_sends_all_of_it_again(server, tmp_path):
    server.ranges = False
    part(tmp_path, b"x" * 250_000)
    assert fetch(server.url, folder=tmp_path).read_bytes() == DATA
    assert server.asked == ["bytes=250000-"]


def test_a_part_that_is_already_whole_is_taken(server, tmp_path):
    part(tmp_path, DATA)
    assert fetch(server.url, folder=tmp_path).read_bytes() == DATA
    assert server.asked == [f"bytes={len(DATA)}-"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_part_longer_than_the_file_is_dropped(server, tmp_path, ranges):
    server.ranges = ranges
    part(tmp_path, DATA + b"more")
    assert fetch(server.url, folder=tmp_path).read_bytes() == DATA


def test_a_part_of_something_else_is_dropped(server, tmp_path):
    """What an older file of the same name left behind: the hash tells, and the download begins anew."""
    part(tmp_path, b"x" * 250_000)
    assert fetch(server.url, folder=tmp_path).read_bytes() == DATA
    assert server.asked == ["bytes=250000-", None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_midway_is_taken_up_again(server, tmp_path, ranges):
    server.ranges, server.cuts = ranges, [300_000, 100_000]
    assert fetch(server.url, folder=tmp_path).read_bytes() == DATA
    assert server.asked == [None, "bytes=300000-", "bytes=400000-" if ranges else "bytes=100000-"]


def test_a_connection_that_keeps_breaking_is_an_error_and_the_next_call_goes_on(server, tmp_path):
    server.cuts = [300_000] + [0] * download.ATTEMPTS
    with pytest.raises(DownloadError, match=r"300,000 bytes of .*700,001 bytes were announced.*Call again") as caught:
        fetch(server.url, folder=tmp_path)
    assert server.url in str(caught.value)
    assert left(tmp_path) == [f"{NAME}.partial"]
    assert fetch(server.url, folder=tmp_path).read_bytes() == DATA
    assert server.asked[-1] == "bytes=300000-"


@pytest.mark.parametrize(
    "served",
    [DATA[:-1], DATA[:400_000], b"<html>Sign in</html>", DATA[:5000] + b"!" + DATA[5001:], b""],
    ids=["a byte short", "truncated", "another page", "tampered", "empty"],
)
def test_what_has_another_hash_is_refused_and_removed(server, tmp_path, served):
    server.data = served
    found = hashlib.sha256(served).hexdigest()[:10]
    with pytest.raises(DownloadError, match=f"starts with {HASH[:10]}, got {found}; the download was removed") as error:
        fetch(server.url, folder=tmp_path)
    assert NAME in str(error.value)
    assert left(tmp_path) == []


@pytest.mark.parametrize("damaged", [DATA[:-1], b"!" + DATA[1:]], ids=["truncated", "tampered"])
def test_a_bad_file_that_the_user_put_there_is_named_and_left_alone(server, tmp_path, damaged):
    (tmp_path / NAME).write_bytes(damaged)
    with pytest.raises(DownloadError, match=f"starts with {HASH[:10]}, got .*Remove it") as caught:
        fetch(server.url, folder=tmp_path)
    assert str(tmp_path / NAME) in str(caught.value)
    assert (tmp_path / NAME).read_bytes() == damaged
    assert server.asked == []


def test_a_file_that_changes_is_checked_anew(server, tmp_path):
    path = fetch(server.url, folder=tmp_path)
    path.write_bytes(DATA[:-1])
    with pytest.raises(DownloadError, match="truncated or was altered"):
        fetch(server.url, folder=tmp_path)


def test_a_missing_file_is_named_with_its_address(server, tmp_path):
    server.status = 404
    with pytest.raises(DownloadError, match="404 Not Found") as caught:
        fetch(server.url, folder=tmp_path)
    assert f"fetch {NAME} from {server.url} and put it into {tmp_path}" in str(caught.value)
    assert len(server.asked) == 1


def test_a_server_that_is_overloaded_is_asked_again(server, tmp_path):
    server.status = 503
    with pytest.raises(DownloadError, match="503 Service Unavailable"):
        fetch(server.url, folder=tmp_path)
    assert len(server.asked) == download.ATTEMPTS


def test_without_a_network_the_error_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as unused:  # bound and not listening: nobody else answers there
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/{NAME}"
        with pytest.raises(DownloadError, match="cannot reach") as caught:
            fetch(url, folder=tmp_path)
    assert f"fetch {NAME} from {url} and put it into {tmp_path}" in str(caught.value)
    (tmp_path / NAME).write_bytes(DATA)
    assert fetch(url, folder=tmp_path).read_bytes() == DATA


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DownloadError, match="cannot write") as caught:
        fetch(server.url, folder=tmp_path / "file")
    assert str(tmp_path / "file" / NAME) in str(caught.value)


def test_two_processes_fill_one_cache_with_one_download(server, tmp_path):
    program = (
        "import sys; from lrm_base.download import fetch; print('ready', flush=True); "
        "print(fetch(sys.argv[1], folder=sys.argv[2]))"
    )
    server.may_answer.clear()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, server.url, str(tmp_path)]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    time.sleep(0.3)  # both are past the look into the cache; were there no lock, both would ask
    server.may_answer.set()
    assert [process.communicate(timeout=60)[0].strip() for process in both] == [str(tmp_path / NAME)] * 2
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / NAME).read_bytes() == DATA
    assert server.asked == [None]


def test_progress_is_shown_when_asked_for_and_on_a_terminal_only(server, tmp_path, capsys):
    fetch(server.url, folder=tmp_path / "a")
    assert capsys.readouterr().err == ""
    fetch(server.url, folder=tmp_path / "b", progress=True)
    assert NAME in capsys.readouterr().err
    assert capsys.readouterr().out == ""


def test_an_address_without_a_hash_needs_one_said(server, tmp_path):
    url = server.url.replace(NAME, "weights.pth")
    with pytest.raises(ValueError, match=r"weights.pth: expected a name that ends in -HEX.pth"):
        fetch(url, folder=tmp_path)
    assert fetch(url, folder=tmp_path, sha256_prefix=HASH.upper()).read_bytes() == DATA
    with pytest.raises(ValueError, match="sha256_prefix: got '1234', expected 8 to 64 hex digits"):
        fetch(url, folder=tmp_path, sha256_prefix="1234")


@pytest.mark.parametrize("url", ["file:///etc/hosts-12345678.txt", "https://host/", "weights-12345678.pth"])
def test_what_is_not_the_http_address_of_a_file_is_refused(url, tmp_path):
    with pytest.raises(ValueError, match="expected the http address of a file"):
        fetch(url, folder=tmp_path)


def test_a_file_of_ones_own_is_checked_by_its_name(tmp_path):
    path = tmp_path / NAME
    with pytest.raises(DownloadError, match="no file"):
        verify(path)
    path.write_bytes(DATA)
    assert verify(path) == path
    renamed = path.rename(tmp_path / "mine.pth")
    with pytest.raises(ValueError, match=f"its SHA-256 starts with {HASH[:8]}"):
        verify(renamed)


@pytest.mark.parametrize("under", [None, "model", "state_dict"])
def test_a_checkpoint_is_read_from_where_it_lies(tmp_path, under):
    weights = OrderedDict({"module.a": torch.arange(3.0)})
    torch.save(weights if under is None else {under: weights, "epoch": 3}, tmp_path / "a.pth")
    found = load_checkpoint(tmp_path / "a.pth")
    assert found.keys() == weights.keys()
    assert torch.equal(found["module.a"], weights["module.a"])


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "a.pth"
    with pytest.raises(ValueError, match=r"no file .*a\.pth"):
        load_checkpoint(path)
    torch.save({"a": torch.arange(1000.0)}, path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:3], b"", b"not a checkpoint", b"\x80\x02garbage"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.pth is damaged or holds more than weights"):
            load_checkpoint(path)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1), "b": Fraction(1, 2)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds more than weights"):
        read_pth(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ([torch.zeros(1)], "got list"),
        ({}, "got an empty dict"),
        ({"model": {}}, "got an empty dict"),
        ({"a": torch.zeros(1), "epoch": 3}, "no tensors at epoch, expected"),
        ({0: torch.zeros(1)}, "no tensors at 0, expected"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, payload, said):
    torch.save(payload, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=said):
        load_checkpoint(tmp_path / "a.pth")
