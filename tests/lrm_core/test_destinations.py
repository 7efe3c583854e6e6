"""What may be a destination, what a stage's name means, what `LRM.wrap` proposes, and that silent units stay silent."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from lrm_core import LRM, Connection
from lrm_core.graph import Graph
from lrm_core.hooked import Calls
from lrm_core.shadow import shadow
from lrm_core.steps import RECTIFIERS


class Net(nn.Module):
    """Two stages; `between` lies between a norm and its activation."""

    def __init__(self, activation=None, between=None):
        super().__init__()
        self.stage1 = nn.Sequential(
            nn.Conv2d(3, 4, 3, 1, 1), between or nn.Identity(), activation or nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1)
        )
        self.stage2 = nn.Sequential(
            nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU()
        )
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.stage2(self.stage1(x)).mean((2, 3)))


class SqueezeExcitation(nn.Module):
    """A stage that ends in a gate of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU()
        self.squeeze, self.inner, self.excite = nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1)

    def forward(self, x):
        x = self.act(self.conv(x))
        return x * torch.sigmoid(self.excite(self.inner(self.squeeze(x.mean((2, 3), keepdim=True)))))


def by_both_ways(net, size=8):
    """Whether a module is a pre-activation, as the graph and as the hooks see it."""
    net = net.eval()
    calls = Calls.of(shadow(net), torch.randn(1, 3, size, size))
    graph = Graph.of(shadow(net))
    return lambda name: {steps.steps[name] in steps.rectified for steps in (graph, calls)}


@pytest.fixture
def no_graph(monkeypatch):
    def refuse(*args):
        raise ValueError("not now")

    monkeypatch.setattr(Graph, "of", refuse)


def trained(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for path in model.paths.values():
            path.projection.weight.normal_(0, 2.0)
    return model.eval()


class QuickGELU(nn.Module):
    """As OpenCLIP and OpenAI's CLIP write it."""

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


def test_the_gates_of_clip_and_of_hugging_face_are_known_by_name():
    from open_clip.transformer import QuickGELU as OpenClips
    from transformers.activations import QuickGELUActivation

    for activation in (OpenClips, QuickGELUActivation):
        test_an_accepted_activation_raises_no_unit_above_zero_by_a_factor_of_at_least_zero(activation)


@pytest.mark.parametrize("activation", [*RECTIFIERS, QuickGELU])
def test_an_accepted_activation_raises_no_unit_above_zero_by_a_factor_of_at_least_zero(activation):
    act = activation().eval()
    x = torch.linspace(-20, 0, 2001)
    for factor in (0.0, 0.5, 1.0, 3.0):
        assert (act(x * factor) <= 0).all()
    assert (act(-x[:-1]) > 0).all()
    assert by_both_ways(Net(activation()))("stage1.0") == {True}


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.Softshrink])
def test_what_is_no_rectifier_is_refused(activation):
    assert by_both_ways(Net(activation()))("stage1.0") == {False}


@pytest.mark.parametrize("between", [nn.Identity, nn.Dropout, lambda: nn.Dropout2d(0.3, inplace=True)])
@pytest.mark.parametrize("training", [False, True])
def test_identity_and_dropout_are_looked_through(between, training):
    net = Net(between=between())
    found = by_both_ways(net)
    assert found("stage1.0") == found("stage1.1") == {True}
    model = LRM(net.train(training), [Connection("head", "stage1.0"), Connection("head", "stage1.1")], 8)
    assert len(model.train()(torch.randn(2, 3, 8, 8))[0]) == 2


@pytest.mark.parametrize("training", [False, True])
def test_dropout_as_a_function_is_looked_through_in_both_modes(training):
    class Functional(Net):
        def forward(self, x):
            x = F.hardswish(F.dropout(self.stage1[0](x), 0.5, self.training))
            return self.head(self.stage2(x).mean((2, 3)))

    net = Functional().train(training)
    calls = Calls.of(shadow(net), torch.randn(2, 3, 8, 8))
    for steps in (calls, Graph.of(shadow(net))):
        steps.check_destination("stage1.0")


def test_dropout_that_something_else_reads_too_is_no_way_to_a_rectifier():
    class Both(Net):
        def forward(self, x):
            x = F.dropout(self.stage1[0](x), 0.5, self.training)
            return self.head(self.stage2(F.relu(x) + x).mean((2, 3)))

    for net in (Both().eval(), Both().train()):
        calls = Calls.of(shadow(net), torch.randn(2, 3, 8, 8))
        for steps in (calls, Graph.of(shadow(net))):
            assert steps.steps["stage1.0"] not in steps.rectified


