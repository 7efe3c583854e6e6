"""The composite challenge as a file: what is read makes the scenes that were drawn, and nothing else passes."""

import csv
import dataclasses

import pytest
import torch

from lrm_core.scenes import KINDS, NUM_OBJECTS
from lrm_core.trials import build
from lrm_lab import triplets as triplets_module
from lrm_lab.triplets import (
    COLUMNS,
    NUM_SCENES,
    STORED,
    draw_all,
    read_triplets,
    triplets_for,
    write_triplets,
)

CLASSES = 12
needs_file = pytest.mark.skipif(not STORED.is_file(), reason="needs results/triplets, which a checkout has")


@pytest.fixture(scope="module")
def images():
    """Noise of 96 px, so that a scene that is a pixel off differs; five of each class."""
    pixels = torch.rand(5 * CLASSES, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    return pixels, torch.arange(5 * CLASSES) % CLASSES


@pytest.fixture
def written(images, tmp_path):
    triplets = draw_all(images[1], CLASSES, 30, 0)
    write_triplets(tmp_path / "t.csv", triplets, images[1])
    return tmp_path / "t.csv", triplets


def same(first, second):
    pairs = zip(dataclasses.astuple(first), dataclasses.astuple(second), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_makes_the_same_pixels_as_what_was_drawn(images, written, kind):
    path, triplets = written
    drawn = next(group for group in triplets if group.kind == kind)
    read = next(group for group in read_triplets(path, images[1]) if group.kind == kind)
    first, second = build(drawn, *images), build(read, *images)
    assert torch.equal(first.scenes.pixels, second.scenes.pixels)
    assert torch.equal(first.scenes.boxes, second.scenes.boxes)
    assert torch.equal(first.present, second.present)
    assert torch.equal(first.absent, second.absent)


@pytest.mark.parametrize("kind", ["cutmix", "inset"])
def test_squares_survive_the_file_exactly(images, tmp_path, kind):
    """A digit too few moves one square in a hundred by a pixel."""
    drawn = [group for group in draw_all(images[1], CLASSES, 1000, 0) if group.kind == kind]
    write_triplets(tmp_path / "t.csv", drawn, images[1])
    (read,) = read_triplets(tmp_path / "t.csv", images[1])
    places = [(96 * group.squares).round() for group in (drawn[0], read)]
    sides = [(96 * (group.squares[:, 2] - group.squares[:, 0])).round() for group in (drawn[0], read)]
    assert torch.equal(*places)
    assert torch.equal(*sides)


def test_written_again_the_file_does_not_change(images, written, tmp_path):
    write_triplets(tmp_path / "again.csv", read_triplets(written[0], images[1]), images[1])
    assert (tmp_path / "again.csv").read_bytes() == written[0].read_bytes()


def test_the_first_scenes_of_each_kind_can_be_had_alone(images, written):
    whole, few = read_triplets(written[0], images[1]), read_triplets(written[0], images[1], 4)
    assert [group.kind for group in few] == list(KINDS)
    assert all(same(part, group[:4]) for part, group in zip(few, whole, strict=True))


def test_a_file_for_other_images_is_refused_with_the_line(images, written):
    labels = images[1].clone()
    image = int(written[1][1].images[6, 0])  # of the seventh blend; the file's 38th line
    labels[image] = (labels[image] + 1) % CLASSES
    lines = written[0].read_text().splitlines()
    first = next(n for n, line in enumerate(lines, 1) if str(image) in line.split(",")[1].split())
    with pytest.raises(ValueError, match=rf"t\.csv, line {first}: made for other images"):
        read_triplets(written[0], labels)
    with pytest.raises(ValueError, match="made for other images"):
        read_triplets(written[0], images[1][:20])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("mosaic,0 1,0 1,,0,5", r"line 3: kind: got 'mosaic', expected single, blend"),
        ("blend,0 x,0 1,,0,5", r"line 3: invalid literal"),
        ("blend,0 1,0 1,here,0,5", r"line 3: could not convert"),
        ("blend,0 1,0 1,,0,", r"line 3: invalid literal"),
        ("blend,0 1", r"line 3: "),
        ("blend,0 1,0 2,,0,5", r"line 3: made for other images: rows \[0, 1\] are not of classes \[0, 2\]"),
        ("blend,0 600,0 0,,0,5", r"line 3: made for other images"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(images, tmp_path, line, message):
    path = tmp_path / "t.csv"
    path.write_text(f"{','.join(COLUMNS)}\nblend,0 1,0 1,,1,5\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_triplets(path, images[1])


def test_a_line_that_ends_early_is_refused_with_its_number(images, tmp_path):
    (tmp_path / "t.csv").write_text(f"{','.join(COLUMNS)}\nblend,0 1,0 1,,1\n")
    with pytest.raises(ValueError, match="line 2: "):
        read_triplets(tmp_path / "t.csv", images[1])


@pytest.mark.parametrize("text", ["", "kind,images\n", "kind,images,labels,square,absent,present\n"])
def test_a_table_of_other_columns_is_refused(images, tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match="expected columns kind,images,labels,square,present,absent, got"):
        read_triplets(tmp_path / "t.csv", images[1])


def test_triplets_come_from_the_file_that_is_given_and_else_from_the_seed(images, written):
    labels = images[1]
    given = triplets_for(labels, CLASSES, count=5, path=written[0])
    assert all(same(a, b) for a, b in zip(given, read_triplets(written[0], labels, 5), strict=True))
    drawn = triplets_for(labels, CLASSES, count=5, seed=3)
    assert all(same(a, b) for a, b in zip(drawn, draw_all(labels, CLASSES, 5, 3), strict=True))
    default = triplets_for(labels, CLASSES, count=5)  # the stored file is of other images
    assert all(same(a, b[:5]) for a, b in zip(default, draw_all(labels, CLASSES, NUM_SCENES, 1000), strict=True))


def stored_labels():
    """As much as the stored file itself tells of the labels of its images."""
    labels = torch.full((10_000,), -1)
    with open(STORED, newline="") as stream:
        for row in csv.DictReader(stream):
            for image, label in zip(row["images"].split(), row["labels"].split(), strict=True):
                assert labels[int(image)] in (-1, int(label))
                labels[int(image)] = int(label)
    return labels


@needs_file
def test_the_stored_file_asks_for_what_is_there_and_for_what_is_not():
    labels = stored_labels()
    groups = triplets_for(labels, 200, count=NUM_SCENES)
    assert [group.kind for group in groups] == list(KINDS)
    for group in groups:
        shown = labels[group.images]
        assert group.images.shape == (NUM_SCENES, NUM_OBJECTS[group.kind])
        assert (shown == group.present[:, None]).sum(1).eq(1).all()
        assert not (shown == group.absent[:, None]).any()
        assert (group.squares is not None) == (group.kind in ("inset", "cutmix"))
        assert len(group.absent.unique()) > 150


@needs_file
def test_the_seed_draws_the_stored_file_again(shared, tmp_path, monkeypatch):
    from lrm_base.data import DataConfig, load_images

    data = load_images(DataConfig(source=str(shared / "data" / "tiny_imagenet"), num_holdout=0), "valid")
    labels = torch.tensor(data["label"][:])
    kept = {count: triplets_for(labels, 200, count=count) for count in (60, NUM_SCENES)}
    assert all(same(a, b) for a, b in zip(kept[NUM_SCENES], read_triplets(STORED, labels), strict=True))
    monkeypatch.setattr(triplets_module, "STORED", tmp_path / "absent.csv")
    for count, groups in kept.items():
        assert all(same(a, b) for a, b in zip(groups, triplets_for(labels, 200, count=count), strict=True))
    write_triplets(tmp_path / "drawn.csv", triplets_for(labels, 200, count=NUM_SCENES), labels)
    assert (tmp_path / "drawn.csv").read_bytes() == STORED.read_bytes()
