"""`steer evaluate` on a small CLIP that is trained here for some seconds, on names and pictures of Tiny ImageNet."""

import io
import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lrm_lab.commands import Asked
from lrm_lab.report import table
from lrm_lab.run import evaluate
from prior.captions import with_article
from tests.clips import make_open_clip

NAMES = ("goldfish", "school bus", "lemon", "lesser panda", "ladybug", "jellyfish", "king penguin", "espresso")
STEPS, BATCH, RATE = 120, 48, 3e-3
SHOWN = 15  # images of each name that are evaluated
CHANCE = 1 / len(NAMES)


@pytest.fixture(scope="module")
def pictures(shared):
    """Images (n, 3, 64, 64), 0–1, of the eight names, and their labels: to train on, and to evaluate."""
    import pyarrow.parquet as pq
    from torchvision.transforms.functional import to_tensor

    folder = shared / "data" / "tiny_imagenet"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/tiny_imagenet, which only developers and CI have")
    known = [entry["name"] for entry in json.loads((folder / "classes.json").read_text())]
    rows = [known.index(name) for name in NAMES]

    def read(file):
        found = pq.read_table(folder / file, columns=["label", "image"], filters=[("label", "in", rows)]).to_pydict()
        opened = [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in found["image"]]
        return torch.stack([to_tensor(image) for image in opened]), torch.tensor(
            [rows.index(label) for label in found["label"]]
        )

    return SimpleNamespace(train=read("train-00000-of-00006.parquet"), valid=read("valid-00000-of-00001.parquet"))


@pytest.fixture(scope="module")
def source(pictures, tmp_path_factory):
    """An ImageFolder of the images that are evaluated; its folders are the names."""
    from torchvision.transforms.functional import to_pil_image

    folder = tmp_path_factory.mktemp("shown")
    pixels, labels = pictures.valid
    for label, name in enumerate(NAMES):
        place = folder / "valid" / name.replace(" ", "_")
        place.mkdir(parents=True)
        for number, picture in enumerate(pixels[labels == label][:SHOWN]):
            to_pil_image(picture).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(pictures, tmp_path_factory):
    """The contrastive loss of CLIP (Radford et al. 2021), images against names; one core, some ten seconds."""
    import open_clip
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("trained")
    folder = root / "clip"
    pixels, labels = pictures.train
    with torch.random.fork_rng(), torch.enable_grad():
        clip = make_open_clip(folder)
        texts = open_clip.SimpleTokenizer(context_length=32)([with_article(name) for name in NAMES])
        learned = [value for name, value in clip.named_parameters() if "token_embedding" not in name]
        optimiser = torch.optim.AdamW(learned, RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS)
        clip.train()
        for _ in range(STEPS):
            rows = torch.randint(0, len(pixels), (BATCH,))
            flipped = torch.rand(BATCH, 1, 1, 1) < 0.5
            seen = 2 * torch.where(flipped, pixels[rows].flip(3), pixels[rows]) - 1
            images, names = (F.normalize(e, dim=-1) for e in (clip.encode_image(seen), clip.encode_text(texts)))
            loss = F.cross_entropy(clip.logit_scale.exp() * images @ names.T, labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    weights = {key: value.detach().contiguous() for key, value in clip.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "_hub_dir", str(root / "hub"))
        patch.setenv("XDG_DATA_HOME", str(root / "data"))
        yield f"clip:{folder}"


@pytest.fixture(scope="module")
def measure(model, source, tmp_path_factory):
    """Runs a command: its numbers, what it tells, and what it says on stderr."""

    def run(what, capsys):
        output = tmp_path_factory.mktemp("results") / "results.json"
        asked = Asked(what, model=model, device="cpu", source=str(source), scenes=6, images=64, quick=True)
        told = evaluate(asked, output=output)
        return SimpleNamespace(numbers=json.loads(output.read_text()), told=told, said=capsys.readouterr().err)

    return run


def all_numbers(values):
    if isinstance(values, dict):
        return [number for value in values.values() for number in all_numbers(value)]
    if isinstance(values, list):
        return [number for value in values for number in all_numbers(value)]
    return [values] if isinstance(values, float) else []


def test_composites_and_near_misses_are_measured_and_seeing_is_above_chance(measure, capsys):
    done = measure("composites", capsys)
    measured = done.numbers
    assert (measured["prior"], measured["verdict"]) == ("identity", "presumed")
    assert {"single", "names", "composites", "where"} <= set(measured)
    assert measured["single"]["first_pass"] > 2 * CHANCE
    assert measured["single"]["own_words"] >= measured["single"]["first_pass"]
    names = measured["names"]
    assert (names["photographs"], names["classes"]) == (64, 8)
    assert names["random"]["auroc"] > 0.6
    assert "near" in names
    assert "alike" not in names
    kinds = measured["composites"]["kinds"]
    assert set(kinds) == {"single", "blend", "side", "cutmix", "inset", "grid"}
    for kind in kinds.values():
        assert set(kind["goals"]) == {"identity", "random"}
        assert set(kind["at_equal_absent"]["5%"]["controls"]) == {"constant", "reweighted"}
        strengths = [row["setting"] for row in kind["sweep"]["strength"]]
        assert measured["strength"] in strengths  # multiples of the default
    assert kinds["single"]["unsteered"]["present"] > 2 * CHANCE
    assert measured["composites"]["pooled"]["auroc_unsteered_logit"] > 0.5
    assert all(map(math.isfinite, all_numbers(measured)))
    left_out = dict(re.findall(r"^(\w+): left out, since (.+)$", done.said, re.MULTILINE))
    assert set(left_out) == {"words", "ladder", "unknown", "above"}
    assert "is compared with no prototypes" in done.said
    assert "steer calibrate" in done.said
    assert "fitted" not in done.told.split("Does steering help")[1]


def test_search_and_its_end_are_measured(measure, capsys):
    done = measure("search", capsys)
    found, end = done.numbers["search"], done.numbers["cut_off"]
    assert all(map(math.isfinite, all_numbers(done.numbers)))
    assert (found["first_stage"], end["first_stage"], end["calibrated"]) == ("cosine", "cosine", False)
    assert "prototype" not in found["ways"]
    base = found["shown_by"] / found["scenes"]
    assert found["ways"]["places"]["mAP"] > 1.2 * base
    assert found["ways"]["oracle"]["mAP"] == 1  # all 24 scenes are looked at
    assert (end["images"], end["queries"], end["queries_of_nothing"]) == (64, 8, 0)
    assert end["ways"]["first stage"]["mean_f1"] > 1.2 * CHANCE
    assert end["ways"]["search"]["precision"] is None or end["ways"]["search"]["precision"] > CHANCE
    assert "cosine of text and image (the first stage)" in done.told
    assert "Does a search end where relevance ends?" in done.told
    with pytest.raises(ValueError, match="the table needs single, composites, where, not measured"):
        table(done.numbers)
