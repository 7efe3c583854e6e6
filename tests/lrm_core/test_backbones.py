"""The registry: every entry is a network with feedback connections that fit."""

import pytest
import torch

from lrm_core import LRM
from lrm_core.backbones import BACKBONES
from lrm_core.graph import Graph

ONE_OF_EACH = [
    "mini", "alexnet", "efficientnet_lite0", "vgg11", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2",
    "densenet121", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf",
    "regnet_y_400mf", "mnasnet0_5", "shufflenet_v2_x0_5", "squeezenet1_1", "googlenet", "inception_v3",
    "convnext_tiny", "swin_t", "swin_v2_t", "vit_b_32", "mini_vit",
]  # fmt: skip


def check(name):
    """Destinations are pre-activations, sources come later, and the output is a step."""
    entry = BACKBONES[name]
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        graph = Graph.of(entry.build(num_classes=2))
    for connection in entry.connections:
        graph.check_destination(connection.destination)
        order = [graph.find(c, "destination") for c in (connection.destination, connection.source)]
        assert graph.nodes.index(order[0]) < graph.nodes.index(order[1]), (name, connection)
    graph.find(entry.output, "output")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_connections_of_each_family_end_at_pre_activations_and_start_later(name):
    check(name)


@pytest.mark.whole
@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in ONE_OF_EACH])
def test_the_connections_of_every_other_network_end_at_pre_activations_and_start_later(name):
    check(name)


@pytest.mark.parametrize(
    "name", ["densenet121", "mobilenet_v3_small", "regnet_x_400mf", "squeezenet1_1", "shufflenet_v2_x0_5"]
)
def test_a_goal_for_the_output_of_a_registered_network_changes_the_second_pass(name):
    entry = BACKBONES[name]
    torch.manual_seed(0)
    model = LRM(entry.build(num_classes=7), entry.connections, 64, feedback=entry.feedback, rule=entry.rule).eval()
    assert model.activation_shapes[entry.output] == (7,)
    for path in model.paths.values():
        torch.nn.init.normal_(path.projection.weight, std=0.1)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        first, second = model.rollout(images)
        assert torch.equal(first, model.backbone(images))
    assert first.shape == (1, 7)
    assert not torch.equal(first, second)


def test_a_transformer_of_the_registry_knows_its_tokens_and_a_goal_changes_the_second_pass():
    entry = BACKBONES["vit_b_32"]
    torch.manual_seed(0)
    net = entry.build(num_classes=7, image_size=64)
    torch.nn.init.normal_(net.heads.head.weight, std=0.1)  # torchvision starts it at zero
    model = LRM(net, entry.connections, 64, feedback=entry.feedback, rule=entry.rule).eval()
    assert model.layouts["encoder"].text == "1+2x2 c"
    assert model.destinations["encoder.layers.encoder_layer_11"] == "encoder.layers.encoder_layer_11.mlp.0"
    for path in model.paths.values():
        torch.nn.init.normal_(path.projection.weight, std=0.1)
    with torch.no_grad():
        first, second = model.rollout(torch.randn(1, 3, 64, 64))
    assert not torch.equal(first, second)
