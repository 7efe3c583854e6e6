"""`steer evaluate`: measured once, kept as JSON, and written between the markers of a README."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from steering.evaluate import main
from steering.evaluate.report import BEGIN, END, rewrite, table


def encoded(label, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
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
def results(source, toy_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "results.json"
    arguments = ["--model", str(toy_folder), "--device", "cpu", "--source", str(source), "--scenes", "8"]
    assert main([*arguments, "--photos", str(source / "photos"), "--output", str(path)]) == 0
    return path


def test_everything_is_measured_and_within_range(results):
    found = json.loads(results.read_text())
    assert found["model"] == "toy"
    assert found["single"]["images"] == 30
    assert set(found["scenes"]) == {"single", "blend", "side", "inset", "grid", "pooled"}
    for kind in ("single", "blend", "side", "inset", "grid"):
        entry = found["scenes"][kind]
        assert entry["scenes"] == 8
        rates = [*entry["steered"].values(), *entry["unsteered"].values(), *entry["curve"]["present"]]
        assert all(0 <= rate <= 1 for rate in rates)
        assert entry["J_steered"] == pytest.approx(entry["steered"]["present"] - entry["steered"]["absent"])
        assert set(entry["control"]) == {"5%", "10%"}
    assert found["words"]["words"] == 50
    assert found["photographs"]["photographs"] == 2


def test_the_same_command_gives_the_same_numbers(results, source, toy_folder, tmp_path):
    again = tmp_path / "again.json"
    arguments = ["--model", str(toy_folder), "--device", "cpu", "--source", str(source), "--scenes", "8"]
    main([*arguments, "--photos", str(source / "photos"), "--output", str(again)])
    assert again.read_bytes() == results.read_bytes()


def test_stored_results_are_written_between_the_markers_and_nothing_else_changes(results, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe end.\n")
    for _ in range(2):  # written again, nothing moves
        assert main(["--from", str(results), "--readme", str(readme)]) == 0
        text = readme.read_text()
        shown = table(json.loads(results.read_text()))
        assert text == f"# Title\n\n{BEGIN}\n{shown}\n{END}\n\nThe end.\n"
    assert shown in capsys.readouterr().out


def test_the_table_names_every_bar_and_has_three_columns(results):
    lines = table(json.loads(results.read_text())).splitlines()
    assert all(re.fullmatch(r"\|([^|]+\|){3}", line) for line in lines)
    assert [line for line in lines if "nan" in line.lower()] == []
    for text in ("≥ 40 %", "≥ 2.0 ×", "absent ≤ 10 %", "absent ≤ 3 %", "≤ 0.05", "≥ 70 % / ≥ 90 %", "≥ 75 %"):
        assert any(text in line for line in lines), text


def test_without_photographs_the_table_has_no_row_of_them(results):
    found = json.loads(results.read_text())
    del found["photographs"]
    assert "photographs" not in table(found)


def test_a_readme_without_markers_is_refused(results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n")
    with pytest.raises(ValueError, match="expected the markers"):
        rewrite(readme, json.loads(results.read_text()))
    assert readme.read_text() == "# Title\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "nowhere.json"], "nowhere.json"),
        (["--model", "nowhere"], "no model 'nowhere'"),
        (["--readme", __file__, "--from", "nowhere.json"], "expected the markers"),
        (["--scenes", "many"], "invalid int value"),
    ],
)
def test_a_wrong_command_is_a_usage_error(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
