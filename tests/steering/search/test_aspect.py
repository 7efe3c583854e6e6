"""Photographs that keep their aspect: looks, heatmaps and galleries of frames of several shapes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrm_core.backbones import Preprocessing
from steering import Gallery, Steerer
from steering.images import open_image
from steering.network import Network
from steering.search.decode import Task, read
from steering.search.engine import first_passes
from steering.search.files import Entry

SIZES = ((90, 60), (60, 90), (64, 64), (200, 20), (97, 61), (30, 300))


@pytest.fixture(scope="module")
def wide(toy: Steerer) -> Steerer:
    """The toy steerer, whose network sees photographs in their own aspect, short side 32 px."""
    network = toy.network
    prepared = Preprocessing(32, keeps_aspect=True)
    return toy.with_network(
        Network(network.model, network.card, prepared, network.defaults, network.device), toy.verdicts
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cat = open_image("sample:cat")
    where = tmp_path / "photos"
    where.mkdir()
    for number, size in enumerate(SIZES * 2):
        cat.crop((20 * number, 0, 20 * number + 200, 250)).resize(size).save(where / f"{number:02d}.png")
    return where


def test_a_look_sees_the_whole_photograph_in_its_aspect(wide: Steerer):
    picture = open_image("sample:cat").resize((192, 64))
    pixels = wide.network.pixels(picture)
    assert pixels.shape == (1, 3, 32, 96)
    look = wide.look(picture, "a cat")
    assert look.verdict is not None
    high, across = look.heatmap.shape
    assert across == 3 * high
    tall = wide.look(picture.rotate(90, expand=True), "a cat")
    assert tall.heatmap.shape == (across, high)
    look.plot()


def test_detail_shows_a_photograph_larger_and_the_look_says_so(wide: Steerer):
    picture = open_image("sample:cat").resize((192, 64))
    finer = wide.network.in_detail(2.0)
    assert finer.pixels(picture).shape == (1, 3, 64, 192)
    assert wide.network.in_detail(1.0) is wide.network
    look = wide.with_network(finer, wide.verdicts).look(picture, "a cat")
    assert look.notes == ("seen at 64 px instead of 32 px, for which the verdict was calibrated",)
    assert look.heatmap.shape == tuple(2 * side for side in wide.look(picture, "a cat").heatmap.shape)
    for detail in (0.4, 5.0, float("nan")):
        with pytest.raises(ValueError, match="detail: got"):
            wide.network.in_detail(detail)


def test_a_network_that_sees_squares_of_one_size_has_no_detail(toy: Steerer):
    with pytest.raises(ValueError, match="detail: got 2, expected 1: toy sees squares of one size"):
        toy.network.in_detail(2.0)


@pytest.mark.parametrize("keep", ["pixels", "first-pass", "nothing"])
def test_a_search_of_many_shapes_says_what_a_look_at_each_file_says(wide: Steerer, folder: Path, tmp_path: Path, keep):
    gallery = Gallery.open(tmp_path / "gallery", wide, keep=keep)
    report = gallery.add(folder, workers=0)
    assert (report.new, report.skipped) == (12, {})
    hits = gallery.search("a cat", top=12, fold=False)
    assert len(hits) == hits.looked_at == 12
    for hit in hits:
        assert hit.alone == pytest.approx(wide.look(hit.path, "a cat").probability, abs=5e-3)
    again = Gallery.open(tmp_path / "gallery", wide)
    assert [hit.path for hit in again.search("a cat", top=12, fold=False)] == [hit.path for hit in hits]


def test_stored_pixels_come_back_in_their_own_shape(wide: Steerer, folder: Path, tmp_path: Path):
    gallery = Gallery.open(tmp_path / "gallery", wide)
    gallery.add(folder, workers=0)
    names = sorted(str(path) for path in folder.iterdir())
    for name, pixels in zip(names, gallery.store.pixels(names), strict=True):
        with Image.open(name) as picture:
            assert pixels.shape == (*wide.network.preprocessing.frame.shape(*picture.size), 3)
        np.testing.assert_array_equal(pixels, read(Task(Entry(name, 0, 0, name)), gallery.store.card.frame).pixels)
    (folder / "00.png").unlink()
    hit = next(hit for hit in gallery.search("a cat", top=12) if hit.path.endswith("00.png") or hit.copies)
    assert gallery.look(hit, "a cat").heatmap.ndim == 2


def test_the_same_photograph_in_another_size_is_a_near_duplicate(wide: Steerer, tmp_path: Path):
    folder = tmp_path / "twice"
    folder.mkdir()
    cat = open_image("sample:cat")
    cat.save(folder / "large.png")
    cat.resize((151, 99)).save(folder / "small.png")
    gallery = Gallery.open(tmp_path / "gallery", wide)
    gallery.add(folder, workers=0)
    ((one, other),) = gallery.duplicates(near=True)
    assert {Path(one).name, Path(other).name} == {"large.png", "small.png"}


@pytest.mark.parametrize("batch", [1, 4])
def test_batches_hold_one_shape_each_and_nothing_is_lost(wide: Steerer, folder: Path, batch: int):
    frame = wide.network.preprocessing.frame
    reads = [read(Task(Entry(str(path), 0, 0, str(path))), frame) for path in sorted(folder.iterdir())]
    alone = {item.image.name: item for item in first_passes(wide.network, reads, 1)}
    seen = list(first_passes(wide.network, reads, batch))
    assert {item.image.name for item in seen} == set(alone)
    for item in seen:
        np.testing.assert_allclose(item.output, alone[item.image.name].output, atol=1e-4)


def test_a_gallery_of_squares_is_not_mixed_with_one_of_frames(wide: Steerer, toy: Steerer, tmp_path: Path):
    Gallery.open(tmp_path / "gallery", toy)
    card = Gallery.open(tmp_path / "gallery", toy).store.card
    assert not card.keeps_aspect
    assert Gallery.open(tmp_path / "other", wide).store.card.keeps_aspect
