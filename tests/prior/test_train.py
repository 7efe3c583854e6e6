"""Training a prior from stored outputs and a text encoder's folder, interrupted and resumed bit for bit."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import prior.train
from lrm_base.card import save_weights
from prior.model import Prior
from prior.text import TextEncoder
from prior.train import PriorTraining, train

NAMES = ["cat", "beagle", "lemon", "teapot"]


class Interrupted(Exception):
    """Stands for a kill: training is left wherever it is."""


@pytest.fixture(scope="module")
def material(tmp_path_factory, toy_text):
    """Outputs of a backbone that tells four classes well: 8 logits for the right one."""
    folder = tmp_path_factory.mktemp("material")
    labels = torch.arange(200) % 4
    noise = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    about = {"backbone": "toy", "backbone_sha256": "abc", "passes": 3}
    save_weights(
        folder / "o.safetensors", {"outputs": 8 * F.one_hot(labels, 4).float() + noise, "labels": labels}, about
    )
    classes = [{"name": name, "synonyms": [], "is_a": ["animal"] if name in NAMES[:2] else []} for name in NAMES]
    (folder / "classes.json").write_text(json.dumps(classes))
    (folder / "words.txt").write_text("n1\tkitty, puppy\nn2\tkettle\n")
    (folder / "held_out.json").write_text(json.dumps({"puppy": ["beagle"]}))
    return folder, toy_text


def configuration(material, run, **changes):
    folder, text = material
    return PriorTraining.parse(
        {
            "name": "toy_prior",
            "outputs": str(folder / "o.safetensors"),
            "text_encoder": str(text),
            "classes": str(folder / "classes.json"),
            "nouns": str(folder / "words.txt"),
            "noun_share": 0.1,
            "held_out": str(folder / "held_out.json"),
            "run_folder": str(run),
            "width": 32,
            "depth": 2,
            "timesteps": 50,
            "epochs": 2,
            "steps_per_epoch": 100,
            "batch_size": 128,
            "learning_rate": 0.01,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def finished(material, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    return run, train(configuration(material, run))


def latest(run):
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def test_a_trained_prior_understands_the_names_that_it_was_trained_on(finished, material):
    loaded, card = Prior.load(finished[1] / "prior.safetensors")
    encoder = TextEncoder.load(material[1])
    goals = loaded.goals(encoder.encode([f"a {name}" for name in NAMES]))
    assert goals.argmax(1).tolist() == [0, 1, 2, 3]
    best = goals.diagonal()
    assert 5 < best.mean() < 11  # in logits of the backbone, 8 on average
    animal = loaded.goals(encoder.encode(["an animal"]))[0]
    assert animal[:2].min() > animal[2:].max()  # both animals, nothing else
    assert card["measured"]["goal/name"] == 1.0
    assert card["backbone_sha256"] == "abc"
    assert card["text_encoder"] == "toy_clip"
    assert card["training"]["width"] == 32


def test_the_statistics_are_those_of_the_outputs(finished, material):
    loaded, _ = Prior.load(finished[1] / "prior.safetensors")
    outputs = load_file(material[0] / "o.safetensors")["outputs"]
    torch.testing.assert_close(loaded.mean, outputs.mean(0), atol=1e-2, rtol=0)
    torch.testing.assert_close(loaded.std, outputs.std(0), atol=1e-2, rtol=0)


def test_an_interrupted_run_ends_bit_for_bit_where_it_would_have(finished, material, tmp_path, monkeypatch):
    config = configuration(material, tmp_path, checkpoint_minutes=0.0)
    real, calls = prior.train.Pairs.draw, [0]

    def draw(*arguments):
        calls[0] += 1
        if calls[0] > 130:
            raise Interrupted
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(prior.train.Pairs, "draw", draw)
        with pytest.raises(Interrupted):
            train(config)
    assert json.loads((latest(tmp_path) / "progress.json").read_text()) == {"step": 130}
    resumed = train(config.model_copy(update={"checkpoint_minutes": 9.0}))
    whole, again = (load_file(folder / "prior.safetensors") for folder in (finished[1], resumed))
    assert [key for key in whole if not torch.equal(whole[key], again[key])] == []


def test_classes_that_do_not_fit_the_outputs_are_refused(material, tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps([{"name": "cat"}, {"name": "dog"}]))
    config = configuration(material, tmp_path / "run", classes=str(tmp_path / "classes.json"))
    with pytest.raises(ValueError, match=r"classes\.json has 2 classes, .* outputs of 4; expected the same number"):
        train(config)


def test_keys_of_a_classifier_and_of_a_clip_are_not_mixed(material, tmp_path):
    with pytest.raises(ValueError, match=r"outputs: got .*o\.safetensors' beside pairs, expected one of the two"):
        train(configuration(material, tmp_path, pairs="p.safetensors"))
    with pytest.raises(ValueError, match="classes: got none, expected outputs, text_encoder and classes, or pairs"):
        train(configuration(material, tmp_path, classes=None))
    alone = {"outputs": None, "text_encoder": None, "classes": None, "nouns": None, "held_out": None}
    vectors = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    pairs = {"texts": vectors, "says": torch.arange(6), "images": vectors.flip(0), "shows": torch.arange(6)}
    card = {"kind": "pairs", "model": "toy", "backbone_sha256": "abc", "source": "toy"}
    save_weights(tmp_path / "p.safetensors", pairs, card)
    with pytest.raises(ValueError, match=r"test_share: got 1\.5"):
        train(configuration(material, tmp_path, **alone, pairs=str(tmp_path / "p.safetensors"), test_share=1.5))
