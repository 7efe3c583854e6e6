"""Trials with a known answer: the present goal is in its scene, the absent one is not, the seed decides both."""

import pytest
import torch

from lrm_core.scenes import KINDS, NUM_OBJECTS, compose
from lrm_core.trials import build, draw, make_trials, near_misses, top1


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


def test_too_few_classes_raise_instead_of_searching_for_ever(labelled):
    pixels, labels = labelled
    few = labels < 3
    with pytest.raises(
        ValueError, match="got images of 3 of 6 classes, expected images of at least 4 of more than 4 classes"
    ):
        make_trials("grid", pixels[few], labels[few], 6, 10, 0)
    with pytest.raises(
        ValueError, match="got images of 2 of 2 classes, expected images of at least 2 of more than 2 classes"
    ):
        make_trials("blend", pixels[labels < 2], labels[labels < 2], 2, 10, 0)


def test_top1_is_true_where_the_class_has_the_highest_output():
    outputs = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0]])
    assert top1(outputs, torch.tensor([0, 1])).tolist() == [True, False]


def test_an_unknown_kind_raises_with_the_choices(labelled):
    with pytest.raises(ValueError, match="no kind of scene 'mosaic'; choices: single, blend"):
        draw("mosaic", labelled[1], 6, 5, 0)


@pytest.mark.parametrize(("count", "seed", "name"), [(0, 0, "count"), (5, -1, "seed"), (5, True, "seed")])
def test_a_count_or_seed_that_is_no_such_number_raises(labelled, count, seed, name):
    with pytest.raises(ValueError, match=f"^{name}: got .*, expected a whole number"):
        make_trials("side", *labelled, 6, count, seed)


def test_near_misses_are_not_there_and_are_among_the_likeliest_of_the_rest():
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(2000, 40, generator=generator)
    labels = torch.stack([output.argmax(1), torch.full((2000,), -1)], 1)  # the likeliest is there
    near = near_misses(output, labels, generator)
    assert not (near[:, None] == labels).any()
    rank = (output > output.gather(1, near[:, None])).sum(1)
    counts = torch.bincount(rank)
    assert set(rank.tolist()) == set(range(1, 21))
    assert 1.6 * counts[2] < counts[1] < 2.4 * counts[2]  # the likeliest twice as often as the next
    common = torch.ones(40)
    common[:20] = 9.0
    often = near_misses(output, labels, generator, common) < 20
    assert 0.85 < often.float().mean() < 0.95
    few = near_misses(output[:, :3], torch.zeros(2000, 2, dtype=torch.long), generator)
    assert few.min() > 0  # where fewer classes are left, all of them are near
