"""Frozen text encoders: `prior.text`."""

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from prior.text import WEIGHTS, TextEncoder, open_folder, run_text_tower, text_tower
from prior.text_model import TextConfig, build_model, save_text_model

TOY = {
    "name": "toy_text",
    "run_folder": "unused",
    "classes": "unused",
    "synsets": "unused",
    "embed_dim": 24,
    "text": {"context_length": 16, "width": 16, "heads": 2, "layers": 2},
    "vision": {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},
    "epochs": 1,
    "examples_per_epoch": 1,
}
TEXTS = ["a dog", "where is the golden retriever with a red ball?", "cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = TextConfig.parse(TOY)
    path = tmp_path_factory.mktemp("text")
    save_text_model(path, build_model(config), config, {})
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return TextEncoder.load(folder)


def test_embeddings_are_of_unit_length_and_open_clips_own(folder: Path, encoder: TextEncoder) -> None:
    open_clip.add_model_config(folder / "toy_text.json")
    model, _, _ = open_clip.create_model_and_transforms("toy_text", pretrained=str(folder / WEIGHTS))
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer("toy_text")(TEXTS), normalize=True)
    found = encoder.encode(TEXTS)
    assert found.shape == (3, encoder.width) == (3, 24)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))


def test_company_in_the_batch_does_not_change_an_embedding(encoder: TextEncoder) -> None:
    alone = torch.cat([encoder.encode([text]) for text in TEXTS])
    torch.testing.assert_close(encoder.encode(TEXTS), alone, atol=1e-6, rtol=1e-5)


def test_different_texts_differ(encoder: TextEncoder) -> None:
    a, b = encoder.encode(["a dog", "a dogs"])
    assert (a - b).abs().max() > 1e-3


def test_token_encodings_are_zero_behind_the_end(encoder: TextEncoder) -> None:
    states, mask = encoder.tokens(TEXTS)
    assert states.shape == (3, max(encoder.num_tokens(text) for text in TEXTS), encoder.token_width)
    assert mask.sum(1).tolist() == [encoder.num_tokens(text) for text in TEXTS] == [4, 12, 3]
    assert (states[~mask] == 0).all()
    assert (states[mask].abs().sum(-1) > 0).all()


def test_the_end_tokens_encoding_projects_to_the_embedding(encoder: TextEncoder) -> None:
    states, mask = encoder.tokens(TEXTS)
    last = states[torch.arange(3), mask.sum(1) - 1] @ text_tower(encoder.model).text_projection
    torch.testing.assert_close(torch.nn.functional.normalize(last, dim=-1), encoder.encode(TEXTS))


def test_a_query_that_would_be_cut_is_refused_with_limit_and_count(encoder: TextEncoder) -> None:
    encoder.encode(["dog " * 14])
    with pytest.raises(ValueError, match=r"got 17 tokens, at most 16 fit: 'dog dog"):
        encoder.encode(["a dog", "dog " * 15])


@pytest.mark.parametrize("query", ["", "  ", "\n\t"])
def test_an_empty_query_is_refused(encoder: TextEncoder, query: str) -> None:
    with pytest.raises(ValueError, match="the query is empty"):
        encoder.encode(["a dog", query])
    with pytest.raises(ValueError, match="the query is empty"):
        encoder.tokens([query])


def test_no_texts_and_a_bare_string_are_refused(encoder: TextEncoder) -> None:
    with pytest.raises(ValueError, match="at least one text"):
        encoder.encode([])
    with pytest.raises(ValueError, match="expected a list of texts, got one text"):
        encoder.encode("a dog")


def test_the_encoder_is_frozen(encoder: TextEncoder) -> None:
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert not encoder.encode(["a dog"]).requires_grad


def test_a_model_loads_by_open_clips_name_with_local_weights(folder: Path, encoder: TextEncoder) -> None:
    open_clip.add_model_config(folder / "toy_text.json")
    named = TextEncoder.load("toy_text", pretrained=str(folder / WEIGHTS))
    assert named.name == f"toy_text/{WEIGHTS}"
    assert torch.equal(named.encode(TEXTS), encoder.encode(TEXTS))


def test_an_unknown_name_and_a_name_without_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="got 'ViT-Z-1', which is neither a folder nor"):
        TextEncoder.load("ViT-Z-1")
    with pytest.raises(ValueError, match=r"ViT-B-16: expected a file of weights or a tag; choices: openai"):
        TextEncoder.load("ViT-B-16")