@pytest.mark.parametrize(("lowest", "accepted"), [(0, True), (0.0, True), (-1.0, False)])
def test_a_clamp_at_zero_is_a_rectifier(lowest, accepted):
    class Clamp(nn.Module):
        def forward(self, x):
            return x.clamp(min=lowest)

    assert by_both_ways(Net(Clamp()))("stage1.0") == {accepted}


def test_a_name_inside_a_norm_with_activation_is_a_destination():
    timm = pytest.importorskip("timm")
    net = timm.create_model("efficientnet_lite0", num_classes=5)
    graph = Graph.of(shadow(net).eval())
    for name in ("bn2.drop", "bn2.batch_norm", "blocks.2.0.bn1.drop"):
        graph.check_destination(name)
    net = timm.create_model("resnet18", num_classes=5)
    Graph.of(shadow(net).eval()).check_destination("layer1.0.bn1")


# Stages


@pytest.mark.parametrize(
    ("given", "step"), [("stage2", "stage2.3"), ("stage2[0]", "stage2.1"), ("stage1", "stage1.1"), ("stage2.1", None)]
)
def test_a_stage_stands_for_its_last_pre_activation_or_its_first(given, step):
    net = Net()
    model = LRM(net, [Connection("head", given)], 8)
    assert model.destinations == {given: step or given}
    assert list(model.paths) == [f"head->{given}".replace(".", "_")]
    same = LRM(net, [Connection("head", step or given)], 8)
    trained(model), trained(same)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.rollout(images)[1], same.rollout(images)[1])
        assert not torch.equal(model.rollout(images)[1], net(images))
    changes = model.inspect(model.stem(images), model(images)[1])[2]
    assert list(changes) == [given]


def test_a_stage_may_be_a_source_and_a_destination():
    """As a source it is the output of the stage, as a destination a step inside of another shape."""
    net = Net()
    net.stage2.append(nn.Conv2d(6, 7, 1))
    net.head = nn.Linear(7, 5)
    model = trained(LRM(net, [Connection("stage2", "stage1"), Connection("head", "stage2")], 8))
    assert model.activation_shapes == {"stage2": (7, 4, 4), "head": (5,)}
    assert model.paths["head->stage2"].projection.out_features == 6
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = model.rollout(images)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other.rollout(images)[1], expected[1])


def test_a_stage_is_resolved_by_hooks_too(no_graph):
    model = LRM(Net(), [Connection("head", "stage2"), Connection("head", "stage1[0]")], 8)
    assert model.destinations == {"stage2": "stage2.3", "stage1[0]": "stage1.0"}
    assert "by hooks" in repr(model)


def test_a_stage_and_its_step_are_the_same_destination():
    with pytest.raises(ValueError, match=r"^connections: a connection is named twice: head->stage2, head->stage2_3"):
        LRM(Net(), [Connection("head", "stage2"), Connection("head", "stage2.3")], 8)


def test_a_stage_is_not_resolved_to_the_inside_of_its_gate():
    net = nn.Sequential(SqueezeExcitation(), nn.Conv2d(4, 5, 1))
    assert Graph.of(net).destination("0") == "0.conv"
    Graph.of(net).check_destination("0.squeeze")
    net.append(nn.Sigmoid())  # now everything reaches the output through a sigmoid
    assert Graph.of(net).destination("0") == "0.squeeze"


@pytest.mark.parametrize("name", ["layer1", "layer2", "layer3", "layer4"])
def test_every_stage_of_a_residual_network_is_a_destination(name):
    graph = Graph.of(models.resnet18(num_classes=3).eval())
    assert graph.destination(name) == f"{name}.1.add"
    assert graph.destination(f"{name}[0]") == f"{name}.0.bn1"


# Anywhere


@pytest.mark.parametrize("hooked", [False, True])
def test_any_step_is_a_destination_if_that_is_said(hooked, request):
    if hooked:
        request.getfixturevalue("no_graph")
    net = Net(nn.Tanh())
    with pytest.raises(ValueError, match=r"^destination 'stage1\.3' is not followed by a rectifier.*choices: "):
        LRM(net, [Connection("head", "stage1.3")], 8)
    model = trained(LRM(net, [Connection("head", "stage1.3", anywhere=True), Connection("head", "stage2")], 8))
    assert model.connections[0] == Connection("head", "stage1.3", anywhere=True)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        stem = model.stem(images)
        _, state = model.step(stem)
        before, after = (model.inspect(stem, each, (), ["stage1.3"])[1]["stage1.3"] for each in (None, state))
        factor = model.paths["head->stage1_3"](state.activations["head"], before)
    torch.testing.assert_close(after, before * (1 + factor).clamp(min=0))


