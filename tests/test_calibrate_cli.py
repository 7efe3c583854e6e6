"""`steer calibrate` as a user types it, with a small CLIP of random weights."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steering.commands.options import GALLERY_VARIABLE
from tests.clips import make_open_clip
from tests.commands import steer

THINGS = ("ball", "sky", "leaf", "cat", "dog", "tin", "umbrella", "owl", "map", "sea")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clip") / "model"
    make_open_clip(folder)
    return f"clip:{folder}"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "labelled"
    random = np.random.default_rng(0)
    for name in THINGS:
        (folder / name).mkdir(parents=True)
        colour = random.uniform(30, 220, 3)
        for index in range(7):
            pixels = random.normal(colour, 30, (40, 50, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv(GALLERY_VARIABLE, str(tmp_path / "gallery"))


def kept(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "data").rglob("*") if path.is_file()}


def test_after_it_a_look_and_a_search_have_verdicts(model: str, labelled: Path, tmp_path: Path, capsys):
    look = ("--model", model, "--device", "cpu", "--json", "-q", "a cat", labelled / "cat" / "0.png")
    assert steer(*look) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] is None
    assert steer("calibrate", labelled, "--model", model, "--device", "cpu") == 0
    out, err = capsys.readouterr()
    first, second, *_, last = out.splitlines()
    assert first == f"{labelled}: 70 images of 10 names; 56 to fit on, 14 held out"
    assert second.startswith("strength 0.")
    assert "all, with steering" in out
    assert "near misses, without steering" in out
    assert last.startswith(f"kept in {tmp_path / 'data' / 'steer' / 'calibrated'}")
    assert "with fewer than 200 images" in err
    assert kept(tmp_path) == {"verdict.json", "steering.json", "calibration.json", "images.safetensors"}
    card = json.loads(next((tmp_path / "data").rglob("calibration.json")).read_text())
    assert steer(*look) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] in ("present", "absent", "unsure")
    assert 0 < found["probability"] < 1
    assert card["strength"] in (0.05, 0.1, 0.2, 0.4)

    assert steer("index", labelled, "--model", model, "--device", "cpu", "--workers", "0", "--quiet") == 0
    capsys.readouterr()
    assert steer("search", "a cat", "--model", model, "--device", "cpu", "--json", "--rerank", "20") in (0, 1)
    hits = json.loads(capsys.readouterr().out)
    assert hits["answer"] in ("present", "unsure", "nothing")
    assert all(0 <= hit["probability"] <= 1 for hit in hits["hits"])


def test_a_dry_run_writes_nothing_and_another_folder_may_be_named(model: str, labelled: Path, tmp_path: Path, capsys):
    command = ("calibrate", labelled, "--model", model, "--device", "cpu", "--images", "40", "--quiet", "--json")
    assert steer(*command, "--dry-run") == 0
    dry = json.loads(capsys.readouterr().out)
    assert (dry["folder"], kept(tmp_path)) == (None, set())
    assert steer(*command, "--output", tmp_path / "own" / "place") == 0
    out, err = capsys.readouterr()
    card = json.loads(out)
    assert (card["folder"], err, kept(tmp_path)) == (str(tmp_path / "own" / "place"), "", set())
    assert json.loads((tmp_path / "own" / "place" / "calibration.json").read_text())["held_out"] == card["held_out"]
    assert card["held_out"] == dry["held_out"]
    numbers = card["held_out"]["identity"]["steered"]["all"]
    assert set(numbers) == {"examples", "auroc", "balanced_accuracy", "calibration_error", "log_loss"}


def test_a_trained_prior_gets_a_verdict_of_its_own(model: str, labelled: Path, tmp_path: Path, capsys):
    import torch

    from prior.model import Prior
    from prior.network import PriorNetwork
    from steering import Steerer

    steerer = Steerer.load(model, device="cpu")
    torch.manual_seed(0)
    width = steerer.network.width
    prior = Prior(PriorNetwork(width, width, 16, 1), torch.zeros(width), torch.ones(width), 20)
    file = tmp_path / "prior.safetensors"
    prior.save(file, {"name": "toy", "backbone_sha256": steerer.network.card["sha256"]})
    command = ("calibrate", labelled, "--model", model, "--device", "cpu", "--images", "30", "--quiet")
    assert steer(*command, "--prior", file) == 0
    assert "verdict for goals by diffusion" in capsys.readouterr().out
    verdicts = Steerer.load(model, device="cpu").verdicts
    assert {"identity", "diffusion"} <= set(verdicts)
    assert verdicts["identity"] != verdicts["diffusion"]
    look = ("--model", model, "--device", "cpu", "--prior", str(file), "--json", "-q", "a cat", "sample:cat")
    assert steer(*look) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["prior"], found["verdict"] is None) == ("diffusion", False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: FOLDER"),
        (["FOLDER", "--model", "lrm_lite"], "are fitted by python -m steering.calibrate"),
        (["FOLDER"], "--model: got '"),  # the default is no CLIP
        (["nowhere", "--model", "clip:x"], "folder: got nowhere, expected a folder"),
        (
            ["someone/nothing", "--model", "clip:x"],
            "folder: someone/nothing is no folder here, and cannot be read from",
        ),
        (["FOLDER/ball/0.png", "--model", "clip:x"], "expected a folder, not a file"),
        (["EMPTY", "--model", "clip:x"], "no images in this folder"),
        (["ONE", "--model", "clip:x"], "folder: got 1 name in "),
        (["FEW", "--model", "clip:x"], "folder: got 3 images with a name in "),
        (["FOLDER", "--model", "clip:x", "--dry-run", "--output", "x"], "--output: not used with --dry-run"),
        (["FOLDER", "--model", "clip:x", "--output", "FILE"], "--output: got "),
        (["FOLDER", "--model", "clip:x", "--images", "19"], "argument --images: got '19'; expected a whole number"),
        (["FOLDER", "--model", "clip:no-such-model"], "--model: got 'clip:no-such-model', expected clip:NAME:TAG"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments: list[str], message: str, labelled: Path, tmp_path: Path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for folder, names in (("one", ("a",)), ("few", ("a", "b", "c"))):
        for name in names:
            (tmp_path / folder / name).mkdir(parents=True)
            Image.new("RGB", (9, 9)).save(tmp_path / folder / name / "0.png")
    places = {"EMPTY": "empty", "ONE": "one", "FEW": "few", "FILE": "file"}
    told = [a.replace("FOLDER", str(labelled)) for a in arguments]
    told = [str(tmp_path / places[a]) if a in places else a for a in told]
    assert steer("calibrate", *told) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[-1]
    assert kept(tmp_path) == set()


def test_without_scikit_learn_the_command_that_installs_it_is_told(labelled: Path, monkeypatch, capsys):
    import importlib.util

    from lrm_base.extras import install_command

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else real(name, *rest)
    )
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    assert steer("calibrate", labelled, "--model", "clip:x") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"a calibration needs scikit-learn, not installed here: {install_command('train')}")


def test_help_shows_how_a_folder_tells_what_its_images_show(capsys):
    assert steer("calibrate", "--help") == 0
    out = capsys.readouterr().out
    for word in ("captions.txt", "train-*.parquet", "OWNER/NAME", "--dry-run", "a fifth of the images is held out"):
        assert word.lower() in out.lower()
    assert steer("--help") == 0
    assert "steer calibrate" in capsys.readouterr().out
