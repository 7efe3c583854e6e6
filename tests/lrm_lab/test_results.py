"""The stored results: every number of RESULTS.md is one of results.json, which is as the laboratory writes it."""

import json
from pathlib import Path

import pytest

pytest.importorskip("markdown_it", reason="needs the extra `evaluate`")

from lrm_lab.controls import WEIGHTS, find_controls
from lrm_lab.page import write_results_md
from lrm_lab.report import TITLE, numbers_in, sections, table
from lrm_lab.stored import read_results, write_results

STORED = Path(__file__).resolve().parents[2] / "results"
pytestmark = pytest.mark.skipif(not (STORED / "results.json").is_file(), reason="needs results/, which a checkout has")


@pytest.fixture(scope="module")
def results():
    return read_results(STORED / "results.json")


def test_the_numbers_of_the_answers_are_those_of_the_stored_results(results, tmp_path):
    write_results_md(tmp_path / "RESULTS.md", sections(results), TITLE.format(**results), results)
    written, stored = (numbers_in((folder / "RESULTS.md").read_text()) for folder in (tmp_path, STORED))
    assert written == stored
    assert len(stored) > 1000


def test_every_part_that_the_table_has_room_for_was_measured(results):
    assert len(numbers_in(table(results))) > 50


def test_written_again_the_stored_results_are_the_same_bytes(results, tmp_path):
    write_results(tmp_path / "results.json", results)
    assert (tmp_path / "results.json").read_bytes() == (STORED / "results.json").read_bytes()


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="needs lrm_lab/weights, which a checkout has")
def test_the_stored_results_are_those_of_the_controls_in_the_checkout(results, shipped_default):
    from lrm_base.card import sha256_of

    paths = find_controls(shipped_default)
    assert {name: sha256_of(path)[:12] for name, path in paths.items()} == results["controls_sha256"]


def test_the_stored_results_are_those_of_the_shipped_model(results, shipped_default):
    card = json.loads((shipped_default / "backbone.json").read_text())
    assert results["backbone_sha256"] == card["sha256"]
