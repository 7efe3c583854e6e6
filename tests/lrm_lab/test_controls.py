"""Controls of a model: kept as what differs, loaded as what was trained, and never taken for another backbone's."""

import copy
import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

from lrm_base.card import load_card, load_weights, save_weights
from lrm_core import Steer
from lrm_core.backbones import Preprocessing
from lrm_core.model import LRM
from lrm_core.weights import load_model, save_model
from lrm_lab import controls
from lrm_lab.controls import NAMES, find_controls, load_controls, save_control

CPU = torch.device("cpu")


@pytest.fixture
def folder(toy_folder, tmp_path):
    """The model's folder; of all its parts a control needs the backbone."""
    made = tmp_path / "model"
    made.mkdir()
    for suffix in (".safetensors", ".json"):
        shutil.copyfile(toy_folder / f"backbone{suffix}", made / f"backbone{suffix}")
    return made


@pytest.fixture
def train(folder, tmp_path):
    """What training a control leaves: the model with some connections, by a rule, and some parameters moved."""

    def made(rule="multiply", connections=slice(None), moved=(), classes=None):
        base, _, card = load_model(folder / "backbone.safetensors")
        control = LRM(copy.deepcopy(base.backbone), base.connections[connections], base.image_size, rule=rule)
        kept = {key: value for key, value in base.state_dict().items() if key in control.state_dict()}
        control.load_state_dict(kept)
        with torch.no_grad():
            for name, value in control.state_dict().items():
                if name in moved:
                    value.add_(1.0)
        run = tmp_path / "run"
        save_model(
            run / "backbone.safetensors",
            control,
            name="toy_control",
            backbone="mini",
            preprocessing=Preprocessing(32),
            output="fc",
            classes=card["classes"] if classes is None else classes,
            training={},
            measured={},
        )
        return run / "backbone.safetensors"

    return made


CASES = {
    "additive": {"rule": "add", "moved": ("paths.fc->attend.gain", "backbone.attend.weight")},
    "last_layer": {"connections": slice(1, 2), "moved": ("paths.fc->value.projection.weight",)},
    "plain": {"connections": slice(1, 2), "moved": ("backbone.conv1.weight", "backbone.bn1.running_mean")},
    "twin": {"moved": ("paths.fc->layer3_bn1.norm.weight", "paths.fc->value.projection.weight")},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_control_looks_as_it_was_trained_and_only_what_differs_is_kept(folder, train, name):
    trained = train(**CASES[name])
    path = save_control(trained, folder, name)
    assert path == folder / "controls" / f"{name}.safetensors"
    assert set(load_file(path)) == set(CASES[name]["moved"])
    found = load_controls(folder, CPU)
    assert list(found) == [name]
    control, expected = found[name], load_model(trained)[0]
    assert (control.rule, control.connections) == (expected.rule, expected.connections)
    assert not control.training
    images, goal = torch.rand(2, 3, 32, 32), 5 * torch.eye(6)[:2]
    glances = [(model, *model.step(model.stem(images))) for model in (control, expected)]
    steer = [Steer("fc", goal)]
    outputs = [(first, model.step(model.stem(images), state, steer)[0]) for model, first, state in glances]
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])
    own = load_model(folder / "backbone.safetensors")[0]
    assert not torch.equal(own.rollout(images, 2, steer)[-1], outputs[0][1])


def test_a_large_tensor_is_kept_in_eight_bits_closer_than_in_half_precision(folder, train):
    key = "backbone.layer3.conv2.weight"
    trained = train(moved=(key,))
    tensors, card = load_weights(trained)
    generator = torch.Generator().manual_seed(0)
    tensors[key] = load_weights(folder / "backbone.safetensors")[0][key] + 0.002 * torch.randn(
        tensors[key].shape, generator=generator
    )
    save_weights(trained, tensors, {name: value for name, value in card.items() if name != "sha256"})
    path = save_control(trained, folder, "plain")
    assert {name: value.dtype for name, value in load_file(path).items()} == {
        key: torch.int8,
        f"{key}.scale": torch.float32,
    }
    found = load_controls(folder, CPU)["plain"].state_dict()[key]
    error = (found - tensors[key]).abs()
    assert 0 < error.max() < 0.002 * 6 / 254
    assert (found - tensors[key]).norm() < 0.02 * (0.002 * tensors[key].numel() ** 0.5)


def test_a_control_carries_its_card_and_the_hash_of_the_backbone_it_lacks(folder, train):
    card = load_card(save_control(train(**CASES["additive"]), folder, "additive"))
    assert (card["name"], card["kind"], card["rule"]) == ("toy_control", "control", "add")
    assert card["base_sha256"] == load_card(folder / "backbone.safetensors")["sha256"]
    assert "classes" not in card


