"""What sections are written with."""

import pytest

from lrm_lab.writing import (
    against_zero,
    bounds,
    change,
    correlation,
    direction,
    markdown_table,
    percent,
    signed,
)


@pytest.mark.parametrize(
    ("bounds", "phrase"),
    [((0.001, 1.0), "above"), ((-1.0, -0.001), "below"), ((-1.0, 1.0), "level"), ((0.0, 1.0), "level")],
)
def test_an_interval_that_holds_zero_decides_nothing(bounds, phrase):
    assert against_zero(list(bounds), "above", "below", "level") == phrase


def test_figures_are_written_with_their_intervals():
    assert percent(0.1234) == "12.3 %"
    assert bounds([0.1, 0.25]) == "[10.0, 25.0]"
    assert signed(0.05, [-0.01, 0.1]) == "+5.0 [-1.0, +10.0]"
    assert correlation(0.5, [-0.25, 0.75]) == "0.500 [-0.250, 0.750]"
    assert change({"difference": -0.5, "interval": [-0.75, 0.25]}) == "-0.500 [-0.750, +0.250]"


def test_a_table_has_a_rule_below_its_head():
    assert markdown_table(("a", "b"), [("x", "1")]) == "| a | b |\n| --- | --- |\n| x | 1 |"
    assert markdown_table(("a", "b"), [], rule="---:") == "| a | b |\n| --- | ---: |"


def test_differences_beyond_their_interval_are_counted_on_either_side():
    entries = [{"interval": bounds} for bounds in ([0.1, 0.2], [-0.1, 0.2], [-0.3, -0.1], [0.0, 0.1])]
    sentence = direction(entries, "What")
    assert sentence.startswith("What: 1 of 4 differences lie above 0 and 1 lie below it")
    assert "about 0.2 would" in sentence
