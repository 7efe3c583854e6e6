"""Calibration: the verdict recovers a known truth, strength and passes follow their rule, a folder is assembled."""

import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lrm_core.pictures import PictureConfig, Pictures
from lrm_core.trials import make_trials, top1
from steering import Steerer
from steering.calibrate import CalibrationConfig, calibrate, choose_defaults, pick
from steering.calibrate_verdicts import fit_verdict, photographs
from steering.evidence import FEATURES, TWIN, UNSTEERED, expand
from steering.network import Network
from steering.rollouts import class_goals, run_steered, run_unsteered

PATHS: dict = dict.fromkeys(("backbone", "prior", "text", "prototypes", "output", "classes"), "unused")
PATHS["pictures"] = []


def test_the_fit_recovers_a_known_logistic():
    generator = torch.Generator().manual_seed(0)
    count, scale = len(FEATURES), torch.tensor([1.0, 3.0, 0.5, 0.1])
    values = torch.randn(30_000, count, generator=generator) * scale.repeat(count)[:count] + 1
    standard = (values - values.mean(0)) / values.std(0)
    truth = torch.sigmoid(0.5 + 1.5 * standard[:, 0] - 2 * standard[:, 1] + 0.8 * standard[:, 0] * standard[:, 1])
    answers = (torch.rand(30_000, generator=generator) < truth).float()
    verdict = fit_verdict(values, answers, 1e-3)
    assert (verdict.probability(values) - truth).abs().mean() < 0.025
    weights = torch.tensor(verdict.weights)
    assert len(weights) == expand(standard).shape[1] == 1 + count + count * (count + 1) // 2
    torch.testing.assert_close(weights[:3], torch.tensor([0.5, 1.5, -2.0]), atol=0.25, rtol=0)


def test_a_feature_that_never_varies_does_no_harm():
    values = torch.randn(200, len(FEATURES), generator=torch.Generator().manual_seed(0))
    values[:, 2:] = 0.7
    verdict = fit_verdict(values, (values[:, 0] > 0).float(), 1e-2)
    assert ((verdict.probability(values) > 0.5) == (values[:, 0] > 0)).float().mean() > 0.95


STRENGTHS, PASSES = [0.0, 0.5, 1.0, 2.0], [2, 3]
EVERYTHING = {"most_absent": 1.0, "most_absent_single": 1.0}


@pytest.fixture(scope="module")
def shown(labelled):
    return [make_trials(kind, *labelled, 6, 24, 0) for kind in ("single", "blend", "side")]


def chosen(steerer, trials, **limits):
    config = CalibrationConfig.parse({**PATHS, "strengths": STRENGTHS, "passes": PASSES, **limits})
    return choose_defaults(steerer, trials, config)


def worst(row, kinds):
    return max(row["absent"][kind] for kind in kinds)


def test_every_strength_is_tried_with_every_number_of_passes(toy, shown):
    before = toy.network.defaults
    defaults, table = chosen(toy, shown, **EVERYTHING)
    assert [(row["passes"], row["strength"]) for row in table] == [(p, s) for p in PASSES for s in STRENGTHS]
    for row in table:
        assert set(row["absent"]) == set(row["present"]) == {"single", "blend", "side"}
        gaps = [row["present"][kind] - row["absent"][kind] for kind in ("blend", "side")]  # not of single images
        assert row["J"] == pytest.approx(sum(gaps) / 2)
    assert toy.network.defaults == before  # the choice is given back, not kept
    assert (defaults.num_samples, defaults.sampling_steps) == (before.num_samples, before.sampling_steps)


def test_rates_of_the_table_are_those_of_the_steered_passes(toy, shown):
    _, table = chosen(toy, shown, **EVERYTHING)
    goals, blend = class_goals(toy), shown[1]
    unsteered = run_unsteered(toy.network, blend.scenes.pixels)
    for row in (table[1], table[6]):
        for name, classes in (("present", blend.present), ("absent", blend.absent)):
            after = run_steered(toy.network, unsteered, goals[classes], row["strength"], row["passes"])
            assert row[name]["blend"] == pytest.approx(float(top1(after.output, classes).float().mean()))


