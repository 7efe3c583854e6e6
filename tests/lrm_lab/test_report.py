"""The table and the sections follow the numbers, whatever they are."""

import copy
import io
import re

import pytest
from matplotlib.figure import Figure

from lrm_lab import photographs_report, single_report, words_report
from lrm_lab.composites_report import BARS, controls, gains, strongest, sweeps
from lrm_lab.parts import PARTS
from lrm_lab.report import BEGIN, END, around, numbers_in, rewrite, sections, table
from lrm_lab.where_report import connections, places


@pytest.fixture
def results(evaluated):
    """Numbers of the toy, to be changed at will."""
    return copy.deepcopy(evaluated)


PHOTOS = {
    "photographs": 60,
    "right_name_present": 0.9,
    "other_name_absent": 0.8,
    "balanced_accuracy": 0.85,
    "unsure": 3,
}


def cells(text, first):
    """The other cells of a table's only row that begins so."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def test_the_table_names_every_bar_and_has_three_columns(results):
    lines = table({**results, "photographs": PHOTOS}).splitlines()
    assert all(re.fullmatch(r"\|([^|]+\|){3}", line) for line in lines)
    assert [line for line in lines if "nan" in line.lower()] == []
    bars = ("≥ 40 %", "≥ 2.0 ×", "absent ≤ 10 %", "absent ≤ 3 %", "≥ + 0.05", "≤ 0.05", "≥ 70 % / ≥ 90 %", "≥ 75 %")
    for text in (*bars, *(f"≥ +{bar}" for bar in BARS.values())):
        assert any(text in line for line in lines), text


def test_figures_of_the_table_are_those_that_were_measured(results):
    kind = results["composites"]["kinds"]["blend"]
    kind["steered"] |= {"present": 0.623, "absent": 0.041, "J": 0.582}
    kind["unsteered"]["J"], kind["J_ratio"] = 0.194, 3.0
    results["where"]["pointing"]["inset"] |= {"steered": 0.8, "unsteered_cam": 0.75}
    results["words"] |= {"words": 50, "top1": 0.82, "top5": 0.94}
    text = table({**results, "photographs": PHOTOS})
    assert cells(text, "blend: goal is top-1, present / absent")[0] == "62.3 % / 4.1 %"
    assert cells(text, "blend: J steered / unsteered")[0] == "58.2 / 19.4 = 3.00 ×"
    assert cells(text, "inset: heatmap's peak in the named object, steered / unsteered map")[0] == "80.0 % / 75.0 %"
    assert cells(text, "50 held-out words: goal's best class right / in five")[0] == "82% / 94%"
    assert cells(text, "60 photographs: balanced accuracy")[0] == "85.0 % (right name 90.0 %, other name 80.0 %)"
    assert cells(text, "top-1 of single images, goal: their own class's words")[0] == (
        f"{100 * results['single']['own_words']:.1f} %"
    )


def test_a_bar_is_called_missed_just_below_it(results):
    kinds, pooled = results["composites"]["kinds"], results["composites"]["pooled"]
    what = "side: present top-1 at 5 % absent, steered − best control (constant on the goal's logit)"
    # what is compared is what was measured, not its rounding: 0.3504 shows as +5.0
    for rate, bar in ((0.35, "≥ +5"), (0.3504, "≥ +5, **missed**"), (0.351, "≥ +5, **missed**")):
        at_five(results, "side", constant=(rate, 0.0, 0.1), additive=(0.3, 0.0, 0.2), last_layer=(0.2, 0.1, 0.3))
        assert cells(table(results), what)[1] == bar
    for absent, bar in ((0.1, "absent ≤ 10 %"), (0.101, "absent ≤ 10 %, **missed**")):
        kinds["grid"]["steered"]["absent"] = absent
        assert cells(table(results), "grid: goal is top-1, present / absent")[1] == bar
    for area, bar in ((0.87, "≥ + 0.05"), (0.8696, "≥ + 0.05, **missed**"), (0.869, "≥ + 0.05, **missed**")):
        pooled |= {"auroc_verdict": area, "auroc_unsteered_logit": 0.82}
        assert cells(table(results), "present or absent on composites, AUROC: verdict / unsteered logit")[1] == bar


def test_what_steering_adds_to_the_verdict_has_a_row_of_its_own(results):
    pooled = results["composites"]["pooled"]
    pooled |= {"auroc_verdict": 0.87, "auroc_steering_interval": [-0.004, 0.031]}
    what = "… by the same verdict fitted without steering (what steering adds)"
    for without, shown, bar in ((0.85, "0.850 (+0.020", "> 0"), (0.87, "0.870 (+0.000", "> 0, **missed**")):
        pooled["auroc_unsteered_verdict"] = without
        assert cells(table(results), what) == [f"{shown} [-0.004, +0.031])", bar]


@pytest.mark.parametrize("missing", ["single", "words", "composites", "where", "search"])
def test_a_table_without_one_of_its_parts_is_refused_with_its_name(results, missing):
    del results[missing]
    with pytest.raises(ValueError, match=f"the table needs {missing}, not measured here; use `steer evaluate all`"):
        table(results)
    with pytest.raises(ValueError, match="the table needs single, words, composites, where, search, not measured"):
        table({"model": "toy"})


def test_the_table_lacks_no_part_that_a_clip_cannot_have(results):
    del results["words"]
    assert "own class's words" in table({**results, "model": "clip:somewhere"})


def test_a_verdict_that_nobody_fitted_is_not_said_to_be_fitted(results):
    composites = results["composites"]
    assert "as in the examples that the verdict was fitted on" in gains(composites)
    told = gains({**composites, "fitted": False, "unsteered_verdict": False})
    assert "fitted" not in told
    assert "The support before steering reaches" in told


def test_against_controls_that_were_not_measured_no_bar_is_met(results):
    """However far steering is above those that were."""
    what = "blend: present top-1 at 5 % absent, steered − best control (constant on the goal's logit)"
    at_five(results, "blend", constant=(0.1, 0.2, 0.4))
    row = f"{what}; not measured: additive feedback, gain on the last features"
    assert cells(table(results), row) == ["+30.0 [+20.0, +40.0] (10.0 % → 40.0 %)", "≥ +5, **missed**"]
    at_five(results, "blend", constant=(0.1, 0.2, 0.4), last_layer=(0.0, 0.3, 0.5), plain=(0.1, 0.2, 0.4))
    assert cells(table(results), f"{what}; not measured: additive feedback")[1] == "≥ +5, **missed**"
    at_five(results, "blend", constant=(0.1, 0.2, 0.4), last_layer=(0.0, 0.3, 0.5), additive=(0.0, 0.3, 0.5))
    assert cells(table(results), what)[1] == "≥ +5"


def test_without_photographs_the_table_has_no_row_of_them(results):
    assert "photographs" not in table(results)


def at_five(results, kind, **found):
    """Give a kind these controls at 5 % absent: (rate, low, high) each, steered at 40 %."""
    entry = results["composites"]["kinds"][kind]["at_equal_absent"]["5%"]
    entry["steered"] = 0.4
    entry["controls"] = {
        name: {"rate": rate, "difference": 0.4 - rate, "interval": [low, high]}
        for name, (rate, low, high) in found.items()
    }
    return entry


def test_steering_is_held_against_the_best_of_the_controls_that_count(results):
    others = {"constant": (0.2, 0.1, 0.3), "last_layer": (0.3, 0.0, 0.2), "plain": (0.9, -0.6, -0.4)}
    at_five(results, "blend", additive=(0.35, 0.01, 0.1), **others)
    name, entry, steered = strongest(results["composites"]["kinds"]["blend"], "5%")
    assert (name, entry["rate"], steered) == ("additive feedback", 0.35, 0.4)
    row = "blend: present top-1 at 5 % absent, steered − best control (additive feedback)"
    assert cells(table(results), row) == ["+5.0 [+1.0, +10.0] (35.0 % → 40.0 %)", "≥ +5"]


@pytest.mark.parametrize(
    ("bounds", "verb"),
    [((0.01, 0.2), "finds more than"), ((-0.2, -0.01), "loses to"), ((-0.1, 0.1), "is level with"), ((0.0, 0.1), "is")],
)
def test_the_sentence_on_controls_follows_the_interval(results, bounds, verb):
    at_five(results, "side", constant=(0.3, *bounds), plain=(0.1, 0.2, 0.4))
    text = controls(results["composites"])
    assert f"side: steering {verb} " in text
    assert "constant on the goal's logit (30.0 % → 40.0 %, +10.0 [" in text


def test_passes_are_called_better_or_worse_only_where_the_interval_says_so(results):
    single = results["single"]
    single["passes"], single["gain_intervals"] = [0.4, 0.45, 0.3], [[0.02, 0.08], [-0.14, -0.06]]
    text = told(single_report, single)
    assert numbers_in(text)[1:4] == ["40.0", "45.0", "30.0"]
    assert "Pass 2 is better than pass 1 (+5.0 [+2.0, +8.0] points)" in text
    assert "Pass 3 is worse than pass 1 (-10.0 [-14.0, -6.0] points)" in text
    single["gain_intervals"][0] = [-0.01, 0.08]
    assert "Pass 2 is better" not in told(single_report, single)
    single |= {"own_words": 0.62, "last_pass": 0.5}
    assert "62.0 % (+12.0)" in told(single_report, single)


def test_kinds_are_counted_as_helped_only_where_the_interval_of_the_gain_says_so(results):
    kinds = results["composites"]["kinds"]
    for index, entry in enumerate(kinds.values()):
        entry["steered"]["absent"] = 0.01 * index
        entry["gain_interval"] = [0.01, 0.2] if index < 2 else [-0.2, -0.1]
    text = gains(results["composites"])
    assert "2 of 6 kinds of scene (single, blend)" in text
    assert numbers_in(text)[:3] == ["2", "6", "5.0"]
    for entry in kinds.values():
        entry["gain_interval"] = [0.0, 0.2]
    assert "0 of 6 kinds of scene (none)" in gains(results["composites"])


def test_the_verdict_is_told_with_and_without_steering(results):
    pooled = results["composites"]["pooled"]
    pooled |= {"auroc_verdict": 0.871, "auroc_unsteered_logit": 0.801, "auroc_unsteered_verdict": 0.842}
    pooled |= {"auroc_gain": 0.07, "auroc_gain_interval": [0.05, 0.09], "auroc_steered_support": 0.86}
    pooled |= {"auroc_unsteered_support": 0.79, "calibration_error": 0.012, "auroc_near": 0.75}
    pooled["calibration_error_near"] = 0.034
    text = gains(results["composites"])
    assert numbers_in(text)[3:10] == ["0.871", "0.801", "+0.070", "0.050", "0.090", "0.842", "0.012"]
    assert numbers_in(text)[10] == "0.034"
    assert cells(text, "composites, pooled") == ["0.871", "0.842", "0.860", "0.790", "0.801", "0.750", "0.012", "0.034"]


def told(report, measured):
    """The text of a part's only section."""
    ((text, _),) = report.sections(measured)
    return text


