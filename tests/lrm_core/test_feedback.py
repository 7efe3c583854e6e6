"""One feedback path: layouts, gains by sign, and the cheap order of projection and resizing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrm_core import Connection, Feedback
from lrm_core.feedback import FEATURE_SCALE, start_at_classifier

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
    with pytest.raises(ValueError, match=r"expected a vector \(c,\), tokens \(t, c\) or a map"):
        Feedback(shape, (3,))
    with pytest.raises(ValueError, match=r"^shape: got \("):
        Feedback((3,), shape)


def test_the_key_of_a_connection_can_be_a_parameters_name():
    assert Connection("classifier.6", "features.8").key == "classifier_6->features_8"


@pytest.fixture
def looking():
    """A classifier of six classes by eight features, both paths out of it, and templates: nothing learned yet."""
    torch.manual_seed(0)
    templates = nn.Conv2d(8, 6, 1)
    nn.init.zeros_(templates.weight)
    return nn.Linear(8, 6), Feedback((6,), (8, 4, 4)), templates, Feedback((6,), (6, 4, 4))


def goal_of(label):
    goal = torch.zeros(1, 6)
    goal[0, label] = 50.0
    return goal


@pytest.mark.parametrize("label", range(6))
def test_starting_at_the_classifier_raises_the_features_that_vote_for_the_goal(looking, label):
    classifier, to_features, _, _ = looking
    start_at_classifier(*looking, 6.0)
    torch.testing.assert_close(to_features.projection.weight.std(), torch.tensor(FEATURE_SCALE))
    factor = to_features(goal_of(label), torch.zeros(1, 8, 4, 4))[0, :, 0, 0]
    assert (classifier.weight @ factor).argmax() == label


def test_templates_start_as_the_classifier_of_every_place(looking):
    classifier, _, templates, _ = looking
    start_at_classifier(*looking, 6.0)
    places = torch.randn(2, 8, 3, 5)
    everywhere = classifier(places.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(templates(places), everywhere)


@pytest.mark.parametrize("scale", [2.0, 6.0])
def test_a_goal_raises_its_own_template_by_the_scale_and_lowers_the_others(looking, scale):
    to_templates = looking[3]
    start_at_classifier(*looking, scale)
    factor = to_templates(goal_of(4), torch.zeros(1, 6, 4, 4))[0, :, 0, 0]
    torch.testing.assert_close(factor, scale * torch.tanh(F.layer_norm(goal_of(4), (6,)))[0])
    assert factor.argmax() == 4
    assert (factor > 0).sum() == 1


@pytest.mark.parametrize("part", [1, 2, 3])
def test_what_was_trained_is_left_alone_and_the_rest_begins(looking, part):
    weights = {1: looking[1].projection.weight, 2: looking[2].weight, 3: looking[3].projection.weight}
    with torch.no_grad():
        weights[part].flatten()[3] = 0.125  # one weight that is not zero
    before = {name: weight.clone() for name, weight in weights.items()}
    bias, classifier = looking[2].bias.clone(), [p.clone() for p in looking[0].parameters()]
    start_at_classifier(*looking, 6.0)
    assert [name for name in weights if torch.equal(weights[name], before[name])] == [part]
    assert torch.equal(looking[2].bias, bias) == (part == 2)
    assert all(torch.equal(a, b) for a, b in zip(looking[0].parameters(), classifier, strict=True))


def test_parts_that_a_network_lacks_are_passed_over(looking):
    classifier, to_features, templates, to_templates = looking
    start_at_classifier(classifier, None, None, None, 6.0)
    start_at_classifier(classifier, to_features, None, None, 6.0)
    assert to_features.projection.weight.any()
    assert not templates.weight.any()
    start_at_classifier(classifier, None, templates, None, 6.0)
    assert templates.weight.any()
    assert not to_templates.projection.weight.any()


@pytest.mark.parametrize(
    ("part", "wrong", "message"),
    [
        (1, Feedback((6,), (5, 4, 4)), r"got shape \(5, 6\), expected \(8, 6\)"),
        (3, Feedback((6,), (5, 4, 4)), r"got shape \(5, 6\), expected \(6, 6\)"),
        (2, None, r"got shape \(6, 7\), expected \(6, 8\)"),
    ],
)
def test_a_part_that_does_not_fit_the_classifier_raises(looking, part, wrong, message):
    if wrong is None:
        wrong = nn.Conv2d(7, 6, 1)
        nn.init.zeros_(wrong.weight)
    parts = [None, None, None]
    parts[part - 1] = wrong
    with pytest.raises(ValueError, match=message):
        start_at_classifier(looking[0], *parts, 6.0)
