"""Embeddings of captioned images by a CLIP, a prior that is trained on them, and a look with it by the command line."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import prior.train
import steer_cli
import steering.pairs
from prior.class_names import TEMPLATES
from prior.pairs import Captioned
from steering import Steerer
from steering.pairs import write_pairs
from tests.clips import make_open_clip, noisy_things

pytestmark = pytest.mark.usefixtures("own_folders")

THINGS = ("ball", "sky", "leaf", "cat", "dog", "tin", "umbrella", "an_owl")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("clip") / "model"
    make_open_clip(folder)
    return f"clip:{folder}"


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> Path:
    return noisy_things(tmp_path_factory.mktemp("named"), THINGS)


@pytest.fixture(scope="module")
def pairs(model, named, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("pairs") / "pairs.safetensors"
    write_pairs(model, str(named), output, device="cpu")
    return output


def test_the_embeddings_are_those_of_looks_and_of_the_words(model, named, pairs):
    found, card = Captioned.load(pairs)
    steerer = Steerer.load(model, device="cpu")
    network = steerer.network
    assert (card["names"], card["images"], len(found.texts)) == (8, 48, 8 * len(TEMPLATES))
    assert card["backbone_sha256"] == network.card["sha256"]
    glance = network.glance(network.pixels(Image.open(named / "cat" / "2.png")))
    own = F.normalize(glance.embedding, dim=-1)
    cosines = (found.images @ own.T)[:, 0]
    best = int(cosines.argmax())
    assert (found.images[best] - own[0]).abs().max() < 1e-3  # half precision
    cat = steerer.language.embed(["a cat", "cat", "a photo of a cat"])
    said = found.says[(found.texts @ cat.T).argmax(0)]
    assert said.tolist() == [int(found.shows[best])] * 3
    assert not list(pairs.parent.glob("*.parts"))


def test_captions_stand_as_they_are_and_long_and_damaged_ones_are_left_out(model, named, tmp_path):
    lines = [f"{number}.png\ta picture of number {number}" for number in range(4)]
    for number in range(3):
        Image.new("RGB", (50, 40), (50 * number, 20, 90)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    Image.new("RGB", (50, 40)).save(tmp_path / "4.png")
    (tmp_path / "captions.txt").write_text("\n".join([*lines, "4.png\t" + "a long caption " * 30]))
    card = write_pairs(model, str(tmp_path), tmp_path / "out.safetensors", device="cpu")
    assert (card["captions"], card["images"], card["unread"], card["captions_too_long"]) == (4, 3, 1, 1)
    found, _ = Captioned.load(tmp_path / "out.safetensors")
    text = Steerer.load(model, device="cpu").language.embed(["a picture of number 2"])
    assert int((found.texts @ text.T).argmax()) == found.shows[2]


def test_an_interrupted_run_goes_on_and_a_finished_one_is_kept(model, named, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(steering.pairs, "PART", 16)
    real, calls = steering.pairs._part, [0]

    def part(*arguments):
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(steering.pairs, "_part", part)
    output = tmp_path / "again.safetensors"
    with pytest.raises(KeyboardInterrupt):
        write_pairs(model, str(named), output, device="cpu")
    write_pairs(model, str(named), output, device="cpu")
    assert calls[0] == 4  # the first two parts were there
    whole, again = load_file(pairs), load_file(output)
    assert all((whole[key].float() - again[key].float()).abs().max() < 2e-3 for key in whole)
    write_pairs(model, str(named), output, device="cpu")
    assert calls[0] == 4
    with pytest.raises(ValueError, match=r"holds embeddings of something else \(names 8, expected 1\)"):
        write_pairs(model, str(named), output, device="cpu", limit=5)


def test_only_a_clip_and_a_known_ending_are_taken(named, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        steering.pairs.main([str(named), "--model", "lrm_lite", "--output", str(tmp_path / "p.safetensors")])
    assert stop.value.code == 2
    assert "model: got lrm_lite, expected a CLIP such as clip:NAME:TAG" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"expected a file ….safetensors"):
        write_pairs("clip:x", str(named), tmp_path / "p.bin")


def test_a_prior_of_pairs_steers_by_the_command_line(model, named, pairs, tmp_path, capsys):
    config = Path(__file__).resolve().parents[2] / "configs" / "prior_clip.yaml"
    small = ["width=32", "depth=1", "epochs=1", "steps_per_epoch=150", "batch_size=32", "learning_rate=0.01"]
    run = [f"pairs={pairs}", f"run_folder={tmp_path / 'run'}", "test_share=0.2", *small]
    prior.train.main(["--config", str(config), *run])
    file = tmp_path / "run" / "model" / "prior.safetensors"
    card = json.loads(file.with_suffix(".json").read_text())
    measured = card["measured"]
    assert card["backbone_sha256"] == json.loads(pairs.with_suffix(".json").read_text())["backbone_sha256"]
    assert measured["known texts/cosine/diffusion"] > measured["known texts/cosine/identity"] + 0.1
    assert measured["known texts/cosine/diffusion"] > 0.9
    capsys.readouterr()
    image = str(named / "cat" / "0.png")
    look = ("--model", model, "--device", "cpu", "-q", "a cat")
    assert steer_cli.main([*look, "--prior", str(file), image]) == 0
    out = capsys.readouterr().out
    assert "goal by diffusion" in out
    assert steer_cli.main([*look, image]) == 0
    assert "goal by identity" in capsys.readouterr().out
    goal = Steerer.load(model, prior=str(file), device="cpu").goal("a cat")
    assert goal.source == "diffusion"
    assert goal.vector.shape == (48,)


def test_a_prior_of_another_clip_is_refused(pairs, named, model, tmp_path, capsys):
    other = tmp_path / "other"
    make_open_clip(other, seed=1)
    from prior.model import Prior
    from prior.network import PriorNetwork

    card = json.loads(pairs.with_suffix(".json").read_text())
    made = Prior(PriorNetwork(48, 48, 8, 1), torch.zeros(48), torch.ones(48), 20)
    made.save(tmp_path / "p.safetensors", {"backbone_sha256": card["backbone_sha256"]})
    assert Steerer.load(model, prior=str(tmp_path / "p.safetensors"), device="cpu").language.prior.source == "diffusion"
    with pytest.raises(ValueError, match="the prior was trained for a backbone of width 48, SHA-256"):
        Steerer.load(f"clip:{other}", prior=str(tmp_path / "p.safetensors"), device="cpu")


def test_a_list_of_names_steers_by_the_command_line(model, named, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(["dog", "cat", "red car", "umbrella"]))
    look = ("--model", model, "--device", "cpu", "-q", "a cat", str(named / "cat" / "0.png"))
    assert steer_cli.main([*look, "--prior", str(names)]) == 0
    assert "goal by class-names" in capsys.readouterr().out
    names.write_text("dog\n")
    with pytest.raises(SystemExit) as stop:
        steer_cli.main([*look, "--prior", str(names)])
    assert stop.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"prior: got one name in .*names\.txt, expected at least two names, one a line", told)
