"""Every shipped configuration loads, and those that need ImageNet are rehearsed: two steps on a few small images."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lrm_base.config import Config
from lrm_core.outputs import write_outputs
from lrm_core.train import (
    BackboneTraining,
    StageConfig,
    class_table,
    learning_rate_at,
    train,
    validation_images,
)
from lrm_core.train_feedback import FeedbackTraining
from lrm_core.weights import load_model
from prior.captions import fill
from prior.model import Prior
from prior.text import TextEncoder
from prior.train import PriorTraining, load_vocabulary
from prior.train import train as train_prior
from prior.train_meaning import MeaningTraining
from prior.train_text import TextConfig
from steering.calibrate import CalibrationConfig
from steering.train_feedback import ClipFeedbackTraining

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
KINDS: dict[str, type[Config]] = {  # by the start of the file's name
    "alexnet_": BackboneTraining,
    "feedback_": FeedbackTraining,
    "lrm_": BackboneTraining,
    "vit_": BackboneTraining,
    "control_": BackboneTraining,
    "prior_": PriorTraining,
    "text_": TextConfig,
    "meaning_": MeaningTraining,
    "calibrate_": CalibrationConfig,
    "clip_": ClipFeedbackTraining,
}
ALEXNETS = ("alexnet_lrm1", "alexnet_lrm2", "alexnet_lrm3")
FOLDERS = ("n01440764", "n01443537", "n01484850")  # tench, goldfish, great white shark: ImageNet's first
SMALL = [
    "data.num_holdout=0",
    "data.size=72",
    "data.workers=0",
    "stages.0.epochs=1",
    "stages.0.size=64",
    "stages.0.valid_size=72",
    "batch_size=3",
    "num_validation=3",
    "max_steps=2",
    "precision='no'",  # a process has one precision, and the other tests' is this
]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_loads_into_its_class(path):
    kinds = [kind for start, kind in KINDS.items() if path.name.startswith(start)]
    assert len(kinds) == 1
    assert isinstance(kinds[0].load(path), kinds[0])


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """An ImageFolder of three classes, three images each to train on and two to validate."""
    folder = tmp_path_factory.mktemp("imagenet")
    generator = np.random.default_rng(0)
    for part, count in (("train", 3), ("valid", 2)):
        for wnid in FOLDERS:
            (folder / part / wnid).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (80, 90, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / wnid / f"{index}.JPEG")
    return folder


@pytest.fixture(scope="module")
def rehearse(imagenet, tmp_path_factory):
    """Train an AlexNet by its shipped configuration, made small; the classes are those of the folder."""

    @functools.cache
    def run(name):
        folder = tmp_path_factory.mktemp(name)
        given = [f"data.source={imagenet}", f"run_folder={folder}", "classes=null", *SMALL]
        model = train(BackboneTraining.load(CONFIGS / f"{name}.yaml", given))
        shutil.rmtree(folder / "checkpoints")  # a gigabyte
        return model

    return run


@pytest.mark.parametrize("name", ALEXNETS)
def test_an_alexnet_s_configuration_states_the_published_recipe_and_connections(name):
    from lrm_core.compat import PUBLISHED_CONNECTIONS

    config = BackboneTraining.load(CONFIGS / f"{name}.yaml")
    pairs = [{"source": c.source, "destination": c.destination} for c in config.connections or []]
    assert pairs == PUBLISHED_CONNECTIONS[name]
    assert (config.backbone, config.optimizer, config.label_smoothing) == ("alexnet", "sgd", 0.1)
    (stage,) = config.stages
    assert (stage.size, stage.valid_size, stage.passes, stage.goals) == (160, 224, 2, None)
    assert config.data.size >= stage.valid_size
    rates = [learning_rate_at(stage, epoch / stage.epochs) for epoch in (0, 1, 2, 16, 30)]
    assert rates == pytest.approx([0.0, 0.25, 0.5, 0.25, 0.0], abs=1e-3)


@pytest.mark.parametrize("name", ALEXNETS)
def test_an_alexnet_s_configuration_trains(rehearse, name):
    model, preprocessing, card = load_model(rehearse(name) / "backbone.safetensors")
    assert preprocessing.size == 72  # as validated, not as trained
    assert [entry["name"] for entry in card["classes"]] == list(FOLDERS)
    assert len(model.connections) == {"alexnet_lrm1": 2, "alexnet_lrm2": 4, "alexnet_lrm3": 5}[name]
    assert all(path.projection.weight.any() for path in model.paths.values())  # they started at zero
    assert {"valid_3/top1/pass1", "valid_3/top1/pass2"} == set(card["measured"])


def test_the_1000_names_of_imagenet_are_those_that_torchvision_carries():
    table = class_table("imagenet", None)
    assert len(table) == 1000
    assert [entry["name"] for entry in table[:3]] == ["tench", "goldfish", "great white shark"]
    vocabulary = load_vocabulary("imagenet")
    assert list(vocabulary.names) == [entry["name"] for entry in table]
    with pytest.raises(ValueError, match="held-out words leave no name for goldfish"):
        load_vocabulary("imagenet", ["goldfish"])


def test_the_prior_s_configuration_trains_on_what_a_rehearsed_alexnet_says(rehearse, imagenet, toy_text, tmp_path):
    outputs = tmp_path / "outputs.safetensors"
    write_outputs(rehearse("alexnet_lrm3"), str(imagenet), "train", outputs, 2, 0)
    classes = [{"name": name} for name in ("tench", "goldfish", "great white shark")]
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    config = PriorTraining.load(
        CONFIGS / "prior_alexnet_lrm3.yaml",
        [
            f"outputs={outputs}",
            f"text_encoder={toy_text}",
            "text_pretrained=null",
            f"classes={tmp_path / 'classes.json'}",
            f"run_folder={tmp_path / 'run'}",
            "width=16",
            "depth=1",
            "epochs=1",
            "steps_per_epoch=2",
            "batch_size=8",
            "precision='no'",
        ],
    )
    prior, card = Prior.load(train_prior(config) / "prior.safetensors")
    encoder = TextEncoder.load(toy_text)
    goals = prior.goals(encoder.encode([fill("{a}", "goldfish")]), num_samples=2)
    assert goals.shape == (1, 3)
    assert goals.isfinite().all()
    assert card["backbone"] == "alexnet_lrm3"
    assert card["passes"] == 2
    stored = load_file(outputs)["outputs"].float()
    torch.testing.assert_close(prior.mean, stored.mean(0), atol=1e-3, rtol=1e-2)


def test_the_prior_s_text_encoder_is_one_that_open_clip_can_fetch():
    import open_clip

    config = PriorTraining.load(CONFIGS / "prior_alexnet_lrm3.yaml")
    assert config.text_pretrained in open_clip.list_pretrained_tags_by_model(config.text_encoder)
    assert open_clip.get_model_config(config.text_encoder)["embed_dim"] == 512


def test_a_linear_schedule_rises_and_falls_in_straight_lines():
    stage = StageConfig(epochs=10, size=16, learning_rate=(0.4, 0.1), schedule="linear", warmup=0.2)
    rates = [learning_rate_at(stage, fraction) for fraction in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.25, 0.1])
    whole = StageConfig(epochs=1, size=16, learning_rate=(0.4, 0.1), schedule="linear", warmup=1.0)
    assert learning_rate_at(whole, 1.0) == 0.4
    with pytest.raises(ValueError, match="schedule"):
        StageConfig(epochs=1, size=16, learning_rate=(0.4, 0.1), schedule="cyclic")


def test_validation_takes_images_of_every_class_from_a_folder_and_the_first_of_what_is_shuffled():
    import datasets

    table = datasets.Dataset.from_dict({"label": [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]})
    assert validation_images(table, 3)["label"][:] == [0, 1, 2]
    assert len(validation_images(table, 2000)) == 10
    shuffled = datasets.Dataset.from_dict({"label": [2, 0, 1, 1, 0, 2]})
    assert validation_images(shuffled, 3)["label"][:] == [2, 0, 1]
