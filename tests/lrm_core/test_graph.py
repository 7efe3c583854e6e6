"""A backbone as named steps: their names, their order, what feedback reaches, and the backbone left untouched."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from lrm_core import LRM, Connection
from lrm_core.backbones import BACKBONES, find_backbone
from lrm_core.graph import Graph, filled, run_node


class Functional(nn.Module):
    """A block whose operations are no modules; its one rectifier module runs twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.relu(self.first(x))
        x = self.relu(self.second(x) + x)
        return F.gelu(torch.flatten(x, 1) * 2.0).sub(1.0)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Functional()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.block(x))


def run(graph, backbone, x):
    values = {graph.images: x}
    for node in graph.nodes[1:-1]:
        values[node] = run_node(node, graph, backbone, values)
    return filled(graph.output, values)


def test_modules_are_named_by_their_path_and_operations_by_where_they_stand():
    assert list(Graph.of(Nested()).steps) == [
        "block.first", "block.relu", "block.second", "block.add", "block.relu@1", "block.flatten", "block.mul",
        "block.gelu", "block.sub", "block", "head",
    ]  # fmt: skip


def test_a_container_is_addressed_as_the_last_step_inside_it():
    steps = Graph.of(Nested()).steps
    assert steps["block"] is steps["block.sub"]
    assert steps["block"] is not steps["head"]


@pytest.mark.parametrize("build", [models.resnet18, models.resnet50])
def test_a_residual_sum_of_torchvision_is_a_step_and_a_destination(build):
    net = build(num_classes=3)
    graph = Graph.of(net)
    assert "layer1.0.add" in graph.steps
    graph.check_destination("layer1.0.add")


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "mini"])
def test_running_the_steps_one_by_one_is_the_backbone(name):
    net = find_backbone(name).build(num_classes=3).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(run(Graph.of(net), net, x), net(x))


def test_functions_methods_and_a_module_that_runs_twice_give_the_backbones_output():
    net, x = Nested(), torch.randn(3, 4)
    assert torch.equal(run(Graph.of(net), net, x), net(x))


@pytest.mark.parametrize("step", ["0", "1", "2"])
def test_a_destination_must_feed_rectifiers_only(step):
    """0 is rectified, 1 is the rectifier, 2 ends the network."""
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    graph = Graph.of(net)
    if step == "0":
        graph.check_destination(step)
    else:
        with pytest.raises(ValueError, match=rf"destination '{step}' is not followed by a rectifier.*choices: 0$"):
            graph.check_destination(step)


def test_a_step_that_is_read_by_a_rectifier_and_by_something_else_is_no_destination():
    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            x = self.linear(x)
            return F.relu(x) + x

    net = Leaky()
    with pytest.raises(ValueError, match="'linear' is not followed by a rectifier"):
        Graph.of(net).check_destination("linear")


def test_rectifiers_count_as_functions_and_methods_too():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            x = F.leaky_relu(self.a(x))
            x = F.relu(self.b(x))
            return F.silu(self.d(self.c(x).relu()))

    net = Written()
    graph = Graph.of(net)
    for step in "abcd":
        graph.check_destination(step)


def test_an_unknown_step_is_answered_with_the_nearest_or_with_all():
    graph = Graph.of(Nested())
    with pytest.raises(ValueError, match=r"no step 'block.frist' to be the source.*did you mean block\.first"):
        graph.find("block.frist", "source")
    with pytest.raises(ValueError, match=r"choices: block\.first, block\.relu, .*head"):
        graph.find("zzz", "source")


def test_downstream_is_what_a_change_reaches_and_nothing_before_it():
    graph = Graph.of(Nested())
    reached = {name for name, node in graph.steps.items() if node in graph.downstream(["block.second"])}
    assert reached == {
        "block.add", "block.relu@1", "block.flatten", "block.mul", "block.gelu", "block.sub", "block", "head",
    }  # fmt: skip


def test_what_no_feedback_reaches_runs_once_for_all_passes():
    """A counter in the stem is hit once a roll-out, one behind the destination once a pass."""
    calls = {"stem": 0, "body": 0}

    class Counting(nn.Conv2d):
        def forward(self, x):
            calls[self.place] += 1
            return super().forward(x)

    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip
    lrm = LRM(net, [Connection("7", "2")], 8).eval()
    for index, place in ((0, "stem"), (4, "body")):
        net[index].place = place
        net[index].__class__ = Counting
    with torch.no_grad():
        lrm.rollout(torch.randn(2, 3, 8, 8), 3)
    assert calls == {"stem": 1, "body": 3}


def test_published_weights_of_torchvision_load_strictly():
    """The wrapped backbone keeps torchvision's state-dict keys: a plain checkpoint fits it without a rename."""
    published = models.alexnet(num_classes=3).state_dict()
    entry = BACKBONES["alexnet"]
    lrm = LRM(models.alexnet(num_classes=3), entry.connections, 64)
    lrm.backbone.load_state_dict(published, strict=True)
    kept = {key.removeprefix("backbone."): v for key, v in lrm.state_dict().items() if key.startswith("backbone.")}
    assert list(kept) == list(published)
    assert all(torch.equal(kept[key], value) for key, value in published.items())


def test_an_unknown_backbone_is_answered_with_the_nearest_or_with_all_choices():
    with pytest.raises(ValueError, match="no backbone 'resnet19'; did you mean resnet18 or "):
        find_backbone("resnet19")
    with pytest.raises(
        ValueError, match="no backbone 'qqq'; choices: mini, mini_vit, alexnet, efficientnet_lite0, resnet18"
    ):
        find_backbone("qqq")


class TwoInputs(nn.Module):
    """Images and something else, which may have a default."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 5)


def test_an_input_with_a_default_keeps_it():
    class Scaled(TwoInputs):
        def forward(self, x, scale=2.0):
            return self.head(self.relu(self.conv(x)).mean((2, 3)) * scale)

    model = LRM(Scaled(), [Connection("head", "conv")], 8).eval()
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(model(images)[0], model.backbone(images))


def test_a_second_input_without_a_default_is_refused():
    class Scaled(TwoInputs):
        def forward(self, x, scale):
            return self.head(self.relu(self.conv(x)).mean((2, 3)) * scale)

    with pytest.raises(ValueError, match="Scaled: got the inputs x, scale, expected images and only inputs with a"):
        Graph.of(Scaled())


def test_a_step_that_gives_no_tensor_cannot_be_connected():
    class Chunks(TwoInputs):
        def forward(self, x):
            first, second = self.relu(self.conv(x)).mean((2, 3)).chunk(2, 1)
            return self.head(torch.cat([first, second], 1))

    with pytest.raises(ValueError, match="step 'chunk': got tuple, expected a tensor"):
        LRM(Chunks(), [Connection("chunk", "conv")], 8)
