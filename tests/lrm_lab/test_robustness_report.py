"""The section on robustness follows the numbers, and its figure shows all of them."""

import copy

import pytest

pytest.importorskip("art", reason="needs the extra `evaluate`")

from lrm_lab.attacks import PLAIN
from lrm_lab.corruptions import CORRUPTIONS
from lrm_lab.robustness_report import figures, section


def test_a_large_ball_that_fools_every_target_is_no_sign(attacked):
    assert "fools every target" in section(attacked)


def changed(measured, path, value):
    """A copy of the results with one number changed."""
    results = place = copy.deepcopy(measured)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return results


def test_the_words_follow_the_numbers(attacked):
    reference = attacked["more_steps"]["epsilon"]
    measured = changed(attacked, ("transfer",), {n: dict.fromkeys(attacked["clean"], 0.5) for n in attacked["clean"]})
    measured = changed(measured, ("more_steps", "pgd"), dict.fromkeys(measured["clean"], 0.5))
    told = section(measured)
    for words in ("no target hides its gradients", "20 steps are enough", "Twenty steps are nowhere weaker than one"):
        assert words in told
    for path, value, words in (
        (("large", "pgd20", "pass2"), 0.3, "leaves pass 2 above 5%, which is a sign"),
        (("more_steps", "pgd", "pass1"), 0.3, "at most 20.0 points (pass 1), so 20 steps were too few"),
        (
            ("transfer", PLAIN, "pass2"),
            0.25,
            "(pass 2, on those of plain twin), so its gradients are masked",
        ),
        (("pgd20", reference, "pass1"), 1.5, "One step is stronger than twenty for pass 1, which is a sign"),
    ):
        assert words in section(changed(measured, path, value))
        assert words not in told
    entry = {"difference": -0.125, "interval": [-0.2, 0.05], "images": 12, "among_both": None}
    both = {"difference": 0.25, "interval": [0.1, 0.4], "images": 7}
    place = ("intervals", "pgd20", reference, "pass2 - pass1")
    under = f"pass 2 − pass 1: -12.5 [-20.0, +5.0] under PGD-20 at ε = {reference}/255"
    assert f"{under}, " in section(changed(measured, place, entry))  # no image that both know
    known = " (+25.0 [+10.0, +40.0] among the 7 images that both know undisturbed), "
    assert under + known in section(changed(measured, place, {**entry, "among_both": both}))


def test_pgd_stands_beside_autoattack_on_the_same_images(attacked):
    (reference,) = attacked["autoattack"]
    same = dict(zip(attacked["clean"], (0.125, 0.5, 0.75), strict=True))
    measured = changed(attacked, ("autoattack_budget", "pgd20_same_images", reference), same)
    lines = section(measured).splitlines()
    (place,) = (n for n, line in enumerate(lines) if line.startswith(f"| AutoAttack, ε = {reference}/255 (3 images) |"))
    row = f"| PGD-20, ε = {reference}/255 (the same images as AutoAttack) | 12.5% | 50.0% | 75.0% |"
    assert lines[place + 1] == row


def test_the_figure_shows_every_target_and_corruption(attacked):
    (figure,) = figures(attacked).values()
    figure.draw_without_rendering()
    left, right = figure.axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["pass 1", "pass 2", "plain twin"]
    first = left.get_lines()[0].get_ydata()
    assert list(first) == [100 * v for v in (1.0, *(row["pass1"] for row in attacked["pgd20"].values()))]
    assert [label.get_text() for label in right.get_xticklabels()] == list(CORRUPTIONS)
    assert len(right.patches) == 3 * len(CORRUPTIONS)
