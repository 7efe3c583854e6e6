"""The README says what is: its table is the stored results, its commands are those that CI runs, its Python runs."""

import json
import re
from pathlib import Path

import pytest

from steering.evaluate import TITLE
from steering.evaluate.page import write_results_md
from steering.evaluate.report import BEGIN, END, parts, rewrite, table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_table_is_written_from_the_stored_results():
    results = json.loads((ROOT / "results.json").read_text())
    assert f"{BEGIN}\n{table(results)}\n{END}" in README


def test_the_answers_are_written_from_the_stored_results(tmp_path):
    results = json.loads((ROOT / "results.json").read_text())
    write_results_md(tmp_path / "RESULTS.md", parts(results), TITLE.format(**results), results)
    assert (tmp_path / "RESULTS.md").read_bytes() == (ROOT / "RESULTS.md").read_bytes()


def test_the_stored_results_are_those_of_the_shipped_model():
    results = json.loads((ROOT / "results.json").read_text())
    card = json.loads((ROOT / "steering/models/lrm_mini/backbone.json").read_text())
    defaults = json.loads((ROOT / "steering/models/lrm_mini/steering.json").read_text())
    assert results["backbone_sha256"] == card["sha256"]
    assert (results["strength"], results["passes"]) == (defaults["strength"], defaults["passes"])


def test_continuous_integration_runs_the_readmes_own_lines():
    script = (ROOT / ".ci" / "run").read_text()
    for line in ("install -c constraints.txt .", 'install -c constraints.txt -e ".[dev]"', "python -m pytest -n 2 -q"):
        assert line in README
        assert line in script


def test_files_that_the_readme_names_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    for config in re.findall(r"configs/\w+\.yaml", README):
        assert (ROOT / config).is_file()


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(code[1], scope)
    assert (tmp_path / "look.png").stat().st_size > 10_000
    assert scope["goal"].shape == (len(scope["steerer"].class_names),)


def test_the_readmes_search_runs(tmp_path, monkeypatch):
    from steering.images import open_image

    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "Gallery.open" in block]
    (tmp_path / "photos").mkdir()
    for name in ("cat", "coffee"):
        open_image(f"sample:{name}").save(tmp_path / "photos" / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(code, scope)
    assert scope["report"].new == 2
    assert scope["hit"].path == str(tmp_path / "photos" / "coffee.jpg")
    assert (tmp_path / "hit.png").stat().st_size > 10_000


def test_a_file_without_markers_is_refused(tmp_path):
    path = tmp_path / "x.md"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="markers"):
        rewrite(path, {})
