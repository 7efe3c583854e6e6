"""How often a goal is the best class: counted by hand, and over strengths, constants and resampled scenes."""

import pytest
import torch

from lrm_core.scenes import compose
from lrm_core.trials import Trials, make_trials, top1
from lrm_lab.trials import TopOne, constant_top_one, run_both, steering_top_one
from steering.rollouts import class_goals, run_steered, run_unsteered


def test_a_constant_that_is_huge_always_answers_the_goal(toy, labelled):
    trials = make_trials("side", *labelled, 6, 20, 0)
    last = run_unsteered(toy.network, trials.scenes.pixels).last
    shifted = constant_top_one(last, last, trials, (-1e6, 0.0, 1e6))
    assert [rate.tolist()[0][::2] for rate in shifted.rates()] == [[0.0, pytest.approx(1.0)]] * 2
    assert torch.equal(shifted.present[:, 1] > 0, top1(last, trials.present))


def test_both_goals_of_a_scene_are_looked_for(toy, labelled):
    trials = make_trials("blend", *labelled, 6, 10, 0)
    unsteered, goals = run_unsteered(toy.network, trials.scenes.pixels), class_goals(toy)
    present, absent = run_both(toy.network, trials, unsteered, goals, 0.5, 2)
    for found, classes in ((present, trials.present), (absent, trials.absent)):
        expected = run_steered(toy.network, unsteered, goals[classes], 0.5, 2)
        assert torch.equal(found.output, expected.output)
        assert torch.equal(found.places, expected.places)


def test_the_goal_is_counted_at_each_strength(toy, labelled):
    trials = make_trials("blend", *labelled, 6, 30, 0)
    unsteered, goals = run_unsteered(toy.network, trials.scenes.pixels), class_goals(toy)
    steered = steering_top_one(toy.network, trials, unsteered, goals, (0.0, 1.0))
    assert steered.present.shape == steered.absent.shape == (30, 2)
    after = run_steered(toy.network, unsteered, goals[trials.absent], 1.0)
    assert torch.equal(steered.absent[:, 1] > 0, top1(after.output, trials.absent))


def test_the_control_wins_when_its_constant_closes_the_gap():
    output = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0]])
    scenes = compose("single", torch.rand(2, 1, 3, 8, 8), torch.tensor([[1], [2]]))
    trials = Trials(scenes, torch.tensor([1, 2]), torch.tensor([2, 0]))
    shifted = constant_top_one(output, output, trials, (0.0, 2.5, 4.0, 6.0))
    assert shifted.present.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert shifted.absent.tolist() == [[0, 0, 1, 1], [0, 0, 0, 1]]


def test_rates_are_means_over_scenes_plain_or_weighted():
    counted = TopOne((0.0, 1.0), torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    assert [rate.tolist() for rate in counted.rates()] == [[[0.5, 1.0]], [[0.0, 0.5]]]
    present, absent = counted.rates(torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
    assert present.tolist() == [[0.0, 1.0], [0.75, 1.0]]
    assert absent.tolist() == [[0.0, 0.0], [0.0, 0.75]]
