"""CLIP as the published priors read it: against dalle2-pytorch's own OpenCLIP adapter, on a random ViT-B/16."""

from pathlib import Path
from typing import NamedTuple

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import Tensor

from prior.templates import TEMPLATES, encode_with_templates, templates
from prior.text import WEIGHTS, TextEncoder

VIT = "ViT-B-16-quickgelu"  # OpenAI's ViT-B/16
TEXTS = [
    "a dog",
    "where is the golden retriever with a red ball?",
    "stop !% dog",  # its "!" has number 0, as padding has
    "a photo of a very small dog " * 10,
    "café, naïve & “odd” characters",
]
NAMES = ["dog", "kite (bird of prey)"]


class Pair(NamedTuple):
    encoder: TextEncoder
    embeddings: Tensor
    encodings: Tensor
    template_embeddings: Tensor
    template_encodings: Tensor


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Our encoder, and what the adapter says to the same texts: both read the same random weights from a file."""
    from dalle2_pytorch import OpenClipAdapter

    file = tmp_path_factory.mktemp("vit") / "random.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(VIT)
        torch.nn.init.normal_(model.token_embedding.weight)  # so that texts differ as much as trained ones do
    save_file({key: value.half() for key, value in model.state_dict().items()}, file)
    del model
    adapter = OpenClipAdapter(VIT, pretrained=str(file))
    adapter.eval()
    tokenizer = open_clip.get_tokenizer(VIT)
    texts = adapter.embed_text(tokenizer(TEXTS))
    filled = adapter.embed_text(
        tokenizer([sentence.format(name) for name in NAMES for sentence in templates("simple")])
    )
    del adapter
    encoder = TextEncoder.load("ViT-B/16-quickgelu", pretrained=str(file))
    file.unlink()
    return Pair(
        encoder,
        texts.text_embed,
        texts.text_encodings,
        filled.text_embed.unflatten(0, (len(NAMES), -1)),
        filled.text_encodings.unflatten(0, (len(NAMES), -1)),
    )


def test_embeddings_are_those_of_dalle2_pytorchs_adapter(vit: Pair) -> None:
    found = vit.encoder.encode(TEXTS)
    assert found.shape == (len(TEXTS), 512)
    torch.testing.assert_close(found, vit.embeddings, atol=1e-5, rtol=0)
    assert (found[0] - found[2]).abs().max() > 1e-2


def test_token_encodings_are_those_of_dalle2_pytorchs_adapter(vit: Pair) -> None:
    found, mask = vit.encoder.tokens(TEXTS)
    length = found.shape[1]
    torch.testing.assert_close(found, vit.encodings[:, :length], atol=1e-5, rtol=0)
    assert not vit.encodings[:, length:].any()
    assert torch.equal(mask, (vit.encodings[:, :length] != 0).any(-1))
    assert mask[2, :7].tolist() == [True, True, False, True, True, True, False]


def test_templates_are_averaged_and_brought_to_unit_length(vit: Pair) -> None:
    embedding, encodings = encode_with_templates(vit.encoder, NAMES)
    expected = vit.template_embeddings.mean(1)
    torch.testing.assert_close(embedding, expected / expected.norm(dim=-1, keepdim=True), atol=1e-5, rtol=0)
    expected = vit.template_encodings.mean(1)
    assert encodings.shape == expected.shape == (2, 77, 512)
    torch.testing.assert_close(encodings, expected / (expected.norm(dim=-1, keepdim=True) + 1e-8), atol=1e-5, rtol=0)
    stands = (encodings != 0).any(-1)
    assert stands.sum(1).tolist() == [  # as many as the longest sentence needs
        max(vit.encoder.num_tokens(sentence.format(name)) for sentence in templates("simple")) for name in NAMES
    ]
    torch.testing.assert_close(encodings[stands].norm(dim=-1), torch.ones(int(stands.sum())))


def test_company_does_not_change_a_name(toy_text: Path) -> None:
    encoder = TextEncoder.load(toy_text)
    together = encode_with_templates(encoder, ["dog", "golden retriever"], ["a {}", "where is the {}?"])
    for index, name in enumerate(["dog", "golden retriever"]):
        alone = encode_with_templates(encoder, [name], ["a {}", "where is the {}?"])
        assert all(torch.equal(one[0], both[index]) for one, both in zip(alone, together, strict=True))


def test_without_templates_it_is_the_name_itself(toy_text: Path) -> None:
    encoder = TextEncoder.load(toy_text)
    embedding, encodings = encode_with_templates(encoder, ["a dog"], "none")
    torch.testing.assert_close(embedding, encoder.encode(["a dog"]))
    own = encoder.tokens(["a dog"])[0]
    torch.testing.assert_close(encodings[:, :4], torch.nn.functional.normalize(own, dim=-1))
    assert encodings.shape == (1, 16, 16)
    assert not encodings[:, 4:].any()


def test_the_sets_are_openais() -> None:
    assert [len(templates(name)) for name in TEMPLATES] == [1, 7, 80]
    assert all(sentence.count("{}") == 1 for name in TEMPLATES for sentence in templates(name))
    assert set(templates("simple")) <= set(templates("imagenet"))


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        ("plane", "templates: got 'plane', choices: none, simple, imagenet"),
        (["a photo"], r"one \{\} each, got \['a photo'\]"),
        (["a {} and a {}"], r"got \['a \{\} and a \{\}'\]"),
        ([], r"one \{\} each, got none"),
    ],
)
def test_templates_that_cannot_be_filled_are_refused(toy_text: Path, sentences: str | list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_with_templates(TextEncoder.load(toy_text), ["dog"], sentences)


@pytest.mark.parametrize("names", ["dog", []])
def test_names_that_are_no_list_are_refused(toy_text: Path, names: str | list[str]) -> None:
    with pytest.raises(ValueError, match="expected a list of names, got"):
        encode_with_templates(TextEncoder.load(toy_text), names)


@pytest.mark.parametrize("quick", [False, True])
def test_a_tag_brings_the_activation_that_its_weights_need(
    toy_text: Path, monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    """OpenCLIP itself only warns that OpenAI's weights need QuickGELU, and computes something else."""
    open_clip.add_model_config(toy_text / "toy_clip.json")
    table = open_clip.pretrained._PRETRAINED
    monkeypatch.setitem(table, "toy_clip", {"openai": {"file": str(toy_text / WEIGHTS), "quick_gelu": quick}})
    encoder = TextEncoder.load("toy_clip", pretrained="openai")
    assert isinstance(encoder.model.transformer.resblocks[0].mlp.gelu, QuickGELU) == quick
    assert torch.allclose(encoder.encode(["a dog"]), TextEncoder.load(toy_text).encode(["a dog"])) != quick


def test_without_a_network_one_line_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="the weights 'openai' cannot be downloaded") as caught:
        TextEncoder.load("ViT-B/16", pretrained="openai")
    message = str(caught.value)
    assert "\n" not in message
    assert "https://huggingface.co/timm/vit_base_patch16_clip_224.openai/resolve/main/open_clip_model.safet" in message
    assert f"give it as {VIT}:FILE" in message


def test_a_file_of_something_else_is_refused_and_named(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, file)
    open_clip.add_model_config(_tiny(tmp_path))
    with pytest.raises(ValueError, match=r"other\.safetensors does not hold weights of tiny_clip"):
        TextEncoder.load("tiny_clip", pretrained=str(file))
    with pytest.raises(ValueError, match="'opnai' is neither a file nor one of its tags: none"):
        TextEncoder.load("tiny_clip", pretrained="opnai")


def _tiny(folder: Path) -> Path:
    file = folder / "tiny_clip.json"
    file.write_text(
        '{"embed_dim": 8, "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},'
        ' "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}'
    )
    return file
