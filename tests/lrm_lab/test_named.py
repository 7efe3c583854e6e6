"""A CLIP that was never trained, as the laboratory measures it: outputs over names, all else against the bank."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lrm_core.trials import make_trials
from lrm_lab import geometry, where
from lrm_lab.activations import layer_names
from lrm_lab.bench import Bench
from lrm_lab.commands import Asked
from lrm_lab.composite_controls import run_controls
from lrm_lab.goals import features_of, supports_of
from lrm_lab.named import NamedNetwork, classes_of, named, over_classes
from lrm_lab.parts import PARTS
from lrm_lab.run import evaluate, write_triplets_for
from prior.captions import with_article
from steering import Steerer
from steering.cutoff import Presumed
from steering.rollouts import class_goals, run_steered, run_unsteered
from tests.clips import make_open_clip

pytestmark = pytest.mark.usefixtures("own_folders")

FOLDERS = ("fire_engine", "goldfish", "lighthouse", "n07749582", "teapot")
NAMES = ("fire engine", "goldfish", "lighthouse", "lemon", "teapot")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An ImageFolder: six images of each of five classes, noise around a colour of their own."""
    folder = tmp_path_factory.mktemp("images")
    for row, name in enumerate(FOLDERS):
        (folder / "valid" / name).mkdir(parents=True)
        for number in range(6):
            random = np.random.default_rng(10 * row + number)
            pixels = random.normal(random.uniform(30, 220, 3), 30, (64, 64, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "valid" / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "model"
    make_open_clip(folder)
    return f"clip:{folder}"


@pytest.fixture(scope="module")
def clip(model):
    return Steerer.load(model, device="cpu")


@pytest.fixture(scope="module")
def bench(model, source):
    return Bench(Asked("composites", model=model, device="cpu", source=str(source), scenes=3, quick=True))


@pytest.fixture(scope="module")
def seen(clip, bench):
    """The network of the bench, its first pass over eight images, their goals, and the steered pass."""
    network, goals = bench.named.network, class_goals(bench.named)[bench.images[1][:8]]
    unsteered = run_unsteered(network, bench.images[0][:8])
    return network, unsteered, goals, run_steered(network, unsteered, goals)


def test_the_best_output_is_zero_shot_classification(clip, bench, seen):
    network, unsteered, _, _ = seen
    assert network.class_names == NAMES
    names = clip.language.embed([with_article(name) for name in NAMES])
    embeddings = clip.network.glance(clip.network.preprocessing.normalise(bench.images[0][:8])).embedding
    expected = clip.network.scale * F.normalize(embeddings, dim=-1) @ names.T
    torch.testing.assert_close(unsteered.first, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(unsteered.last, expected, atol=1e-4, rtol=0)  # nothing was trained to change it


def test_supports_features_and_heatmaps_are_those_that_users_read(clip, bench, seen):
    network, unsteered, goals, after = seen
    theirs = run_unsteered(clip.network, bench.images[0][:8])
    then = run_steered(clip.network, theirs, goals)
    for own, other in ((unsteered.seen, theirs.seen), (after, then)):
        torch.testing.assert_close(supports_of(network, own, goals), clip.network.support(other, goals))
    ones = torch.ones(8)
    torch.testing.assert_close(
        features_of(network, unsteered.seen, after, goals, ones),
        clip.network.features(theirs.seen, then, goals, ones),
    )
    heatmap = network.heatmap(unsteered.glances[0], goals)[1]
    torch.testing.assert_close(heatmap, clip.network.heatmap(theirs.glances[0], goals)[1])
    assert len(network.names_for("a cup")) == len(clip.class_names) + 1


def test_the_map_without_steering_shows_where_the_first_pass_sees_the_goal(seen):
    network, unsteered, goals, _ = seen
    maps = network.first_map(unsteered.glances[0], goals)
    assert maps.shape == (8, 4, 4)
    patches = unsteered.glances[0].windows[:, :16]
    own = network.scale * torch.einsum("bpm,bm->bp", patches, F.normalize(goals, dim=-1))
    others = network.scale * patches @ network.bank.embeddings.T
    others = others.masked_fill(network.bank.alike(goals)[:, None], -math.inf).logsumexp(-1)
    assert torch.equal(maps.flatten(1).argmax(1), (own - others).argmax(1))


def test_a_classifier_stays_as_it_is(toy):
    assert named(toy, "nowhere") is toy
    goals = torch.rand(2, 6)
    assert over_classes(toy.network, goals) is goals


def test_labels_are_named_by_folders_and_by_imagenets_names(source):
    assert classes_of(str(source)) == [
        {"name": "fire engine"},
        {"wnid": "n01443537", "name": "goldfish"},
        {"name": "lighthouse"},
        {"wnid": "n07749582", "name": "lemon"},
        {"wnid": "n04398044", "name": "teapot"},
    ]


def test_a_table_beside_the_images_names_the_labels(source, tmp_path):
    shutil.copytree(source, tmp_path / "images")
    classes = [{"wnid": name, "name": f"thing {row}", "is_a": []} for row, name in enumerate(FOLDERS)]
    path = tmp_path / "images" / "classes.json"
    path.write_text(json.dumps(classes))
    told = classes_of(str(tmp_path / "images"))
    assert [entry["name"] for entry in told] == [f"thing {row}" for row in range(5)]
    path.write_text(json.dumps(classes[1:]))
    with pytest.raises(ValueError, match=r"source: 1 of 5 classes are not in .*classes.json: fire_engine"):
        classes_of(str(tmp_path / "images"))
    path.write_text(json.dumps([{**entry, "name": "cup"} for entry in classes]))
    with pytest.raises(ValueError, match="calls two classes 'cup'"):
        classes_of(str(tmp_path / "images"))
    for text, message in (("not JSON", "is not JSON"), ("[1]", "expected a table of classes, each with its name")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            classes_of(str(tmp_path / "images"))


def test_labels_without_names_are_refused(source, tmp_path):
    import datasets

    data = datasets.Dataset.from_dict({"image": [{"bytes": b"", "path": None}], "label": [0]})
    data.to_parquet(tmp_path / "valid-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"does not name its classes: expected classes.json beside the images"):
        classes_of(str(tmp_path))
    (tmp_path / "valid-00000-of-00001.parquet").unlink()
    shutil.copytree(source / "valid" / "teapot", tmp_path / "valid" / "n99999999")
    shutil.copytree(source / "valid" / "teapot", tmp_path / "valid" / "teapot")
    with pytest.raises(ValueError, match="1 of 2 classes are not in ImageNet's classes, and there is no"):
        classes_of(str(tmp_path))


def test_the_header_tells_that_the_verdict_is_presumed(bench, model, capsys):
    header = bench.header()
    assert (header["model"], header["prior"], header["verdict"]) == (model, "identity", "presumed")
    assert header["parts_sha256"] == {}
    assert isinstance(bench.judging.verdict, Presumed)
    assert bench.named.verdict is None  # a search has one of its own
    assert (bench.by_name, bench.controls, bench.other_priors) == (None, {}, {})
    assert capsys.readouterr().err == ""


def test_what_has_no_meaning_for_a_clip_is_left_out_with_the_reason(bench):
    told = {part.name: why for part in PARTS if (why := part.left_out(bench))}
    assert set(told) == {"words", "ladder", "unknown", "above", "robustness"}
    assert told["unknown"] == "a CLIP takes any words: none is called unknown"
    assert told["above"] == "2 of the model's 5 classes have no WordNet id"


def test_photographs_must_be_labelled_with_the_classes_of_the_images(bench, model, tmp_path):
    (part,) = (part for part in PARTS if part.name == "photographs")
    entries = [{"file": "a.png", "label": 1, "wnid": "n01443537"}, {"file": "a.png", "label": 3}]
    for more, told in (
        ([], ""),
        ([{"file": "a.png", "label": 4, "wnid": "n01443537"}], "1 of 3"),
        ([{"label": 9}], "1 of 3"),
    ):
        (tmp_path / "photos.json").write_text(json.dumps([*entries, *more]))
        own = Bench(Asked(model=model, device="cpu", source=bench.asked.source, photos=str(tmp_path)))
        assert part.left_out(own).startswith(told)
        assert bool(part.left_out(own)) == bool(told)
    Image.new("RGB", (50, 40), "red").save(tmp_path / "a.png")
    (tmp_path / "photos.json").write_text(json.dumps(entries))
    own = Bench(Asked(model=model, device="cpu", source=bench.asked.source, photos=str(tmp_path)))
    assert part.measure(own)["photographs"] == 2


def test_each_connection_is_taken_away_and_places_are_told(bench):
    measured = where.measure(bench.named, bench.triplets, *bench.images, scenes=3, ablation_scenes=2)
    assert len(measured["ablation"]["without"]) == 4  # none, and three blocks
    for entry in measured["pointing"].values():
        assert 0 <= entry["steered"] <= 1
        assert 0 <= entry["unsteered_cam"] <= 1
    assert all(math.isfinite(v["relative"]) for kind in measured["changes"].values() for v in kind.values())


def test_controls_know_the_goal_by_its_cosines_with_the_names(bench):
    trials = make_trials("side", *bench.images, len(NAMES), 6, 0)
    unsteered = run_unsteered(bench.named.network, trials.scenes.pixels)
    controls = run_controls(bench.named, trials, unsteered, class_goals(bench.named), {})
    assert set(controls) == {"constant", "reweighted"}
    assert bool((controls["reweighted"].present[:, -1] >= controls["reweighted"].present[:, 0]).all())


def test_goals_are_classes_in_the_geometry_and_activations_have_layers(bench):
    measured = geometry.measure(bench.named, *bench.images, ["a teapot", 0], num_classes=3)
    targets = [panel["target"] for panel in measured["panels"]]
    assert targets == [None, None, 4, 0]
    assert "joint" in layer_names(bench.network)


def test_other_numbers_of_rows_give_the_same(seen, monkeypatch):
    network, unsteered, goals, _ = seen
    whole = supports_of(network, unsteered.seen, goals)
    monkeypatch.setattr("lrm_lab.goals.ROWS", 3)
    torch.testing.assert_close(supports_of(network, unsteered.seen, goals), whole)


def test_scenes_can_be_written_down(model, source, tmp_path):
    assert "12 scenes of 30 images" in write_triplets_for(model, str(source), tmp_path / "t.csv", scenes=2)
    assert (tmp_path / "t.csv").read_text().count("\n") == 13


def test_examples_are_gathered_with_the_presumed_verdict(model, source, tmp_path):
    asked = Asked("examples", model=model, device="cpu", source=str(source), scenes=2, quick=True)
    evaluate(asked, output=tmp_path / "r.json")
    measured = json.loads((tmp_path / "r.json").read_text())
    assert set(measured["examples"]["kinds"]) == {"blend", "side", "cutmix", "inset", "grid"}
    assert isinstance(Bench(asked).named.network, NamedNetwork)
