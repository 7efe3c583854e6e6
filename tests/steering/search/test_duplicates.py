"""Images that are the same to the eye, among a few names and in a whole gallery."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steering import Gallery, Steerer
from steering.commands import duplicates
from steering.images import open_image
from steering.search.duplicates import Eye, group_numbers


@pytest.fixture
def mixed(gallery: Gallery, tmp_path: Path) -> tuple[Gallery, dict[str, str]]:
    """A gallery with a cat, its copy, the cat resized, the cat as a JPEG, coffee, and two flat images."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    cat = open_image("sample:cat")
    cat.save(folder / "cat.png")
    shutil.copy(folder / "cat.png", folder / "copy.png")
    cat.resize((225, 150)).save(folder / "small.png")
    cat.save(folder / "cat.jpg", quality=80)
    open_image("sample:coffee").save(folder / "coffee.png")
    Image.new("RGB", (40, 40), (10, 10, 10)).save(folder / "black.png")
    Image.new("RGB", (40, 40), (240, 240, 240)).save(folder / "white.png")
    gallery.add(folder, workers=0)
    return gallery, {path.name: str(path) for path in folder.iterdir()}


def test_names_of_the_same_picture_have_the_same_number(mixed: tuple[Gallery, dict[str, str]]):
    gallery, names = mixed
    order = ["coffee.png", "cat.png", "small.png", "black.png", "cat.jpg", "white.png", "copy.png"]
    assert group_numbers(gallery.store, [names[name] for name in order]) == [0, 1, 1, 2, 1, 3, 1]
    assert group_numbers(gallery.store, [names[name] for name in order], near=False) == [0, 1, 2, 3, 4, 5, 1]


def test_names_without_a_row_are_alone_and_a_name_may_come_again(mixed: tuple[Gallery, dict[str, str]]):
    gallery, names = mixed
    asked = ["/none", names["cat.png"], "/other", "/none", names["cat.png"], names["copy.png"]]
    assert group_numbers(gallery.store, asked) == [0, 1, 2, 0, 1, 1]
    assert group_numbers(gallery.store, []) == []


def test_numbers_are_those_of_the_groups_of_the_whole_gallery(mixed: tuple[Gallery, dict[str, str]]):
    gallery, names = mixed
    for near in (False, True):
        paths = sorted(names.values())
        numbers = group_numbers(gallery.store, paths, near=near)
        groups = [[path for path, n in zip(paths, numbers, strict=True) if n == number] for number in set(numbers)]
        assert sorted(group for group in groups if len(group) > 1) == gallery.duplicates(near=near)


def test_a_search_hides_no_flat_image_behind_another_where_no_pixels_are_stored(tmp_path: Path, toy: Steerer):
    gallery = Gallery.open(tmp_path / "bare", toy, keep="nothing")
    for colour in ("white", "black", "red"):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{colour}.png")
    shutil.copy(tmp_path / "red.png", tmp_path / "same.png")
    gallery.add(list(tmp_path.glob("*.png")), workers=0)
    assert sorted(len(hit.copies) for hit in gallery.search("a cat")) == [0, 0, 1]


def test_that_hashes_alone_were_compared_is_told(tmp_path: Path, toy: Steerer, capsys):
    for keep, told in (("nothing", True), ("pixels", False)):
        gallery = Gallery.open(tmp_path / keep, toy, keep=keep)
        gallery.add([(name, Image.new("RGB", (40, 40), "red")) for name in ("one", "two")], workers=0)
        assert duplicates.run(["--gallery", str(tmp_path / keep)]) == 0
        assert ("hashes alone were compared" in capsys.readouterr().err) == told


def test_two_hundred_flat_images_are_compared_at_once():
    colours = np.random.default_rng(0).integers(0, 256, (200, 3))
    pictures = {str(i): np.full((96, 96, 3), colour, np.uint8) for i, colour in enumerate(colours)}
    positions = list(pictures)
    read: list[int] = []

    def pixels(wanted: list[int]) -> list[np.ndarray | None]:
        read.extend(wanted)
        return [pictures[positions[index]] for index in wanted]

    eye = Eye(200, pixels)
    start = time.perf_counter()
    for here in range(200):
        same = eye.confirmed(here, list(range(here + 1, 200)))
        apart = np.abs(colours[here + 1 :] - colours[here]).mean(1)
        assert same == [here + 1 + int(index) for index in np.flatnonzero(apart <= 0.06 * 255)]
    assert time.perf_counter() - start < 5  # 20,000 comparisons of whole images take longer
    assert len(read) < 5000  # of 20,000: most are known to be apart


def test_where_no_pixels_are_kept_hashes_alone_decide(tmp_path: Path, toy, photos):
    paths = photos(2)
    shutil.copy(paths[0], paths[0].with_name("copy.png"))
    without = Gallery.open(tmp_path / "without", toy, keep="nothing")
    without.add(paths[0].parent, workers=0)
    names = [str(paths[0]), str(paths[1]), str(paths[0].with_name("copy.png"))]
    first, second, third = group_numbers(without.store, names)
    assert first == third != second
