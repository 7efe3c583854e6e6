"""Support, evidence and the verdict."""

import json
import math

import pytest
import torch

from steering.evidence import (
    FEATURES,
    LEAST_SUPPORT,
    Seen,
    Verdict,
    expand,
    features,
    goal_weights,
    load_verdicts,
    margin,
    save_verdicts,
    support,
)

READ = FEATURES[1:5]
VERDICT = Verdict((0.0, 1.0, 0.0, 0.5), (1.0, 2.0, 1.0, 0.5), tuple(i / 10 for i in range(15)), features=READ)


def logits(*values):
    return torch.tensor([list(map(float, values))])


def test_the_support_of_a_sharp_goal_is_the_log_odds_of_its_class():
    output = logits(2, 1, -1)
    probability = output.softmax(1)[0, 1]
    found = support(output, logits(0, 60, 0))[0]
    torch.testing.assert_close(found, (probability / (1 - probability)).log())


def test_a_goal_for_several_classes_gathers_their_support():
    output = logits(2, 1, -1, 0)
    probability = output.softmax(1)[0, :2].sum()
    found = support(output, logits(60, 60, 0, 0))[0]
    torch.testing.assert_close(found, (probability / (1 - probability)).log())


def test_support_grows_with_the_goals_logit_and_stays_finite():
    goal = logits(0, 50, 0)
    values = [support(logits(0, x, 0), goal).item() for x in (-1e4, -5, 0, 5, 1e4)]
    assert values == sorted(values)
    assert all(math.isfinite(value) for value in values)


def test_support_has_a_gradient_however_sure_the_network_is():
    for x in (-40.0, 40.0):
        output = logits(0, x, 1).requires_grad_()
        support(output, logits(0, 50, 0)).sum().backward()
        assert output.grad[0, 1].abs() > 0.1


def test_adding_a_constant_to_all_logits_changes_nothing():
    output, goal = torch.randn(4, 6), torch.randn(4, 6) * 5
    torch.testing.assert_close(support(output + 7, goal - 3), support(output, goal), atol=1e-4, rtol=1e-4)


def test_the_best_class_of_a_goal_counts_fully_and_the_others_by_their_odds():
    torch.testing.assert_close(goal_weights(logits(0, math.log(4), math.log(2))), logits(0.25, 1, 0.5))


def test_the_features_are_what_their_names_say():
    before, after = (Seen(torch.randn(2, 5), torch.rand(2, 5).softmax(1)) for _ in range(2))
    goal = torch.zeros(2, 5)
    goal[1, 3] = 80
    values = features(before, after, goal, torch.tensor([0.25, 0.75]))
    assert values.shape == (2, len(FEATURES))
    named = dict(zip(FEATURES, values.unbind(1), strict=True))
    torch.testing.assert_close(named["log classes covered"], torch.tensor([math.log(5), 0.0]))
    assert named["familiarity"].tolist() == [0.25, 0.75]
    for when, seen in (("before", before), ("after", after)):
        p = seen.output.softmax(1)
        torch.testing.assert_close(named[f"support {when}"], support(seen.output, goal))
        torch.testing.assert_close(named[f"entropy {when}"], -(p * p.log()).sum(1))
        # A goal for everything reads the mean logit, a goal for one class that class's.
        expected = torch.stack([seen.output[0].mean(), seen.output[1, 3]])
        torch.testing.assert_close(named[f"logit {when}"], expected)
        torch.testing.assert_close(named[f"margin {when}"], margin(seen.output, goal))
        torch.testing.assert_close(named[f"margin by places {when}"], margin(seen.places.log(), goal))
        placed = named["support by places" if when == "before" else "support by places after"]
        torch.testing.assert_close(placed[1], torch.logit(seen.places[1, 3]))  # a goal for one class


def test_the_margin_is_the_log_odds_against_the_best_class_that_the_goal_leaves_out():
    torch.testing.assert_close(margin(logits(3, 1, -1), logits(0, 60, 0)), torch.tensor([-2.0]))
    both = margin(logits(3, 1, -1), logits(60, 60, 0))
    torch.testing.assert_close(both, torch.tensor([math.log(math.exp(3) + math.exp(1)) + 1]))


def test_parts_of_what_was_seen_come_back_together():
    seen = Seen(torch.randn(5, 3), torch.rand(5, 3))
    again = Seen.cat([seen[:2], seen[2:]])
    assert torch.equal(again.output, seen.output)
    assert torch.equal(again.places, seen.places)


def test_the_expansion_is_a_constant_the_features_and_all_products_of_two():
    assert expand(torch.tensor([[2.0, 3.0, 5.0]])).tolist() == [[1, 2, 3, 5, 4, 6, 10, 9, 15, 25]]


def test_a_probability_is_the_logistic_of_the_standardised_features():
    values = torch.full((1, len(FEATURES)), 7.0)
    values[0, 1:5] = torch.tensor([1.0, 3.0, 2.0, 1.0])  # those that it reads
    standard = torch.tensor([[1.0, 1.0, 2.0, 1.0]])
    expected = torch.sigmoid((expand(standard) * torch.arange(15) / 10).sum())
    torch.testing.assert_close(VERDICT.probability(values)[0], expected)


@pytest.mark.parametrize(
    ("probability", "answer"),
    [(0.0, "absent"), (0.3, "absent"), (0.31, "unsure"), (0.79, "unsure"), (0.8, "present"), (1.0, "present")],
)
def test_between_the_thresholds_the_answer_is_unsure(probability, answer):
    assert VERDICT.answer(probability) == answer


def test_saved_verdicts_come_back(tmp_path):
    verdicts = {"diffusion": VERDICT, "image": Verdict(VERDICT.std, VERDICT.mean, VERDICT.weights, 0.1, 0.9, READ)}
    save_verdicts(tmp_path / "verdict.json", verdicts, "abc")
    assert load_verdicts(tmp_path / "verdict.json", "abc") == verdicts
    with pytest.raises(ValueError, match=r"another backbone, SHA-256 abc, not def"):
        load_verdicts(tmp_path / "verdict.json", "def")


def test_damaged_and_foreign_verdicts_are_refused(tmp_path):
    path = tmp_path / "verdict.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"verdict\.json is not JSON"):
        load_verdicts(path, "abc")
    for text in ("[]", "{}", json.dumps({"features": ["something else"]})):
        path.write_text(text)
        with pytest.raises(ValueError, match="fitted on other features"):
            load_verdicts(path, "abc")
    for verdicts in ({}, {"verdicts": []}, {"verdicts": {"diffusion": {"colour": "red"}}}):
        path.write_text(json.dumps({"features": FEATURES, "backbone_sha256": "abc", **verdicts}))
        with pytest.raises(ValueError, match="does not hold verdicts"):
            load_verdicts(path, "abc")


def test_nothing_is_present_that_no_reading_gives_weight():
    count = len(FEATURES)
    weights = (9.0, *(0.0 for _ in range(count + count * (count + 1) // 2)))
    sure = Verdict((0.0,) * count, (1.0,) * count, weights)
    values = torch.full((3, count), -9.0)
    values[1, FEATURES.index("support by places")] = LEAST_SUPPORT
    values[2, FEATURES.index("support after")] = LEAST_SUPPORT - 0.01
    chances = sure.probability(values).tolist()
    assert chances == pytest.approx([0.79, 1 / (1 + math.exp(-9)), 0.79])
    assert [sure.answer(chance) for chance in chances] == ["unsure", "present", "unsure"]
