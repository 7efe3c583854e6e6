"""The published AlexNets from the command line, end to end, on files in the published format that this test writes.

The files are as published in names, keys and shapes of the backbone and the prototypes; the prior has one layer instead
of many and the text encoder is small, with CLIP's widths. All weights are random.
"""

import json
from pathlib import Path

import pytest
import torch

import lrm_core.published_backbones
import prior.published_model
import prior.published_prior
from lrm_base.card import sha256_of
from lrm_base.imagenet import imagenet_names
from lrm_core.compat import PUBLISHED_CONNECTIONS, SteerableLRM, ours_to_published
from lrm_core.published_backbones import load_checkpoint
from prior.published_model import PublishedPrior
from prior.published_prior import load_prior
from prior.templates import encode_with_templates
from prior.text import TextEncoder
from steer_cli import main
from steering import Steerer
from steering.images import open_image
from steering.loading import reads_published

NAME = "alexnet_lrm3"


def stored(cache: Path, stem: str, payload: object) -> str:
    """Put a file into torch.hub's cache under a name that vouches for it; returns an address that nothing answers."""
    partial = cache / "unnamed.pth"
    torch.save(payload, partial)
    name = f"{stem}-{sha256_of(partial)[:8]}.pth"
    partial.rename(cache / name)
    return f"https://127.0.0.1:9/{name}"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A cache with backbone, prior and prototypes, the published tables pointing at it, and a text encoder's file."""
    import open_clip
    from torchvision.models import alexnet

    home = tmp_path_factory.mktemp("torch")
    cache = home / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        front = SteerableLRM(alexnet(weights=None), PUBLISHED_CONNECTIONS[NAME])
        backbone = ours_to_published(front.lrm.state_dict(), front.lrm.connections)
        language = PublishedPrior(depth=1).state_dict()
        shape = {
            "embed_dim": 512,
            "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 1},
        }
        config = home / "toy_published_clip.json"
        config.write_text(json.dumps(shape))
        open_clip.add_model_config(config)
        torch.save(open_clip.create_model("toy_published_clip").state_dict(), home / "clip.pt")
        statistics = {key: torch.randn(1000) for key in ("sum", "sumsq", "mean", "std")}
    prototypes = {i: {"count": 7, **{k: v.roll(i) for k, v in statistics.items()}} for i in range(1000)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        weights = stored(cache, "set15_final_weights", {"state_dict": {f"module.{k}": v for k, v in backbone.items()}})
        patch.setitem(lrm_core.published_backbones.WEIGHTS, NAME, weights)
        patch.setattr(prior.published_model, "TEXT_ENCODER", ("toy_published_clip", str(home / "clip.pt")))
        patch.setitem(prior.published_prior.PRIORS, NAME, stored(cache, "clip_diffusion_aligned", {"model": language}))
        patch.setitem(
            lrm_core.published_backbones.VISION_PROTOTYPES, NAME, stored(cache, "visual_prototypes", prototypes)
        )
        yield f"toy_published_clip:{home / 'clip.pt'}", cache / weights.rpartition("/")[2], prototypes


def looked(capsys, *arguments):
    assert main(["--model", NAME, "--json", "--device", "cpu", "sample:cat", *arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def squashed():
    from torchvision.transforms.functional import normalize, pil_to_tensor

    picture = open_image("sample:cat").resize((224, 224), 2)
    return normalize(pil_to_tensor(picture)[None] / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def reference(path):
    """The published calls, by hand."""
    from torchvision.models import alexnet

    front = SteerableLRM(alexnet(weights=None), PUBLISHED_CONNECTIONS[NAME])
    front.load_state_dict(load_checkpoint(path))
    return front.eval()


def assert_ranking(found, logits):
    best = logits.softmax(0).topk(len(found))
    names = imagenet_names()
    assert [entry["name"] for entry in found] == [names[i] for i in best.indices]
    assert [entry["probability"] for entry in found] == pytest.approx(best.values.tolist(), abs=1e-5)


@torch.no_grad()
def test_words_steer_the_published_model_as_its_own_calls_do(files, capsys):
    text, weights, _ = files
    (look,) = looked(capsys, "--query", "a dog")
    assert (look["model"], look["prior"], look["query"]) == (NAME, "published", "a dog")
    assert (look["verdict"], look["probability"]) == (None, None)  # nobody calibrated it
    front, pixels = reference(weights), squashed()
    encoded = encode_with_templates(TextEncoder.load(*text.split(":", 1)), ["dog"])
    goal = load_prior(NAME).goals(*encoded, num_samples=16, steps=10, seed=0)
    signal = {"source": "classifier.6", "activation": goal, "strength": 1.0}
    before, after = front(pixels, steering_signals=[signal], forward_passes=2, return_list=True)
    assert_ranking(look["before"], before[0])
    assert_ranking(look["after"], after[0])
    assert not torch.equal(before, after)


def test_class_names_need_no_trained_prior(files, capsys):
    text, _, _ = files
    (look,) = looked(capsys, "--query", "a goldfish", "--prior", "class-names")
    assert look["prior"] == "class-names"
    steerer = Steerer.load(NAME, prior="class-names", text=text, device="cpu")
    meant = steerer.language.prior.weights(steerer.language.embed(["a goldfish"]))[0]
    assert steerer.class_names[int(meant.argmax())] == "goldfish"
    glance = steerer.network.glance(squashed())
    assert_ranking(look["before"], glance.output[0])
    assert_ranking(look["after"], steerer.network.steer(glance, steerer.goal("a goldfish").vector[None]).output[0])


@torch.no_grad()
def test_prototypes_and_images_steer_without_any_text_encoder(files, capsys):
    _, weights, prototypes = files
    by_class, by_image = looked(capsys, "--prototype", "Golden Retriever", "--query-image", "sample:coffee")
    assert (by_class["prior"], by_image["prior"]) == ("prototype", "image")
    front, pixels = reference(weights), squashed()
    prototype = prototypes[imagenet_names().index("golden retriever")]["mean"][None]
    coffee = Steerer.load(NAME, device="cpu").network.pixels(open_image("sample:coffee"))
    for look, goal in ((by_class, prototype), (by_image, front(coffee, forward_passes=2, return_list=True)[-1])):
        signal = {"source": "classifier.6", "activation": goal, "strength": 1.0}
        after = front(pixels, steering_signals=[signal], forward_passes=2, return_list=True)[-1]
        assert_ranking(look["after"], after[0])


def test_what_does_not_exist_is_told_with_the_choices(files, capsys):
    text, _, _ = files
    for arguments, message in (
        (
            ["--query", "a dog", "--text", text, "--prior", "ridge"],
            "--prior: got 'ridge' for alexnet_lrm3, expected published, class-names",
        ),
        (["--query", "a dog", "--text", "ViT-B-32:openai", "--prior", "published"], "trained with OpenAI's CLIP"),
        (["--prototype", "golden retriver"], "choices: golden retriever"),
        (["--query", "a dog", "--text", "ViT-Z-99:openai"], "ViT-Z-99"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["--model", NAME, "sample:cat", *arguments])
        assert message in capsys.readouterr().err


def test_weights_out_of_reach_are_told_with_address_name_and_place(files, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    address = lrm_core.published_backbones.WEIGHTS[NAME]
    with pytest.raises(SystemExit, match="2"):
        main(["--model", NAME, "--query", "a dog", "sample:cat"])
    error = capsys.readouterr().err
    for part in (address, address.rpartition("/")[2], str(tmp_path / "hub" / "checkpoints")):
        assert part in error


def test_imagenet_has_a_thousand_different_names():
    assert len(set(imagenet_names())) == len(imagenet_names()) == 1000
    assert imagenet_names()[207] == "golden retriever"


def test_the_published_prior_is_for_openais_clip_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(prior.published_model, "TEXT_ENCODER", ("ViT-B-16", "openai"))
    file = tmp_path / "clip.pt"
    file.touch()
    fits = ("ViT-B-16:openai", "ViT-B/16:openai", "ViT-B-16-quickgelu:openai", f"ViT-B-16-quickgelu:{file}")
    others = ("ViT-B-16:laion2b_s34b_b88k", "ViT-B-32:openai", f"ViT-B-16:{file}", "ViT-B-16-quickgelu:dfn2b")
    assert all(reads_published(text) for text in (None, *fits))
    assert not any(reads_published(text) for text in others)
