"""Training from images on disk to a model folder, interrupted and resumed bit for bit. Tiny: 16 steps, 16 and 32 px."""

import dataclasses
import functools
import json

import pytest
import torch
from safetensors.torch import load_file

import lrm_core.train
from lrm_base.card import load_weights, save_weights
from lrm_base.checkpoint import KEEP
from lrm_core.backbones import BACKBONES, MiniNet
from lrm_core.feedback import Connection
from lrm_core.objective import GoalConfig
from lrm_core.scenes import KINDS
from lrm_core.train import (
    BackboneTraining,
    StageConfig,
    first_looking_epoch,
    freeze_norms,
    hypernym_groups,
    learning_rate_at,
    train,
)
from lrm_core.weights import build, load_model, start_from

COLOURS = ("red", "green", "blue", "black", "white")  # of `write_colours`
STEPS = 16  # four epochs of four batches


class Interrupted(Exception):
    """Stands for a kill: training is left wherever it is."""


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """A registered backbone with the layout of `mini` and hardly any channels."""
    with pytest.MonkeyPatch.context() as patch:
        build_narrow = functools.partial(MiniNet, widths=(8, 8, 8, 8, 16))
        patch.setitem(BACKBONES, "narrow", dataclasses.replace(BACKBONES["mini"], build=build_narrow))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory, write_colours):
    folder = tmp_path_factory.mktemp("images")
    write_colours(folder, 16, 20)
    return folder


def configuration(images, run, **changes):
    return BackboneTraining.parse(
        {
            "name": "colours",
            "backbone": "narrow",
            "data": {"source": str(images), "num_holdout": 5, "size": 16},
            "classes": str(images / "classes.json"),
            "stages": [
                {"epochs": 2, "size": 16, "learning_rate": [0.1, 0.1]},
                # The first epoch fills the memory of goals (24 outputs of each class), the second looks for them.
                # At 32 px there are two by two places to choose from.
                {"epochs": 2, "size": 32, "passes": 2, "learning_rate": [0.1, 0.01], "goals": {}},
            ],
            "batch_size": 40,
            "precision": "no",
            "num_validation": 20,
            "run_folder": str(run),
            **changes,
        }
    )


def latest(run):
    return sorted((run / "checkpoints").glob("step-*"))[-1]


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    return run, train(configuration(images, run))


def interrupt(monkeypatch, at):
    """Let the batch of this step raise before anything is learned from it."""
    real, calls = lrm_core.train.augment, [0]

    def augment(*arguments, **options):
        calls[0] += 1
        if calls[0] > at:
            raise Interrupted
        return real(*arguments, **options)

    monkeypatch.setattr(lrm_core.train, "augment", augment)


def test_a_run_writes_a_model_folder_that_holds_what_was_trained(finished, images):
    run, final = finished
    model, preprocessing, card = load_model(final / "backbone.safetensors")
    trained, _ = build("narrow", 5)
    stored = load_file(latest(run) / "model.safetensors")
    stored = {key.removeprefix("model."): v for key, v in stored.items() if key.startswith("model.")}
    # The folder keeps half precision: its outputs are those of the trained weights, rounded once.
    trained.load_state_dict({key: v.half().float() if v.is_floating_point() else v for key, v in stored.items()})
    x = preprocessing.normalise(torch.rand(3, 3, 32, 32))
    with torch.no_grad():
        assert torch.equal(model.rollout(x, 2)[-1], trained.eval().rollout(x, 2)[-1])
    assert preprocessing.size == 32
    assert [entry["name"] for entry in card["classes"]] == list(COLOURS)
    assert card["name"] == "colours"
    assert card["training"]["stages"][1]["goals"]["share"] == 0.75
    assert all(0 <= value <= 1 for value in card["measured"].values())


def test_metrics_of_every_epoch_tell_each_pass_and_present_and_absent_goals(finished):
    run, _ = finished
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert [line["step"] for line in lines] == [4, 8, 12, STEPS]
    assert "top1/pass2" not in lines[0]
    for kind in KINDS:
        assert {f"{kind}/present", f"{kind}/absent", f"{kind}/unsteered", "top1/pass2"} <= set(lines[-1])


def test_it_learns_and_its_feedback_learns_too(finished):
    _, final = finished
    model, _, card = load_model(final / "backbone.safetensors")
    assert card["measured"]["valid_20/top1/pass1"] > 0.4  # chance: 0.2
    assert all(path.projection.weight.any() for path in model.paths.values())


