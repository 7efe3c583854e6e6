"""`steer evaluate`: measured once, kept as JSON, and put into words that follow the numbers, whatever they are."""

import copy
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lrm_base.card import sha256_of
from lrm_core.weights import load_model, save_model
from steering.evaluate import main
from steering.evaluate.composites_report import composites, controls, strongest, sweeps
from steering.evaluate.controls import save_control
from steering.evaluate.report import BARS, BEGIN, END, around, parts, rewrite, seeing, table, understanding
from steering.evaluate.where_report import connections, places


@pytest.fixture
def results(evaluated):
    """Numbers of the toy, to be changed at will."""
    return copy.deepcopy(evaluated)


PHOTOS = {
    "photographs": 60,
    "right_name_present": 0.9,
    "other_name_absent": 0.8,
    "balanced_accuracy": 0.85,
    "unsure": 3,
}


def cells(text, first):
    """The other cells of a table's only row that begins so."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def test_the_table_names_every_bar_and_has_three_columns(results):
    lines = table({**results, "photographs": PHOTOS}).splitlines()
    assert all(re.fullmatch(r"\|([^|]+\|){3}", line) for line in lines)
    assert [line for line in lines if "nan" in line.lower()] == []
    bars = ("≥ 40 %", "≥ 2.0 ×", "absent ≤ 10 %", "absent ≤ 3 %", "≥ + 0.05", "≤ 0.05", "≥ 70 % / ≥ 90 %", "≥ 75 %")
    for text in (*bars, *(f"≥ +{bar}" for bar in BARS.values())):
        assert any(text in line for line in lines), text


def test_figures_of_the_table_are_those_that_were_measured(results):
    kind = results["composites"]["kinds"]["blend"]
    kind["steered"] |= {"present": 0.623, "absent": 0.041, "J": 0.582}
    kind["unsteered"]["J"], kind["J_ratio"] = 0.194, 3.0
    results["where"]["pointing"]["inset"] |= {"steered": 0.8, "unsteered_cam": 0.75}
    results["words"] |= {"words": 50, "top1": 0.82, "top5": 0.94}
    text = table({**results, "photographs": PHOTOS})
    assert cells(text, "blend: goal is top-1, present / absent")[0] == "62.3 % / 4.1 %"
    assert cells(text, "blend: J steered / unsteered")[0] == "58.2 / 19.4 = 3.00 ×"
    assert cells(text, "inset: heatmap's peak in the named object, steered / unsteered map")[0] == "80.0 % / 75.0 %"
    assert cells(text, "50 held-out words: goal's best class right / in five")[0] == "82% / 94%"
    assert cells(text, "60 photographs: balanced accuracy")[0] == "85.0 % (right name 90.0 %, other name 80.0 %)"
    assert cells(text, "top-1 of single images, goal: their own class's words")[0] == (
        f"{100 * results['single']['own_words']:.1f} %"
    )


def test_a_bar_is_called_missed_just_below_it(results):
    kinds, pooled = results["composites"]["kinds"], results["composites"]["pooled"]
    what = "side: present top-1 at 5 % absent, steered − best control (constant on the goal's logit)"
    # what is compared is what was measured, not its rounding: 0.3504 shows as +5.0
    for rate, bar in ((0.35, "≥ +5"), (0.3504, "≥ +5, **missed**"), (0.351, "≥ +5, **missed**")):
        at_five(results, "side", constant=(rate, 0.0, 0.1), additive=(0.3, 0.0, 0.2), last_layer=(0.2, 0.1, 0.3))
        assert cells(table(results), what)[1] == bar
    for absent, bar in ((0.1, "absent ≤ 10 %"), (0.101, "absent ≤ 10 %, **missed**")):
        kinds["grid"]["steered"]["absent"] = absent
        assert cells(table(results), "grid: goal is top-1, present / absent")[1] == bar
    for area, bar in ((0.87, "≥ + 0.05"), (0.8696, "≥ + 0.05, **missed**"), (0.869, "≥ + 0.05, **missed**")):
        pooled |= {"auroc_verdict": area, "auroc_unsteered_logit": 0.82}
        assert cells(table(results), "presence on composites, AUROC: verdict / unsteered logit")[1] == bar


def test_what_steering_adds_to_the_verdict_has_a_row_of_its_own(results):
    pooled = results["composites"]["pooled"]
    pooled |= {"auroc_verdict": 0.87, "auroc_steering_interval": [-0.004, 0.031]}
    what = "… by the same verdict fitted without steering (what steering adds)"
    for without, shown, bar in ((0.85, "0.850 (+0.020", "> 0"), (0.87, "0.870 (+0.000", "> 0, **missed**")):
        pooled["auroc_unsteered_verdict"] = without
        assert cells(table(results), what) == [f"{shown} [-0.004, +0.031])", bar]


@pytest.mark.parametrize("missing", ["single", "words", "composites", "where"])
def test_a_table_without_one_of_its_parts_is_refused_with_its_name(results, missing):
    del results[missing]
    with pytest.raises(ValueError, match=f"the table needs {missing}, not measured here; use `steer evaluate all`"):
        table(results)
    with pytest.raises(ValueError, match="the table needs single, words, composites, where, not measured"):
        table({"model": "toy"})


def test_against_controls_that_were_not_measured_no_bar_is_met(results):
    """However far steering is above those that were."""
    what = "blend: present top-1 at 5 % absent, steered − best control (constant on the goal's logit)"
    at_five(results, "blend", constant=(0.1, 0.2, 0.4))
    row = f"{what}; not measured: additive feedback, gain on the last features"
    assert cells(table(results), row) == ["+30.0 [+20.0, +40.0] (10.0 % → 40.0 %)", "≥ +5, **missed**"]
    at_five(results, "blend", constant=(0.1, 0.2, 0.4), last_layer=(0.0, 0.3, 0.5), plain=(0.1, 0.2, 0.4))
    assert cells(table(results), f"{what}; not measured: additive feedback")[1] == "≥ +5, **missed**"
    at_five(results, "blend", constant=(0.1, 0.2, 0.4), last_layer=(0.0, 0.3, 0.5), additive=(0.0, 0.3, 0.5))
    assert cells(table(results), what)[1] == "≥ +5"


def test_without_photographs_the_table_has_no_row_of_them(results):
    assert "photographs" not in table(results)


def at_five(results, kind, **found):
    """Give a kind these controls at 5 % absent: (rate, low, high) each, steered at 40 %."""
    entry = results["composites"]["kinds"][kind]["at_equal_absent"]["5%"]
    entry["steered"] = 0.4
    entry["controls"] = {
        name: {"rate": rate, "difference": 0.4 - rate, "interval": [low, high]}
        for name, (rate, low, high) in found.items()
    }
    return entry


def test_steering_is_held_against_the_best_of_the_controls_that_count(results):
    others = {"constant": (0.2, 0.1, 0.3), "last_layer": (0.3, 0.0, 0.2), "plain": (0.9, -0.6, -0.4)}
    at_five(results, "blend", additive=(0.35, 0.01, 0.1), **others)
    name, entry, steered = strongest(results["composites"]["kinds"]["blend"], "5%")
    assert (name, entry["rate"], steered) == ("additive feedback", 0.35, 0.4)
    row = "blend: present top-1 at 5 % absent, steered − best control (additive feedback)"
    assert cells(table(results), row) == ["+5.0 [+1.0, +10.0] (35.0 % → 40.0 %)", "≥ +5"]


@pytest.mark.parametrize(
    ("bounds", "verb"),
    [((0.01, 0.2), "finds more than"), ((-0.2, -0.01), "loses to"), ((-0.1, 0.1), "is level with"), ((0.0, 0.1), "is")],
)
def test_the_sentence_on_controls_follows_the_interval(results, bounds, verb):
    at_five(results, "side", constant=(0.3, *bounds), plain=(0.1, 0.2, 0.4))
    text = controls(results["composites"])
    assert f"side: steering {verb} " in text
    assert "the best of them, constant on the goal's logit (30.0 % → 40.0 %, +10.0 [" in text


def test_passes_are_called_better_or_worse_only_where_the_interval_says_so(results):
    single = results["single"]
    single["passes"], single["gain_intervals"] = [0.4, 0.45, 0.3], [[0.02, 0.08], [-0.14, -0.06]]
    text = seeing(single)
    assert "top-1 of the passes is 40.0 %, 45.0 %, 30.0 %" in text
    assert "Pass 2 is better than pass 1 (+5.0 [+2.0, +8.0] points)" in text
    assert "Pass 3 is worse than pass 1 (-10.0 [-14.0, -6.0] points)" in text
    single["gain_intervals"][0] = [-0.01, 0.08]
    assert "Pass 2 is better" not in seeing(single)
    single |= {"own_words": 0.62, "last_pass": 0.5}
    assert "as goal it is 62.0 % (+12.0)" in seeing(single)


def test_kinds_are_counted_as_helped_only_where_the_interval_of_the_gain_says_so(results):
    kinds = results["composites"]["kinds"]
    for index, entry in enumerate(kinds.values()):
        entry["steered"]["absent"] = 0.01 * index
        entry["gain_interval"] = [0.01, 0.2] if index < 2 else [-0.2, -0.1]
    text = composites(results["composites"])
    assert "in 2 of 6 kinds of scene (single, blend)" in text
    assert "at most 5.0 % (grid)" in text
    for entry in kinds.values():
        entry["gain_interval"] = [0.0, 0.2]
    assert "in 0 of 6 kinds of scene (none)" in composites(results["composites"])


def test_presence_is_told_with_and_without_steering(results):
    pooled = results["composites"]["pooled"]
    pooled |= {"auroc_verdict": 0.871, "auroc_unsteered_logit": 0.801, "auroc_unsteered_verdict": 0.842}
    pooled |= {"auroc_gain": 0.07, "auroc_gain_interval": [0.05, 0.09], "auroc_steered_support": 0.86}
    pooled |= {"auroc_unsteered_support": 0.79, "calibration_error": 0.012}
    text = composites(results["composites"])
    assert "with an AUROC of 0.871; the goal's unsteered logit reaches 0.801 (+0.070, [0.050, 0.090])" in text
    assert "verdict fitted without steering 0.842" in text
    assert cells(text, "composites, pooled") == ["0.871", "0.842", "0.860", "0.790", "0.801", "0.012"]


def test_words_and_photographs_are_told_as_far_as_they_were_measured(results):
    words = {"words": 50, "top1": 0.82, "top5": 0.94, "wrong": {"a pup": ["cat", "lemon"]}}
    said = "Of 50 words that were kept out of all training pairs, the goal's best class is right for 82%, one of its"
    seen = "rightly present for 90.0 % and absent for 80.0 % (a probability of one half decides); 3 of 120 verdicts are"
    both, alone, photographs = (
        understanding(found)
        for found in ({"words": words, "photographs": PHOTOS}, {"words": words}, {"photographs": PHOTOS})
    )
    assert [said in text for text in (both, alone, photographs)] == [True, True, False]
    assert [seen in text for text in (both, alone, photographs)] == [True, False, True]
    assert cells(both, "a pup") == ["cat, lemon"]
    assert "| " not in understanding({"words": {**words, "wrong": {}}})


def test_every_goal_and_every_setting_has_its_figures(results):
    text = composites(results["composites"])
    for kind, entry in results["composites"]["kinds"].items():
        rows = [line for line in text.splitlines() if line.startswith(f"| {kind} |")]
        assert len(rows) == 1 + len(entry["goals"]) + 1  # no goal, the goals, and the areas
        assert ("both_in_top2" in entry["unsteered"]) == (rows[0].split("|")[-2].strip() != "")
    swept = results["composites"]["kinds"]["blend"]["sweep"]
    text = sweeps(results["composites"])
    assert "| strength | 0.0 |" in text
    assert "| negative, positive | 0.5, 1.0 |" in text
    shown = [f"{100 * row['present']:.0f} / {100 * row['absent']:.0f}" for row in swept["strength"]]
    assert f"| blend | {' | '.join(shown)} |" in text


def test_the_connection_that_costs_most_is_named(results):
    without = results["where"]["ablation"]["without"]
    for entry in without.values():
        entry["present_at_5%"] = 0.5
    name = list(without)[3]
    without[name]["present_at_5%"] = 0.375
    text = connections(results["where"])
    assert f"{name}: -12.5 points" in text
    assert cells(text, name)[1] == "37.5 %"


def test_maps_are_better_or_worse_only_where_the_interval_says_so(results):
    pointing = results["where"]["pointing"]
    bounds = {"side": [0.01, 0.1], "cutmix": [-0.1, 0.1], "inset": [-0.2, -0.1], "grid": [0.0, 0.2]}
    for kind, found in bounds.items():
        pointing[kind]["difference_interval"] = found
    assert "it is better in side, and worse in inset; elsewhere" in places(results["where"])
    for entry in pointing.values():
        entry["difference_interval"] = [-0.1, 0.1]
    assert "it is better in none, and worse in none; elsewhere" in places(results["where"])


def test_every_part_that_was_measured_has_a_section_with_its_pictures(results):
    found = parts(results)
    titles = [text.splitlines()[0] for text, _ in found]
    assert all(title.startswith("## ") for title in titles)
    assert len(set(titles)) == len(titles) == 7
    assert [list(pictures) for _, pictures in found] == [
        [], [], [], ["steered against controls"], ["strength"], ["taken away"], ["pointing game"],
    ]  # fmt: skip
    for _, pictures in found:
        for figure in pictures.values():
            figure.savefig(io.BytesIO(), format="png", dpi=20)
    assert len(parts({"single": results["single"]})) == 1
    assert parts({"model": "toy"}) == []
    assert all("nan" not in text for text, _ in found)


def test_only_what_stands_between_the_markers_is_rewritten(results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe end.\n")
    for _ in range(2):  # written again, nothing moves
        rewrite(readme, results)
        assert readme.read_text() == f"# Title\n\n{BEGIN}\n{table(results)}\n{END}\n\nThe end.\n"


@pytest.mark.parametrize("text", ["# Title\n", f"# Title\n{BEGIN}\n", f"# Title\n{END}\n", f"{END}\n{BEGIN}\n"])
def test_a_readme_without_markers_is_refused(results, tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    for act in (around, lambda path: rewrite(path, results)):
        with pytest.raises(ValueError, match="expected the markers"):
            act(readme)
    assert readme.read_text() == text


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
def command(toy_folder, source):
    given = ["--model", str(toy_folder), "--device", "cpu", "--source", str(source), "--scenes", "4"]
    return ["composites", *given, "--photos", str(source / "photos")]


@pytest.fixture(scope="module")
def stored(command, tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "results.json"
    assert main([*command, "--output", str(path)]) == 0
    return path


def test_the_command_measures_everything_about_composites(stored):
    found = json.loads(stored.read_text())
    assert (found["model"], found["prior"], found["seed"], found["passes"]) == ("toy", "diffusion", 1000, 3)
    assert found["single"]["images"] == 30
    assert set(found["composites"]["kinds"]) == {"single", "blend", "side", "cutmix", "inset", "grid"}
    assert all(entry["scenes"] == 4 for entry in found["composites"]["kinds"].values())
    assert set(found["composites"]["kinds"]["blend"]["goals"]) == {"diffusion", "class-names", "prototype", "random"}
    assert found["words"]["words"] == 50
    assert found["photographs"]["photographs"] == 2
    assert set(found["where"]) == {"pointing", "ablation", "changes"}


def test_the_same_command_gives_the_same_bytes(stored, command, tmp_path):
    assert main([*command, "--output", str(tmp_path / "again.json")]) == 0
    assert (tmp_path / "again.json").read_bytes() == stored.read_bytes()


def test_a_file_of_its_scenes_gives_the_same_numbers_and_is_named_by_its_hash(
    stored, command, source, toy_folder, tmp_path, capsys
):
    scenes = tmp_path / "scenes.csv"
    given = ["--model", str(toy_folder), "--source", str(source), "--scenes", "4"]
    assert main(["triplets", *given, "--output", str(scenes)]) == 0
    assert "24 scenes of 30 images" in capsys.readouterr().out
    again = tmp_path / "again.json"
    assert main([*command, "--triplets", str(scenes), "--output", str(again)]) == 0
    whole, same = json.loads(stored.read_text()), json.loads(again.read_text())
    assert (whole["triplets"], same["triplets"]) == (None, sha256_of(scenes)[:12])
    assert json.dumps({**same, "triplets": None}) == json.dumps(whole)


def test_an_interrupted_run_goes_on_and_ends_where_a_whole_one_does(stored, command, tmp_path, capsys):
    whole = json.loads(stored.read_text())
    path = tmp_path / "results.json"
    path.write_text(json.dumps({key: value for key, value in whole.items() if key not in ("words", "where")}))
    assert main([*command, "--output", str(path), "--resume"]) == 0
    assert re.findall(r"^(\w+): \d+ s$", capsys.readouterr().err, re.MULTILINE) == ["words", "where"]
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
@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["", "resume"])
def test_a_file_that_was_measured_otherwise_is_refused_and_stays_as_it_was(
    stored, command, tmp_path, capsys, key, before, told, resume
):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**json.loads(stored.read_text()), key: before}))
    text = path.read_bytes()
    with pytest.raises(SystemExit) as caught:
        main([*command, "--output", str(path), *resume])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert f"results.json holds results that were measured otherwise {told}" in error
    assert "remove it, or give another file" in error
    assert not re.search(r"^\w+: \d+ s$", error, re.MULTILINE)  # nothing was measured
    assert path.read_bytes() == text
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_everything_that_differs_from_a_file_is_named(stored, command, tmp_path, capsys):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**json.loads(stored.read_text()), "passes": 2}))
    with pytest.raises(SystemExit):
        main([*command, "--seed", "7", "--output", str(path)])
    assert "(seed: 1000, now 7; passes: 2, now 3)" in capsys.readouterr().err


def test_parts_that_another_command_measured_in_the_same_way_stay(stored, command, attacked, tmp_path, capsys):
    path, whole = tmp_path / "results.json", json.loads(stored.read_text())
    path.write_text(json.dumps({"robustness": attacked, **whole, "words": {}, "stray": 1}))
    assert main([*command, "--output", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found == {**whole, "robustness": json.loads(json.dumps(attacked))}  # what is no part is gone
    assert list(found)[-2:] == ["where", "robustness"]
    assert len(re.findall(r"^(\w+): \d+ s$", capsys.readouterr().err, re.MULTILINE)) == 5


def test_against_new_controls_only_what_they_appear_in_is_measured_again(stored, command, toy_folder, tmp_path, capsys):
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
    command = [str(folder) if argument == str(toy_folder) else argument for argument in command]
    assert main([*command, "--output", str(path), "--resume"]) == 0
    assert re.findall(r"^(\w+): \d+ s$", capsys.readouterr().err, re.MULTILINE) == ["composites"]
    before, after = json.loads(stored.read_text()), json.loads(path.read_text())
    assert (before["controls_sha256"], after["controls_sha256"]) == ({}, {"plain": sha256_of(kept)[:12]})
    assert [key for key in after if after[key] != before[key]] == ["controls_sha256", "composites"]
    assert list(after) == list(before)  # robustness against other controls is gone
    for kind, entry in after["composites"]["kinds"].items():
        assert "plain" in entry["at_equal_absent"]["5%"]["controls"]
        assert entry["goals"] == before["composites"]["kinds"][kind]["goals"]


def test_without_a_verdict_nothing_is_measured(command, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*command, "--prior", "class-names", "--output", str(tmp_path / "results.json")])
    error = capsys.readouterr().err
    assert "toy has no calibrated verdict for goals by class-names; `python -m steering.calibrate` makes it" in error
    assert not re.search(r"^\w+: \d+ s$", error, re.MULTILINE)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("text", ["not JSON", "[1]"])
def test_a_file_of_something_else_is_not_overwritten(command, tmp_path, text, capsys):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(SystemExit):
        main([*command, "--output", str(path)])
    assert "expected results of `steer evaluate`" in capsys.readouterr().err
    assert path.read_text() == text


def test_stored_results_are_written_into_the_readme_and_into_words(stored, tmp_path, capsys):
    readme, answers = tmp_path / "README.md", tmp_path / "RESULTS.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe end.\n")
    assert main(["all", "--from", str(stored), "--readme", str(readme), "--results", str(answers)]) == 0
    shown = table(json.loads(stored.read_text()))
    assert readme.read_text() == f"# Title\n\n{BEGIN}\n{shown}\n{END}\n\nThe end.\n"
    assert shown in capsys.readouterr().out
    written = answers.read_text()
    for text, _ in parts(json.loads(stored.read_text())):
        assert text.splitlines()[0] in written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["all", "--from", "nowhere.json"], "nowhere.json"),
        (["all", "--model", "nowhere"], "no model 'nowhere'"),
        (["all", "--readme", __file__.replace("test_report", "conftest"), "--from", "x.json"], "expected the markers"),
        (["composites", "--readme", "README.md"], "--readme: its table needs everything"),
        (["all", "--scenes", "many"], "invalid int value"),
        (["everything"], "invalid choice: 'everything'"),
        (["triplets"], "triplets: expected --output CSV"),
        (["triplets", "--model", "nowhere", "--output", "t.csv"], "no model 'nowhere'"),
        (["all", "--resume"], "--resume: expected --output FILE"),
        (["brain"], "brain: expected --brain DIR, --responses NPZ, or both"),
        (["all", "--from", "x.json", "--report", "x.html"], "--report: its pictures need the images"),
    ],
)
def test_a_wrong_command_is_a_usage_error(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