def test_words_that_are_wrong_are_listed_and_right_ones_are_counted():
    words = {"words": 50, "top1": 0.82, "top5": 0.94, "wrong": {"a pup": ["cat", "lemon"]}}
    assert numbers_in(told(words_report, words)) == ["50", "82", "94"]
    assert cells(told(words_report, words), "a pup") == ["cat, lemon"]
    assert "| " not in told(words_report, {**words, "wrong": {}})


def test_photographs_are_counted():
    assert numbers_in(told(photographs_report, PHOTOS)) == ["60", "90.0", "80.0", "3", "120"]


def test_every_section_tells_the_command_that_measures_it(results):
    for part in PARTS:
        if part.name in results:
            for text, _ in sections({part.name: results[part.name], "quick": True}):
                assert text.endswith(f"Measured by `steer evaluate {part.command} {part.arguments} --quick`.")


def test_pictures_that_were_drawn_while_measuring_follow_the_last_section(results):
    *others, last = sections({"where": results["where"]}, {"where": {"more": Figure()}})
    assert list(last[1]) == ["pointing game", "more"]
    assert all("more" not in figures for _, figures in others)


def test_numbers_are_those_that_stand_alone():
    text = "Top-1 of 4,000 scenes, layer2 at pass 2: −0.5 [-1.6, +2.2] (PGD-20, 95 %), 0.30–0.42 of 3."
    assert numbers_in(text) == ["4,000", "2", "−0.5", "-1.6", "+2.2", "95", "0.30", "3"]


