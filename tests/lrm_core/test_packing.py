"""What a steered pass starts from, stored and taken up again."""

import pytest
import torch

from lrm_core import LRM, Connection, Steer
from lrm_core.backbones import MiniNet
from lrm_core.packing import Layout


@pytest.fixture
def mini() -> LRM:
    paths = [Connection("fc", "value"), Connection("values", "layer2.add"), Connection("fc", "layer3.bn1")]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LRM(MiniNet(5, widths=(4, 4, 4, 4, 8)), paths, 64).eval()
        for path in model.paths.values():
            torch.nn.init.normal_(path.projection.weight, std=0.3)
        torch.nn.init.normal_(model.backbone.fc.weight, std=20)
    return model


@torch.no_grad()
def test_a_steered_pass_is_the_same_from_what_was_stored(mini: LRM):
    layout = Layout.of(mini, 64)
    images = torch.rand(3, 3, 64, 64)
    stem = mini.stem(images)
    _, state = mini.step(stem)
    packed = layout.pack(stem, state)
    assert len({len(row) for row in packed}) == 1
    goal = Steer("fc", 5 * torch.eye(5)[:2])
    other_stem, other_state = layout.unpack([packed[2], packed[0]], torch.device("cpu"))
    assert other_state.num_passes == 1
    again, _ = mini.step(other_stem, other_state, [goal])
    expected, _ = mini.step(mini.stem(images[[2, 0]]), mini.step(mini.stem(images[[2, 0]]))[1], [goal])
    torch.testing.assert_close(again, expected, atol=1e-3, rtol=1e-3)
    assert (expected[0] - expected[1]).abs().max() > 0.01


def test_what_is_of_another_network_is_refused(mini: LRM):
    layout = Layout.of(mini, 64)
    with pytest.raises(ValueError, match=r"expected \d+ numbers an image, got 4: of another network"):
        layout.unpack([b"\0" * 8], torch.device("cpu"))
