"""Training of feedback beside a frozen backbone: pictures, kept scenes, goals, and a run that resumes."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrm_core.pictures import MOST_OBJECTS, PictureConfig, Pictures, compose_scenes, frequencies
from lrm_core.train_feedback import FeedbackTraining, choose, kept_answers, named, support_of, train
from lrm_core.weights import load_model

NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for label, name in enumerate(NAMES):
        (folder / "train" / name).mkdir(parents=True)
        for index in range(3):
            pixels = generator.integers(0, 60, (20, 24, 3)) + 20 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "train" / name / f"{index}.png")
    table = [{"wnid": f"n{row}", "name": name} for row, name in enumerate(reversed(NAMES))]
    (folder / "classes.json").write_text(json.dumps(table))
    own = [{"wnid": f"n{len(NAMES) - 1 - row}"} for row in range(len(NAMES))]
    (folder / "labels.json").write_text(json.dumps(own))
    return folder


@pytest.fixture
def config(data: Path, tmp_path: Path) -> FeedbackTraining:
    pictures = PictureConfig(source=str(data), size=32, classes=str(data / "labels.json"))
    return FeedbackTraining(
        name="toy",
        backbone="mini",
        classes=str(data / "classes.json"),
        pictures=[pictures],
        size=32,
        scenes=600,
        scenes_folder=str(tmp_path / "scenes"),
        steps=4,
        batch_size=4,
        run_folder=str(tmp_path / "run"),
    )


def test_labels_of_a_data_set_become_those_of_the_model(data: Path, config: FeedbackTraining):
    pictures = Pictures(config.pictures, json.loads((data / "classes.json").read_text()))
    ((stored, labels),) = pictures.sets
    shades = stored.float().mean((1, 2, 3))
    assert labels[shades.argmin()] == len(NAMES) - 1
    assert labels[shades.argmax()] == 0


def test_scenes_hold_the_objects_that_their_labels_tell(data: Path, config: FeedbackTraining):
    pictures = Pictures(config.pictures, json.loads((data / "classes.json").read_text()))
    generator = torch.Generator().manual_seed(0)
    pixels, labels = compose_scenes(pictures, {"single": 1.0, "grid": 1.0}, 16, 10, generator)
    assert pixels.shape == (10, 3, 16, 16)
    assert labels.shape == (10, MOST_OBJECTS)
    number = (labels >= 0).sum(1)
    assert set(number.tolist()) == {1, 4}


def test_a_column_chooses_rows_and_an_unknown_one_is_refused(data: Path):
    odd = PictureConfig(source=str(data), size=8, only={"source": "x"})
    with pytest.raises(ValueError, match="only: got the column 'source'; choices: image, label"):
        Pictures([odd], [{"name": name} for name in NAMES]).draw(1, 8, torch.Generator())


def test_absent_goals_are_absent_and_near_ones_are_what_the_first_pass_prefers():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(400, 30, generator=generator)
    labels = torch.stack([torch.arange(400) % 30, torch.full((400,), -1)], 1)
    alike = torch.full((30,), 1 / 30)
    present, near = choose(first, labels, 1.0, alike, generator)
    _, anything = choose(first, labels, 0.0, alike, generator)
    assert torch.equal(present, labels[:, 0])
    assert not (near == present).any()
    assert not (anything == present).any()
    rank = (first > first.gather(1, near[:, None])).sum(1)
    assert rank.max() <= 20
    assert len(anything.unique()) == 30


def test_common_classes_are_as_often_absent_as_present():
    generator = torch.Generator().manual_seed(0)
    first, labels = torch.randn(4000, 6, generator=generator), torch.full((4000, 2), -1)
    labels[:, 0] = torch.randint(0, 6, (4000,), generator=generator)
    common = torch.tensor([8.0, 8, 1, 1, 1, 1]) / 20
    for near in (0.0, 1.0):
        _, absent = choose(first, labels, near, common, generator)
        counts = torch.bincount(absent, minlength=6).float()
        assert (counts[:2].min() > 4 * counts[2:].max()).all()


def test_frequencies_are_shares_of_labels_with_one_more_of_each():
    assert frequencies(torch.tensor([[0, 0], [2, -1]]), 4).tolist() == pytest.approx([3 / 7, 1 / 7, 2 / 7, 1 / 7])


def test_an_answer_that_is_kept_costs_nothing_and_only_pictures_of_one_thing_count():
    first = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    after = torch.tensor([[2.0, 1.0, 0.0], [5.0, 0.0, 0.0]])
    assert kept_answers(after, first, torch.tensor([True, False])).item() == pytest.approx(0)
    both = kept_answers(after, first, torch.tensor([True, True])).item()
    p, q = first[1].softmax(0), after[1].softmax(0)
    assert both == pytest.approx(float((p * (p / q).log()).sum()) / 2)


def test_support_and_naming_are_log_odds_and_surprise():
    output = torch.tensor([[2.0, 1.0, 0.0]])
    chances = output.softmax(1)[0]
    assert support_of(output, torch.tensor([0])).item() == pytest.approx((chances[0] / (1 - chances[0])).log().item())
    assert named(output, torch.tensor([[0, 2, -1]])).item() == pytest.approx(-(chances[0] + chances[2]).log().item())


@pytest.mark.parametrize("goals", [True, False])
def test_a_run_trains_feedback_alone_and_resumes_to_the_same_weights(config: FeedbackTraining, tmp_path, goals: bool):
    whole = train(config.model_copy(update={"goals": goals}))
    model, _, card = load_model(whole / "backbone.safetensors")
    assert any(path.projection.weight.any() for path in model.paths.values())
    assert set(card["measured"]) == {"looking", "naming", "keeping", "right"}
    folder = str(tmp_path / "again")
    again = config.model_copy(update={"goals": goals, "run_folder": folder, "checkpoint_minutes": 0.0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lrm_core.train_feedback.save_model", _stop)
        with pytest.raises(KeyboardInterrupt):
            train(again)
    for step in sorted((tmp_path / "again" / "checkpoints").glob("step-*"))[1:]:  # back to the step before the last
        step.rename(tmp_path / "gone")
    resumed, _, _ = load_model(train(again) / "backbone.safetensors")
    theirs = model.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in resumed.state_dict().items())


def test_kept_scenes_of_other_settings_are_refused(config: FeedbackTraining):
    train(config.model_copy(update={"steps": 1}))
    with pytest.raises(ValueError, match="holds scenes of other settings"):
        train(config.model_copy(update={"steps": 1, "size": 64}))


@pytest.mark.parametrize("command", ["lrm_core.train", "lrm_core.train_feedback"])
def test_a_clip_leads_to_the_command_for_it(command: str, capsys):
    name = "lrm_mini.yaml" if command == "lrm_core.train" else "feedback_lite.yaml"
    config = Path(__file__).resolve().parents[2] / "configs" / name
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(command).main(["--config", str(config), "backbone=clip:ViT-B-32:openai"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "backbone: got clip:ViT-B-32:openai, expected no CLIP; the feedback of a CLIP is trained by python -m "
        "steering.train_feedback --config configs/clip_feedback.yaml model=clip:ViT-B-32:openai\n"
    )


def test_scenes_that_are_not_kept_are_composed_in_every_step(config: FeedbackTraining, tmp_path: Path):
    train(config.model_copy(update={"scenes": None, "steps": 2}))
    assert not (tmp_path / "scenes").exists()


def _stop(*_args, **_kwargs) -> None:
    raise KeyboardInterrupt