def test_controls_that_are_not_there_are_left_out(folder, train):
    assert load_controls(folder, CPU) == {}
    for name in ("plain", "additive"):
        save_control(train(**CASES[name]), folder, name)
    assert set(load_controls(folder, CPU)) == {"plain", "additive"}


def test_loading_leaves_the_callers_random_numbers_alone(folder, train):
    save_control(train(**CASES["additive"]), folder, "additive")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_controls(folder, CPU)
    assert torch.equal(torch.rand(3), expected)


def test_what_is_no_control_of_this_model_is_refused(folder, train):
    trained = train(**CASES["additive"])
    with pytest.raises(ValueError, match="name: got 'subtractive', expected a control: additive, last_layer, plain"):
        save_control(trained, folder, "subtractive")
    others = train(classes=[{"name": f"other {i}"} for i in range(6)])
    with pytest.raises(ValueError, match="is of another backbone, or of other classes"):
        save_control(others, folder, "additive")
    card = json.loads(others.with_suffix(".json").read_text())
    own = load_card(folder / "backbone.safetensors")
    others.with_suffix(".json").write_text(json.dumps({**card, "classes": own["classes"], "backbone": "alexnet"}))
    with pytest.raises(ValueError, match="is of another backbone"):
        save_control(others, folder, "additive")
    assert not (folder / "controls").exists()


def test_a_control_of_another_backbone_or_an_altered_one_is_refused_when_it_is_loaded(folder, train):
    path = save_control(train(**CASES["additive"]), folder, "additive")
    text = path.with_suffix(".json").read_text()
    card = json.loads(text)
    path.with_suffix(".json").write_text(json.dumps({**card, "base_sha256": "0" * 64}))
    with pytest.raises(ValueError, match="is of another backbone: got SHA-256 0000"):
        load_controls(folder, CPU)
    path.with_suffix(".json").write_text(json.dumps({**card, "connections": card["connections"][1:]}))
    with pytest.raises(ValueError, match=r"does not fit backbone 'mini': .* unknown \['paths.fc->attend.gain'\]"):
        load_controls(folder, CPU)
    path.with_suffix(".json").write_text(text)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="was altered"):
        load_controls(folder, CPU)


def test_the_command_keeps_controls_in_a_models_folder(folder, train, monkeypatch, capsys):
    trained = train(**CASES["plain"])
    command = ["controls", "--model", str(folder)]
    monkeypatch.setattr(sys, "argv", [*command, f"plain={trained.parent}"])
    controls.main()
    assert capsys.readouterr().out.strip() == str(folder / "controls" / "plain.safetensors")
    monkeypatch.setattr(sys, "argv", [*command, "plane=nowhere"])
    with pytest.raises(SystemExit) as caught:
        controls.main()
    assert caught.value.code == 2
    assert "got 'plane'" in capsys.readouterr().err


@pytest.fixture
def shipped(folder, tmp_path, monkeypatch):
    """Makes the folder an embedded model, whose controls are kept in the laboratory."""
    monkeypatch.setattr(controls, "MODELS", folder.parent)
    monkeypatch.setattr(controls, "WEIGHTS", tmp_path / "weights")
    return tmp_path / "weights" / "toy"


def test_controls_of_an_embedded_model_lie_in_the_laboratory(folder, train, shipped):
    path = save_control(train(**CASES["additive"]), folder, "additive")
    assert path == shipped / "additive.safetensors"
    assert set(load_controls(folder, CPU)) == {"additive"}


def test_controls_in_a_models_own_folder_come_first(folder, train, shipped, monkeypatch):
    save_control(train(**CASES["additive"]), folder, "additive")
    monkeypatch.setattr(controls, "MODELS", shipped)  # so that the folder is no longer an embedded model
    save_control(train(**CASES["plain"]), folder, "plain")
    assert find_controls(folder) == {"plain": folder / "controls" / "plain.safetensors"}


def test_controls_in_the_laboratory_are_found_by_the_cards_name_wherever_the_folder_lies(folder, train, shipped):
    path = save_control(train(**CASES["additive"]), folder, "additive")
    moved = shutil.copytree(folder, folder.parent / "elsewhere" / "renamed")
    assert find_controls(moved) == {"additive": path}
    assert set(load_controls(moved, CPU)) == {"additive"}


def test_controls_in_the_laboratory_that_are_of_another_backbone_do_not_count(folder, train, shipped):
    path = save_control(train(**CASES["additive"]), folder, "additive")
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**card, "base_sha256": "0" * 64}))
    assert load_controls(folder, CPU) == {}


@pytest.mark.skipif(not controls.WEIGHTS.is_dir(), reason="needs lrm_lab/weights, which a checkout has")
def test_the_mini_model_has_all_its_controls_in_a_checkout(steerer, mini_folder):
    loaded = load_controls(mini_folder, CPU)
    assert set(loaded) == {"additive", "last_layer", "plain"}
    assert loaded["additive"].rule == "add"
    assert loaded["additive"].connections == steerer.network.model.connections
