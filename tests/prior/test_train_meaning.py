"""Training a membership prior on a few words: what it learns, and that an interrupted run resumes exactly."""

import json

import pytest
import torch
from safetensors.torch import load_file

import prior.meaning_data
from lrm_base.card import save_weights
from prior.captions import Vocabulary
from prior.data import read_held_out
from prior.meaning import MeaningPrior
from prior.meaning_data import build_meaning_texts, read_other_nouns
from prior.text import TextEncoder
from prior.train_meaning import MeaningTraining, load_profiles, train

CLASSES = [
    {"name": "beagle", "synonyms": [], "is_a": ["dog", "animal"]},
    {"name": "pug", "synonyms": ["mops"], "is_a": ["dog", "animal"]},
    {"name": "lion", "synonyms": [], "is_a": ["animal"]},
    {"name": "teapot", "synonyms": [], "is_a": []},
]
NOUNS = "n02084071\tdog, hound\nn05799212\tdoubt, uncertainty\nn07500000\tjoy\nn02374451\thorse\nn08800000\tParis\n"


class Interrupted(Exception):
    """Stands in for a kill."""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    (tmp_path / "words.txt").write_text(NOUNS)
    (tmp_path / "held_out.json").write_text(json.dumps({"held_out": {"mops": ["pug"], "hounds": []}, "more": []}))
    return tmp_path


def configuration(folder, text, run="run", **changes):
    values = {
        "name": "toy_meaning",
        "classes": str(folder / "classes.json"),
        "nouns": str(folder / "words.txt"),
        "held_out": str(folder / "held_out.json"),
        "text_encoder": str(text),
        "run_folder": str(folder / run),
        "width": 64,
        "dropout": 0.0,
        "text_noise": 0.1,
        "far": 0.99,
        "near": 1.0,
        "steps": 600,
        "batch_size": 64,
        "learning_rate": 1e-2,
    }
    return MeaningTraining.parse({**values, **changes})


def test_a_trained_prior_knows_its_words_and_what_it_does_not_know(folder, toy_text):
    loaded, card = MeaningPrior.load(train(configuration(folder, toy_text)) / "prior.safetensors")
    encode = TextEncoder.load(toy_text).encode
    members = loaded.members(encode(["a beagle", "a pug", "a lion", "a teapot", "a dog", "an animal"]))
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert (members > 0.5).int().tolist() == expected
    known = loaded.known(encode(["a lion", "a dog", "a doubt", "an uncertainty"]))
    assert known[:2].min() > 0.5 > known[2:].max()
    assert card["measured"]["member/name"] == 1.0
    assert card["text_encoder"] == "toy_clip"


def test_an_interrupted_run_ends_bit_for_bit_where_it_would_have(folder, toy_text, monkeypatch):
    whole = load_file(train(configuration(folder, toy_text, "whole", steps=30)) / "prior.safetensors")
    config = configuration(folder, toy_text, "cut", steps=30, checkpoint_minutes=0.0)
    real, calls = prior.meaning_data.MeaningTexts.draw, [0]

    def draw(*arguments):
        calls[0] += 1
        if calls[0] > 20:
            raise Interrupted
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(prior.meaning_data.MeaningTexts, "draw", draw)
        with pytest.raises(Interrupted):
            train(config)
    with monkeypatch.context() as patch:  # the embeddings are kept
        patch.setattr(prior.meaning_data.Embedder, "_embed", None)
        again = load_file(train(config) / "prior.safetensors")
    assert [key for key in whole if not torch.equal(whole[key], again[key])] == []


def test_held_out_words_are_never_drawn(folder, toy_text):
    config = configuration(folder, toy_text)
    vocabulary = Vocabulary.load(config.classes, read_held_out(config.held_out))
    assert vocabulary.synonyms[1] == ()
    others = read_other_nouns(folder / "words.txt", vocabulary)
    assert others == {"doubt": False, "uncertainty": False, "joy": False, "horse": True, "Paris": False}
    (folder / "held_out.json").write_text(json.dumps(["mops"]))
    with pytest.raises(ValueError, match="expected an object whose keys are words"):
        read_held_out(config.held_out)


def test_a_noun_means_what_is_near_and_the_less_the_farther_it_lies():
    vocabulary = Vocabulary(CLASSES)
    place = {"dog": 0, "pug": 1, "teapot": 2, "kettle": 2, "doubt": 3, "brewer": 2}
    angles = {"kettle": 0.65, "brewer": 0.1}

    def encode(texts):
        rows = torch.zeros(len(texts), 4)
        for row, text in zip(rows, texts, strict=True):
            noun = next((word for word in place if word in text), "dog")
            row[place[noun]] = torch.tensor(angles.get(noun, 0.0)).cos()
            row[3] += torch.tensor(angles.get(noun, 0.0)).sin() + (noun == "doubt")
        return rows

    options = {"group_share": 0.3, "near_share": 0.1, "far_share": 0.2, "temperature": 0.03, "seed": 0}
    texts = build_meaning_texts(
        vocabulary, {"kettle": True, "doubt": False, "brewer": False}, encode, far=0.7, near=0.9, **options
    )
    known = len(vocabulary.nouns())
    assert texts.members.shape == (known + 2, 4)
    torch.testing.assert_close(texts.known[known], (torch.tensor(0.65).cos() - 0.7) / 0.2)
    torch.testing.assert_close(texts.members[known, 3].float(), texts.known[known], atol=2e-3, rtol=0)
    assert texts.known[-1] == texts.members[-1].sum() == 0
    assert int((texts.meanings == known + 1).sum()) == 2  # doubt alone: a brewer may be another sense of a teapot
    torch.testing.assert_close(texts.weights[texts.meanings > known].sum(), torch.tensor(0.2))
    torch.testing.assert_close(texts.weights.sum(), torch.tensor(1.0))


def test_goals_come_from_prototypes_a_classifier_or_the_classes_alone(folder, toy_text):
    mean = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    save_weights(folder / "p.safetensors", {"mean": mean}, {"backbone": "toy", "backbone_sha256": "abc"})
    save_weights(folder / "c.safetensors", {"weight": mean[0].clone(), "bias": mean[0, 0].clone()}, {"name": "toy"})
    profiles, about = load_profiles(configuration(folder, toy_text, prototypes=str(folder / "p.safetensors")), 4)
    assert torch.equal(profiles, mean[1])
    assert about == {"backbone": "toy", "backbone_sha256": "abc"}
    classifier = configuration(folder, toy_text, classifier=str(folder / "c.safetensors"))
    assert load_profiles(classifier, 4)[0].shape == (4, 4)
    assert int(load_profiles(configuration(folder, toy_text), 4)[0].count_nonzero()) == 4
    with pytest.raises(ValueError, match=r"expected mean \(passes, 5, 5\)"):
        load_profiles(configuration(folder, toy_text, prototypes=str(folder / "p.safetensors")), 5)
    with pytest.raises(ValueError, match="expected one matrix of 5 rows, got 0"):
        load_profiles(classifier, 5)
    with pytest.raises(ValueError, match="at most one of them"):
        load_profiles(configuration(folder, toy_text, prototypes="a", classifier="b"), 4)
