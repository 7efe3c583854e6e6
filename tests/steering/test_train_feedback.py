"""Training of the feedback of a CLIP's tower: what learns, that it resumes, what it writes, and who reads it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import steering.train_feedback
from lrm_core.joint_feedback import FEEDBACK, projections
from steering import Steerer
from steering.catalogue import calibration_folder
from steering.evidence import FEATURES, Verdict, expand, save_verdicts
from steering.feedback_trials import Held, auroc, hold_out, read_pictures
from steering.labelled import read_labelled
from steering.open_words import STRENGTH
from steering.pairs import joint_parts
from steering.train_feedback import ClipFeedbackTraining, Seeking, train, waist_of
from tests.clips import make_open_clip, noisy_things

pytestmark = pytest.mark.usefixtures("own_folders")

THINGS = ("ball", "sky", "leaf", "cat", "dog", "tin", "umbrella", "owl", "map", "sea")


@pytest.fixture(autouse=True)
def _own_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    for kind in ("vit", "timm"):
        make_open_clip(root / kind, kind)
    return {kind: f"clip:{root / kind}" for kind in ("vit", "timm")}


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    return noisy_things(tmp_path_factory.mktemp("things"), THINGS)


def configuration(model: str, things: Path, run: Path, **changes) -> ClipFeedbackTraining:
    small = {"scenes": 24, "steps": 6, "batch_size": 6, "trials": 6, "test_share": 0.3, "learning_rate": 0.01}
    return ClipFeedbackTraining.parse(
        {"model": model, "source": str(things), "run_folder": str(run), **small, **changes}
    )


def test_only_projections_learn_and_a_look_reads_them(clips, things, tmp_path, capsys):
    model = clips["vit"]
    before = Steerer.load(model, device="cpu")
    first = before.look("sample:cat", "a cat")
    folder = calibration_folder(before.network.card["sha256"])
    folder.mkdir(parents=True)
    other = Verdict((0.0,) * len(FEATURES), (1.0,) * len(FEATURES), (0.0,) * len(expand(torch.zeros(len(FEATURES)))))
    save_verdicts(folder / "verdict.json", {"identity": other}, before.network.card["sha256"])
    config = Path(__file__).resolve().parents[2] / "configs" / "clip_feedback.yaml"
    given = configuration(model, things, tmp_path / "run")
    keys = ("model", "source", "run_folder", "scenes", "steps", "batch_size", "trials", "test_share", "learning_rate")
    steering.train_feedback.main(["--config", str(config), *(f"{key}={getattr(given, key)}" for key in keys)])
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("AUROC of present and absent in held-out scenes, first pass: 0.")
    assert f"kept in {folder / FEEDBACK}. Fit the verdict anew: steer calibrate" in told[-1]
    assert not (folder / "verdict.json").exists()
    after = Steerer.load(model, device="cpu")
    assert set(json.loads((folder / FEEDBACK).with_suffix(".json").read_text())["measured"]) == {
        "first pass",
        "untrained votes",
        "trained",
    }
    theirs = dict(before.network.model.state_dict())
    changed = {key for key, value in after.network.model.state_dict().items() if not torch.equal(value, theirs[key])}
    assert changed == {f"paths.{key}.projection.weight" for key in projections(after.network.model)}
    again = after.look("sample:cat", "a cat")
    assert (again.before - first.before).abs().max() < 1e-5
    assert (again.after - first.after).abs().max() > 1e-4
    glance = after.network.glance(after.network.pixels(Image.open(things / "cat" / "0.png")))
    one, two = after.network.unsteered(glance, 2)
    assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_a_resumed_run_ends_where_it_would_have(clips, things, tmp_path, kind):
    whole = train(configuration(clips[kind], things, tmp_path / "one", output=str(tmp_path / "a")))
    again = configuration(clips[kind], things, tmp_path / "two", output=str(tmp_path / "b"), checkpoint_minutes=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steering.train_feedback, "save_feedback", _stop)
        with pytest.raises(KeyboardInterrupt):
            train(again)
    newest = sorted((tmp_path / "two" / "checkpoints").glob("step-*"))[-1]
    shutil.rmtree(newest)
    resumed = train(again)
    one, two = load_file(whole), load_file(resumed)
    assert all(torch.equal(one[key], two[key]) for key in one)
    cards = [json.loads(path.with_suffix(".json").read_text()) for path in (whole, resumed)]
    assert cards[0]["measured"] == cards[1]["measured"]


def _stop(*_args, **_kwargs) -> None:
    raise KeyboardInterrupt


def test_feedback_of_another_tower_is_one_line(clips, things, tmp_path):
    path = train(configuration(clips["vit"], things, tmp_path / "run", steps=1))
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**card, "backbone_sha256": "abc"}))
    with pytest.raises(ValueError, match="was trained for another model, SHA-256 abc, not") as caught:
        Steerer.load(clips["vit"], device="cpu")
    assert "\n" not in str(caught.value)
    path.with_suffix(".json").write_text(json.dumps(card))
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    with pytest.raises(ValueError, match="was altered"):
        Steerer.load(clips["vit"], device="cpu")


def test_the_support_that_is_trained_is_the_one_that_a_look_reads(clips, things):
    steerer = Steerer.load(clips["vit"], device="cpu")
    network, text = joint_parts(steerer)
    texts = text.encode(["a dog", "a cat", "a red submarine"])
    seeking = Seeking(network, texts, torch.full((3,), 1 / 3))
    glance = network.glance(network.pixels(Image.open(things / "cat" / "0.png")))
    assert glance.embedding is not None
    for row in range(3):
        expected = network.support(glance, texts[row : row + 1])
        assert (seeking.support(glance.embedding, torch.tensor([row])) - expected).abs().max() < 1e-3


def test_a_tower_that_runs_by_hooks_keeps_images_and_others_their_waist(clips):
    images = torch.rand(2, 3, 160, 160)
    model = joint_parts(Steerer.load(clips["timm"], device="cpu"))[0].model
    waist = waist_of(model, 160)
    assert torch.equal(waist.keep(images), images)
    vit = joint_parts(Steerer.load(clips["vit"], device="cpu"))[0].model
    small = waist_of(vit, 64)
    kept = small.keep(images[:, :, :64, :64])
    one, _ = vit.step(small.stem(kept))
    assert (one - vit.backbone(images[:, :, :64, :64])).abs().max() < 1e-5


def test_held_out_scenes_ask_for_what_is_there_and_what_is_not(clips, things):
    network, text = joint_parts(Steerer.load(clips["vit"], device="cpu"))
    pixels, labelled = read_pictures(network, text, read_labelled(str(things)), 50, 0)
    assert len(pixels) == 50
    labels = torch.tensor(labelled.labels)
    is_held = hold_out(labels, 0.4, 0)
    assert int(is_held.sum()) == 20
    texts = text.encode(labelled.texts)
    held = Held(network, texts, pixels[is_held], labels[is_held], 8, 0.5, 0)
    first, after = held.supports(0.0), held.supports(STRENGTH)
    assert len(first) == len(after) == len(held.answers)
    assert held.answers.mean() == 0.5
    assert not torch.equal(first, after)
    with pytest.raises(ValueError, match=r"test_share: got 0\.02"):
        hold_out(labels, 0.02, 0)


def test_auroc_is_how_often_the_present_goal_is_ahead():
    supports, answers = torch.tensor([3.0, 1.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert auroc(supports, answers) == pytest.approx((1 + 1 + 0.5 + 1) / 4)


def test_too_few_pictures_are_told_in_one_line(clips, things, tmp_path, capsys):
    for name in THINGS[:4]:
        shutil.copytree(things / name, tmp_path / "few" / name)
    given = ["model=" + clips["vit"], f"source={tmp_path / 'few'}", f"run_folder={tmp_path / 'run'}"]
    config = Path(__file__).resolve().parents[2] / "configs" / "clip_feedback.yaml"
    with pytest.raises(SystemExit) as stop:
        steering.train_feedback.main(["--config", str(config), *given])
    assert stop.value.code == 2
    assert "source: got 24 pictures of 4 different things" in capsys.readouterr().err.splitlines()[-1]
