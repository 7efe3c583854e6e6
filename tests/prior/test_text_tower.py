"""The text tower without `open_clip`: `prior.text_tower`. OpenCLIP's own model of the same weights is the reference."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F

from lrm_base.card import load_stored, load_weights, save_weights
from prior.text import EMBEDDING, WEIGHTS, TextEncoder, compact, open_folder, run_text_tower
from prior.text_tower import SHAPE, EightBitEmbedding, TextTower
from steering.catalogue import DEFAULT_MODEL, MODELS

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = MODELS / DEFAULT_MODEL / "text"
TEXTS = ["a dog", "where is the golden retriever with a red ball?", "cat", "naïve café — “quotes”, 42", "🐶 & a bone!"]


@pytest.fixture(scope="module", params=["half precision", "8 bits", "shipped"])
def folder(request: pytest.FixtureRequest, toy_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "shipped":
        return SHIPPED
    if request.param == "half precision":
        return toy_text
    path = tmp_path_factory.mktemp("compact")
    compact(toy_text, path)
    return path


def test_embeddings_are_open_clips_own(folder: Path) -> None:
    model, card = open_folder(folder)
    rows = open_clip.tokenizer.tokenize(TEXTS, context_length=model.context_length)
    with torch.no_grad():
        expected = model.eval().encode_text(rows, normalize=True)
    encoder = TextEncoder.load(folder)
    assert isinstance(encoder.model, TextTower)
    assert encoder.width == expected.shape[1] == card.get("width", encoder.width)
    torch.testing.assert_close(encoder.encode(TEXTS), expected, atol=1e-6, rtol=0.0)


def test_encodings_of_tokens_are_open_clips_own(folder: Path) -> None:
    model, card = open_folder(folder)
    own, theirs = TextEncoder.load(folder), TextEncoder(model, TextEncoder.load(folder).tokenizer, card["name"])
    for found, expected in zip(own.tokens(TEXTS), theirs.tokens(TEXTS), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_an_embedding_in_8_bits_gives_the_rows_that_are_read_as_float32(tmp_path: Path, toy_text: Path) -> None:
    compact(toy_text, tmp_path)
    embedding = TextEncoder.load(tmp_path).model.token_embedding
    assert isinstance(embedding, EightBitEmbedding)
    ids = torch.tensor([[0, 320, 49407], [5, 5, 1929]])
    assert torch.equal(embedding(ids), F.embedding(ids, load_weights(tmp_path / WEIGHTS)[0][EMBEDDING]))
    assert embedding.weight.dtype == torch.int8


def test_texts_are_encoded_without_open_clip(folder: Path) -> None:
    program = (
        "import sys; from prior.text import TextEncoder\n"
        "print(TextEncoder.load(sys.argv[1]).encode(['a dog', 'naïve café']).shape[0])\n"
        "heavy = {'open_clip', 'torchvision', 'transformers', 'timm', 'huggingface_hub', 'sympy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_a_loaded_encoder_goes_through_pickle(toy_text: Path) -> None:
    encoder = TextEncoder.load(toy_text)
    assert torch.equal(pickle.loads(pickle.dumps(encoder)).encode(TEXTS[:2]), encoder.encode(TEXTS[:2]))


def test_every_weight_of_the_tower_reaches_the_embedding(toy_text: Path) -> None:
    tower = TextEncoder.load(toy_text).model.requires_grad_(True)
    embedding, _ = run_text_tower(tower, torch.tensor([[49406, 320, 1929, 49407]]))
    embedding.square().sum().backward()
    silent = [name for name, weight in tower.named_parameters() if not weight.grad.any()]
    assert silent in ([], ["transformer.resblocks.0.attn.in_proj_bias"])  # even attention: keys and queries are nothing


def test_a_tower_of_another_kind_is_opened_by_open_clip(toy_text: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(toy_text, tmp_path / "other"))
    shape = json.loads((other / "toy_clip.json").read_text())
    shape["text_cfg"]["act_kwargs"] = {"approximate": "tanh"}
    (other / "toy_clip.json").write_text(json.dumps(shape))
    encoder = TextEncoder.load(other)
    assert isinstance(encoder.model, open_clip.CLIP)
    difference = (encoder.encode(TEXTS) - TextEncoder.load(toy_text).encode(TEXTS)).abs().max()
    assert 0 < difference < 0.05


def test_weights_that_are_not_those_of_the_configuration_are_refused(toy_text: Path, tmp_path: Path) -> None:
    tensors, card = load_stored(toy_text / WEIGHTS)
    shutil.copy(toy_text / "toy_clip.json", tmp_path)
    kept = {key: value for key, value in card.items() if key != "sha256"}
    wrong = {
        "Missing key.*ln_final.bias": {k: v for k, v in tensors.items() if k != "ln_final.bias"},
        "Unexpected key.*extra": {**tensors, "extra": torch.zeros(1)},
        "size mismatch for text_projection": {**tensors, "text_projection": torch.zeros(16, 7)},
    }
    for message, given in wrong.items():
        save_weights(tmp_path / WEIGHTS, given, kept)
        with pytest.raises(ValueError, match=f"does not hold the text tower of its configuration: .*{message}"):
            TextEncoder.load(tmp_path)


def test_a_folder_without_its_configuration_is_refused(toy_text: Path, tmp_path: Path) -> None:
    for file in toy_text.glob("text.*"):
        shutil.copy(file, tmp_path)
    with pytest.raises(ValueError, match=r"no OpenCLIP configuration: expected .*toy_clip\.json"):
        TextEncoder.load(tmp_path)


def test_the_shipped_configuration_is_that_of_the_plain_tower() -> None:
    (file,) = (path for path in SHIPPED.glob("*.json") if path.name != "text.json")
    assert json.loads(file.read_text())["text_cfg"].keys() == SHAPE
