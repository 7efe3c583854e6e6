"""Published files, by address: fetched into torch's own cache, resumed, checked against the hash in their names, read.

A published file is called `NAME-HEX.pth`, where HEX is the start of its SHA-256. Unusual: what is not what its name
says is not unpickled, and of the rest only tensors and plain containers are (`weights_only=True`). Several processes
may fill one cache: one of them downloads, the others wait for it.
"""

from __future__ import annotations

import http.client
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote, urlsplit

from lrm_base.card import sha256_of

if TYPE_CHECKING:
    from torch import Tensor

ATTEMPTS = 3  # in a row that bring nothing new, before a broken connection is an error
PAUSE = 1.0  # seconds before another such attempt
TIMEOUT = 30.0  # seconds of silence
BLOCK = 1 << 18  # bytes
NAMED_HASH = re.compile(r"-([0-9a-f]{8,64})\.[^.]+$")

_checked: dict[tuple[Path, int, int], str] = {}  # (file, size, time of writing) → SHA-256, once in a process


class DownloadError(ValueError):
    """A published file that cannot be had, or is not what its name says. The message names the file and the remedy."""


class _Broken(Exception):
    """The connection ended before the file did."""


def fetch(
    url: str, *, sha256_prefix: str | None = None, folder: str | Path | None = None, progress: bool | None = None
) -> Path:
    """The local copy of a published file, downloaded unless the cache has it, and checked once in a process.

    Args:
        url: http or https; the last part of its path is the name of the file. sha256_prefix: start of the file's
            SHA-256 in hex, read from the name if None. folder: the cache; torch.hub's own (`TORCH_HOME`) if None.
        progress: a bar on stderr: always, never, or only on a terminal if None.

    Raises:
        DownloadError: there is no network or no such file, the connection broke again and again, the folder cannot be
            written, or the file has another hash. A download of another hash is removed; what the user put there is
            named and left alone.
        ValueError: neither the name nor the call states a hash.
    """
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    if urlsplit(url).scheme not in ("http", "https") or name in ("", ".", ".."):
        raise ValueError(f"expected the http address of a file, got {url!r}")
    prefix = _prefix(Path(name), sha256_prefix)
    target = (hub_cache() if folder is None else Path(folder).expanduser()) / name
    if target.exists():
        return verify(target, prefix)
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{name}.lock")):
            if not target.exists():
                _download(url, target, prefix, progress)
    except OSError as error:  # of the disk: those of the network have become `DownloadError`s
        raise DownloadError(f"cannot write {target}: {error.strerror or error}. {_by_hand(url, target)}") from None
    return verify(target, prefix)


def hub_cache() -> Path:
    """Where torch.hub keeps its files; whatever moves those (`TORCH_HOME`, `torch.hub.set_dir`) moves ours."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def verify(path: str | Path, sha256_prefix: str | None = None) -> Path:
    """The file itself, after its hash was compared with `sha256_prefix`, or with the one in its name if None.

    Raises:
        DownloadError: it does not exist, or has another hash. ValueError: neither its name nor the call states one.
    """
    path = Path(path)
    prefix = _prefix(path, sha256_prefix)
    if not path.is_file():
        raise DownloadError(f"no file {path}")
    found = _hash(path)
    if not found.startswith(prefix):
        raise DownloadError(
            f"{path} is truncated or was altered: expected a SHA-256 that starts with {prefix}, got "
            f"{found[: len(prefix)]}. Remove it, or put the right file there"
        )
    return path


def read_pth(path: str | Path) -> Any:
    """What a `torch.save` file holds, on the CPU: tensors, numbers and containers of them, and nothing that runs.

    Check the file first: see `fetch` and `verify`.

    Raises:
        ValueError: the file is missing or damaged, or holds something else.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except Exception as error:  # what is not its format fails at any place of the reader
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is damaged or holds more than weights: {reason}") from None


