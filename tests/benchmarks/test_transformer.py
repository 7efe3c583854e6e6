"""A vision transformer learns to see and to look by the ordinary command, and the benchmark compares two of them."""

import json
import sys

import pytest
import torch

from benchmarks import transformer
from lrm_base.card import load_card
from lrm_core import Connection
from lrm_core.train import BackboneTraining, train
from lrm_core.weights import build, save_model

STAGE = {"epochs": 1, "size": 32, "passes": 2, "learning_rate": [1e-3, 1e-3], "goals": {}}
ADDED = [{"source": "fc", "destination": "blocks.4", "anywhere": True}]
VALUES = [{"source": "fc", "destination": "blocks.5.qkv", "anywhere": True, "channels": "values"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_colours):
    folder = tmp_path_factory.mktemp("colours")
    write_colours(folder, 32, 60)
    return folder


@pytest.fixture(scope="module")
def models(folder, tmp_path_factory):
    """A trained transformer whose goal adds, and two untrained ones whose goal multiplies."""
    runs = tmp_path_factory.mktemp("runs")
    config = {
        "name": "add",
        "backbone": "mini_vit",
        "rule": "add",
        "connections": ADDED,
        "data": {"source": str(folder), "num_holdout": 5, "size": 32},
        "classes": str(folder / "classes.json"),
        "optimizer": "adamw",
        "batch_size": 40,
        "precision": "no",
        "num_validation": 20,
        "stages": [STAGE],
        "run_folder": str(runs / "add"),
    }
    found = {"add": train(BackboneTraining.parse(config))}
    card = load_card(found["add"] / "backbone.safetensors")
    for name, connections in (("multiply", None), ("values", [Connection(**VALUES[0])])):
        model, entry = build("mini_vit", 5, connections)
        for path in model.paths.values():
            torch.nn.init.normal_(path.projection.weight, std=0.1)
        save_model(
            runs / name / "backbone.safetensors",
            model,
            name=name,
            backbone="mini_vit",
            preprocessing=entry.preprocessing,
            output=entry.output,
            classes=card["classes"],
            training={},
            measured={},
        )
        found[name] = runs / name
    return found


def test_the_models_are_compared_on_the_same_scenes(models, folder, tmp_path, monkeypatch, capsys):
    line = [f"{name}={path}" for name, path in models.items()]
    options = ["--data", str(folder), "--pictures", "50", "--scenes", "20", "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["transformer.py", *line, *options])
    transformer.main()
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert list(found) == ["add", "multiply", "values"]
    for name, row in found.items():
        assert f"| {name} |" in printed
        assert f"{row['gain']['value']:+.3f}" in printed
        assert row["gain"]["low"] <= row["gain"]["high"]
        assert set(row["auroc"]) == set(transformer.COLUMNS)
        areas = row["auroc"]["pooled"]
        assert areas["second, goal"] - areas["first pass"] == pytest.approx(row["gain"]["value"])


def test_the_card_keeps_where_feedback_goes(models):
    seers = {name: transformer.Seer(str(path)) for name, path in models.items()}
    assert seers["add"].model.rule == "add"
    assert seers["values"].model.connections[0].channels == "values"
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for seer in seers.values():
            first, _, steered = seer.passes(pixels, torch.eye(5)[:2] * 8)
            assert torch.equal(first, seer.model.backbone(seer.images(pixels)))
            assert not torch.equal(first, steered)


def test_a_class_without_a_picture_is_an_error():
    with pytest.raises(ValueError, match="got none of class 2"):
        transformer.class_means(torch.rand(4, 3), torch.tensor([0, 1, 0, 1]))


def test_the_gain_is_above_zero_where_the_goal_tells():
    torch.manual_seed(0)
    blind, seeing = torch.randn(3, 200), torch.randn(3, 200)
    seeing[0] += 2
    found = transformer.gain({transformer.PASSES[0]: blind, transformer.PASSES[2]: seeing}, 0)
    assert found["low"] > 0.3
    assert found["value"] == pytest.approx(transformer.area(*seeing[:2]) - transformer.area(*blind[:2]))


def test_a_model_without_a_name_is_a_usage_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["transformer.py", "runs/model"])
    with pytest.raises(SystemExit):
        transformer.main()
    assert "expected NAME=FOLDER" in capsys.readouterr().err
