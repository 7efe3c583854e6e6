"""The README says what is: its numbers are the stored results, its commands are those that CI runs, its Python runs."""

import json
import re
from pathlib import Path

import pytest

from lrm_lab.report import around, numbers_in, rewrite, table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = json.loads((ROOT / "results" / "results.json").read_text())


def test_the_numbers_of_the_table_are_the_stored_results():
    before, after = around(ROOT / "README.md")
    shown = README[len(before) : len(README) - len(after)]
    assert numbers_in(shown.split("-->", 1)[1].rsplit("<!--", 1)[0]) == numbers_in(table(RESULTS))


def test_the_stored_results_are_those_of_the_shipped_model(shipped_default):
    card = json.loads((shipped_default / "backbone.json").read_text())
    defaults = json.loads((shipped_default / "steering.json").read_text())
    assert RESULTS["backbone_sha256"] == card["sha256"]
    assert (RESULTS["strength"], RESULTS["passes"]) == (defaults["strength"], defaults["passes"])


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


def test_the_readmes_python_runs(tmp_path, monkeypatch, shipped_default):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(code[1], scope)
    assert (tmp_path / "look.png").stat().st_size > 10_000
    assert scope["goal"].vector.shape == (len(scope["steerer"].class_names),)


def claims(code):
    """Each expression of a block of code whose comment claims its value, with the claim."""
    lines = (line.partition("  # ") for line in code.splitlines() if "  # " in line)
    claimed = [(source, claim) for source, _, claim in lines if re.match(r'"|\d|“|[A-Z]{5,}', claim)]
    return [(source, re.match(r'"[^"]*"|[\d.]+|“.*|[A-Z]+', claim)[0]) for source, claim in claimed]


def test_what_the_readmes_python_claims_is_what_it_gives(tmp_path, monkeypatch, capsys, shipped_default):
    """A string is the value itself, a number is rounded as it is, and curly quotes begin what is told."""
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "look.plot" in block]
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(code, scope)
    found = claims(code)
    assert len(found) >= 8
    assert {claim for _, claim in found} >= {'"present"', '"absent"', '"unknown"'}
    for source, claim in found:
        capsys.readouterr()
        value = eval(source, scope)
        if claim.startswith('"'):
            assert value == claim.strip('"'), source
        elif claim[0].isdigit():
            assert round(value, len(claim.partition(".")[2])) == float(claim), source
        elif claim.startswith("“"):
            (told,) = value if isinstance(value, tuple) else (value,)
            assert told.startswith(claim.removesuffix(" …").rstrip(",")), source
        else:
            assert f"  {claim}  probability" in capsys.readouterr().out, source


@pytest.mark.parametrize("query", ["- a cat", "no cats", "not a cat", "a photo without a cat"])
def test_every_way_to_say_no_that_the_readme_tells_gives_the_same_answer(query, shipped_steerer):
    assert shipped_steerer.look("sample:coffee", query).verdict == "present"
    assert shipped_steerer.look("sample:cat", query).verdict == "absent"


def test_the_readmes_search_runs(tmp_path, monkeypatch, shipped_default):
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


def test_the_brain_scores_module_runs(shipped_default):
    import torch

    text = (ROOT / "docs" / "brain.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Pass" in block]
    scope: dict = {}
    exec(code, scope)
    steerer, seen = scope["steerer"], []
    scope["model"].taps["act"].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    size = steerer.network.preprocessing.size
    image = torch.zeros(1, 3, size, size)
    output = scope["model"](image)
    glance = steerer.network.glance(image)
    expected = steerer.network.steer(glance, steerer.goal("an animal").vector[None], passes=2)
    assert torch.equal(output, expected.output)
    assert len(seen) == 1


def test_a_file_without_markers_is_refused(tmp_path):
    path = tmp_path / "x.md"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="markers"):
        rewrite(path, {})