def test_anywhere_takes_the_exact_step():
    model = LRM(Net(), [Connection("head", "stage2", anywhere=True)], 8)
    assert model.destinations == {"stage2": "stage2"}
    with pytest.raises(ValueError, match="no step 'stage3' to be the destination"):
        LRM(Net(), [Connection("head", "stage3", anywhere=True)], 8)


def test_anywhere_must_be_true_or_false():
    with pytest.raises(ValueError, match=r"^anywhere: got 'yes', expected True or False"):
        Connection("head", "stage1", anywhere="yes")


def test_a_backbone_without_any_rectifier_is_told_the_way_out():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 5))
    with pytest.raises(ValueError, match=r"no step of this backbone is followed by one, so only .*anywhere=True\) can"):
        LRM(net, [Connection("3", "0")], 8)
    with pytest.raises(ValueError, match=r"^backbone: Sequential has no linear or convolutional layer behind a pre-"):
        LRM.wrap(net, 8)


# Proposals


def build(name):
    torch.manual_seed(0)
    library, _, name = name.rpartition(" ")
    if library == "torchvision":
        return models.get_model(name, weights=None, num_classes=5)
    return pytest.importorskip("timm").create_model(name, num_classes=5)


@pytest.mark.parametrize(
    ("name", "classifier", "ends"),
    [
        ("torchvision resnet18", "fc", ["layer3.1.add", "layer4.1.add", "layer1.1.add"]),
        ("torchvision vgg11", "classifier.6", ["features.13", "features.18", "features.3"]),
        ("torchvision mobilenet_v3_small", "classifier.3", ["features.9.block.0.1", "features.12.1", None]),
        ("torchvision efficientnet_b0", "classifier.1", ["features.6.0.block.0.1", "features.8.1", None]),
        ("timm resnet18", "fc", ["layer3.1.add", "layer4.1.add", "layer1.1.add"]),
        ("timm regnety_002", "head.fc", [None, "s4.b7.add", None]),
        ("timm convnext_atto", "head.fc", ["stages.2.blocks.5.mlp.fc1", "stages.3.blocks.1.mlp.fc1", None]),
        ("timm efficientnet_lite0", "classifier", ["blocks.5.0.bn1.drop", "bn2.drop", None]),
    ],
)
def test_wrap_proposes_the_classifier_to_the_last_stages_and_the_last_map_to_an_early_one(
    name, classifier, ends, capsys
):
    net = build(name)
    model = LRM.wrap(net, 64).eval()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [f"connection: {c.source} -> {c.destination}" for c in model.connections]
    first, second, third = model.connections
    assert model.rule == "rectify"
    steps = model.graph.steps
    assert steps[first.source] is steps[second.source] is steps[classifier]
    for connection, end in zip(model.connections, ends, strict=True):
        assert end is None or connection.destination == end
    assert len(model.activation_shapes[third.source]) == 3
    order = model.graph.nodes.index
    assert order(steps[third.destination]) < order(steps[first.destination]) < order(steps[second.destination])
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        bare = net.eval()(images)
        outputs = trained(model).rollout(images)
    assert torch.equal(outputs[0], bare)


def test_wrap_takes_the_users_own_connections_and_prints_nothing_then(capsys):
    model = LRM.wrap(Net(), 8, connections=[Connection("head", "stage1")])
    assert model.connections == (Connection("head", "stage1"),)
    LRM.wrap(Net(), 8, print=False)
    assert capsys.readouterr() == ("", "")


def test_wrap_proposes_for_what_only_hooks_can_run(no_graph):
    model = LRM.wrap(Net(), 8, print=False)
    assert [c.destination for c in model.connections] == ["stage2.1", "stage2.3", "stage1.1"]
    assert "by hooks" in repr(model)


# The README's sentence


def test_a_silent_unit_stays_silent_under_rectify_and_fires_under_multiply():
    """The README's sentence, at a factor that goes far below 0."""
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    net, fired = Net().eval(), {}
    for rule in ("rectify", "multiply"):
        model = trained(LRM.wrap(net, 8, connections=[Connection("head", "stage2")], print=False, rule=rule))
        with torch.no_grad():
            stem = model.stem(images)
            _, state = model.step(stem)
            before, after = (model.inspect(stem, each, (), ["stage2.4"])[1]["stage2.4"] for each in (None, state))
        silent = before == 0
        assert silent.any()
        assert not torch.equal(before, after)
        fired[rule] = int((after[silent] > 0).sum())
    assert fired["rectify"] == 0
    assert fired["multiply"] > 0
