"""Any backbone runs as itself plus feedback: architectures of libraries, and networks as users write them.

The reference for a second pass is made here with plain forward hooks. It shares no code with the model. The feedback of
these tests is one number for each image and connection, so that it does not depend on the layout of a step.

The whole list of architectures runs with `pytest -m whole`; a part of it runs always.
"""

import copy
import pickle
import random
import threading
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lrm_core import LRM, Connection, Steer
from lrm_core.graph import Graph
from lrm_core.hooked import Calls, Hooked
from lrm_core.shadow import random_states, same_random_states, shadow
from lrm_core.traced import Traced


class OneNumber(nn.Module):
    """Feedback that scales a whole destination by one number for each image."""

    def __init__(self, source_shape, destination_shape):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, source, destination, strength=None):
        value = torch.tanh(1 + 3 * source.flatten(1).mean(1)) * self.gain
        return value.reshape(-1, *[1] * (destination.ndim - 1))


# Networks as users write them


class Small(nn.Module):
    """The parts of the networks below."""

    def __init__(self, channels=3, rectifier=None):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.act = rectifier or nn.ReLU()
        self.conv2, self.bn2, self.act2 = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU()
        self.fc = nn.Linear(8, 5)

    def early(self, x):
        return self.act(self.bn1(self.conv1(x)))

    def late(self, x):
        return self.fc(self.act2(self.bn2(self.conv2(x))).mean((2, 3)))

    def forward(self, x):
        return self.late(self.early(x))


class IfOnShapes(Small):
    def forward(self, x):
        if x.shape[-1] > 40:
            x = F.avg_pool2d(x, 2)
        return self.late(self.early(x))


class IfOnValues(Small):
    def forward(self, x):
        x = self.early(x)
        return self.late(x / x.max() if x.max() > 1 else x)


class DictOutput(Small):
    def forward(self, x):
        features = self.early(x)
        return {"features": features, "logits": self.late(features)}


class OwnReLU(nn.Module):
    def forward(self, x):
        return x.clamp(min=0)


class ReusedReLU(Small):
    def late(self, x):
        return self.fc(self.act(self.bn2(self.conv2(x)) + x).mean((2, 3)))


class Functional(Small):
    """Everything that has no module: rectifiers, in place and not, dropout, and a sum in place."""

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.dropout(x, 0.3, self.training)
        y = self.bn2(self.conv2(x))
        y += x
        return self.fc(F.dropout(F.relu(y, inplace=True).mean((2, 3)), 0.5, self.training))


class SetsStride(Small):
    """One convolution at two strides, as in CORnet-S."""

    def forward(self, x):
        x = self.early(x)
        for step in range(2):
            self.conv2.stride = (2, 2) if step == 0 else (1, 1)
            x = self.act2(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


class Scripted(Small):
    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit is old, but it is in use
            self.squeeze = torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Tanh()))

    def early(self, x):
        return self.squeeze(super().early(x))


class Defaults(Small):
    def forward(self, x, scale=1.0, mask=None, names=("a", "b")):
        x = self.early(x) * scale
        return self.late(x if mask is None else x * mask)


class InPlaceByAView(Small):
    """What a later step reads is changed by another name."""

    def forward(self, x):
        x = self.bn1(self.conv1(x))
        flat = x.view(x.shape[0], -1)
        kept = self.bn2(self.conv2(self.act(x)))
        flat.mul_(0.5)
        return self.fc((self.act2(kept) + x).mean((2, 3)))


class TrainsOtherwise(Small):
    """The sum in place comes second in training and first otherwise."""

    def forward(self, x):
        x = self.early(x)
        if self.training:
            x = x + 0.1 * torch.randn_like(x)
        y = self.bn2(self.conv2(x))
        return self.fc(self.act2(y + x).mean((2, 3)))


