"""`steer evaluate` as a user types it: mistakes cost nothing, stored numbers are told."""

import json
import os
from pathlib import Path

import pytest

from steering.catalogue import model_names
from tests.commands import steer

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "results" / "results.json"


def evaluate(*arguments: str | os.PathLike) -> int:
    """The exit code of `steer evaluate`."""
    return steer("evaluate", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: WHAT"),
        (["everything"], "invalid choice: 'everything'"),
        (["all", "--resume"], "--resume: expected --output as well"),
        (["all", "--scenes", "0"], "argument --scenes: got '0'; expected a whole number from 1"),
        (["all", "--model", "nowhere"], "--model: got 'nowhere', expected a folder"),
        (["composites", "--readme", "README.md"], "--readme: its table needs everything"),
        (["all", "--from", "nowhere.json"], "nowhere.json"),
        (["all", "--from", str(STORED), "--report", "page.html"], "--report: its pictures need the images"),
        (["triplets"], "--output: expected the CSV to write"),
        (["brain"], "brain: got nothing to measure on, expected --brain or --responses"),
        (["triplets", "--output", "t.csv", "--quick"], "--quick: not used with triplets"),
        (["triplets", "--output", "t.csv", "--model", "alexnet_lrm3"], f"or one of {', '.join(model_names())}"),
        (["all", "--from", str(STORED), "--seed", "5", "--model", "x"], "--model, --seed: not used with --from"),
        (
            ["all", "--results", "/nowhere/a.md"],
            "--results: got /nowhere/a.md, expected a file in a folder that exists",
        ),
        (["all", "--triplets", "no.csv"], "--triplets: got no.csv, expected a file"),
    ],
)
def test_mistakes_are_told_in_a_line_before_anything_is_measured(arguments: list[str], message: str, capsys):
    assert evaluate(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"backbone_sha256": "x"}, "expected results of `steer evaluate`"),
        ({"backbone_sha256": "x", "model": "m", "single": {}}, "part 'single' is incomplete"),
    ],
)
def test_incomplete_numbers_are_told_in_a_line(tmp_path: Path, stored: dict, message: str, capsys):
    (tmp_path / "r.json").write_text(json.dumps(stored))
    assert evaluate("composites", "--from", tmp_path / "r.json") == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_stored_numbers_are_told_and_written(tmp_path: Path, capsys):
    readme, answers = tmp_path / "README.md", tmp_path / "RESULTS.md"
    readme.write_text((ROOT / "README.md").read_text().replace("71.4 %", "99.9 %"))
    assert evaluate("all", "--from", STORED, "--readme", readme, "--results", answers) == 0
    assert readme.read_text() == (ROOT / "README.md").read_text()
    assert "## Is a later pass better than the first?" in answers.read_text()
    assert "top-1 of the last pass" in capsys.readouterr().out
    assert evaluate("composites", "--from", STORED) == 0
    assert "## Could something simpler do the same?" in capsys.readouterr().out
