"""Figures of examples hold what was chosen and say how, and the words count failures over all kinds."""

from dataclasses import replace

import torch

from lrm_lab.examples import RULES, Examples
from lrm_lab.examples_report import KEY, RIGHT, WRONG, figures, section
from lrm_lab.trials import COMPOSITES


def test_every_figure_holds_its_pictures_and_says_how_they_were_picked(everything):
    shown = {kind: pairs[:3] for kind, pairs in everything.shown.items()}
    found = figures(replace(everything, shown=shown))
    assert list(found) == [*(f"heatmaps_{kind}" for kind in COMPOSITES), *RULES]
    for name, figure in found.items():
        figure.draw_without_rendering()
        assert figure.get_label().endswith(KEY)
        if name in RULES:
            numbers = [sum(i.kind == kind for i in everything.failures[name]) for kind in COMPOSITES]
            assert len(figure.axes) == 2 * max(numbers) * sum(number > 0 for number in numbers)
            assert sum(bool(ax.images) for ax in figure.axes) == 2 * sum(numbers)
            assert RULES[name] in figure.get_label()
        else:
            assert len(figure.axes) == 3 * 3
            assert "the first 3 scenes of seed 5" in figure.get_label()
    assert "misses" not in figures(replace(everything, failures={"misses": ()}))


def test_a_wrong_verdict_is_written_in_red_and_only_a_peak_is_marked(make_item):
    for truth, probability, colour in (
        *(("present", 0.49, WRONG), ("present", 0.5, RIGHT)),
        *(("absent", 0.49, RIGHT), ("absent", 0.5, WRONG)),
    ):
        shown = {"side": ((make_item(truth, probability), make_item(truth, probability)),)}
        figure = figures(Examples(0, 1, shown, {}, {}))["heatmaps_side"]
        (words,) = figure.axes[1].texts
        assert words.get_color() == colour
        assert words.get_text() == f"a cat\n{truth}, P(present) {probability:.0%}"
        assert len(figure.axes[1].lines) == 2
    cold = replace(make_item(), heatmap=torch.zeros(4, 4))
    figure = figures(Examples(0, 1, {"side": ((cold, cold),)}, {}, {}))["heatmaps_side"]
    assert not figure.axes[1].lines


def test_the_words_count_failures_over_all_kinds():
    side = {"trials": 10, "misses": 3, "hallucinations": 1, "misplaced": 2, "placed": 4, "misplaced_by_chance": 2.0}
    blend = {**side, "misses": 2, "misplaced": 0, "placed": 0, "misplaced_by_chance": 0.0}
    results = {"seed": 7, "trials": 10, "rules": dict(RULES), "kinds": {"side": side, "blend": blend}}
    told = section(results)
    for count in ("5 of 20 (25%) were missed", "2 of 20 (10%) were hallucinated", "2 of 4 (50%)"):
        assert count in told
    assert "| side | 3 of 10 (30%) | 1 of 10 (10%) | 2 of 4 (50%) | 50% |" in told
    assert "| blend | 2 of 10 (20%) | 1 of 10 (10%) | – | – |" in told
    told = section({**results, "kinds": {"blend": blend}})
    assert "no heatmap can be misplaced" in told
