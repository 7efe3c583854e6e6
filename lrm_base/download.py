"""Published files: download them into torch's own cache, check their hash, and read them.

A published file is called `NAME-HEX.pth`, where HEX is the start of its SHA-256. Unusual: a file is unpickled only if
its hash fits its name, and only tensors and plain containers are read from it (`weights_only=True`). An interrupted
download is resumed. Several processes may fill one cache: one of them downloads, and the others wait for it.
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

ATTEMPTS = 3  # after that many attempts in a row without a new byte, a broken connection is an error
PAUSE = 1.0  # seconds of pause after the first such attempt; twice as long after the second, and so on
TIMEOUT = 30.0  # seconds without any answer, after which a connection counts as broken
BLOCK = 1 << 18  # bytes
NAMED_HASH = re.compile(r"-([0-9a-f]{8,64})\.[^.]+$")

_checked: dict[tuple[Path, int, int], str] = {}  # (file, size, time of writing) → SHA-256


class DownloadError(ValueError):
    """A published file cannot be downloaded, or its hash does not fit its name. The message says what to do."""


class _Broken(Exception):
    """The connection ended before the file was complete."""


def fetch(
    url: str, *, sha256_prefix: str | None = None, folder: str | Path | None = None, progress: bool | None = None
) -> Path:
    """The local copy of a published file. It is downloaded if the cache lacks it, and checked once per process.

    Args:
        url: http or https; the last part of its path is the name of the file.
        sha256_prefix: the start of the file's SHA-256, 8 to 64 hex digits; None reads it from the name.
        folder: the cache; None is torch.hub's own (`TORCH_HOME`).
        progress: whether to show a bar on stderr; None shows it only on a terminal.

    Raises:
        DownloadError: there is no network or no such file, the connection broke again and again, the folder cannot be
            written, or the file has another hash. A download with another hash is removed. A file that was already
            there is left alone.
        ValueError: the address is not that of a file, or neither the name nor the call states a hash.
    """
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    if urlsplit(url).scheme not in ("http", "https") or name in ("", ".", ".."):
        raise ValueError(f"url: got {url!r}, expected the http address of a file")
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
    except OSError as error:  # an error of the disk; network errors are `DownloadError`s by now
        raise DownloadError(f"cannot write {target}: {error.strerror or error}. {_by_hand(url, target)}") from None
    return verify(target, prefix)


def hub_cache() -> Path:
    """The folder in which torch.hub keeps its files. `TORCH_HOME` and `torch.hub.set_dir` change it."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def verify(path: str | Path, sha256_prefix: str | None = None) -> Path:
    """Check the hash of a file, and return its path.

    Args:
        sha256_prefix: the start of its SHA-256, 8 to 64 hex digits; None reads it from the name.

    Raises:
        DownloadError: the file does not exist, or has another hash.
        ValueError: neither its name nor the call states a hash.
    """
    path = Path(path)
    prefix = _prefix(path, sha256_prefix)
    if not path.is_file():
        raise DownloadError(f"no file {path}")
    digest = _hash(path)
    if not digest.startswith(prefix):
        raise DownloadError(
            f"{path} is truncated or was altered: expected a SHA-256 that starts with {prefix}, got "
            f"{digest[: len(prefix)]}. Remove it, or put the right file there"
        )
    return path


def read_pth(path: str | Path) -> Any:
    """Read a `torch.save` file onto the CPU. It may hold tensors, numbers and containers of them, but no code.

    Check the file first, with `fetch` or `verify`.

    Raises:
        ValueError: the file is missing or damaged, or holds something else.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except Exception as error:  # another format can fail anywhere in the reader
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is damaged or holds more than weights: {reason}") from None


def load_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a `torch.save` file, bare or under the key `model` or `state_dict`. Its keys are not changed.

    Raises:
        ValueError: the file is missing or damaged, or holds no state dict.
    """
    import torch

    payload = unwrapped(read_pth(path))
    if not isinstance(payload, dict) or not payload:
        raise ValueError(f"{path}: got {_kind(payload)}, expected a state dict, bare or under 'model' or 'state_dict'")
    wrong = [str(key) for key, value in payload.items() if not (isinstance(key, str) and torch.is_tensor(value))]
    if wrong:
        raise ValueError(f"{path}: got no tensors at {', '.join(wrong[:8])}, expected a state dict of tensors")
    return payload


def unwrapped(payload: Any) -> Any:
    """The dict under the key `model` or `state_dict` of a published file; the payload itself if there is none."""
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
            raise ValueError(f"sha256_prefix: got {given!r}, expected 8 to 64 hex digits")
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
    """Complete the file `….partial` beside the target, check it, and rename it to the target."""
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
        digest = sha256_of(partial)
        if digest.startswith(prefix):
            os.replace(partial, target)
            _checked[_key(target)] = digest
            return
        partial.unlink()
        if not resumed:
            raise DownloadError(
                f"{url} is not {target.name}: expected a SHA-256 that starts with {prefix}, got "
                f"{digest[: len(prefix)]}; the download was removed. {_by_hand(url, target)}"
            )
        resumed = False  # the old part may have been wrong: try once more, from the start


def _transfer(url: str, partial: Path, target: Path, progress: bool | None) -> None:
    """Request the missing rest of the file once. Raises _Broken if the answer ends early."""
    offset = _size(partial)
    headers = {"User-Agent": "lrm-steering"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
            resumes = answer.status == 206 and f"bytes {offset}-" in answer.headers.get("Content-Range", "")
            if offset and not resumes:
                offset = 0  # the server sends the whole file
            length = answer.headers.get("Content-Length")
            total = None if length is None else offset + int(length)
            with partial.open("r+b" if offset else "wb") as stream:
                stream.seek(offset)
                _copy(answer, stream, total, progress, target.name)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and offset:  # the part is already complete, or longer than the file
            if error.headers.get("Content-Range", "").rpartition("/")[2] != str(offset):
                partial.unlink()
                _transfer(url, partial, target, progress)
            return
        if error.code in (408, 429, 500, 502, 503, 504):
            raise _Broken(f"the server answers {error.code} {error.reason}") from None
        raise DownloadError(f"{url}: the server answers {error.code} {error.reason}. {_by_hand(url, target)}") from None
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:  # the answer did not begin
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
