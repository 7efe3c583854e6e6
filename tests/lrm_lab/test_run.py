"""`steer evaluate`: measured once, kept as JSON, gone on with, and told; what does not go together is refused."""

import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lrm_base.card import sha256_of
from lrm_core.weights import load_model, save_model
from lrm_lab.bench import Bench
from lrm_lab.commands import Asked
from lrm_lab.controls import save_control
from lrm_lab.parts import PARTS
from lrm_lab.report import BEGIN, END, sections, table
from lrm_lab.run import evaluate, write_triplets_for


def measured_parts(capsys):
    """The parts that were measured, by what stderr tells."""
    return re.findall(r"^(\w+): \d+ s$", capsys.readouterr().err, re.MULTILINE)


def encoded(label, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels[..., label % 3] //= 1 + label
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    import datasets

    folder = tmp_path_factory.mktemp("valid")
    rows = {"image": [encoded(i % 6, i) for i in range(30)], "label": [i % 6 for i in range(30)]}
    datasets.Dataset.from_dict(rows).to_parquet(folder / "valid-00000-of-00001.parquet")
    photos = folder / "photos"
    photos.mkdir()
    entries = []
    for label in (0, 4):
        Image.open(io.BytesIO(encoded(label, label)["bytes"])).resize((80, 50)).save(photos / f"{label}.png")
        entries.append({"file": f"{label}.png", "label": label, "name": "x"})
    (photos / "photos.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def asked(toy_folder, source):
    given = {"model": str(toy_folder), "device": "cpu", "source": str(source), "scenes": 4}
    return Asked("composites", photos=str(source / "photos"), **given)


@pytest.fixture(scope="module")
def stored(asked, tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "results.json"
    evaluate(asked, output=path)
    return path


def test_a_command_measures_all_its_parts(stored):
    results = json.loads(stored.read_text())
    assert (results["model"], results["prior"], results["seed"], results["passes"]) == ("toy", "diffusion", 1000, 3)
    assert results["single"]["images"] == 30
    assert set(results["composites"]["kinds"]) == {"single", "blend", "side", "cutmix", "inset", "grid"}
    assert all(entry["scenes"] == 4 for entry in results["composites"]["kinds"].values())
    assert set(results["composites"]["kinds"]["blend"]["goals"]) == {"diffusion", "class-names", "prototype", "random"}
    assert results["words"]["words"] == 50
    assert results["photographs"]["photographs"] == 2
    assert set(results["where"]) == {"pointing", "ablation", "changes"}


def test_the_same_command_gives_the_same_bytes(stored, asked, tmp_path):
    evaluate(asked, output=tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == stored.read_bytes()


def test_a_file_of_its_scenes_gives_the_same_numbers_and_is_named_by_its_hash(stored, asked, tmp_path):
    scenes, again = tmp_path / "scenes.csv", tmp_path / "again.json"
    assert "24 scenes of 30 images" in write_triplets_for(asked.model, asked.source, scenes, scenes=4)
    evaluate(replace(asked, triplets=str(scenes)), output=again)
    whole, same = json.loads(stored.read_text()), json.loads(again.read_text())
    assert (whole["triplets"], same["triplets"]) == (None, sha256_of(scenes)[:12])
    assert json.dumps({**same, "triplets": None}) == json.dumps(whole)


def test_an_interrupted_run_goes_on_and_ends_where_a_whole_one_does(stored, asked, tmp_path, capsys):
    whole = json.loads(stored.read_text())
    path = tmp_path / "results.json"
    path.write_text(json.dumps({key: value for key, value in whole.items() if key not in ("words", "where")}))
    evaluate(asked, output=path, resume=True)
    assert measured_parts(capsys) == ["words", "where"]
    assert path.read_bytes() == stored.read_bytes()


@pytest.mark.parametrize(
    ("key", "before", "told"),
    [
        ("seed", 7, "(seed: 7, now 1000)"),
        ("model", "lrm_mini", "(model: 'lrm_mini', now 'toy')"),
        ("backbone_sha256", "0" * 64, f"(backbone_sha256: '{64 * '0'}', now '"),
        ("source", "elsewhere", "(source: 'elsewhere', now 'valid"),
        ("scenes", 1000, "(scenes: 1000, now 4)"),
        ("images", 500, "(images: 500, now None)"),
        ("triplets", "0123456789ab", "(triplets: '0123456789ab', now None)"),
        ("quick", True, "(quick: True, now False)"),
        ("strength", 0.5, "(strength: 0.5, now 1.0)"),
        ("parts_sha256", {"verdict": "0123456789ab"}, "(parts_sha256: {'verdict': '0123456789ab'}, now {'prior': '"),
    ],
)
@pytest.mark.parametrize("resume", [False, True], ids=["", "resume"])
def test_a_file_that_was_measured_otherwise_is_refused_and_stays_as_it_was(
    stored, asked, tmp_path, capsys, key, before, told, resume
):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**json.loads(stored.read_text()), key: before}))
    text = path.read_bytes()
    with pytest.raises(ValueError, match=re.escape(told)):
        evaluate(asked, output=path, resume=resume)
    assert measured_parts(capsys) == []
    assert path.read_bytes() == text
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_everything_that_differs_from_a_file_is_named(stored, asked, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**json.loads(stored.read_text()), "passes": 2}))
    with pytest.raises(ValueError, match=re.escape("(seed: 1000, now 7; passes: 2, now 3)")):
        evaluate(replace(asked, seed=7), output=path)


