"""The benchmark of speed measures each row, and writes what it prints."""

import json
import sys

import pytest
import torch

from benchmarks import speed


def test_every_row_is_measured_and_written(tmp_path, monkeypatch, capsys):
    file = tmp_path / "speed.json"
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{speed.BEGIN}\nold\n{speed.END}\nafter\n")
    line = ["speed.py", "--size", "64", "--rounds", "1", "--batch", "2", "--json", str(file), "--readme", str(readme)]
    monkeypatch.setattr(sys, "argv", line)
    speed.main()
    printed, written = capsys.readouterr().out, json.loads(file.read_text())["rows"]
    assert len(written) == 7
    for name, row in written.items():
        assert f"{name:<40} clock {row['clock']['ratio']:.2f}" in printed
        assert row["processors"]["ratio"] > 0
        assert len(row["clock"]["ratios"]) == 1
        assert f"| {name} | {row['clock']['ratio']:.2f} (" in readme.read_text()
    assert "old" not in readme.read_text()
    assert readme.read_text().startswith("before\n")
    assert readme.read_text().endswith("after\n")


def test_a_readme_without_markers_is_an_error_before_anything_is_measured(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("nothing")
    monkeypatch.setattr(sys, "argv", ["speed.py", "--readme", str(tmp_path / "README.md")])
    with pytest.raises(SystemExit, match="expected the markers"):
        speed.main()


def test_feedback_acts_in_what_is_measured():
    model = speed.network("alexnet", 64)
    with torch.no_grad():
        first, second = model.rollout(torch.randn(1, 3, 64, 64), 2)
    assert not torch.equal(first, second)


def test_a_ratio_is_ours_over_bare():
    def work(times):
        for _ in range(times):
            torch.randn(200, 200) @ torch.randn(200, 200)

    measured = speed.measure(lambda: work(90), lambda: work(10), 3)
    assert all(measured[kind]["ratio"] > 2 for kind in ("clock", "processors"))