def test_only_the_newest_checkpoints_are_kept(finished):
    assert [folder.name for folder in sorted((finished[0] / "checkpoints").iterdir())] == [
        f"step-{step:08d}" for step in (12, STEPS)
    ]
    assert KEEP == 2


def test_a_run_that_was_interrupted_twice_ends_bit_for_bit_where_it_would_have(finished, images, tmp_path, monkeypatch):
    """Once while the memory of goals fills, once while goals are looked for, both in the middle of an epoch."""
    config = configuration(images, tmp_path, checkpoint_minutes=0.0)
    for step, batches in ((10, 10), (14, 4)):
        with monkeypatch.context() as patch:
            interrupt(patch, batches)
            with pytest.raises(Interrupted):
                train(config)
        assert json.loads((latest(tmp_path) / "progress.json").read_text())["step"] == step
    # What a kill in the middle of writing leaves behind is not taken for a checkpoint.
    partial = tmp_path / "checkpoints" / f".partial-{15:08d}"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half a fi")
    train(config)
    whole, resumed = (load_file(latest(run) / "model.safetensors") for run in (finished[0], tmp_path))
    assert "memory.outputs" in whole
    assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []
    lines = [(run / "metrics.jsonl").read_text().splitlines()[-1] for run in (finished[0], tmp_path)]
    assert lines[0] == lines[1]


def test_a_finished_run_started_again_changes_nothing(finished, images):
    run, final = finished
    before = (final / "backbone.safetensors").read_bytes()
    assert train(configuration(images, run)) == final
    assert (final / "backbone.safetensors").read_bytes() == before


def test_a_run_starts_from_a_trained_model_and_keeps_its_feedback(finished, images, tmp_path):
    _, final = finished
    first = final / "backbone.safetensors"
    goals = [{"epochs": 1, "size": 16, "passes": 2, "learning_rate": [0.0, 0.0], "goals": {}, "freeze_norm": True}]
    out = train(configuration(images, tmp_path, init_from=str(first), stages=goals))
    (before, _, card), (after, _, second) = (load_model(f / "backbone.safetensors") for f in (final, out))
    moved = [k for k, v in after.state_dict().items() if not torch.equal(v, before.state_dict()[k])]
    assert moved == []  # nothing was learned at a rate of 0, nor begun anew
    assert second["training"]["started_from"] == {"name": "colours", "sha256": card["sha256"]}


def test_paths_that_the_trained_model_lacks_start_anew_and_anything_else_is_refused(finished):
    path = finished[1] / "backbone.safetensors"
    classes = [{"name": name} for name in COLOURS]
    more = [*BACKBONES["mini"].connections, Connection("fc", "bn1")]
    model, _ = build("narrow", 5, more)
    start_from(model, classes, path)
    assert not model.paths["fc->bn1"].projection.weight.any()
    assert all(model.paths[c.key].projection.weight.any() for c in more[:-1])
    with pytest.raises(ValueError, match="classes"):
        start_from(model, classes[::-1], path)
    wide, _ = build("mini", 5)
    with pytest.raises(ValueError, match="does not fit"):
        start_from(wide, classes, path)


def test_paths_that_only_the_trained_model_has_are_dropped(finished):
    path = finished[1] / "backbone.safetensors"
    classes = [{"name": name} for name in COLOURS]
    fewer, _ = build("narrow", 5, BACKBONES["mini"].connections[1:2])
    assert start_from(fewer, classes, path)["name"] == "colours"
    trained = load_model(path)[0].state_dict()
    assert list(fewer.paths) == ["fc->value"]
    unlike = [key for key, value in fewer.state_dict().items() if "num_b" not in key and (value != trained[key]).any()]
    assert unlike == []


def test_a_trained_model_that_lacks_a_part_of_the_backbone_is_refused(finished, tmp_path):
    tensors, card = load_weights(finished[1] / "backbone.safetensors")
    older = {key: value for key, value in tensors.items() if "attend." not in key}
    save_weights(tmp_path / "backbone.safetensors", older, card)
    model, _ = build("narrow", 5)
    with pytest.raises(
        ValueError, match=r"does not fit: .* missing \['backbone.attend.bias', 'backbone.attend.weight'\]"
    ):
        start_from(model, [{"name": name} for name in COLOURS], tmp_path / "backbone.safetensors")