def test_what_the_model_lacks_something_for_is_left_out_with_the_reason(stored, asked, tmp_path, capsys):
    path = tmp_path / "results.json"
    shutil.copy(stored, path)
    evaluate(asked, output=path, resume=True)
    told = capsys.readouterr().err
    for part in ("unknown", "names", "above"):
        assert f"{part}: left out, since 6 of the model's 6 classes have no WordNet id\n" in told
    assert path.read_bytes() == stored.read_bytes()


def test_with_wordnet_ids_photographs_are_asked_for_every_name(asked):
    bench = Bench(asked)
    bench.network.card["classes"] = [
        {**entry, "wnid": f"n{row}"} for row, entry in enumerate(bench.network.card["classes"])
    ]
    lacks = {part.name: part.lacks(bench) for part in PARTS}
    for part in ("ladder", "unknown", "above"):
        assert lacks.pop(part) == "the lists are for ImageNet's 1,000 classes, and the model has 6"
    assert set(lacks.values()) == {""}
    (names,) = (part for part in PARTS if part.name == "names")
    measured = names.measure(bench)
    assert (measured["photographs"], measured["classes"]) == (30, 6)


def test_parts_that_another_command_measured_in_the_same_way_stay(stored, asked, attacked, tmp_path, capsys):
    path, whole = tmp_path / "results.json", json.loads(stored.read_text())
    path.write_text(json.dumps({"robustness": attacked, **whole, "words": {}, "stray": 1}))
    evaluate(asked, output=path)
    results = json.loads(path.read_text())
    assert results == {**whole, "robustness": json.loads(json.dumps(attacked))}  # what is no part is gone
    assert list(results)[-2:] == ["where", "robustness"]
    assert measured_parts(capsys) == ["single", "words", "photographs", "composites", "where"]


