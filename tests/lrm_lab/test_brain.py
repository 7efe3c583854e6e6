"""Similarity with the brain: a whole small run, and words that follow its numbers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rsatoolbox", reason="needs the extra `evaluate`")

from lrm_lab import brain, brain_report
from steering import Steerer
from steering.errors import QueryError


@pytest.fixture(scope="session")
def measured(toy: Steerer, brain92: Path) -> dict[str, Any]:
    results = brain.measure(toy, brain92, queries=("a cat",), control="a bridge", num_bootstrap=20)
    return json.loads(json.dumps(results))


def test_every_layer_pass_and_goal_is_measured(measured: dict[str, Any], toy: Steerer) -> None:
    layers, passes = len(measured["layers"]), toy.network.defaults.passes
    assert toy.network.output in measured["layers"]
    assert len(measured["similarity"]) == 1 + layers * (passes + 2 * (passes - 1))
    assert len(measured["pass_differences"]) == layers * (passes - 1)
    assert len(measured["goal_differences"]) == 2 * layers * (passes - 1)
    assert 0.3 < measured["noise_ceiling"]["lower"] < measured["noise_ceiling"]["upper"] < 0.8
    assert {row["goal"] for row in measured["similarity"]} == {None, "a cat", "a bridge"}
    assert any(row["face"]["difference"] != 0 for row in measured["goal_differences"])  # steering acts
    for row in measured["goal_differences"]:
        for name in (*brain.DATA, *brain.CONTRASTS):
            low, high = row[name]["interval"]
            assert low <= high


def test_differences_are_those_of_the_rows(measured: dict[str, Any]) -> None:
    values = {(row["layer"], row["pass"], row["goal"]): row for row in measured["similarity"]}
    for row in measured["goal_differences"]:
        base = None if row["against"] == "unsteered" else measured["control"]
        for name in brain.DATA:
            steered = values[row["layer"], row["pass"], row["goal"]][name]["value"]
            expected = steered - values[row["layer"], row["pass"], base][name]["value"]
            assert row[name]["difference"] == pytest.approx(expected)


def test_the_same_seed_gives_the_same_numbers(measured: dict[str, Any], toy: Steerer, brain92: Path) -> None:
    again = brain.measure(toy, brain92, queries=("a cat",), control="a bridge", num_bootstrap=20)
    assert json.loads(json.dumps(again)) == measured


def test_section_follows_the_numbers(measured: dict[str, Any]) -> None:
    text = brain_report.section(measured)
    assert text.startswith("## ")
    assert "stays below the noise ceiling" in text
    assert all(f"| {layer} |" in text for layer in measured["layers"])
    sessions = list(measured["session_reliability"].values())
    assert f"agree by {sum(sessions) / 4:.3f}" in text
    changed = json.loads(json.dumps(measured))
    changed["session_reliability"] = dict(zip("abcd", (0.1, 0.2, 0.3, 0.6), strict=True))
    for row in changed["similarity"]:
        row["people"]["value"] = 0.5 if row["layer"] == changed["layers"][0] else 0.1
    for row in changed["pass_differences"]:
        row["people"] = {"difference": 0.2, "interval": [0.1, 0.3]}
    other = brain_report.section(changed)
    count = len(changed["pass_differences"])
    assert "reaches the noise ceiling" in other
    assert "agree by 0.300" in other
    assert re.search(rf"four people: {count} of {count} differences lie above 0 and 0 lie below", other)


def test_figures_are_drawn(measured: dict[str, Any], tmp_path: Path) -> None:
    found = brain_report.figures(measured)
    assert set(found) == {"similarity", "steering"}
    for name, figure in found.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=40)
        assert (tmp_path / f"{name}.png").stat().st_size > 2000


def test_bad_options_are_refused(toy: Steerer, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="expected a list"):
        brain.measure(toy, tmp_path, queries="a cat")
    with pytest.raises(QueryError, match="control: got 'a cat', which is among the queries"):
        brain.measure(toy, tmp_path, queries=("a cat",), control="a cat")
    with pytest.raises(ValueError, match="expected at least 20"):
        brain.measure(toy, tmp_path, num_bootstrap=3)
