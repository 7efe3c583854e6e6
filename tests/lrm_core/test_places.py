"""What a classifier says of places, against a plain reading of every window."""

import pytest
import torch
from torch import nn

from lrm_core import LRM, Connection
from lrm_core.backbones import MiniNet
from lrm_core.places import class_evidence, pooled_map

PATHS = [Connection("fc", "value"), Connection("values", "layer2.add")]


@pytest.fixture
def mini() -> LRM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LRM(MiniNet(5, widths=(4, 4, 4, 4, 8)), PATHS, 64).eval()


def test_each_class_has_the_mean_of_its_probabilities_over_all_square_windows(mini: LRM):
    images = torch.rand(2, 3, 64, 64)
    logits, state = mini.step(mini.stem(images))
    maps = state.activations["values"]
    votes = []
    for side in range(1, 5):
        for top in range(5 - side):
            for left in range(5 - side):
                window = maps[:, :, top : top + side, left : left + side].mean((2, 3))
                votes.append(mini.backbone.fc(window).softmax(1))
    assert maps.shape[-1] == 4
    assert len(votes) == 16 + 9 + 4 + 1
    torch.testing.assert_close(class_evidence(mini, "fc", logits, state), torch.stack(votes).mean(0).detach())


def test_a_map_that_is_no_square_adds_the_whole_of_it(mini: LRM):
    logits, state = mini.step(mini.stem(torch.rand(2, 3, 32, 64)))
    maps = state.activations["values"]
    assert maps.shape[-2:] == (2, 4)
    windows = [maps[:, :, r : r + s, c : c + s] for s in (1, 2) for r in range(3 - s) for c in range(5 - s)]
    votes = [mini.backbone.fc(window.mean((2, 3))).softmax(1) for window in (*windows, maps)]
    assert len(votes) == 8 + 3 + 1
    torch.testing.assert_close(class_evidence(mini, "fc", logits, state), torch.stack(votes).mean(0).detach())


def test_a_small_thing_counts_more_by_places_than_in_the_whole(mini: LRM):
    logits, state = mini.step(mini.stem(torch.zeros(1, 3, 64, 64)))
    maps = torch.zeros_like(state.activations["values"])
    with torch.no_grad():
        mini.backbone.fc.weight.copy_(20 * torch.eye(5, 8))
        mini.backbone.fc.bias.zero_()
        maps[0, 1], maps[0, 3, 0, 0] = 0.5, 2.0  # class 1 everywhere, class 3 in a corner
    whole = mini.backbone.fc(maps.mean((2, 3)))
    placed = class_evidence(mini, "fc", whole, type(state)({"fc": logits, "values": maps}, 1))
    assert placed[0, 3] > 10 * whole.softmax(1)[0, 3]
    assert placed.sum() == pytest.approx(1)


def test_a_network_whose_map_cannot_be_read_gives_the_softmax_of_its_output():
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Linear(4 * 64, 5)

        def forward(self, x):
            return self.fc(self.relu(self.conv(x)).flatten(1))

    model = LRM(
        Flat(),
        [
            Connection("fc", "conv"),
        ],
        8,
    ).eval()
    assert pooled_map(model, "fc") is None
    logits, state = model.step(model.stem(torch.rand(2, 3, 8, 8)))
    torch.testing.assert_close(class_evidence(model, "fc", logits, state), logits.softmax(1))