class Counts(Small):
    """It keeps a count in a buffer and a list in an attribute, and decides by a random number in training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.sizes = []

    def forward(self, x):
        self.seen.add_(len(x))
        self.sizes.append(tuple(x.shape))
        x = self.early(x)
        if self.training and torch.rand(()) < 0.5:
            x = x * 2
        return self.late(x)


OWN = {
    "if on shapes": IfOnShapes,
    "if on values": IfOnValues,
    "dict output": DictOutput,
    "tanh": lambda: Small(rectifier=nn.Tanh()),
    "Hardswish": lambda: Small(rectifier=nn.Hardswish(inplace=True)),
    "own ReLU": lambda: Small(rectifier=OwnReLU()),
    "reused ReLU": ReusedReLU,
    "functional": Functional,
    "stride set in forward": SetsStride,
    "TorchScript child": Scripted,
    "one input channel": lambda: Small(channels=1),
    "defaults of forward": Defaults,
    "in place by a view": InPlaceByAView,
    "trains otherwise": TrainsOtherwise,
    "counts": Counts,
}


# Architectures of libraries


def _torchvision(name, **arguments):
    from torchvision import models

    return models.get_model(name, weights=None, num_classes=10, **arguments)


def _timm(name, **arguments):
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=10, **arguments)


def _hugging_face(name):
    transformers = pytest.importorskip("transformers")
    if name == "resnet":
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10
        )
        return transformers.ResNetForImageClassification(config)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if name == "vit":
        return transformers.ViTForImageClassification(
            transformers.ViTConfig(image_size=64, patch_size=16, num_labels=10, **small)
        )
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=10)
    return transformers.ConvNextForImageClassification(config)


TORCHVISION = [
    "alexnet", "vgg11", "vgg16_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121",
    "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet0_5", "shufflenet_v2_x0_5",
    "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "regnet_x_400mf", "convnext_tiny", "swin_t", "swin_v2_t",
    "googlenet", "inception_v3", "vit_b_32",
]  # fmt: skip
TIMM = [
    "efficientnet_lite0", "resnetv2_50", "mobilenetv3_small_050", "tf_efficientnet_b0", "regnety_002", "convnext_atto",
    "convnextv2_atto", "vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit3_small_patch16_224",
    "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224", "mobilevit_s", "tiny_vit_5m_224", "ghostnet_050",
    "dla34", "hrnet_w18_small", "res2net50_26w_4s", "skresnet18", "seresnet18", "nf_resnet26", "repvgg_a0",
    "mixer_s32_224", "poolformer_s12", "edgenext_xx_small", "fastvit_t8", "levit_128s", "cspresnet50", "vovnet39a",
    "xception41", "efficientformer_l1", "coatnet_nano_rw_224",
]  # fmt: skip
SIZES = {"inception_v3": 299, "xception41": 96, "levit_128s": 224, "efficientformer_l1": 224}
REFUSED = {  # no module of these is a pre-activation, such as this one
    "timm eva02_tiny_patch14_224": "blocks.0.mlp.fc1",  # its gates are halves of one layer
}
NO_STAGES = {  # their stages hold no two steps that are pre-activations by these names
    "timm nf_resnet26",
    "hugging face vit",
}
ARGUMENTS = {
    "vit_b_32": {"image_size": 64},
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    "eva02_tiny_patch14_224": {"img_size": 56},
    **{
        name: {"img_size": 64}
        for name in (
            "vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit3_small_patch16_224", "mixer_s32_224",
            "coatnet_nano_rw_224",
        )
    },
    "swin_tiny_patch4_window7_224": {"img_size": 56},
}  # fmt: skip
QUICK = {
    "torchvision resnet18", "torchvision shufflenet_v2_x0_5", "timm efficientnet_lite0", "timm vit_tiny_patch16_224",
    "hugging face resnet", "hugging face vit",
}  # fmt: skip
ARCHITECTURES = [
    *(f"torchvision {name}" for name in TORCHVISION),
    *(f"timm {name}" for name in TIMM),
    *(f"hugging face {name}" for name in ("resnet", "vit", "convnext")),
]


def make(case: str) -> tuple[nn.Module, torch.Tensor]:
    """A network with random weights in training mode, and images for it."""
    torch.manual_seed(0)
    library, _, name = case.rpartition(" ")
    size = SIZES.get(name, ARGUMENTS.get(name, {}).get("img_size", 64))
    if case in OWN:
        net, size = OWN[case](), 48
    elif library == "torchvision":
        net = _torchvision(name, **ARGUMENTS.get(name, {}))
    elif library == "timm":
        net = _timm(name, **ARGUMENTS.get(name, {}))
    else:
        net = _hugging_face(name)
    with torch.no_grad():  # norms that are not 0 and 1, classifiers that are not 0
        for module in net.modules():
            if isinstance(module, nn.Linear) and not module.weight.any():
                module.weight.normal_(0, 0.1)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    channels = first.in_channels if isinstance(first, nn.Conv2d) else 3
    return net.train(), torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def connections_for(net: nn.Module, images: torch.Tensor) -> tuple[Connection, ...]:
    """From the last module to an early and a late pre-activation, and from between to the early one.

    The steps are modules that are called once, so that hooks can serve as the reference.
    """
    evaluated = shadow(net).eval()
    with torch.no_grad():
        calls = Calls.of(evaluated, images.clone())
    try:
        graph = Graph.of(evaluated)
        found = [s for s in calls.nodes if s in graph.steps and graph.steps[s] in graph.rectified]
    except ValueError:
        found = []
    if not found:  # the steps lie in a part that only hooks reach
        graph, found = None, [s for s in calls.nodes if s in calls.rectified]
    shapes = {}
    with torch.no_grad():
        record(evaluated, images, lambda step, output: shapes.update({step: output}))
    once = [s for s in calls.nodes if "@" not in s and f"{s}@1" not in calls.steps]
    tensor = [s for s in once if isinstance(shapes[s], torch.Tensor) and shapes[s].ndim >= 2]
    places = [s for s in found if s in tensor]
    assert places, "no module of this network is a pre-activation"
    early, late = places[len(places) // 4], places[-1]
    after = [s for s in tensor if calls.nodes.index(s) > calls.nodes.index(late)]
    if graph is not None:
        order = {node: index for index, node in enumerate(graph.nodes)}
        after = [s for s in after if s in graph.steps and order[graph.steps[s]] > order[graph.steps[late]]]
    middle = [s for s in tensor if calls.nodes.index(early) < calls.nodes.index(s) < calls.nodes.index(late)]
    if graph is not None:
        middle = [s for s in middle if s in graph.steps and order[graph.steps[s]] > order[graph.steps[early]]]
    wanted = [(after[-1], early), (after[-1], late), *[(s, early) for s in middle[len(middle) // 2 :][:1]]]
    return tuple(Connection(*pair) for pair in dict.fromkeys(wanted))


def record(net, images, seen):
    handles = [
        module.register_forward_hook(lambda m, i, o, path=path: seen(path, o))
        for path, module in net.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        return net(images.clone())
    finally:
        for handle in handles:
            handle.remove()


def by_hooks(net, connections, paths, images, passes=2):
    """The reference: the outputs of passes of the bare network, with feedback by plain hooks."""
    modules, outputs, before = dict(net.named_modules()), [], {}

    def change(name, before, output):
        factors = [paths[c.key](before[c.source], output) for c in connections if c.destination == name and before]
        return output + output * sum(factors) if factors else None

    for _ in range(passes):
        now, handles = {}, []
        for name in dict.fromkeys(c.destination for c in connections):
            hook = partial(lambda name, before, module, inputs, output: change(name, before, output), name, before)
            handles.append(modules[name].register_forward_hook(hook))
        for name in dict.fromkeys(c.source for c in connections):
            hook = partial(lambda name, now, module, inputs, output: now.update({name: output.clone()}), name, now)
            handles.append(modules[name].register_forward_hook(hook))
        outputs.append(net(images.clone()))
        for handle in handles:
            handle.remove()
        before = now
    return outputs


def leaves(output):
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        return [leaf for value in output.values() for leaf in leaves(value)]
    return [leaf for value in output for leaf in leaves(value)] if isinstance(output, tuple | list) else []


def equal(first, second) -> bool:
    ours, theirs = leaves(first), leaves(second)
    return (
        type(first) is type(second)
        and len(ours) == len(theirs) > 0
        and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    )


def snapshot(net):
    """Everything of a network that wrapping could change, and the random generators."""
    attributes = [
        {k: (copy.copy(v) if isinstance(v, dict | list | set) else v) for k, v in m.__dict__.items()}
        for m in net.modules()
        if not isinstance(m, torch.jit.ScriptModule)
    ]
    return attributes, {key: value.clone() for key, value in net.state_dict().items()}, random_states()


def same_snapshot(first, second) -> bool:
    for one, other in zip(first[0], second[0], strict=True):
        if one.keys() != other.keys():
            return False
        for key, value in one.items():
            if isinstance(value, dict):
                same = list(value) == list(other[key]) and all(value[k] is other[key][k] for k in value)
            elif isinstance(value, list | set):
                same = len(value) == len(other[key])
            else:
                same = value is other[key]
            if not same:
                return False
    return all(torch.equal(value, second[1][key]) for key, value in first[1].items()) and same_random_states(
        first[2], second[2]
    )


def wrapped(net, connections, images) -> LRM:
    return LRM(net, connections, images.shape[-1], feedback=OneNumber)


@torch.no_grad()
def run(network, images):
    torch.manual_seed(3)
    random.seed(3)
    return network(images)


def check(case: str) -> None:
    """Wrapped in either mode, the first pass is the network in both; the second is that by hooks."""
    net, images = make(case)
    connections = connections_for(net, images)
    for training in (True, False):
        own = copy.deepcopy(net).train(training)
        before = snapshot(own)
        model = wrapped(own, connections, images)
        assert same_snapshot(before, snapshot(own)), "wrapping changed the network"
        bare = copy.deepcopy(own)
        for mode in (False, True):
            model.train(mode)
            bare.train(mode)
            ours, theirs = run(model, images)[0], run(bare, images.clone())
            assert equal(ours, theirs), f"wrapped {training=}, run with training={mode}: another output"
            ours, theirs = own.state_dict(), bare.state_dict()
            assert all(torch.equal(value, ours[key]) for key, value in theirs.items()), "other buffers"
    model.eval()
    bare.eval()
    with torch.no_grad():
        expected = by_hooks(bare, connections, model.paths, images)
        outputs = model.rollout(images, 2)
        assert equal(outputs[0], expected[0])
        assert equal(outputs[1], expected[1]), "another second pass than by hooks"
        assert not equal(outputs[0], outputs[1])
        loaded = pickle.loads(pickle.dumps(model)) if case not in UNPICKLABLE else copy.deepcopy(model)
        assert equal(loaded.rollout(images, 2)[1], expected[1])
        assert type(loaded._reading().way) is type(model._reading().way)
    if case in FORCED_APART:
        return
    wrong = []

    def work():
        with torch.no_grad():
            wrong.extend([1] if not equal(model.rollout(images, 2)[1], expected[1]) else [])

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not any(module._forward_hooks for module in own.modules() if not isinstance(module, torch.jit.ScriptModule))


UNPICKLABLE = {"TorchScript child"}  # scripted modules cannot be pickled
FORCED_APART = {"stride set in forward"}  # the network itself writes to what its threads share
BY_HOOKS = {"if on shapes", "if on values", "stride set in forward", "counts"}


@pytest.mark.parametrize("case", OWN)
def test_a_users_own_network_is_itself_plus_feedback(case):
    check(case)


@pytest.mark.parametrize("case", sorted(QUICK))
def test_an_architecture_is_itself_plus_feedback(case):
    check(case)


@pytest.mark.whole
@pytest.mark.parametrize("case", [case for case in ARCHITECTURES if case not in QUICK])
def test_every_architecture_is_itself_plus_feedback(case):
    if case in REFUSED:
        net, images = make(case)
        with pytest.raises(ValueError, match="is not followed by a rectifier, but feedback scales pre-activations"):
            wrapped(net, [Connection("head", REFUSED[case])], images)
    else:
        check(case)


@pytest.mark.parametrize("case", OWN)
def test_the_way_is_chosen_and_told(case):
    net, images = make(case)
    model = wrapped(net, connections_for(net, images), images)
    way = model._reading().way
    assert isinstance(way, Hooked if case in BY_HOOKS else Traced)
    assert ("by hooks, since" in repr(model)) == (case in BY_HOOKS)
    assert ("as a graph" in repr(model)) == (case not in BY_HOOKS)


@pytest.mark.parametrize(
    "case",
    [
        *(case for case in OWN if case not in BY_HOOKS),
        "torchvision resnet18",
        *(
            pytest.param(case, marks=pytest.mark.whole)
            for case in ARCHITECTURES
            if case not in {*REFUSED, "torchvision resnet18"}
        ),
    ],
)
def test_both_ways_give_equal_numbers(case, monkeypatch):
    net, images = make(case)
    connections = connections_for(net, images)
    by_graph = wrapped(net, connections, images).eval()
    with torch.no_grad():
        expected = by_graph.rollout(images, 3)

    def refuse(*args):
        raise ValueError("not now")

    monkeypatch.setattr(Graph, "of", refuse)
    by_hook = wrapped(net, connections, images).eval()
    only_by_hooks = case.startswith("hugging face") or case in {"timm efficientformer_l1", "timm levit_128s"}
    assert isinstance(by_graph._reading().way, Hooked if only_by_hooks else Traced)
    assert isinstance(by_hook._reading().way, Hooked)
    with torch.no_grad():
        outputs = by_hook.rollout(images, 3)
    assert all(equal(*pair) for pair in zip(outputs, expected, strict=True))
    for one, other in zip(leaves(outputs), leaves(expected), strict=True):
        torch.testing.assert_close(one, other)


# Names of stages


def accepted_stages(case: str) -> list[str]:
    """The modules with modules inside, at the first two levels, that mean a pre-activation as destinations."""
    net, images = make(case)
    evaluated = shadow(net).eval()
    try:
        steps = Graph.of(shadow(evaluated))
    except ValueError:
        with torch.no_grad():
            steps = Calls.of(shadow(evaluated), images.clone())
    stages = [name for name, module in net.named_modules() if name.count(".") <= 1 and any(module.children())]
    found = []
    for name in filter(None, stages):
        last, first = steps.destination(name), steps.destination(f"{name}[0]")
        if last != name and first != f"{name}[0]" and steps.steps[last] in steps.rectified:
            found.append(name)
    return found


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.whole) for case in ARCHITECTURES]
)
def test_stages_may_be_destinations(case):
    assert (len(accepted_stages(case)) >= 2) == (case not in NO_STAGES)


# What has to be told, and what must not be left behind


def trained(model: LRM) -> LRM:
    with torch.no_grad():
        for path in model.paths.values():
            path.projection.weight.normal_(0, 0.5)
    return model


@pytest.mark.parametrize("net", [ReusedReLU, SetsStride])
def test_a_stem_of_other_modes_is_refused(net):
    model = LRM(net(), [Connection("fc", "bn1")], 48).eval()
    stem = model.stem(torch.randn(2, 3, 48, 48))
    with pytest.raises(ValueError, match=r"^stem: made with the backbone in mode eval, but it is in mode train now"):
        model.train().step(stem)
    assert len(model.eval().step(stem)[0]) == 2


def test_a_stem_of_another_model_is_refused():
    model, other = (LRM(Small(), [Connection("fc", name)], 48).eval() for name in ("bn1", "bn2"))
    with pytest.raises(ValueError, match=r"^stem: got that of another model"):
        model.step(other.stem(torch.randn(2, 3, 48, 48)))


def test_a_step_that_is_missing_in_one_mode_is_told_when_that_mode_is_used():
    class OnlyThen(Small):
        def forward(self, x):
            x = self.early(x)
            return self.late(x) if not self.training else self.fc(x.mean((2, 3)))

    model = LRM(OnlyThen(), [Connection("fc", "bn2")], 48)
    assert len(model.eval()(torch.randn(2, 3, 48, 48))[0]) == 2
    with pytest.raises(ValueError, match=r"backbone in mode train: no step 'bn2' to be the destination"):
        model.train()(torch.randn(2, 3, 48, 48))


def test_a_name_means_the_same_place_in_both_modes():
    model = LRM(TrainsOtherwise(), [Connection("fc", "add")], 48)
    seen = []
    for training in (False, True):
        model.train(training)
        images = torch.randn(2, 3, 48, 48)
        torch.manual_seed(0)
        seen.append(model.inspect(model.stem(images), None, (), ["add", "act2"])[1])
    for inside in seen:
        assert torch.equal(inside["act2"], inside["add"].relu())


def test_the_second_call_of_a_module_has_a_name_and_the_older_spelling_is_read():
    torch.manual_seed(0)
    new = trained(LRM(ReusedReLU(), [Connection("act@1", "bn1")], 48).eval())
    old = LRM(new.backbone, [Connection("act_1", "bn1")], 48).eval()
    old.load_state_dict({key.replace("act@1", "act_1"): value for key, value in new.state_dict().items()})
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(new.rollout(images)[1], old.rollout(images)[1])
    first = LRM(new.backbone, [Connection("act", "bn1")], 48).eval()
    first.load_state_dict({key.replace("act@1", "act"): value for key, value in new.state_dict().items()})
    assert not torch.equal(first.rollout(images)[1], old.rollout(images)[1])


CALLS = iter(range(10**6))


class NeverTheSame(Small):
    def early(self, x):
        return super().early(x) * (1 + next(CALLS))


def test_a_network_that_is_never_the_same_is_refused_with_the_first_step_that_differs():
    with pytest.raises(
        ValueError, match=r"^NeverTheSame: .* by hooks the first pass differs: step 'conv2' is the first"
    ):
        LRM(NeverTheSame(), [Connection("fc", "bn1")], 48)


class Failing(SetsStride):
    def late(self, x):
        raise AssertionError

    def forward(self, x):
        x = super().forward(x)
        if len(x) == 3:
            raise RuntimeError("three images")
        return x


def test_a_pass_that_raises_leaves_no_hooks():
    model = LRM(Failing(), [Connection("fc", "bn1")], 48).eval()
    with pytest.raises(RuntimeError, match="three images"):
        model(torch.randn(3, 3, 48, 48))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("net", [Functional, SetsStride])
def test_one_image_with_many_goals_is_each_goal_alone(net):
    torch.manual_seed(0)
    model = trained(
        LRM(net(), [Connection("fc", "bn1"), Connection("fc", "bn2")][: 1 if net is Functional else 2], 48).eval()
    )
    images, goals = torch.randn(1, 3, 48, 48), torch.randn(4, 5)
    with torch.no_grad():
        stem = model.stem(images)
        _, state = model.step(stem)
        together, _ = model.step(stem.expand(4), state.expand(4), [Steer("fc", goals)])
        alone = [model.step(stem, state, [Steer("fc", goal[None])])[0] for goal in goals]
        assert torch.equal(model.step(stem)[0], model.backbone(images)), "a later pass wrote to what is kept"
    torch.testing.assert_close(together, torch.cat(alone))


def test_operations_in_place_copy_only_what_is_kept():
    """The plain network fills one new tensor at a convolution and none at a rectifier in place; so does a pass."""

    class Clones(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Clones.count += func is torch.ops.aten.clone.default
            return func(*args, **(kwargs or {}))

    net = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(3, 3, 3, 1, 1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)) for _ in range(4)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5),
    )  # fmt: skip
    model = LRM(net, [Connection("6", "1.1"), Connection("2.1", "1.1")], 16).eval()
    images = torch.randn(1, 3, 16, 16)
    before = images.clone()
    with torch.no_grad(), Clones():
        outputs = model.rollout(images, 2)
    assert Clones.count == 0
    assert torch.equal(images, before)
    assert torch.equal(outputs[0], net(images))


def test_a_forward_that_draws_from_pythons_generator_is_not_read_as_a_graph():
    class Draws(Small):
        def forward(self, x):
            return self.late(self.early(x) * random.random())

    with pytest.raises(ValueError, match=r"Draws cannot be read by torch\.fx: it depends on Python's random numbers"):
        Graph.of(Draws())