def test_every_goal_and_every_setting_has_its_figures(results):
    text = gains(results["composites"])
    for kind, entry in results["composites"]["kinds"].items():
        rows = [line for line in text.splitlines() if line.startswith(f"| {kind} |")]
        assert len(rows) == 1 + len(entry["goals"]) + 1  # no goal, the goals, and the areas
        assert ("both_in_top2" in entry["unsteered"]) == (rows[0].split("|")[-2].strip() != "")
    swept = results["composites"]["kinds"]["blend"]["sweep"]
    text = sweeps(results["composites"])
    assert "| strength | 0.0 |" in text
    assert "| negative, positive | 0.5, 1.0 |" in text
    shown = [f"{100 * row['present']:.0f} / {100 * row['absent']:.0f}" for row in swept["strength"]]
    assert f"| blend | {' | '.join(shown)} |" in text


def test_the_connection_that_costs_most_is_named(results):
    without = results["where"]["ablation"]["without"]
    for entry in without.values():
        entry["present_at_5%"] = 0.5
    name = list(without)[3]
    without[name]["present_at_5%"] = 0.375
    text = connections(results["where"])
    assert f"{name}: -12.5 points" in text
    assert cells(text, name)[1] == "37.5 %"


def test_maps_are_better_or_worse_only_where_the_interval_says_so(results):
    pointing = results["where"]["pointing"]
    bounds = {"side": [0.01, 0.1], "cutmix": [-0.1, 0.1], "inset": [-0.2, -0.1], "grid": [0.0, 0.2]}
    for kind, found in bounds.items():
        pointing[kind]["difference_interval"] = found
    assert "in side, and worse in inset" in places(results["where"])
    for entry in pointing.values():
        entry["difference_interval"] = [-0.1, 0.1]
    assert "in none, and worse in none" in places(results["where"])


