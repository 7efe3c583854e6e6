"""A CLIP as a network: what OpenCLIP and transformers give is what is looked at, and steering acts on it."""

import copy
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from prior.clip import open_clip_model
from steering import Gallery, Steerer
from steering.cutoff import NOTE
from steering.errors import QueryError
from steering.images import framed, open_image
from steering.joint import NEVER, SAME, JointNetwork
from tests.clips import make_open_clip

pytestmark = pytest.mark.usefixtures("own_folders")

KINDS = ("vit", "resnet", "timm")
TEXTS = ["a dog", "a red car in a street", "kittens"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder and the model in it, of each kind."""
    root = tmp_path_factory.mktemp("clips")
    return {kind: SimpleNamespace(folder=root / kind, model=make_open_clip(root / kind, kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def steerers(made):
    return {kind: Steerer.load(f"clip:{made[kind].folder}", device="cpu") for kind in KINDS}


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of transformers that knows letters and one syllable."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(97, 123)]
    vocabulary = {token: index for index, token in enumerate([*letters, *(f"{each}</w>" for each in letters)])}
    vocabulary |= {"do": 60} | {"<|startoftext|>": 518, "<|endoftext|>": 519}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nd o\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)


def photos() -> list[Image.Image]:
    """Photographs of several shapes."""
    cat, coffee = open_image("sample:cat"), open_image("sample:coffee")
    return [cat, coffee, cat.crop((0, 0, 333, 200)), coffee.rotate(90, expand=True), cat.crop((10, 10, 60, 230))]


def theirs(model, images: list[Image.Image]) -> torch.Tensor:
    """Embeddings at unit length, as OpenCLIP makes them."""
    size = model.visual.image_size
    size = size if isinstance(size, int) else size[0]
    transform = open_clip.image_transform(size, False, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")
    with torch.no_grad():
        return model.encode_image(torch.stack([transform(image) for image in images]), normalize=True)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_those_of_open_clip(made, steerers, kind):
    model, steerer = made[kind].model, steerers[kind]
    with torch.no_grad():
        texts = model.encode_text(open_clip.get_tokenizer("ViT-B-32", context_length=32)(TEXTS), normalize=True)
    assert (steerer.language.embed(TEXTS) - texts).abs().max() < 1e-6
    expected = theirs(model, photos())
    for image, wanted in zip(photos(), expected, strict=True):
        glance = steerer.network.glance(steerer.network.pixels(image))
        assert (F.normalize(glance.embedding, dim=-1) - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_stage_is_the_cosine_and_its_order(made, steerers, kind, tmp_path):
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (80 + i, 90, 3), dtype=np.uint8)) for i in range(20)]
    images += photos()
    gallery = Gallery.open(tmp_path / "gallery", steerers[kind])
    gallery.add([(f"{number:02}.png", image) for number, image in enumerate(images)], workers=0)
    with torch.no_grad():
        tokens = open_clip.get_tokenizer("ViT-B-32", context_length=32)(["a dog"])
        text = made[kind].model.encode_text(tokens, normalize=True)
    cosines = (theirs(made[kind].model, images) @ text.T)[:, 0]
    hits = gallery.search("a dog", rerank=0, top=len(images), fold=False)
    assert [hit.path for hit in hits] == [f"{i:02}.png" for i in cosines.argsort(descending=True).tolist()]
    found = {hit.path: hit.score for hit in hits}
    for number, cosine in enumerate(cosines.tolist()):
        assert found[f"{number:02}.png"] == pytest.approx(cosine, abs=1e-6)
    assert hits.answer is None


def test_the_middle_is_cut_out_as_torchvision_does(steerers):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    frame = steerers["vit"].network.preprocessing.frame
    for size in ((64, 64), (333, 200), (201, 399), (65, 900), (1000, 64), (77, 78), (30, 41)):
        noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        expected = Compose([Resize(64, InterpolationMode.BICUBIC), CenterCrop(64)])(image)
        assert np.array_equal(np.asarray(framed(image, frame)), np.asarray(expected)), size


@pytest.mark.parametrize("kind", KINDS)
def test_passes_without_a_goal_are_equal_and_a_goal_draws_nearer(steerers, kind):
    steerer = steerers[kind]
    network = steerer.network
    glance = network.glance(network.pixels(photos()[0]))
    first, second = network.unsteered(glance, 2)
    assert torch.equal(first, second)
    goals = torch.stack([steerer.goal(text).vector for text in TEXTS])
    glances = glance.expand(len(goals))
    unmoved = network.steer(glances, goals, strength=0.0)
    assert (unmoved.embedding - glances.embedding).abs().max() < 1e-6
    moved = network.steer(glances, goals, strength=0.3)
    before, after = (F.cosine_similarity(seen.embedding, goals) for seen in (glances, moved))
    assert (after - before).mean() > 0.005


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_names_alternatives_and_has_no_verdict(steerers, kind):
    steerer = steerers[kind]
    look, other = steerer.look_many("sample:cat|coffee", ["a red car", "a cat - a dog"])
    assert look.class_names[-1] == "a red car"
    assert look.before.shape == look.after.shape == (len(steerer.class_names) + 1,)
    assert (look.verdict, look.probability, look.prior) == (None, None, "identity")
    assert look.ranking("goal", 1)[0][0] == "a red car"
    assert "steer calibrate" in look.text()
    assert not any("red" in note for note in look.notes)  # colours are looked at
    rows, columns = look.heatmap.shape
    assert columns >= 2 * rows - 1
    assert look.heatmap[:, 0].max() == look.heatmap[:, -1].max() == 0  # the middle alone is seen
    assert 0 <= look.heatmap.min() <= look.heatmap.max() <= 1
    assert other.prior == "algebra"


def test_words_that_mean_the_same_are_no_rivals(steerers):
    network = steerers["vit"].network
    assert isinstance(network, JointNetwork)
    goal = network.bank.embeddings[7:8]
    seen, wanted = network.asked(network.glance(network.pixels(photos()[0])), goal)
    assert seen.output[0, 7] == NEVER
    assert seen.places[0, 7] == 0
    assert wanted[0, -1] == 0
    assert (wanted[0, :-1] == NEVER).all()
    assert seen.places.sum() == pytest.approx(1, abs=1e-5)
    centred = F.normalize(network.bank.embeddings - network.bank.centre, dim=-1)
    assert torch.equal(network.bank.alike(goal)[0], centred @ centred[7] > SAME)


def test_support_is_the_log_odds_among_the_alternatives(steerers):
    network = steerers["resnet"].network
    goal = steerers["resnet"].goal("a violet submarine").vector[None]
    glance = network.glance(network.pixels(photos()[1]))
    directions = F.normalize(torch.cat([network.bank.embeddings, goal]), dim=-1)
    logits = network.scale * F.normalize(glance.embedding, dim=-1) @ directions.T
    logits[0, :-1][network.bank.alike(goal)[0]] = -torch.inf
    chance = logits.softmax(-1)[0, -1]
    assert network.support(glance, goal).item() == pytest.approx(float(chance.logit()), abs=1e-4)


def test_alternatives_of_ones_own(steerers):
    steerer = steerers["vit"].against(["a dog", " grass ", ""])
    look = steerer.look("sample:cat", "a cat")
    assert look.class_names == ("a dog", "grass", "a cat")
    assert sum(chance for _, chance in look.ranking("after", 5)) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="against: got no names"):
        steerers["vit"].against([" "])


def test_only_a_clip_takes_alternatives_and_templates(toy):
    with pytest.raises(ValueError, match="expected a model clip:"):
        toy.against(["a dog"])
    with pytest.raises(ValueError, match="templates: got 'simple' for lrm_lite"):
        Steerer.load("lrm_lite", templates="simple")


def test_templates_are_averaged_and_never_added_silently(made):
    clip = open_clip_model(f"clip:{made['vit'].folder}", templates="simple")
    model = made["vit"].model
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=32)
    with torch.no_grad():
        texts = [template("dog") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES]
        mean = F.normalize(model.encode_text(tokenizer(texts), normalize=True).mean(0), dim=-1)
    assert (clip.text.encode(["a dog"])[0] - mean).abs().max() < 1e-6
    with pytest.raises(ValueError, match="templates: got 'many', expected one of none, simple, imagenet"):
        open_clip_model(f"clip:{made['vit'].folder}", templates="many")


def test_a_text_tower_that_is_not_causal_sees_all_its_padding(tmp_path):
    from transformers import CLIPTokenizer

    model = make_open_clip(tmp_path, "siglip")
    write_tokenizer(tmp_path)
    clip = open_clip_model(f"clip:{tmp_path}")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    rows = [tokenizer(text, padding="max_length", max_length=20).input_ids for text in ("a dog", "kittens")]
    with torch.no_grad():
        expected = model.encode_text(torch.tensor(rows), normalize=True)
    assert (clip.text.encode(["A dog!", "kittens"]) - expected).abs().max() < 1e-6  # cleaned as it was trained
    with pytest.raises(ValueError, match="too long"):
        clip.text.encode(["an umbrella in the rain"])


def test_a_file_of_weights_serves_a_name(tmp_path):
    torch.manual_seed(0)
    model = open_clip.create_model("RN50").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    clip = open_clip_model(f"clip:RN50:{tmp_path / 'weights.pt'}")
    with torch.no_grad():
        texts = model.encode_text(open_clip.get_tokenizer("RN50")(["a dog"]), normalize=True)
    assert (clip.text.encode(["a dog"]) - texts).abs().max() < 1e-6
    assert (clip.pixels.size, clip.pixels.crops, clip.pixels.bicubic) == (224, True, True)
    assert clip.pixels.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))


def test_a_folder_of_transformers(tmp_path):
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    configuration = CLIPConfig(
        text_config={"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
        | {"max_position_embeddings": 64, "vocab_size": 520, "eos_token_id": 519, "bos_token_id": 518},
        vision_config={"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
        | {"image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    torch.manual_seed(0)
    model = CLIPModel(configuration).eval()
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    steerer = Steerer.load(f"clip:{tmp_path}", device="cpu")
    network = steerer.network
    image = photos()[0]
    with torch.no_grad():
        seen = model.vision_model(pixel_values=network.pixels(image)).pooler_output
        expected = model.visual_projection(seen)
        tokens = CLIPTokenizer.from_pretrained(tmp_path)(["a dog"], return_tensors="pt")
        text = F.normalize(model.text_projection(model.text_model(**tokens).pooler_output), dim=-1)
    assert (network.glance(network.pixels(image)).embedding - expected).abs().max() < 1e-5
    assert (steerer.language.embed(["a dog"]) - text).abs().max() < 1e-6
    assert steerer.look(image, "a dog").evidence != 0
    kind = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "bert"}
    (tmp_path / "config.json").write_text(json.dumps(kind))
    with pytest.raises(ValueError, match="is a model of type 'bert', expected 'clip'"):
        open_clip_model(f"clip:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip:", "expected for example clip:ViT-B-32"),
        ("clip:/no/such/folder", "there is no folder /no/such/folder"),
        ("clip:ViT-B-33:openai", "did you mean ViT-B-32"),
        ("clip:ViT-B-32", "tags: openai, "),
        ("clip:ViT-B-32:openai3", "neither a file nor one of its tags"),
    ],
)
def test_what_does_not_exist_is_one_line(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        Steerer.load(name, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_or_with_other_weights(tmp_path, made):
    with pytest.raises(ValueError, match="is no model: expected open_clip_config"):
        open_clip_model(f"clip:{tmp_path}")
    source = made["vit"].folder
    (tmp_path / "open_clip_config.json").write_text((source / "open_clip_config.json").read_text())
    with pytest.raises(ValueError, match="has no weights"):
        open_clip_model(f"clip:{tmp_path}")
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="does not hold weights"):
        open_clip_model(f"clip:{tmp_path}")


def test_text_and_detail_are_refused_and_a_text_that_is_too_long(made, steerers):
    name = f"clip:{made['vit'].folder}"
    with pytest.raises(ValueError, match="brings its own text encoder"):
        Steerer.load(name, text="ViT-B-16:openai", device="cpu")
    with pytest.raises(ValueError, match="sees squares of one size"):
        Steerer.load(name, detail=2.0, device="cpu")
    with pytest.raises(ValueError, match="prior: got 'class-names'"):
        Steerer.load(name, prior="class-names", device="cpu")
    with pytest.raises(QueryError, match="too long"):
        steerers["vit"].goal("a dog " * 40)


def test_the_bank_is_embedded_once(made, monkeypatch):
    Steerer.load(f"clip:{made['vit'].folder}", device="cpu")
    monkeypatch.setattr("prior.clip_text.ClipText.encode", lambda *_: pytest.fail("the bank was embedded again"))
    Steerer.load(f"clip:{made['vit'].folder}", device="cpu")


def test_it_goes_through_pickle_and_keeps_first_passes(steerers, tmp_path):
    steerer = pickle.loads(pickle.dumps(copy.deepcopy(steerers["vit"])))
    look, same = (each.look("sample:cat", "a cat") for each in (steerers["vit"], steerer))
    assert torch.equal(look.after, same.after)
    gallery = Gallery.open(tmp_path / "gallery", steerer, keep="first-pass")
    gallery.add([("cat.png", photos()[0]), ("coffee.png", photos()[1])], workers=0)
    hits = gallery.search("a cat", threshold=0.0)
    assert len(hits) == 2
    assert all(hit.looked_at for hit in hits)
    row = next(hit for hit in hits if hit.path == "cat.png")
    assert row.evidence == pytest.approx(look.evidence, abs=0.05)  # kept in half precision


def test_a_search_that_is_not_calibrated_says_so_and_ends(steerers, tmp_path):
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(60)]
    gallery = Gallery.open(tmp_path / "gallery", steerers["vit"])
    gallery.add([(f"{number}.png", image) for number, image in enumerate(images)], workers=0)
    hits = gallery.search("a dog", top=60)
    assert NOTE in hits.notes
    assert hits.as_dict()["calibrated"] is False
    assert all(hit.probability >= 0.5 for hit in hits)
    assert hits.answer == ("absent" if not hits else hits.answer)
    everything = gallery.search("a dog", top=60, threshold=0.0)
    assert len(everything) == 60
    assert [hit.probability for hit in everything] == sorted((hit.probability for hit in everything), reverse=True)