def test_against_new_controls_only_what_they_appear_in_is_measured_again(stored, asked, toy_folder, tmp_path, capsys):
    folder, path = tmp_path / "toy", tmp_path / "results.json"
    shutil.copytree(toy_folder, folder)
    path.write_text(json.dumps({**json.loads(stored.read_text()), "robustness": {"against": "none"}}))
    model, preprocessing, card = load_model(folder / "backbone.safetensors")
    with torch.no_grad():
        model.backbone.conv1.weight.add_(0.1)
    trained = tmp_path / "run" / "backbone.safetensors"
    facts = {key: card[key] for key in ("name", "backbone", "output", "classes", "training", "measured")}
    save_model(trained, model, preprocessing=preprocessing, **facts)
    kept = save_control(trained, folder, "plain")
    evaluate(replace(asked, model=str(folder)), output=path, resume=True)
    assert measured_parts(capsys) == ["composites"]
    before, after = json.loads(stored.read_text()), json.loads(path.read_text())
    assert (before["controls_sha256"], after["controls_sha256"]) == ({}, {"plain": sha256_of(kept)[:12]})
    assert [key for key in after if after[key] != before[key]] == ["controls_sha256", "composites"]
    assert list(after) == list(before)  # robustness against other controls is gone
    for kind, entry in after["composites"]["kinds"].items():
        assert "plain" in entry["at_equal_absent"]["5%"]["controls"]
        assert entry["goals"] == before["composites"]["kinds"][kind]["goals"]


def test_without_a_verdict_nothing_is_measured(asked, tmp_path, capsys):
    with pytest.raises(ValueError, match="toy has no calibrated verdict for goals by class-names"):
        evaluate(replace(asked, prior="class-names"), output=tmp_path / "results.json")
    assert measured_parts(capsys) == []
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("text", ["not JSON", "[1]", "{}"])
def test_a_file_of_something_else_is_not_overwritten(asked, tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected results of `steer evaluate`"):
        evaluate(asked, output=path)
    assert path.read_text() == text
    with pytest.raises(ValueError, match="expected results of `steer evaluate`"):
        evaluate(asked, stored=path)


def test_stored_results_are_written_into_the_readme_and_into_words(evaluated, tmp_path):
    stored, readme, answers = tmp_path / "results.json", tmp_path / "README.md", tmp_path / "RESULTS.md"
    stored.write_text(json.dumps(evaluated))
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe end.\n")
    shown = table(evaluated)
    assert evaluate(Asked(), stored=stored, readme=readme, results=answers) == shown
    assert readme.read_text() == f"# Title\n\n{BEGIN}\n{shown}\n{END}\n\nThe end.\n"
    written = answers.read_text()
    assert written.startswith("# What steering does: toy\n")
    assert all(text in written for text, _ in sections(evaluated))


def test_a_command_tells_its_own_parts_alone(evaluated, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(evaluated))
    told = evaluate(Asked("search"), stored=tmp_path / "r.json")
    assert told == sections({"search": evaluated["search"]})[0][0]


def test_examples_are_drawn_for_the_page(asked, tmp_path):
    pytest.importorskip("markdown_it", reason="needs the extra `evaluate`")
    page = tmp_path / "page.html"
    evaluate(replace(asked, what="examples", quick=True), report=page)
    assert "heatmaps_blend" not in page.read_text()  # its caption stands there instead
    assert page.read_text().count("<img") >= 6


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("all", {"stored": "nowhere.json"}, "nowhere.json"),
        ("composites", {"readme": "README.md"}, "readme: its table needs everything: got 'composites', expected 'all'"),
        ("all", {"readme": __file__.replace("test_run", "conftest")}, "expected the markers"),
        ("everything", {}, "what: got 'everything', expected all, composites, search, examples, robustness, brain"),
        ("triplets", {}, "what: got 'triplets', expected all"),
        ("all", {"resume": True}, "resume: expected `output` as well"),
        ("brain", {}, "brain: got nothing to measure on, expected `brain` or `responses`"),
        ("all", {"stored": "x.json", "report": "x.html"}, "report: its pictures need the images"),
    ],
)
def test_what_does_not_go_together_is_refused(what, options, message):
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        evaluate(Asked(what), **options)


def test_scenes_for_a_model_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="model: got 'nowhere'"):
        write_triplets_for("nowhere", str(tmp_path), tmp_path / "t.csv")
    with pytest.raises(ValueError, match="scenes: got 0"):
        write_triplets_for("nowhere", str(tmp_path), tmp_path / "t.csv", scenes=0)
