"""What a steered pass starts from, stored and taken up again."""

import pytest
import torch
from torch import nn

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
    layout = Layout.of(mini, 64, 64)
    images = 3 * torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
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
    layout = Layout.of(mini, 64, 64)
    for packed, got in (([b"\0" * 8], "8"), ([b"\0" * 3], "3"), ([b"\0" * 8, b"\0" * 6], "6, 8"), ([], "none")):
        with pytest.raises(ValueError, match=rf"packed: got {got} bytes an image, expected \d+: of another network"):
            layout.unpack(packed, torch.device("cpu"))


class Shaped(nn.Module):
    """After its destination it uses a parameter and a shape of a step that lies before it."""

    def __init__(self, with_batch: bool = False) -> None:
        super().__init__()
        self.before, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.relu, self.fc = nn.ReLU(), nn.Linear(4, 5)
        self.bias = nn.Parameter(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
        self.with_batch = with_batch

    def forward(self, x):
        before = self.before(x)
        maps = self.relu(self.conv(before))
        maps = maps.reshape(before.shape) if self.with_batch else nn.functional.interpolate(maps, before.shape[2:])
        return self.fc(maps.mean((2, 3)) + self.bias)


@torch.no_grad()
def test_values_of_the_stem_that_are_no_tensors_of_images_are_kept_and_not_stored():
    torch.manual_seed(0)
    model = LRM(Shaped(), [Connection("fc", "conv")], 8).eval()
    nn.init.normal_(model.paths["fc->conv"].projection.weight, std=20)
    layout = Layout.of(model, 8, 8)
    assert list(layout.stem.values()) == [(4, 8, 8)]
    assert any(isinstance(value, tuple) for value in layout.shared.values())
    images = torch.rand(3, 3, 8, 8)
    stem = model.stem(images)
    output, state = model.step(stem)
    packed = layout.pack(stem, state)
    assert {len(row) for row in packed} == {2 * (4 * 64 + 5)}
    again, _ = model.step(*layout.unpack(packed, torch.device("cpu")))
    expected, _ = model.step(stem, state)
    torch.testing.assert_close(again, expected, atol=1e-3, rtol=1e-3)
    assert (again - output).abs().max() > 0.01


def test_a_value_of_the_stem_that_depends_on_the_number_of_images_is_refused():
    model = LRM(Shaped(with_batch=True), [Connection("fc", "conv")], 8).eval()
    with pytest.raises(ValueError, match=r"^stem: got a value of .* that depends on the number of images"):
        Layout.of(model, 8, 8)


@pytest.mark.parametrize("size", [0, True])
def test_a_size_that_is_no_whole_number_is_refused(mini: LRM, size):
    with pytest.raises(ValueError, match=r"^height: got .*, expected a whole number of at least 1"):
        Layout.of(mini, size, size)