def test_altered_or_missing_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    altered = Path(shutil.copytree(folder, tmp_path / "altered"))
    data = bytearray((altered / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (altered / WEIGHTS).write_bytes(data)
    with pytest.raises(ValueError, match="was altered"):
        TextEncoder.load(altered)
    (altered / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="no weights"):
        TextEncoder.load(altered)


def test_two_folders_of_one_name_do_not_mix(folder: Path, tmp_path: Path) -> None:
    config = TextConfig.parse({**TOY, "embed_dim": 8})
    save_text_model(tmp_path / "other", build_model(config), config, {})
    assert [TextEncoder.load(path).width for path in (folder, tmp_path / "other", folder)] == [24, 8, 24]


def test_loading_draws_no_random_numbers(folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    TextEncoder.load(folder)
    assert torch.equal(torch.rand(3), expected)


def test_a_tower_without_causal_mask_is_refused() -> None:
    shape = {**TOY["text"], "no_causal_mask": True}
    tower = open_clip.model._build_text_tower(8, shape)
    with pytest.raises(ValueError, match="expected OpenCLIP's causal text transformer"):
        run_text_tower(tower, torch.zeros(1, 4, dtype=torch.long))


def test_the_card_says_what_the_encoder_is(folder: Path, encoder: TextEncoder) -> None:
    assert encoder.card["name"] == encoder.name == "toy_text"
    assert encoder.card["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    assert set(json.loads((folder / "toy_text.json").read_text())) == {"embed_dim", "text_cfg", "vision_cfg"}


@pytest.fixture(scope="module")
def seeing_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a card that tells of a trained image tower."""
    torch.manual_seed(0)
    config = TextConfig.parse(TOY)
    path = tmp_path_factory.mktemp("seeing")
    save_text_model(path, build_model(config), config, {"zero_shot/top1": 0.5})
    return path


@pytest.fixture(scope="module")
def seeing(seeing_folder: Path) -> TextEncoder:
    return TextEncoder.load(seeing_folder)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0)) / 255


def test_an_image_tower_counts_only_if_it_was_trained(
    folder: Path, encoder: TextEncoder, seeing: TextEncoder, pixels: torch.Tensor
) -> None:
    open_clip.add_model_config(folder / "toy_text.json")
    named = TextEncoder.load("toy_text", pretrained=str(folder / WEIGHTS))
    assert [one.sees for one in (encoder, seeing, named)] == [False, True, True]
    with pytest.raises(ValueError, match="text encoder toy_text has no trained image tower"):
        encoder.encode_images(pixels)


def test_images_are_embedded_as_open_clip_does(folder: Path, pixels: torch.Tensor) -> None:
    open_clip.add_model_config(folder / "toy_text.json")
    named = TextEncoder.load("toy_text", pretrained=str(folder / WEIGHTS))
    model, _, transform = open_clip.create_model_and_transforms("toy_text", pretrained=str(folder / WEIGHTS))
    with torch.no_grad():
        expected = model.eval().encode_image(torch.stack([transform(to_pil_image(p)) for p in pixels]), normalize=True)
    found = named.encode_images(pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 0.01
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(torch.cat([named.encode_images(p[None]) for p in pixels]), found)


def test_a_folders_card_says_how_images_are_normalised(
    seeing_folder: Path, seeing: TextEncoder, pixels: torch.Tensor
) -> None:
    model, _ = open_folder(seeing_folder)
    mean, std = (torch.tensor(seeing.card["preprocessing"][key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        expected = model.eval().encode_image((pixels - mean) / std, normalize=True)
    torch.testing.assert_close(seeing.encode_images(pixels), expected, atol=1e-6, rtol=1e-5)


def test_the_whole_frame_is_squashed_to_the_towers_size(seeing: TextEncoder) -> None:
    wide = torch.rand(1, 3, 24, 60, generator=torch.Generator().manual_seed(1))
    channels = [Image.fromarray(channel.numpy()).resize((16, 16), Image.Resampling.BICUBIC) for channel in wide[0]]
    small = torch.stack([torch.from_numpy(np.array(channel)) for channel in channels])[None].clamp(0, 1)
    torch.testing.assert_close(seeing.encode_images(wide), seeing.encode_images(small), atol=1e-4, rtol=1e-3)
    cut = seeing.encode_images(wide[..., 18:42])
    assert (cut - seeing.encode_images(wide)).abs().max() > 0.01


def test_embeddings_of_images_need_no_gradient_and_may_meet_one(seeing: TextEncoder, pixels: torch.Tensor) -> None:
    found = seeing.encode_images(pixels.clone().requires_grad_())
    assert not found.requires_grad
    weight = torch.ones(24, requires_grad=True)
    (found * weight).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, found.sum(0))


def test_the_mini_models_encoder_knows_everyday_words(mini_folder: Path) -> None:
    encoder = TextEncoder.load(mini_folder / "text")
    names = ["golden retriever", "sports car", "teapot", "lemon", "suspension bridge", "cardigan", "pop bottle"]
    words = ["puppy", "race car", "kettle", "lime", "bridge", "sweater", "soda"]
    nearest = (encoder.encode(words) @ encoder.encode([f"a {name}" for name in names]).T).argmax(1)
    assert nearest.tolist() == list(range(len(names)))


def test_asking_hardly_moves_the_mini_models_answer(mini_folder: Path) -> None:
    encoder = TextEncoder.load(mini_folder / "text")
    for noun in ("dog", "bridge", "lemon"):
        variants = encoder.encode([f"a {noun}", f"where is the {noun}?", f"a photo of a {noun}", f"find the {noun}"])
        assert (variants @ variants[0]).min() > 0.9


def test_the_mini_models_towers_stay_within_their_budget(mini_folder: Path) -> None:
    assert (mini_folder / "text" / WEIGHTS).stat().st_size < 31_000_000
