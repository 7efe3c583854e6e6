"""Trials with a known answer, and how often a goal becomes the best class in them."""

import pytest
import torch

from lrm_core.scenes import KINDS, NUM_OBJECTS, compose
from steering.trials import (
    Hits,
    Trials,
    build,
    class_goals,
    constant_hits,
    draw,
    make_trials,
    run_steered,
    run_unsteered,
    steering_hits,
    top1,
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_present_goal_is_in_the_scene_and_an_absent_one_is_not(kind, labelled):
    trials = make_trials(kind, *labelled, 6, 60, 0)
    shown = trials.scenes.labels
    assert shown.shape == (60, NUM_OBJECTS[kind])
    assert (shown == trials.present[:, None]).sum(1).eq(1).all()  # all objects of a scene are of different classes
    assert not (shown == trials.absent[:, None]).any()
    assert trials.absent.max() < 6
    assert len(trials.absent.unique()) == 6


def test_the_goal_of_an_inset_is_the_small_object(labelled):
    trials = make_trials("inset", *labelled, 6, 40, 0)
    assert torch.equal(trials.present, trials.scenes.labels[:, 1])


def test_the_goal_takes_every_place_of_the_other_scenes(labelled):
    trials = make_trials("grid", *labelled, 6, 80, 0)
    assert (trials.scenes.labels == trials.present[:, None]).any(0).all()


def test_the_seed_decides_the_trials(labelled):
    first, again, other = (make_trials("side", *labelled, 6, 20, seed) for seed in (0, 0, 1))
    assert torch.equal(first.scenes.pixels, again.scenes.pixels)
    assert torch.equal(first.absent, again.absent)
    assert not torch.equal(first.scenes.labels, other.scenes.labels)


def test_the_goal_of_a_cutmix_is_what_was_pasted(labelled):
    trials = make_trials("cutmix", *labelled, 6, 200, 0)
    assert torch.equal(trials.present, trials.scenes.labels[:, 1])
    assert not torch.equal(trials.scenes.boxes[:, 1], trials.scenes.boxes[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_drawing_first_and_building_later_makes_the_same_trials(kind, labelled):
    pixels, labels = labelled
    triplets = draw(kind, labels, 6, 20, 3)
    made, whole = build(triplets, pixels, labels), make_trials(kind, pixels, labels, 6, 20, 3)
    assert torch.equal(made.scenes.pixels, whole.scenes.pixels)
    assert torch.equal(made.scenes.boxes, whole.scenes.boxes)
    assert torch.equal(made.present, whole.present)
    assert torch.equal(made.absent, whole.absent)
    by_hand = compose(kind, pixels[triplets.images], labels[triplets.images], triplets.squares)
    assert torch.equal(made.scenes.pixels, by_hand.pixels)
    assert torch.equal(made.scenes.labels, labels[triplets.images])


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_of_triplets_makes_those_scenes_of_the_whole(kind, labelled):
    triplets = draw(kind, labelled[1], 6, 12, 0)
    whole, part = build(triplets, *labelled), build(triplets[3:7], *labelled)
    assert triplets[3:7].kind == kind
    assert torch.equal(part.scenes.pixels, whole.scenes.pixels[3:7])
    assert torch.equal(part.scenes.boxes, whole.scenes.boxes[3:7])
    assert torch.equal(part.present, whole.present[3:7])
    assert torch.equal(part.absent, whole.absent[3:7])
    assert len(triplets[:100].present) == 12


def test_a_constant_that_is_huge_always_answers_the_goal(toy, labelled):
    trials = make_trials("side", *labelled, 6, 20, 0)
    last = run_unsteered(toy, trials.scenes.pixels).last
    hits = constant_hits(last, last, trials, (-1e6, 0.0, 1e6))
    assert [rate.tolist()[0][::2] for rate in hits.rates()] == [[0.0, pytest.approx(1.0)]] * 2
    assert torch.equal(hits.present[:, 1] > 0, top1(last, trials.present))


def test_too_few_classes_raise_instead_of_searching_for_ever(labelled):
    pixels, labels = labelled
    few = labels < 3
    with pytest.raises(ValueError, match=r"grid: expected images of at least 4 .* got 3 of 6"):
        make_trials("grid", pixels[few], labels[few], 6, 10, 0)
    with pytest.raises(ValueError, match=r"blend: .* got 2 of 2"):
        make_trials("blend", pixels[labels < 2], labels[labels < 2], 2, 10, 0)


def test_batches_do_not_change_what_is_seen(toy, labelled):
    pixels, labels = labelled
    whole, parts = run_unsteered(toy, pixels), run_unsteered(toy, pixels, batch=7)
    torch.testing.assert_close(whole.first, parts.first)
    torch.testing.assert_close(whole.last, parts.last)
    goals = class_goals(toy)[labels]
    torch.testing.assert_close(run_steered(toy, whole, goals), run_steered(toy, parts, goals))


def test_unsteered_and_steered_passes_are_those_of_the_model(toy, labelled):
    from lrm_core import Steer

    pixels, labels = labelled
    unsteered = run_unsteered(toy, pixels)
    inputs = toy.preprocessing.normalise(pixels)
    with torch.no_grad():
        plain = toy.model.rollout(inputs, 3)
        goals = class_goals(toy)[labels]
        steered = toy.model.rollout(inputs, 2, [Steer("fc", goals, 0.5)])
    torch.testing.assert_close(unsteered.first, plain[0])
    torch.testing.assert_close(unsteered.last, plain[-1])
    torch.testing.assert_close(run_steered(toy, unsteered, goals, strength=0.5, passes=2), steered[-1])


def test_scenes_of_another_size_are_brought_to_that_of_the_model(toy, labelled):
    plain = labelled[0].mean((2, 3), keepdim=True)
    large, small = (run_unsteered(toy, plain.expand(-1, -1, size, size)) for size in (40, 16))
    torch.testing.assert_close(large.first, small.first)


def test_there_is_a_goal_for_every_class_by_its_words(toy):
    goals = class_goals(toy)
    assert goals.shape == (6, 6)
    torch.testing.assert_close(goals[4], toy.goal("a bridge"))


def test_hits_count_the_goal_at_each_strength(toy, labelled):
    trials = make_trials("blend", *labelled, 6, 30, 0)
    unsteered, goals = run_unsteered(toy, trials.scenes.pixels), class_goals(toy)
    hits = steering_hits(toy, trials, unsteered, goals, (0.0, 1.0))
    assert hits.present.shape == hits.absent.shape == (30, 2)
    after = run_steered(toy, unsteered, goals[trials.absent], 1.0)
    assert torch.equal(hits.absent[:, 1] > 0, top1(after, trials.absent))


def test_the_control_wins_when_its_constant_closes_the_gap():
    output = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0]])
    scenes = compose("single", torch.rand(2, 1, 3, 8, 8), torch.tensor([[1], [2]]))
    trials = Trials(scenes, torch.tensor([1, 2]), torch.tensor([2, 0]))
    hits = constant_hits(output, output, trials, (0.0, 2.5, 4.0, 6.0))
    assert hits.present.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert hits.absent.tolist() == [[0, 0, 1, 1], [0, 0, 0, 1]]


def test_rates_are_means_over_scenes_plain_or_weighted():
    hits = Hits((0.0, 1.0), torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    assert [rate.tolist() for rate in hits.rates()] == [[[0.5, 1.0]], [[0.0, 0.5]]]
    present, absent = hits.rates(torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
    assert present.tolist() == [[0.0, 1.0], [0.75, 1.0]]
    assert absent.tolist() == [[0.0, 0.0], [0.0, 0.75]]
