"""Encoding models on simulated ground truth: a known layer in a known pass, a known ceiling; and nothing in noise."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("sklearn", reason="needs the extra `evaluate`")

from lrm_lab import encoding, encoding_report
from lrm_lab.activations import pass_features
from steering import Steerer
from steering.errors import QueryError

NUM_UNITS, NUM_REPEATS = 12, 3
Save = Callable[..., Path]


def readout(features: np.ndarray, noise: float = 0.5, seed: int = 1) -> np.ndarray:
    """Responses of units that read the strongest components of a layer linearly, repeated with noise."""
    generator = np.random.default_rng(seed)
    centred = features - features.mean(0)
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    clean = (left * size)[:, :4] @ generator.normal(size=(4, NUM_UNITS))
    clean /= clean.std(0)
    return clean[..., None] + noise * generator.normal(size=(*clean.shape, NUM_REPEATS))


def test_the_layer_that_made_the_responses_is_found() -> None:
    generator = np.random.default_rng(0)
    layers = {f"layer {i}": generator.normal(size=(200, 20)) @ generator.normal(size=(20, 300)) for i in range(4)}
    weights = generator.normal(size=(300, NUM_UNITS))
    clean = layers["layer 2"] @ weights
    clean /= clean.std(0)
    noisy = clean[..., None] + generator.normal(size=(*clean.shape, 4))
    found = encoding.encode(layers, noisy, num_bootstrap=50, compare=[("layer 0", "layer 2")])
    medians = {name: entry["median"] for name, entry in found["layers"].items()}
    assert max(medians, key=medians.__getitem__) == "layer 2"
    ceiling = np.sqrt(4 / (4 + 1))  # variances: signal 1, noise 1 over 4 repeats
    assert np.median(found["ceiling"]) == pytest.approx(ceiling, abs=0.03)
    assert ceiling - 0.05 < medians["layer 2"] < ceiling + 0.03
    assert found["layers"]["layer 2"]["normalised"] == pytest.approx(1, abs=0.07)
    assert all(abs(medians[name]) < 0.2 for name in medians if name != "layer 2")
    assert found["differences"][0]["interval"][0] > 0


def test_shuffled_responses_are_not_predicted() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(150, 20)) @ generator.normal(size=(20, 60))
    clean = features @ generator.normal(size=(60, 40))
    assert encoding.encode({"x": features}, clean, num_bootstrap=20)["layers"]["x"]["median"] > 0.95
    shuffled = clean[generator.permutation(len(clean))]
    found = encoding.encode({"x": features}, shuffled, num_bootstrap=20)["layers"]["x"]
    assert abs(np.mean(found["r"])) < 0.1


def test_a_basis_of_the_images_changes_nothing() -> None:
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(30, 80)), generator.normal(size=(30, 2))
    fold = np.arange(30) % 3
    found = encoding._predict(x, y, fold)
    train, test = fold != 0, fold == 0
    scaler = StandardScaler().fit(x[train])
    plain = RidgeCV(encoding.ALPHAS, alpha_per_target=True).fit(scaler.transform(x[train]) / np.sqrt(80), y[train])
    np.testing.assert_allclose(found[test], plain.predict(scaler.transform(x[test]) / np.sqrt(80)), atol=1e-6)


def test_correlation_within_folds_is_pearsons() -> None:
    generator = np.random.default_rng(0)
    x, y, fold = generator.normal(size=(20, 3)), generator.normal(size=(20, 3)), np.arange(20) % 2
    x[:, 2] = 1.0  # a constant prediction
    found = encoding.fold_correlation(x, y, fold, np.ones((1, 20)))[0]
    for unit in range(2):
        each = [np.corrcoef(x[fold == f, unit], y[fold == f, unit])[0, 1] for f in range(2)]
        assert found[unit] == pytest.approx(np.mean(each))
    assert found[2] == 0


def test_reliability_of_known_noise() -> None:
    generator = np.random.default_rng(0)
    signal = generator.normal(size=(4000, 1, 1))
    values = np.concatenate([signal, 0 * signal], 1) + generator.normal(size=(4000, 2, 3))
    found = encoding.reliability(values)
    assert found[0] == pytest.approx(3 / 4, abs=0.03)
    assert found[1] == pytest.approx(0, abs=0.08)
    with pytest.raises(ValueError, match="expected at least 2"):
        encoding.reliability(values[..., :1])


def test_a_file_is_encoded_from_the_layer_that_made_it(
    toy: Steerer, stimuli: list[Path], tmp_path: Path, save_responses: Save
) -> None:
    layer, last = toy.network.output, toy.network.defaults.passes
    pixels = torch.cat([toy.network.pixels(Image.open(name).convert("RGB")) for name in stimuli])
    made = readout(pass_features(toy.network, pixels, [layer])[-1][layer])
    path = save_responses(tmp_path, made, stimuli, subject=np.array(["A"] * 6 + ["B"] * 6))
    found = encoding.measure(toy, path, queries=("a cat",), num_bootstrap=20, quick=True)
    results = json.loads(json.dumps(found))
    assert {row["pass"] for row in results["rows"]} == {1, last}
    medians = {name: entry["median"] for name, entry in results["layers"].items()}
    own = f"{layer}, pass {last}"
    ceiling = float(np.median(results["ceiling"]))
    assert medians[own] == pytest.approx(ceiling, abs=0.03)
    assert all(medians[own] > medians[name] + 0.05 for name in medians if name != own)  # its own first pass, too
    assert results["layers"][own]["normalised"] > 0.95
    assert results["subjects"] == {"A": list(range(6)), "B": list(range(6, 12))}
    text = encoding_report.section(results)
    assert "## Encoding of mine.npz" in text
    assert "A: median r" in text
    assert f"| {layer} | {last} | a cat |" in text
    figure = encoding_report.figures(results)["encoding"]
    figure.savefig(tmp_path / "encoding.png", dpi=40)
    assert (tmp_path / "encoding.png").stat().st_size > 2000


def test_section_says_when_nothing_is_predicted() -> None:
    layers = {"fc, pass 1": {"median": 0.01, "interval": [-0.1, 0.1], "r": [0.01]}}
    rows = [{"name": "fc, pass 1", "layer": "fc", "pass": 1, "goal": None}]
    results = {
        "file": "x.npz",
        "units": 1,
        "images": 50,
        "repeats": 1,
        "ceiling": None,
        "subjects": {},
        "queries": [],
        "layers": layers,
        "rows": rows,
        "differences": [],
    }
    assert "no evidence" in encoding_report.section(results)
    layers["fc, pass 1"]["interval"] = [0.005, 0.1]
    assert "no evidence" not in encoding_report.section(results)


def test_bad_calls_are_refused(toy: Steerer, stimuli: list[Path], tmp_path: Path, save_responses: Save) -> None:
    features, values = np.ones((30, 4)), np.random.default_rng(0).normal(size=(30, 2))
    with pytest.raises(ValueError, match=r"got shape \(30, 4\), expected \(29"):
        encoding.encode({"a": features}, values[:29])
    with pytest.raises(ValueError, match="folds: got 8 of 30 images, expected at least 2 folds"):
        encoding.encode({"a": features}, values, folds=8)
    with pytest.raises(ValueError, match="compare: got 'b', expected a"):
        encoding.encode({"a": features}, values, compare=[("a", "b")])
    with pytest.raises(ValueError, match="features_by_layer: got none"):
        encoding.encode({}, values)
    path = save_responses(tmp_path, values[:10], stimuli[:10])
    with pytest.raises(ValueError, match="got 10 images, expected at least 4"):
        encoding.measure(toy, path)
    with pytest.raises(QueryError, match="expected a list"):
        encoding.measure(toy, path, queries="a cat")
