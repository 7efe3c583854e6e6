"""What a training keeps of a frozen backbone."""

import pytest
import torch
from torch import nn

from lrm_core.backbones import find_backbone
from lrm_core.feedback import Connection
from lrm_core.frozen import Waist
from lrm_core.model import LRM


def test_the_narrowest_value_gives_the_whole_stem():
    torch.manual_seed(0)
    entry = find_backbone("efficientnet_lite0")
    model = LRM(entry.build(num_classes=5), entry.connections, 64, feedback=entry.feedback, rule=entry.rule).eval()
    waist = Waist.of(model, 64, 96)
    assert waist.shape == (80, 4, 6)  # the last residual sum of the stage at 1/16, not the six times wider expansion
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        kept = waist.keep(images)
        ours, theirs = waist.stem(kept), model.stem(images)
        assert kept.shape == (2, 80, 4, 6)
        assert ours.values.keys() == theirs.values.keys()
        assert all(torch.equal(ours.values[node], value) for node, value in theirs.values.items())
        assert torch.equal(model.step(ours)[0], model.backbone(images))


def test_a_stem_without_a_waist_is_refused():
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.act, self.fc = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc((self.act(self.one(x)) + x.mean(1, keepdim=True)).mean((2, 3)))

    with pytest.raises(ValueError, match="no single value"):
        Waist.of(LRM(Forked(), [Connection("fc", "one")], 8), 8, 8)