def test_every_part_that_was_measured_has_a_section_with_its_pictures(results):
    found = sections({**results, "photographs": PHOTOS})
    titles = [text.splitlines()[0] for text, _ in found]
    assert all(title.startswith("## ") for title in titles)
    assert len(set(titles)) == len(titles) == 9
    assert [list(pictures) for _, pictures in found] == [
        [], [], [], [], ["steered against controls"], ["strength"], ["taken away"], ["pointing game"], [],
    ]  # fmt: skip
    for _, pictures in found:
        for figure in pictures.values():
            figure.savefig(io.BytesIO(), format="png", dpi=20)
    assert len(sections({"single": results["single"]})) == 1
    assert sections({"model": "toy"}) == []
    assert all("nan" not in text for text, _ in found)


def test_only_what_stands_between_the_markers_is_rewritten(results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe end.\n")
    for _ in range(2):  # written again, nothing moves
        rewrite(readme, results)
        assert readme.read_text() == f"# Title\n\n{BEGIN}\n{table(results)}\n{END}\n\nThe end.\n"


@pytest.mark.parametrize("text", ["# Title\n", f"# Title\n{BEGIN}\n", f"# Title\n{END}\n", f"{END}\n{BEGIN}\n"])
def test_a_readme_without_markers_is_refused(results, tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    for act in (around, lambda path: rewrite(path, results)):
        with pytest.raises(ValueError, match="expected the markers"):
            act(readme)
    assert readme.read_text() == text
