"""Calibration: the verdict recovers a known truth, the strength follows its rule, a folder is put together."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from steering import Steerer
from steering.calibrate import CalibrationConfig, calibrate, choose_strength, fit_verdict
from steering.evidence import expand
from steering.trials import make_trials

PATHS = dict.fromkeys(("backbone", "prior", "text", "prototypes", "output", "data", "classes"), "unused")


def test_the_fit_recovers_a_known_logistic():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6000, 4, generator=generator) * torch.tensor([1.0, 3.0, 0.5, 0.1]) + 1
    standard = (values - values.mean(0)) / values.std(0)
    truth = torch.sigmoid(0.5 + 1.5 * standard[:, 0] - 2 * standard[:, 1] + 0.8 * standard[:, 0] * standard[:, 1])
    answers = (torch.rand(6000, generator=generator) < truth).float()
    verdict = fit_verdict(values, answers, 1e-3)
    assert (verdict.probability(values) - truth).abs().mean() < 0.025
    weights = torch.tensor(verdict.weights)
    assert len(weights) == expand(standard).shape[1] == 15
    torch.testing.assert_close(weights[:3], torch.tensor([0.5, 1.5, -2.0]), atol=0.25, rtol=0)


def test_a_feature_that_never_varies_does_no_harm():
    values = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    values[:, 2] = 0.7
    verdict = fit_verdict(values, (values[:, 0] > 0).float(), 1e-2)
    assert ((verdict.probability(values) > 0.5) == (values[:, 0] > 0)).float().mean() > 0.95


def chosen(toy, labelled, **limits):
    config = CalibrationConfig.parse({**PATHS, "strengths": [0.0, 0.5, 1.0, 2.0], **limits})
    trials = [make_trials(kind, *labelled, 6, 24, 0) for kind in ("single", "blend", "side")]
    return choose_strength(toy, trials, config)


def test_the_largest_strength_is_taken_whose_absent_goals_stay_rare(toy, labelled):
    everything = {"most_absent": 1.0, "most_absent_single": 1.0}
    _, table = chosen(toy, labelled, **everything)
    assert [row["strength"] for row in table] == [0.0, 0.5, 1.0, 2.0]
    assert set(table[0]["absent"]) == set(table[0]["present"]) == {"single", "blend", "side"}
    assert chosen(toy, labelled, **everything)[0] == 2.0
    for name, kinds in (("most_absent", ("blend", "side")), ("most_absent_single", ("single",))):
        worst = [max(row["absent"][kind] for kind in kinds) for row in table]
        limit = sorted(worst)[1]
        expected = max(row["strength"] for row, rate in zip(table, worst, strict=True) if rate <= limit)
        assert chosen(toy, labelled, **{**everything, name: limit})[0] == expected


def test_where_no_strength_is_cautious_enough_calibration_fails_and_says_so(toy, labelled):
    with pytest.raises(ValueError, match=r"no strength among \[0\.0, 0\.5, 1\.0, 2\.0\] keeps absent goals"):
        chosen(toy, labelled, most_absent=-1.0)


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
    return {
        "backbone": str(tmp_path / "backbone"),
        "prior": str(tmp_path / "prior"),
        "text": str(toy_folder / "text"),
        "prototypes": str(tmp_path / "prototypes" / "prototypes.safetensors"),
        "most_absent": 1.0,
        "most_absent_single": 1.0,
        "output": str(tmp_path / "assembled"),
        "data": str(tmp_path),
        "classes": str(tmp_path / "classes.json"),
        "nouns": str(tmp_path / "words.txt"),
        "strengths": [0.5, 1.0],
        "scenes": 20,
        "passes": 2,
        "num_samples": 2,
        "sampling_steps": 2,
    }


def test_the_parts_become_a_model_folder_that_looks(parts, tmp_path, capsys):
    (tmp_path / "assembled").mkdir()
    (tmp_path / "assembled" / "verdict.json").write_text("of another backbone")
    calibrate(CalibrationConfig.parse(parts))
    steerer = Steerer.load(tmp_path / "assembled", device="cpu")
    assert steerer.verdict is not None
    assert steerer.defaults.strength in (0.5, 1.0)
    assert (steerer.defaults.passes, steerer.defaults.num_samples) == (2, 2)
    assert steerer.language.vocabulary.shape == (7, 24)  # six names and "animal"
    printed = capsys.readouterr().out
    assert "strength " in printed
    by_name = Steerer.load(tmp_path / "assembled", prior="class-names", device="cpu")
    looks = [
        steerer.look("sample:cat", "a cat"),
        by_name.look("sample:cat", "a cat"),
        *steerer.look_many("sample:cat", [steerer.prototype_goal("cat"), steerer.image_goal("sample:cat")]),
    ]
    assert [look.prior for look in looks] == ["diffusion", "class-names", "prototype", "image"]
    for look in looks:
        assert 0 < look.probability < 1
        # five kinds, 20 scenes, a present and an absent goal each
        assert f"{look.prior}: verdict on 200 trials" in printed
