"""Galleries of the toy network over small photographs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from steering import Gallery, Steerer
from steering.images import open_image
from steering.search.report import Report

Photos = Callable[..., list[Path]]


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    """Makes different small photographs, `photos(3, folder="a")`: crops of the cat."""
    cat = open_image("sample:cat")

    def make(count: int, folder: str = "photos", first: int = 0) -> list[Path]:
        where = tmp_path / folder
        where.mkdir(parents=True, exist_ok=True)
        paths = []
        for index in range(first, first + count):
            left, top = 7 * index % 350, 11 * index % 200
            path = where / f"{index:04d}.png"
            cat.crop((left, top, left + 60 + index % 30, top + 50)).save(path)
            paths.append(path)
        return paths

    return make


@pytest.fixture
def gallery(tmp_path: Path, toy: Steerer) -> Gallery:
    return Gallery.open(tmp_path / "gallery", toy)


def _contents(gallery: Gallery) -> dict[str, Any]:
    """Everything that a gallery holds, by name."""
    names = [field.name for field in gallery.store.images.now().schema]
    rows = [row for batch in gallery.store.images.batches(names) for row in batch.to_pylist()]
    assert len({row["path"] for row in rows}) == len(rows), "a name stands twice"
    return {row.pop("path"): row for row in rows}


def _counts(report: Report) -> dict[str, int]:
    """The counts that are not zero."""
    values = {key: getattr(report, key) for key in ("new", "changed", "renamed", "deleted", "unchanged")}
    values["skipped"] = len(report.skipped)
    assert report.found == sum(values.values()) - report.deleted
    return {key: value for key, value in values.items() if value}


def _show(path: Path, sample: str = "sample:coffee", size: int = 64) -> Path:
    """Another photograph under a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    open_image(sample).resize((size, size), Image.Resampling.BOX).save(path)
    return path


@pytest.fixture
def contents() -> Callable[[Gallery], dict[str, Any]]:
    return _contents


@pytest.fixture
def counts() -> Callable[[Report], dict[str, int]]:
    return _counts


@pytest.fixture
def show() -> Callable[..., Path]:
    return _show
