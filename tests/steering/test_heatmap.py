"""The heatmap lies where a feature of the goal was raised, and nowhere where there was nothing to raise."""

import pytest
import torch
from torch import nn

from lrm_core import LRM, Connection, Steer
from lrm_core.places import pooled_map
from steering.evidence import support
from steering.heatmap import class_activation_map, merge, steering_heatmap

RED = torch.tensor([[4.0, -4.0]])
BLUE = -RED
ONLY_RAISE = (0.0, 1.0)  # gains: what speaks against the goal is left alone, what speaks for it is raised


@pytest.fixture
def model():
    """Sees red and blue, each by a channel of its own; feedback from a class goes to its channel."""
    net = nn.Sequential(
        nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False)
    )
    lrm = LRM(net, [Connection("4", "0")], 16).eval().requires_grad_(False)
    lrm.backbone[0].weight[:, :, 0, 0] = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])
    lrm.backbone[4].weight[:] = 10 * torch.eye(2)
    lrm.paths["4->0"].projection.weight[:] = torch.eye(2)
    return lrm


def picture(red=True, blue=True):
    """A red square at the top left, a blue one at the bottom right."""
    image = torch.zeros(1, 3, 16, 16)
    image[:, 0, 2:6, 2:6] = float(red)
    image[:, 2, 10:14, 10:14] = float(blue)
    return image


def heat(model, image, goal, strength=ONLY_RAISE):
    stem = model.stem(image)
    _, state = model.step(stem)
    output, _, maps = steering_heatmap(model, "4", stem, state, state, Steer("4", goal, strength), goal)
    return output, maps


def test_heat_lies_where_the_feature_is_that_the_goal_raises(model):
    for goal, (low, high) in ((RED, (2, 6)), (BLUE, (10, 14))):
        _, maps = heat(model, picture(), goal)
        assert maps.shape == (1, 16, 16)
        assert maps[0, low:high, low:high].eq(1).all()
        assert maps[0].sum() == 16


def test_what_is_absent_gives_no_heat(model):
    _, maps = heat(model, picture(blue=False), BLUE)
    assert not maps.any()


def test_the_output_is_that_of_the_plain_steered_pass(model):
    stem = model.stem(picture())
    first, state = model.step(stem)
    steer = Steer("4", RED, 1.0)
    output, then, _ = steering_heatmap(model, "4", stem, state, state, steer, RED)
    expected, after = model.step(stem, state, [steer])
    assert torch.equal(output, expected)
    assert all(torch.equal(value, after.activations[name]) for name, value in then.activations.items())
    assert then.activations.keys() == after.activations.keys()
    assert then.num_passes == after.num_passes
    assert not output.requires_grad
    assert support(output, RED) > support(first, RED)


def test_the_class_activation_map_to_compare_with_lies_where_the_class_is_seen_without_a_goal(model):
    stem = model.stem(picture())
    _, state = model.step(stem)
    for goal, (low, high) in ((RED, (2, 6)), (BLUE, (10, 14))):
        maps = class_activation_map(model, "4", stem, state, goal)
        assert maps.shape == (1, 16, 16)
        assert maps[0, low:high, low:high].eq(1).all()
        assert maps[0].sum() == 16
        assert not maps.requires_grad
    without = model.stem(picture(blue=False))
    assert not class_activation_map(model, "4", without, model.step(without)[1], BLUE).any()
    model.paths["4->0"].projection.weight[:] = 50 * torch.randn(2, 2)  # it knows nothing of feedback
    assert torch.equal(class_activation_map(model, "4", stem, state, BLUE), maps)


def test_a_batch_of_goals_is_each_goal_alone(model):
    stem = model.stem(picture())
    _, state = model.step(stem)
    goals = torch.cat([RED, BLUE])
    steer = Steer("4", goals, 1.0)
    many = state.expand(2)
    outputs, _, maps = steering_heatmap(model, "4", stem.expand(2), many, many, steer, goals)
    for index, goal in enumerate((RED, BLUE)):
        output, alone = heat(model, picture(), goal, 1.0)
        torch.testing.assert_close(outputs[index : index + 1], output)
        torch.testing.assert_close(maps[index : index + 1], alone)


def test_no_gradient_is_left_behind_and_none_is_needed_around(model):
    image = picture()
    with torch.no_grad():
        _, maps = heat(model, image, RED)
    assert maps.any()
    assert image.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_maps_are_multiplied_and_what_speaks_against_the_goal_is_no_heat():
    before, after = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    before[0] = torch.tensor([[4.0, 4.0], [1.0, -3.0]])
    after[0] = torch.tensor([[0.001, 0.00025], [0.001, 0.001]])  # every map counts alike, whatever its scale
    torch.testing.assert_close(merge([before, after])[0], torch.tensor([[1.0, 0.5], [0.5, 0.0]]))


def test_a_classifier_that_pools_a_map_and_one_that_does_not_give_the_same_map(model, monkeypatch):
    """The pooled map is read without a gradient through the network; here its rectifier changes nothing."""
    model.connections += (Connection("1", "0"),)  # the rectified map is a source, which the classifier pools
    pooling = LRM(model.backbone, model.connections, 16).eval().requires_grad_(False)
    pooling.paths["4->0"].projection.weight[:] = torch.eye(2)
    assert pooled_map(pooling, "4") == "1"
    for goal in (RED, BLUE):
        _, by_map = heat(pooling, picture(), goal)
        with monkeypatch.context() as patch:
            patch.setattr("steering.heatmap.pooled_map", lambda *_: None)
            _, by_gradient = heat(pooling, picture(), goal)
        torch.testing.assert_close(by_map, by_gradient)


def test_a_model_without_feedback_to_a_map_has_nothing_to_draw():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))
    model = LRM(net, [Connection("3", "1")], 2).eval()
    stem = model.stem(torch.rand(1, 3, 2, 2))
    _, state = model.step(stem)
    with pytest.raises(ValueError, match="nothing to draw"):
        steering_heatmap(model, "3", stem, state, state, Steer("3", RED, 1.0), RED)
