"""What decides the numbers stands in the header; which images and classes are measured; what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lrm_lab.bench import Bench
from lrm_lab.commands import Asked
from steering.catalogue import MODEL_VARIABLE

NAMES = ("cat", "beagle", "lemon", "teapot", "bridge", "sweater")  # the toy's classes


@pytest.fixture
def folder(toy_folder, tmp_path):
    shutil.copytree(toy_folder, tmp_path / "toy")
    return tmp_path / "toy"


def header(folder, **asked):
    return Bench(Asked(model=str(folder), device="cpu", **asked)).header()


def test_the_header_names_everything_that_decides_the_numbers(folder, tmp_path):
    before = header(folder)
    assert json.loads(json.dumps(before)) == before == header(folder)
    scenes = tmp_path / "t.csv"
    scenes.write_text("kind\n")
    other = {"seed": 7, "quick": True, "source": "x/y", "scenes": 5, "images": 9, "triplets": str(scenes)}
    for key, value in other.items():
        after = header(folder, **{key: value})
        differ = [name for name in after if after[name] != before[name]]
        assert differ == (["quick", "scenes"] if key == "quick" else [key])  # a quick run has fewer scenes
    (folder / "steering.json").write_text(json.dumps({"strength": 0.5, "passes": 2, "num_samples": 4}))
    assert [name for name, value in header(folder).items() if value != before[name]] == ["strength", "passes"]


def test_the_default_model_is_measured_unless_told_otherwise(folder, monkeypatch):
    monkeypatch.setenv(MODEL_VARIABLE, str(folder))
    bench = Bench(Asked(device="cpu"))
    assert bench.folder == folder
    assert bench.header() == header(folder)


def test_a_changed_verdict_changes_the_header(folder):
    before = header(folder)
    path = folder / "verdict.json"
    fields = json.loads(path.read_text())
    fields["verdicts"]["diffusion"]["present_above"] = 0.81
    path.write_text(json.dumps(fields))
    after = header(folder)
    assert [name for name in after if after[name] != before[name]] == ["parts_sha256"]
    assert before["parts_sha256"]["prior"] == after["parts_sha256"]["prior"]
    assert before["parts_sha256"]["verdict"] != after["parts_sha256"]["verdict"]
    path.unlink()
    assert set(header(folder)["parts_sha256"]) == {"prior", "vocabulary"}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """An ImageFolder, listed class by class: five images of each, all of another colour."""
    folder = tmp_path_factory.mktemp("shown")
    for row, name in enumerate(NAMES):
        (folder / "valid" / name).mkdir(parents=True)
        for number in range(5):
            colour = np.full((32, 32, 3), (40 * row, 50 * number, 128), np.uint8)
            Image.fromarray(colour).save(folder / "valid" / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ({}, range(30)),
        ({"images": 30}, range(30)),
        ({"images": 31}, range(30)),
        ({"images": 6}, range(0, 30, 5)),
        ({"images": 7}, (0, 4, 8, 12, 17, 21, 25)),
        ({"images": 1}, range(1)),
        ({"quick": True}, range(30)),
    ],
)
def test_single_images_are_evenly_spaced(toy_folder, shown, asked, rows):
    bench = Bench(Asked(model=str(toy_folder), device="cpu", source=str(shown), **asked))
    (pixels, labels), (few, theirs) = bench.images, bench.single_images
    assert torch.equal(few, pixels[list(rows)])
    assert torch.equal(theirs, labels[list(rows)])
    if asked.get("images") == 6:
        assert sorted(theirs.tolist()) == list(range(6))  # of every class one


def test_images_are_labelled_with_the_models_rows(toy_folder, shown):
    pixels, labels = Bench(Asked(model=str(toy_folder), device="cpu", source=str(shown))).images
    assert torch.equal((255 * pixels[:, 0, 0, 0]).round().long() // 40, labels)
    assert labels.tolist() != sorted(labels.tolist())  # the folder lists them by the alphabet


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"scenes": 0}, "scenes: got 0, expected a whole number of at least 1"),
        ({"images": -1}, "images: got -1, expected a whole number of at least 1"),
        ({"seed": -1}, "seed: got -1, expected a whole number from 0"),
        ({"model": "nowhere"}, "model: got 'nowhere'"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(toy_folder, asked, message):
    with pytest.raises(ValueError, match=message):
        Bench(Asked(**{"model": str(toy_folder), "device": "cpu", **asked}))


def test_without_controls_one_line_says_where_they_are(toy_folder, capsys):
    bench = Bench(Asked(model=str(toy_folder), device="cpu"))
    assert (bench.controls, bench.controls) == ({}, {})
    (line,) = capsys.readouterr().err.splitlines()
    assert "python -m lrm_lab.controls" in line
    assert bench.controls_header() == {"controls_sha256": {}}
