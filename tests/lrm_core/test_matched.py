"""Feedback of low rank that matches a goal with what is at each place."""

import pytest
import torch
from torch import nn

from lrm_core.backbones import find_backbone
from lrm_core.feedback import Connection
from lrm_core.matched import MatchedFeedback, start_codes
from lrm_core.model import LRM, Steer

SIDE = 64


@pytest.fixture
def model() -> LRM:
    torch.manual_seed(0)
    entry = find_backbone("efficientnet_lite0")
    model = LRM(entry.build(num_classes=9), entry.connections, SIDE, feedback=entry.feedback, rule=entry.rule).eval()
    for path in model.paths.values():
        nn.init.normal_(path.projection.weight, std=0.3)
    return model


def test_a_new_path_changes_nothing_and_gain_zero_switches_a_trained_one_off(model: LRM):
    images = torch.randn(2, 3, SIDE, SIDE)
    bare = model.backbone(images)
    off = [Steer(source, torch.zeros(1, *shape), 0.0) for source, shape in model.activation_shapes.items()]
    first, last = model.rollout(images, 2, off)
    assert torch.equal(first, bare)
    assert torch.equal(last, bare)
    assert not torch.equal(model.rollout(images, 2)[-1], bare)
    for path in model.paths.values():
        nn.init.zeros_(path.projection.weight)
    assert torch.equal(model.rollout(images, 2)[-1], bare)


def test_the_factor_differs_from_place_to_place_and_from_goal_to_goal():
    path = MatchedFeedback((9,), (6, 4, 5), rank=3)
    nn.init.normal_(path.projection.weight)
    nn.init.normal_(path.keys.weight)
    features = torch.randn(1, 6, 4, 5)
    one, other = (path(torch.randn(1, 9) * 4, features) for _ in range(2))
    assert one.shape == (1, 6, 4, 5)
    assert not torch.allclose(one, other)
    assert one.std((2, 3)).min() > 0
    silent = path(torch.randn(1, 9), -features.abs())  # nothing is there: the same factor everywhere
    assert torch.allclose(silent, silent[..., :1, :1].expand_as(silent))


def test_a_map_sends_its_code_to_the_places_that_it_covers():
    path = MatchedFeedback((4, 2, 2), (6, 4, 4), rank=3)
    nn.init.normal_(path.projection.weight)
    factor = path(torch.randn(1, 4, 2, 2), torch.zeros(1, 6, 4, 4))
    assert factor.std((2, 3)).min() > 0


def test_several_goals_share_one_image():
    path = MatchedFeedback((9,), (6, 4, 4), rank=3)
    assert path(torch.randn(5, 9), torch.randn(1, 6, 4, 4)).shape == (5, 6, 4, 4)


def test_a_vector_is_no_destination():
    with pytest.raises(ValueError, match=r"^destination: got \(6,\), expected a map"):
        MatchedFeedback((9,), (6,))


def test_codes_start_at_the_singular_vectors_so_that_like_classes_have_like_codes():
    torch.manual_seed(0)
    kinds = torch.randn(3, 20).repeat_interleave(4, 0)  # twelve classes of three kinds
    classifier = nn.Linear(20, 12)
    with torch.no_grad():
        classifier.weight.copy_(kinds + 0.1 * torch.randn(12, 20))
    path = MatchedFeedback((12,), (6, 4, 4), rank=3)
    start_codes(classifier, [path])
    codes = nn.functional.normalize(path.code.weight.T, dim=1)
    alike = codes @ codes.T
    same = torch.block_diag(*[torch.ones(4, 4)] * 3).bool()
    assert alike[same].min() > alike[~same].max()
    before = path.code.weight.clone()
    nn.init.normal_(path.projection.weight)
    start_codes(nn.Linear(20, 12), [path])
    assert torch.equal(path.code.weight, before)  # a trained path stays as it is


def test_rectified_feedback_silences_a_feature_but_never_turns_it_round():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 1), nn.ReLU()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.act(self.conv(x)).mean((2, 3)))

    torch.manual_seed(0)
    net, images = Net().eval(), torch.randn(2, 3, 8, 8)
    turned = {}
    for rule in ("multiply", "rectify"):
        model = LRM(net, [Connection("fc", "conv")], 8, rule=rule)  # type: ignore[arg-type]
        nn.init.constant_(model.paths["fc->conv"].projection.weight, 1.0)
        goal = Steer("fc", torch.tensor([[-5.0, -5.0, 20.0]]), (30.0, 0.0))  # every factor is far below -1
        stem = model.stem(images)
        _, state = model.step(stem)
        output, seen, _ = model.inspect(stem, state, [goal], ["conv"])
        turned[rule] = bool((seen["conv"] * net.conv(images) < 0).any())
        if rule == "rectify":
            assert torch.allclose(output, net.fc.bias.expand(2, -1))
    assert turned == {"multiply": True, "rectify": False}
