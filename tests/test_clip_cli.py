"""The command line with a CLIP: look, index, search, and errors of one line."""

import json
from pathlib import Path

import pytest
from PIL import Image

from steering.images import open_image
from tests.clips import make_open_clip
from tests.commands import steer

pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small CLIP in a folder, by the name that the command line takes."""
    folder = tmp_path_factory.mktemp("clip")
    make_open_clip(folder)
    return f"clip:{folder}"


@pytest.fixture(scope="module")
def album(tmp_path_factory) -> Path:
    """A folder of photographs."""
    folder = tmp_path_factory.mktemp("album")
    cat = open_image("sample:cat")
    for number in range(6):
        cat.crop((20 * number, 0, 20 * number + 200, 200)).save(folder / f"{number}.jpg")
    Image.new("RGB", (90, 70), "navy").save(folder / "navy.png")
    return folder


def test_look(model, capsys, tmp_path):
    words = ("--query", "a red car", "--query", "no cats", "--query-image", "sample:coffee")
    assert steer(*words, "sample:cat", "--model", model, "--json", "--output", tmp_path, "--device", "cpu") == 0
    looks = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [look["query"] for look in looks] == ["a red car", "no cats", "sample:coffee"]
    assert [look["prior"] for look in looks] == ["identity", "algebra", "image"]
    assert all(look["verdict"] is None and look["probability"] is None for look in looks)
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_look_against_ones_own_words_and_with_templates(model, capsys):
    assert steer("--query", "a cat", "--against", "a dog, grass", "sample:cat", "--model", model, "--json") == 0
    (look,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {entry["name"] for entry in look["after"]} == {"a cat", "a dog", "grass"}
    assert sum(entry["probability"] for entry in look["after"]) == pytest.approx(1, abs=1e-4)
    assert steer("--query", "a cat", "--templates", "simple", "sample:cat", "--model", model, "--json") == 0
    (other,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert other["evidence"] != look["evidence"]


def test_index_and_search(model, album, capsys, tmp_path):
    gallery = tmp_path / "gallery"
    common = ("--gallery", gallery, "--model", model)
    assert steer("index", album, *common, "--json") == 0
    assert json.loads(capsys.readouterr().out)["new"] == 7
    assert steer("search", "a child with an umbrella", *common, "--json", "--threshold", "0") in (0, 1)
    found = json.loads(capsys.readouterr().out)
    assert found["calibrated"] is False
    assert len(found["hits"]) == 7 - sum(len(hit["copies"]) for hit in found["hits"])
    steer("search", "a child with an umbrella", *common)
    assert "steer calibrate" in "".join(capsys.readouterr())
    assert steer("search", "a cat", *common, "--rerank", "0", "--paths", "--all") in (0, 1)
    assert len(capsys.readouterr().out.splitlines()) == 7


def test_a_gallery_of_another_model_tells_how_to_index_anew(model, album, capsys, tmp_path):
    gallery = tmp_path / "gallery"
    assert steer("index", album, "--gallery", gallery, "--model", model) == 0
    capsys.readouterr()
    assert steer("search", "a cat", "--gallery", gallery) == 2
    told = capsys.readouterr().err
    assert model in told
    assert "steer index FOLDER" in told


def test_two_models_share_a_gallery(model, album, capsys, tmp_path):
    common = ("--gallery", tmp_path / "gallery")
    assert steer("index", album, *common, "--also", model, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["new"] == report["also"][model]["new"] == 7
    assert steer("index", album, *common, "--model", model, "--json") == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] == 7
    for extra in ((), ("--model", model)):
        assert steer("search", "a cat", *common, *extra, "--json", "--threshold", "0") in (0, 1)
        assert json.loads(capsys.readouterr().out)["images"] == 7
    assert steer("index", album, *common, "--also", model, "--watch") == 2


def test_list_classes_are_the_bank(model, capsys):
    assert steer("--list-classes", "--model", model) == 0
    assert "bicycle" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "clip:/no/such/folder"), "there is no folder /no/such/folder"),
        (("--model", "clip:ViT-B-32"), "expected clip:ViT-B-32:TAG or a file"),
        (("--against", "a dog"), "--against: got lrm_mini, expected a model clip:"),
        (("--templates", "simple"), "--templates: got 'simple' for "),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    assert steer("--query", "a cat", "sample:cat", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
