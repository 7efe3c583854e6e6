"""One feedback path: layouts, gains by sign, and the cheap order of projection and resizing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrm_core import Connection, Feedback
from lrm_core.feedback import start_at_transpose

VECTOR, TOKENS, MAP = (6,), (5, 6), (6, 4, 4)


def path(source, destination):
    torch.manual_seed(0)
    made = Feedback(source, destination)
    nn.init.normal_(made.projection.weight)
    return made


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (2, 2), (4, 4)])
def test_projecting_first_equals_resizing_first(size):
    """The published order, resize to the destination and then project, gives the same numbers; both are linear."""
    made = path(MAP, (3, *size))
    source = torch.randn(2, *MAP)
    activation = torch.tanh(made.norm(source))
    resized = F.interpolate(activation, size=size, mode="bilinear", align_corners=False)
    published = F.conv2d(resized, made.projection.weight[:, :, None, None])
    torch.testing.assert_close(made(source, torch.zeros(2, 3, *size)), published, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("source", [VECTOR, TOKENS, MAP])
@pytest.mark.parametrize("destination", [(3,), (7, 3), (3, 8, 8)])
def test_every_layout_reaches_every_layout(source, destination):
    made = path(source, destination)
    x = torch.randn(2, *destination)
    change = x * made(torch.randn(2, *source), x)
    assert change.shape == x.shape
    assert change.abs().sum() > 0


def test_a_vector_scales_a_channel_alike_everywhere():
    factor = path(VECTOR, (3, 8, 8))(torch.randn(2, 6), torch.randn(2, 3, 8, 8))
    assert factor.shape == (2, 3, 1, 1)


def test_tokens_act_token_by_token_where_they_match_and_on_average_where_not():
    made = path(TOKENS, (5, 3))
    source = torch.randn(2, *TOKENS)
    matching = made(source, torch.zeros(2, 5, 3))
    torch.testing.assert_close(matching, torch.tanh(made.norm(source)) @ made.projection.weight.T)
    onto_map = path(TOKENS, (3, 8, 8))(source, torch.zeros(2, 3, 8, 8))
    torch.testing.assert_close(onto_map[:, :, 0, 0], matching.mean(1))


def test_a_map_reaches_a_vector_by_its_mean():
    made, source = path(MAP, (3,)), torch.randn(2, *MAP)
    expected = (torch.tanh(made.norm(source)).mean((2, 3))) @ made.projection.weight.T
    torch.testing.assert_close(made(source, torch.zeros(2, 3)), expected, atol=1e-5, rtol=1e-4)


def test_a_batch_is_many_images_alone():
    made, source, x = path(MAP, (3, 8, 8)), torch.randn(4, *MAP), torch.randn(4, 3, 8, 8)
    alone = torch.cat([made(source[i : i + 1], x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(made(source, x), alone)


def test_each_gain_acts_on_its_own_sign():
    made = path(VECTOR, (3,))
    with torch.no_grad():
        made.projection.weight.copy_(torch.eye(6)[:3])
    source = torch.tensor([[-2.0, 1.0, 3.0, -1.0, 0.0, -1.0]])
    plain = made(source, torch.zeros(1, 3), 1.0)
    signs = made(source, torch.zeros(1, 3), (0.5, 3.0))
    torch.testing.assert_close(signs, torch.where(plain < 0, 0.5 * plain, 3.0 * plain))
    assert (plain < 0).any()
    assert (plain > 0).any()


def test_a_strength_replaces_the_learned_gain_and_leaves_it_as_it_was():
    made = path(VECTOR, (3,))
    with torch.no_grad():
        made.gain.copy_(torch.tensor([7.0, 9.0]))
    source, x = torch.randn(2, 6), torch.zeros(2, 3)
    torch.testing.assert_close(made(source, x, (7.0, 9.0)), made(source, x))
    torch.testing.assert_close(made(source, x, 2.0), 2 * made(source, x, 1.0))
    assert made.gain.tolist() == [7.0, 9.0]


def test_a_new_path_changes_nothing_yet_but_learns():
    made = Feedback(VECTOR, (3, 8, 8))
    factor = made(torch.randn(2, 6), torch.randn(2, 3, 8, 8))
    assert not factor.any()
    factor.sum().backward()
    assert made.projection.weight.grad.abs().sum() > 0


def test_the_size_of_an_activation_does_not_matter_only_its_pattern():
    made, source = path(MAP, (3, 4, 4)), torch.randn(2, *MAP) * 10
    torch.testing.assert_close(made(source * 50 + 3, torch.zeros(2, 3, 4, 4)), made(source, torch.zeros(2, 3, 4, 4)))


@pytest.mark.parametrize("shape", [(), (1, 2, 3, 4)])
def test_a_layout_that_is_no_vector_tokens_or_map_raises(shape):
    with pytest.raises(ValueError, match=r"vectors \(c,\), tokens \(t, c\) and maps"):
        Feedback(shape, (3,))
    with pytest.raises(ValueError, match="got shape"):
        Feedback((3,), shape)


def test_the_key_of_a_connection_can_be_a_parameters_name():
    assert Connection("classifier.6", "features.8").key == "classifier_6->features_8"


def test_starting_at_the_transpose_raises_the_features_that_vote_for_the_goal():
    torch.manual_seed(0)
    classifier, made = nn.Linear(8, 6), Feedback((6,), (8, 4, 4))
    start_at_transpose(made, classifier, 0.02)
    torch.testing.assert_close(made.projection.weight.std(), torch.tensor(0.02))
    goal = torch.zeros(1, 6)
    goal[0, 2] = 50.0
    factor = made(goal, torch.zeros(1, 8, 4, 4))[0, :, 0, 0]
    assert (classifier.weight @ factor).argmax() == 2


def test_a_transpose_that_does_not_fit_raises():
    with pytest.raises(ValueError, match="reads 8 features, the path's destination has 5"):
        start_at_transpose(Feedback((6,), (5, 4, 4)), nn.Linear(8, 6), 0.02)