def test_what_tells_present_from_absent_best_is_taken_of_all_whose_absent_goals_stay_rare(toy, shown):
    _, table = chosen(toy, shown, **EVERYTHING)
    for name, kinds in (("most_absent", ("blend", "side")), ("most_absent_single", ("single",))):
        for limit in sorted({worst(row, kinds) for row in table}):
            defaults, again = chosen(toy, shown, **{**EVERYTHING, name: limit})
            assert again == table
            allowed = [row for row in table if worst(row, kinds) <= limit + 1e-6]
            (taken,) = (
                row for row in table if (row["strength"], row["passes"]) == (defaults.strength, defaults.passes)
            )
            assert taken in allowed
            assert taken["J"] == max(row["J"] for row in allowed)


def test_the_best_strength_is_not_taken_where_its_absent_goals_are_too_frequent():
    limits = {"most_absent": 0.1, "most_absent_single": 0.05, "strengths": STRENGTHS}
    config = CalibrationConfig.parse({**PATHS, **limits})
    rows = [
        {"J": 0.9, "absent": {"single": 0.0, "blend": 0.11, "side": 0.0}},  # too eager on one kind
        {"J": 0.8, "absent": {"single": 0.06, "blend": 0.0, "side": 0.0}},  # too eager on single images
        {"J": 0.3, "absent": {"single": 0.05, "blend": 0.1, "side": 0.1}},
        {"J": 0.2, "absent": {"single": 0.0, "blend": 0.0, "side": 0.0}},
    ]
    assert pick(rows, config)["J"] == 0.3


def test_where_nothing_is_cautious_enough_calibration_fails_and_says_so(toy, shown):
    with pytest.raises(ValueError, match=r"no strength among \[0\.0, 0\.5, 1\.0, 2\.0\] keeps absent goals"):
        chosen(toy, shown, most_absent=-1.0)