def sides_seen(monkeypatch, config, stop_at=None):
    """The side of the images in every step of a run, up to where it is interrupted."""
    real, sides = lrm_core.train.augment, []

    def augment(pixels, size, *arguments, **options):
        if len(sides) == stop_at:
            raise Interrupted
        sides.append(size)
        return real(pixels, size, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(lrm_core.train, "augment", augment)
        if stop_at is None:
            train(config)
        else:
            with pytest.raises(Interrupted):
                train(config)
    return sides


def test_the_side_of_a_step_is_drawn_from_the_seed_and_the_step_alone(images, tmp_path, monkeypatch):
    stages = [{"epochs": 3, "size": 16, "sizes": [8, 16], "learning_rate": [0.01, 0.01]}]
    whole = sides_seen(monkeypatch, configuration(images, tmp_path / "a", stages=stages))
    assert len(whole) == 12
    assert set(whole) == {8, 16}
    often = configuration(images, tmp_path / "b", stages=stages, checkpoint_minutes=0.0)
    begun = sides_seen(monkeypatch, often, stop_at=6)
    assert [*begun, *sides_seen(monkeypatch, often)] == whole
    small = configuration(images, tmp_path / "c", stages=stages, batch_size=20, max_steps=5)  # other images in a step
    assert sides_seen(monkeypatch, small) == whole[:5]


def test_a_stage_without_sides_shows_one_size(images, tmp_path, monkeypatch):
    stages = [{"epochs": 1, "size": 16, "learning_rate": [0.01, 0.01]}]
    assert sides_seen(monkeypatch, configuration(images, tmp_path, stages=stages, max_steps=3)) == [16] * 3


@pytest.mark.parametrize("learn", [[], ["attend", "layer3.bn1"]])
def test_of_a_frozen_backbone_only_what_is_named_learns(finished, images, tmp_path, learn):
    _, final = finished
    stage = {"epochs": 1, "size": 32, "passes": 2, "learning_rate": [0.1, 0.1], "goals": {}, "learn": learn}
    frozen = [{**stage, "freeze_norm": True, "freeze_backbone": True}]
    init = str(final / "backbone.safetensors")
    out = train(configuration(images, tmp_path, init_from=init, stages=frozen))
    before, after = (load_model(folder / "backbone.safetensors")[0].state_dict() for folder in (final, out))
    moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
    wanted = {f"backbone.{name}.{each}" for name in learn for each in ("weight", "bias")}
    assert {key for key in moved if key.startswith("backbone.")} == wanted
    assert any(key.startswith("paths.") for key in moved)


def test_a_misspelt_part_that_should_learn_is_refused_with_the_choices(images, tmp_path):
    stage = {"epochs": 1, "size": 16, "learning_rate": [0.1, 0.1], "freeze_backbone": True, "learn": ["layer33"]}
    with pytest.raises(ValueError, match=r"learn: no module 'layer33'; choices: conv1, .*layer3"):
        train(configuration(images, tmp_path, stages=[stage]))


def test_templates_are_zero_until_the_first_stage_with_goals_begins(images, tmp_path):
    seeing = {"epochs": 1, "size": 16, "learning_rate": [0.1, 0.1]}
    looking = {"epochs": 1, "size": 16, "passes": 2, "learning_rate": [0.0, 0.0], "goals": {}, "freeze_norm": True}
    found = {}
    for name, stages in (("seeing", [seeing]), ("looking", [seeing, looking])):
        run = train(configuration(images, tmp_path / name, stages=stages, template_scale=3.0))
        found[name] = load_model(run / "backbone.safetensors")[0].state_dict()
    assert not found["seeing"]["backbone.attend.weight"].any()
    assert not any(v.any() for key, v in found["seeing"].items() if key.endswith("projection.weight"))
    begun = found["looking"]
    assert torch.equal(begun["backbone.attend.weight"][:, :, 0, 0], begun["backbone.fc.weight"])
    assert torch.equal(begun["paths.fc->attend.projection.weight"], 3 * torch.eye(5))
    assert torch.equal(begun["backbone.fc.weight"], found["seeing"]["backbone.fc.weight"])


def test_a_stage_without_goals_that_names_the_templates_starts_them_at_the_classifier(images, tmp_path):
    """A plain network that sees through them: the control that has no feedback."""
    seeing = {"epochs": 1, "size": 16, "learning_rate": [0.1, 0.1]}
    naming = {"epochs": 1, "size": 16, "learning_rate": [0.0, 0.0], "freeze_norm": True, "freeze_backbone": True}
    found = {}
    for name, learn in (("attend", ["attend", "fc"]), ("others", ["fc", "value"])):
        stages = [seeing, {**naming, "learn": learn}]
        run = train(configuration(images, tmp_path / name, stages=stages, template_scale=3.0))
        found[name] = load_model(run / "backbone.safetensors")[0].state_dict()
    begun, untouched = found["attend"], found["others"]
    assert torch.equal(begun["backbone.attend.weight"][:, :, 0, 0], begun["backbone.fc.weight"])
    assert torch.equal(begun["backbone.attend.bias"], begun["backbone.fc.bias"])
    assert torch.equal(begun["paths.fc->attend.projection.weight"], 3 * torch.eye(5))
    assert torch.equal(begun["backbone.fc.weight"], untouched["backbone.fc.weight"])
    assert not untouched["backbone.attend.weight"].any()
    assert not any(v.any() for key, v in untouched.items() if key.endswith("projection.weight"))


def test_looking_begins_with_the_first_stage_of_goals_or_of_templates():
    plain = {"epochs": 2, "size": 16, "learning_rate": (0.1, 0.1)}
    seeing, looking = StageConfig(**plain), StageConfig(**plain, goals=GoalConfig())
    naming = StageConfig(**plain, learn=("fc", "attend"))
    assert first_looking_epoch([seeing, seeing], "attend") is None
    assert first_looking_epoch([seeing, looking, naming], "attend") == 2
    assert first_looking_epoch([seeing, seeing, naming, looking], "attend") == 4
    assert first_looking_epoch([naming, looking], "attend") == 0
    assert first_looking_epoch([naming, looking], None) == 2  # a backbone without templates


def test_a_run_that_adds_says_so_on_its_card_and_adds_when_loaded(images, tmp_path):
    stage = {"epochs": 1, "size": 16, "passes": 2, "learning_rate": [0.01, 0.01], "goals": {}}
    path = train(configuration(images, tmp_path, rule="add", stages=[stage], max_steps=2)) / "backbone.safetensors"
    adding, _, card = load_model(path)
    assert (adding.rule, card["rule"], card["training"]["rule"]) == ("add", "add", "add")
    x = torch.rand(3, 3, 16, 16)
    multiplying, _ = build("narrow", 5)
    multiplying.load_state_dict(adding.state_dict())
    assert multiplying.rule == "rectify"  # that of the registry
    with torch.no_grad():
        assert not torch.allclose(adding.rollout(x, 2)[-1], multiplying.eval().rollout(x, 2)[-1])
        assert torch.equal(adding.rollout(x, 2)[0], multiplying.rollout(x, 2)[0])
    card_path = path.with_suffix(".json")  # cards that are older do not tell
    card_path.write_text(json.dumps({key: value for key, value in card.items() if key != "rule"}))
    assert load_model(path)[0].rule == "multiply"


def test_frozen_norms_keep_their_statistics_and_still_learn():
    model, _ = build("narrow", 5)
    freeze_norms(model.train())
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    model(torch.randn(4, 3, 16, 16))[0].sum().backward()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert model.backbone.bn1.weight.grad is not None


def test_the_learning_rate_falls_along_half_a_cosine():
    stage = StageConfig(epochs=1, size=16, learning_rate=(0.4, 0.2))
    assert [round(learning_rate_at(stage, f), 6) for f in (0.0, 0.5, 1.0)] == [0.4, 0.3, 0.2]


def test_the_learning_rate_rises_before_it_falls_where_a_warmup_is_asked_for():
    stage = StageConfig(epochs=1, size=16, learning_rate=(0.4, 0.4), warmup=0.1)
    assert [round(learning_rate_at(stage, f), 6) for f in (0.0, 0.05, 0.1, 1.0)] == [0.0, 0.2, 0.4, 0.4]


def test_groups_of_one_and_groups_of_nearly_everything_are_no_goals():
    classes = [{"name": str(i), "is_a": ["thing", *(["even"] if i % 2 == 0 else []), f"only {i}"]} for i in range(50)]
    groups = hypernym_groups(classes)
    assert groups.shape == (1, 50)
    assert groups[0].tolist() == [1.0, 0.0] * 25
    assert hypernym_groups([{"name": "a"}]).shape == (0, 1)