def load_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a `torch.save` file, which may lie under `model` or `state_dict`, with its keys as they are.

    Raises:
        ValueError: the file is missing or damaged, or holds no state dict.
    """
    import torch

    payload = unwrapped(read_pth(path))
    if not isinstance(payload, dict) or not payload:
        raise ValueError(f"{path}: expected a state dict, bare or under 'model' or 'state_dict', got {_kind(payload)}")
    wrong = [str(key) for key, value in payload.items() if not (isinstance(key, str) and torch.is_tensor(value))]
    if wrong:
        raise ValueError(f"{path}: expected a state dict of tensors; no tensors are {', '.join(wrong[:8])}")
    return payload


def unwrapped(payload: Any) -> Any:
    """What lies under `model` or `state_dict` in a published file, or the payload itself if nothing does."""
    if isinstance(payload, dict):
        for key in ("model", "state_dict"):
            if isinstance(payload.get(key), dict):
                return payload[key]
    return payload


def _kind(payload: Any) -> str:
    return "an empty dict" if payload == {} else type(payload).__name__


def _prefix(path: Path, given: str | None) -> str:
    named = NAMED_HASH.search(path.name)
    if given is not None:
        if not re.fullmatch("[0-9a-f]{8,64}", given.lower()):
            raise ValueError(f"sha256_prefix: expected 8 to 64 hex digits, got {given!r}")
        return given.lower()
    if named is None:
        stated = f"; its SHA-256 starts with {_hash(path)[:8]}" if path.is_file() else ""
        raise ValueError(
            f"{path}: expected a name that ends in -HEX.{path.suffix[1:] or 'pth'}, with 8 or more hex digits of the "
            f"file's SHA-256, so that it can be checked before it is read{stated}"
        )
    return named[1]


def _hash(path: Path) -> str:
    key = _key(path)
    if key not in _checked:
        _checked[key] = sha256_of(path)
    return _checked[key]


def _key(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path.resolve(), status.st_size, status.st_mtime_ns


def _download(url: str, target: Path, prefix: str, progress: bool | None) -> None:
    """Fill `….partial` beside the target, from where an earlier call left it, check it, and rename it."""
    partial = target.with_name(f"{target.name}.partial")
    resumed = partial.exists()
    failures = 0
    while True:
        before = _size(partial)
        try:
            _transfer(url, partial, target, progress)
        except _Broken as reason:
            failures = 0 if _size(partial) > before else failures + 1
            if failures < ATTEMPTS:
                time.sleep(PAUSE * failures)
                continue
            raise DownloadError(
                f"the connection broke again and again, last after {_size(partial):,} bytes of {url}: {reason}. "
                f"Call again to go on from there. {_by_hand(url, target)}"
            ) from None
        found = sha256_of(partial)
        if found.startswith(prefix):
            os.replace(partial, target)
            _checked[_key(target)] = found
            return
        partial.unlink()
        if not resumed:
            raise DownloadError(
                f"{url} is not {target.name}: expected a SHA-256 that starts with {prefix}, got "
                f"{found[: len(prefix)]}; the download was removed. {_by_hand(url, target)}"
            )
        resumed = False  # the old part may have been the wrong one: once more, from the start


def _transfer(url: str, partial: Path, target: Path, progress: bool | None) -> None:
    """One request for what the part still lacks. Raises _Broken if the answer ends early."""
    offset = _size(partial)
    headers = {"User-Agent": "lrm-steering"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
            resumes = answer.status == 206 and f"bytes {offset}-" in answer.headers.get("Content-Range", "")
            if offset and not resumes:
                offset = 0  # the server sends all of it
            length = answer.headers.get("Content-Length")
            total = None if length is None else offset + int(length)
            with partial.open("r+b" if offset else "wb") as stream:
                stream.seek(offset)
                _copy(answer, stream, total, progress, target.name)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and offset:  # the part is whole already, or longer than the file
            if error.headers.get("Content-Range", "").rpartition("/")[2] != str(offset):
                partial.unlink()
                _transfer(url, partial, target, progress)
            return
        if error.code in (408, 429, 500, 502, 503, 504):
            raise _Broken(f"the server answers {error.code} {error.reason}") from None
        raise DownloadError(f"{url}: the server answers {error.code} {error.reason}. {_by_hand(url, target)}") from None
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:  # before the first byte
        raise _Broken(str(error) or type(error).__name__) from None
    except urllib.error.URLError as error:
        raise DownloadError(f"cannot reach {url}: {error.reason}. {_by_hand(url, target)}") from None


def _copy(
    answer: http.client.HTTPResponse, stream: BinaryIO, total: int | None, progress: bool | None, name: str
) -> None:
    from tqdm import tqdm

    with tqdm(
        total=total,
        initial=stream.tell(),
        unit="B",
        unit_scale=True,
        desc=name,
        disable=None if progress is None else not progress,
    ) as bar:
        while True:
            try:
                block = answer.read(BLOCK)
            except (http.client.HTTPException, OSError) as error:
                raise _Broken(str(error) or type(error).__name__) from None
            if not block:
                break
            stream.write(block)
            bar.update(len(block))
    if total is not None and stream.tell() < total:
        raise _Broken(f"{total:,} bytes were announced")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _by_hand(url: str, target: Path) -> str:
    return f"By hand: fetch {target.name} from {url} and put it into {target.parent}"