@pytest.fixture
def parts(toy_folder, tmp_path):
    """The trained parts in folders of their own, and images of which the last 40 were not trained on."""
    import datasets

    for name in ("backbone", "prior", "prototypes"):
        (tmp_path / name).mkdir()
        for suffix in (".safetensors", ".json"):
            shutil.copyfile(toy_folder / f"{name}{suffix}", tmp_path / name / f"{name}{suffix}")
    rows: dict = {"image": [], "label": []}
    for index in range(60):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        rows["image"].append({"bytes": buffer.getvalue(), "path": None})
        rows["label"].append(index // 2 % 6)  # each class among even and among odd rows
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    names = json.loads((toy_folder / "backbone.json").read_text())["classes"]
    classes = [{**entry, "is_a": ["animal"] if i < 2 else []} for i, entry in enumerate(names)]
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    (tmp_path / "words.txt").write_text("".join(f"n{i}\tnoun {i}\n" for i in range(90)))
    lists = {"known": ["a cat", "a teapot"], "unknown": ["кошка", "12", "猫"]}
    (tmp_path / "familiar.json").write_text(json.dumps(lists))
    return {
        "backbone": str(tmp_path / "backbone"),
        "prior": str(tmp_path / "prior"),
        "text": str(toy_folder / "text"),
        "prototypes": str(tmp_path / "prototypes" / "prototypes.safetensors"),
        "twin": str(tmp_path / "backbone"),
        "most_absent": 1.0,
        "most_absent_single": 1.0,
        "output": str(tmp_path / "assembled"),
        "pictures": [{"source": str(tmp_path), "num_holdout": 40, "split": "holdout", "size": 32}],
        "classes": str(tmp_path / "classes.json"),
        "nouns": str(tmp_path / "words.txt"),
        "familiar_words": str(tmp_path / "familiar.json"),
        "strengths": [0.5, 1.0],
        "scenes": 20,
        "passes": [2],
        "num_samples": 2,
        "sampling_steps": 2,
    }


def test_the_parts_become_a_model_folder_that_looks(parts, tmp_path, capsys):
    (tmp_path / "assembled").mkdir()
    (tmp_path / "assembled" / "verdict.json").write_text("of another backbone")
    calibrate(CalibrationConfig.parse(parts))
    steerer = Steerer.load(tmp_path / "assembled", device="cpu")
    assert steerer.verdict is not None
    ways = ("diffusion", "class-names", "prototype", "image")
    assert list(steerer.verdicts) == [
        *(f"{way}{ending}" for way in ways for ending in ("", UNSTEERED)),
        f"diffusion{TWIN}",
    ]
    assert steerer.verdicts[f"diffusion{TWIN}"] == steerer.verdicts["diffusion"]  # here the twin is the model itself
    for way in ("diffusion", "class-names", "prototype", "image"):
        with_it, without = steerer.verdicts[way], steerer.verdicts[f"{way}{UNSTEERED}"]
        # As if steering changed nothing: after is before, and what was before is the same for both.
        for kind in ("support", "logit", "entropy"):
            before, after = FEATURES.index(f"{kind} before"), FEATURES.index(f"{kind} after")
            assert without.mean[after] == pytest.approx(without.mean[before], rel=1e-5)
            assert without.std[after] == pytest.approx(without.std[before], rel=1e-5)
            assert without.mean[before] == pytest.approx(with_it.mean[before], rel=1e-5)
            assert with_it.mean[after] != pytest.approx(with_it.mean[before], rel=1e-3)
    assert steerer.network.defaults.strength in (0.5, 1.0)
    assert (
        steerer.network.defaults.passes,
        steerer.network.defaults.num_samples,
        steerer.network.defaults.sampling_steps,
    ) == (2, 2, 2)
    assert steerer.language.vocabulary.shape == (7, 24)  # six names and "animal"
    assert steerer.language.known == ("cat", "beagle", "lemon", "teapot", "bridge", "sweater", "animal")
    assert steerer.look("sample:cat", "кошка").verdict == "unknown"
    assert steerer.goal("a cat").unfamiliar == ""
    printed = capsys.readouterr().out
    assert f'familiar words: {{"least": {steerer.language.least}' in printed
    assert f"strength {steerer.network.defaults.strength}, 2 passes" in printed
    by_name = Steerer.load(tmp_path / "assembled", prior="class-names", device="cpu")
    looks = [
        steerer.look("sample:cat", "a cat"),
        by_name.look("sample:cat", "a cat"),
        *steerer.look_many("sample:cat", [steerer.prototype_goal("cat"), steerer.image_goal("sample:cat")]),
    ]
    assert [look.prior for look in looks] == ["diffusion", "class-names", "prototype", "image"]
    for look in looks:
        assert 0 < look.probability < 1
        # six kinds, 20 scenes, a present and an absent goal each
        trials = 480 if look.prior in ("diffusion", "class-names") else 240  # words are names and hypernyms
        assert f"{look.prior}: verdict on {trials} trials" in printed


def test_photographs_are_shown_whole_in_groups_of_one_shape(parts, tmp_path, toy):
    for index, (width, height) in enumerate([(64, 32), (32, 64), (66, 32), (32, 32), (400, 20)]):
        folder = tmp_path / "wide" / "train" / ("first" if index else "second")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (50 * index, 0, 0)).save(folder / f"{index}.png")
    config = PictureConfig(source=str(tmp_path / "wide"), size=16)
    pictures = Pictures([config], toy.network.card["classes"])
    assert list(photographs(toy.network, [config], pictures)) == []  # this network squashes what it sees
    kept = dataclasses.replace(toy.network.preprocessing, keeps_aspect=True)
    network = Network(toy.network.model, toy.network.card, kept, toy.network.defaults, toy.network.device)
    groups = list(photographs(network, [config], pictures))
    shapes = {tuple(shown.trials.scenes.pixels.shape[-2:]): len(shown.rows) for shown in groups}
    assert shapes == {(32, 64): 2, (64, 32): 1, (32, 32): 1, (32, 96): 1}  # a strip is squashed to 3:1
    assert sorted(row for shown in groups for row in shown.rows.flatten().tolist()) == [0, 1, 2, 3, 4]
    for shown in groups:
        assert (shown.trials.absent != shown.trials.present).all()
        reds = (shown.trials.scenes.pixels[:, 0].mean((1, 2)) * 255 / 50).round().int().tolist()
        _, labels = pictures.sets[0]
        stored = [int(pictures.sets[0][0][row, 0].float().mean() / 50 + 0.5) for row in shown.rows[:, 0].tolist()]
        assert reds == stored  # a row is that of the picture in memory
        assert (labels[shown.rows[:, 0]] == shown.trials.present).all()
