"""The published calls: same names and defaults, goals and their strength, stepping, loading, clear mistakes."""

import copy
import inspect
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrm_core import LRM, Connection, LRMNet, PublishedFeedback, SteerableLRM
from lrm_core.compat import PUBLISHED_CONNECTIONS, ours_to_published, published_to_ours

CONNECTIONS = [
    {"source": "7", "destination": "3"},
    {"source": "4", "destination": "0"},
    {"source": "5", "destination": "3"},
]


def toy() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6),
        nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def randomise(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)


@pytest.fixture
def model() -> SteerableLRM:
    torch.manual_seed(0)
    made = SteerableLRM(toy(), CONNECTIONS, forward_passes=3, img_size=16).eval()
    randomise(made)
    return made


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def signal(strength=3.0, batch: int = 2, **more) -> dict:
    activation = torch.randn(batch, 5, generator=torch.Generator().manual_seed(2))
    return {"source": "7", "activation": activation, "strength": strength, **more}


def same(first, second) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# One path, in the published order


def test_a_map_is_normalised_then_resized_then_given_its_gains_then_projected():
    torch.manual_seed(0)
    path = PublishedFeedback((3, 4, 4), (5, 8, 6))
    randomise(path)
    assert path.norm.weight.shape == (3, 8, 6)
    source, destination = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 8, 6)

    def resized(x, size):
        return F.interpolate(x, size, mode="bilinear", align_corners=True)

    weight, bias = (resized(p[None], (4, 4))[0] for p in (path.norm.weight, path.norm.bias))
    mean, variance = source.mean((1, 2, 3), keepdim=True), source.var((1, 2, 3), keepdim=True, unbiased=False)
    squashed = torch.tanh((source - mean) / (variance + 1e-5).sqrt() * weight + bias)
    wide = resized(squashed, (8, 6))
    wide = torch.where(wide < 0, 2 * path.gain[0] * wide, 3 * path.gain[1] * wide)
    expected = torch.einsum("bchw,oc->bohw", wide, path.projection.weight[:, :, 0, 0])
    expected = expected + path.projection.bias[:, None, None]
    torch.testing.assert_close(path(source, destination, (2.0, 3.0)), expected)


@pytest.mark.parametrize("source", [(6,), (6, 1, 1)])
@pytest.mark.parametrize("destination", [(5,), (5, 8, 6)])
def test_a_vector_is_normalised_over_its_channels(source, destination):
    path = PublishedFeedback(source, destination)
    randomise(path)
    x = torch.randn(2, *source)
    squashed = torch.tanh(F.layer_norm(x.flatten(1), (6,), path.norm.weight, path.norm.bias))
    scaled = torch.where(squashed < 0, path.gain[0] * squashed, path.gain[1] * squashed)
    expected = F.linear(scaled, path.projection.weight[:, :, 0, 0], path.projection.bias)
    got = path(x, torch.zeros(2, *destination))
    assert got.ndim == len(destination) + 1
    torch.testing.assert_close(got.flatten(1), expected)


def test_a_strength_multiplies_the_learned_gains_and_leaves_them_as_they_were():
    path = PublishedFeedback((6,), (5,))
    randomise(path)
    source, x = torch.randn(2, 6), torch.zeros(2, 5)
    gains = path.gain.detach().clone()
    torch.testing.assert_close(path(source, x, 1.0), path(source, x))
    with torch.no_grad():
        steered = path(source, x, (0.5, 3.0))
        path.gain.mul_(torch.tensor([0.5, 3.0]))
        torch.testing.assert_close(path(source, x), steered)
        path.gain.copy_(gains)
    assert not torch.allclose(steered, path(source, x))


@pytest.mark.parametrize("shape", [(5, 6), (), (1, 2, 3, 4)])
def test_a_layout_that_the_published_code_does_not_know_raises(shape):
    with pytest.raises(ValueError, match=r"shape: got \(.*\), expected a vector \(c,\) or a map \(c, h, w\)"):
        PublishedFeedback(shape, (3,))


# The calls


def test_defaults_and_the_order_of_arguments_are_published():
    """A list of all passes is the default of both, and their last two arguments are the other way round."""
    lrmnet, steerable = (inspect.signature(c).parameters for c in (LRMNet, SteerableLRM))
    assert list(lrmnet) == ["network", "mod_connections", "forward_passes", "img_size", "return_list"]
    assert list(steerable) == ["network", "mod_connections", "forward_passes", "return_list", "img_size"]
    for given in (lrmnet, steerable):
        assert [given[n].default for n in ("forward_passes", "img_size", "return_list")] == [2, 224, True]
    assert list(inspect.signature(SteerableLRM.forward).parameters)[1:] == [
        "x", "drop_state", "forward_passes", "return_list", "steering_signals", "first_pass_steering",
    ]  # fmt: skip


def test_a_call_can_ask_for_all_passes_or_the_last(model, images):
    outputs = model(images)
    assert [o.shape for o in outputs] == [(2, 5)] * 3
    assert torch.equal(model(images, return_list=False), outputs[-1])
    assert same(model(images, forward_passes=2), outputs[:2])


def test_both_classes_are_one_model(model, images):
    torch.manual_seed(0)
    net = LRMNet(toy(), CONNECTIONS, forward_passes=3, img_size=16, return_list=False).eval()
    net.load_state_dict(model.state_dict())
    assert torch.equal(net(images), model(images)[-1])
    assert torch.equal(model(images)[0], model.feedforward(images))
    assert not torch.allclose(model(images)[0], model(images)[1])


def test_the_readme_example_of_training_works_with_in_place_rectifiers():
    from torchvision.models import alexnet

    torch.manual_seed(0)
    connections = PUBLISHED_CONNECTIONS["alexnet_lrm3"]
    model = LRMNet(alexnet(weights=None, num_classes=7), connections, forward_passes=2, img_size=224)
    assert any(getattr(module, "inplace", False) for module in model.modules())
    model.train()
    target = torch.tensor([1, 2])
    outputs = model(torch.randn(2, 3, 96, 96))  # smaller than img_size, as in training
    assert len(outputs) == 2
    loss = torch.tensor(0.0, requires_grad=True)
    for output in outputs:
        loss = loss + F.cross_entropy(output, target)
    (loss / len(outputs)).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_the_readme_example_of_wrapping_any_convnet_works():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    backbone = resnet18(weights=None, num_classes=7)
    connections = [
        {"source": "fc", "destination": "layer4.0.bn1"},
        {"source": "layer3", "destination": "bn1"},
    ]
    model = SteerableLRM(backbone, connections, forward_passes=2, img_size=64).eval()
    for size in (64, 48):  # any size may be given
        first, second = model(torch.randn(1, 3, size, size))
        assert first.shape == second.shape == (1, 7)
        assert not torch.allclose(first, second)


def test_the_readme_example_of_steering_works(model):
    """Signals in a list, an activation of one, and neither alpha nor anything else."""
    img, steering_query = torch.rand(1, 3, 16, 16), torch.randn(1, 5)
    steering_signals = [{"source": "7", "activation": steering_query, "strength": 3}]
    with torch.no_grad():
        outputs = model(img, steering_signals=steering_signals)
        plain = model(img)
        assert same(model(img, steering_signals=steering_signals[0]), outputs)
    assert torch.equal(outputs[0], plain[0])
    assert not torch.allclose(outputs[1], plain[1])


def test_a_steered_pass_is_the_model_with_other_gains_fed_the_goal(model, images):
    """Strength (2, 5) by hand: the gains of the path out of the source multiplied, the activation replaced."""
    steered = model(images, forward_passes=2, steering_signals=[signal((2.0, 5.0))])[1]
    changed = copy.deepcopy(model.lrm)
    with torch.no_grad():
        changed.paths["7->3"].gain.mul_(torch.tensor([2.0, 5.0]))
    _, state = model.lrm(images)
    state.activations["7"].data.copy_(signal()["activation"])
    torch.testing.assert_close(changed(images, state)[0], steered)


def test_alpha_is_the_share_of_the_goal(model, images):
    def output(**more):
        return model(images, forward_passes=2, steering_signals=[signal(1.0, **more)])[1]

    plain = model(images, forward_passes=2)
    torch.testing.assert_close(output(alpha=0.0), plain[1])
    mixed = 0.25 * signal()["activation"] + 0.75 * plain[0]
    torch.testing.assert_close(output(alpha=0.25), _fed(model, images, mixed))
    assert torch.equal(output(alpha=1.0), output())


def _fed(model, images, activation):
    return model(images, forward_passes=2, steering_signals=[signal(1.0) | {"activation": activation}])[1]


def test_strength_is_a_number_or_a_pair(model, images):
    def last(strength):
        return model(images, steering_signals=[signal(strength)])[-1]

    assert torch.equal(last(3), last((3, 3)))
    assert torch.equal(last([1, 3]), last(torch.tensor([1.0, 3.0])))
    assert not torch.allclose(last((1, 3)), last((3, 1)))


def test_the_first_pass_is_steered_on_demand_only(model, images):
    plain, late = model(images), model(images, steering_signals=[signal()])
    early = model(images, steering_signals=[signal(alpha=0.3)], first_pass_steering=True)
    assert torch.equal(late[0], plain[0])
    assert not torch.allclose(early[0], plain[0])
    whole = model(images, steering_signals=[signal()], first_pass_steering=True)
    assert torch.equal(early[0], whole[0]), "the first pass has no activation of its own to mix with"


def test_one_image_with_many_goals_gives_one_output_for_each(model, images):
    many = model(images[:1], steering_signals=[signal(batch=4)])
    assert [o.shape for o in many] == [(1, 5), (4, 5), (4, 5)]
    one = signal(batch=4) | {"activation": signal(batch=4)["activation"][2:3]}
    torch.testing.assert_close(many[-1][2:3], model(images[:1], steering_signals=[one])[-1])


# Stepping


@pytest.mark.parametrize("first_pass_steering", [False, True])
@pytest.mark.parametrize("more", [{}, {"strength": (1.0, 4.0)}, {"alpha": 0.4}])
def test_stepping_pass_by_pass_equals_the_roll_out(model, images, more, first_pass_steering):
    how = {"steering_signals": [signal() | more], "first_pass_steering": first_pass_steering}
    outputs = model(images, **how)
    steps = [model(images, drop_state=index == 0, forward_passes=1, return_list=False, **how) for index in range(3)]
    assert same(steps, outputs)
    two_and_one = [*model(images, forward_passes=2, **how), *model(images, False, 1, **how)]
    assert same(two_and_one, outputs)


def test_stepping_without_signals_equals_the_roll_out(model, images):
    model(images + 1, steering_signals=[signal(9.0)])  # dropped by what follows
    steps = [model(images, drop_state=index == 0, forward_passes=1, return_list=False) for index in range(3)]
    assert same(steps, model(images))


def test_a_step_without_signals_is_still_steered_by_the_last_call_with_its_strength(model, images):
    outputs = model(images, forward_passes=2, steering_signals=[signal(3.0)])
    model(images, forward_passes=1, steering_signals=[signal(3.0)])
    assert torch.equal(model(images, drop_state=False, forward_passes=1, return_list=False), outputs[1])
    model(images, forward_passes=1, steering_signals=[signal(3.0)])
    without = model(images, drop_state=False, forward_passes=1, return_list=False, steering_signals=[])
    assert torch.equal(without, model(images)[1])


def test_a_goal_may_come_with_the_second_step(model, images):
    model(images, forward_passes=1)
    second = model(images, drop_state=False, forward_passes=1, return_list=False, steering_signals=[signal()])
    assert torch.equal(second, model(images, steering_signals=[signal()])[1])


def test_stepping_gives_the_gradients_of_the_roll_out(model, images):
    def gradients(output):
        model.zero_grad()
        output.sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    rolled = gradients(model(images, forward_passes=2)[-1])
    model(images, forward_passes=1)
    torch.testing.assert_close(gradients(model(images, drop_state=False, forward_passes=1)[-1]), rolled)


def test_the_first_step_may_find_nothing_kept(model, images):
    assert torch.equal(model(images, drop_state=False, forward_passes=1)[0], model.feedforward(images))


def test_nothing_is_kept_on_the_one_model_or_in_a_copy(model, images):
    expected = model.lrm.rollout(images, 2)
    model(images + 1, steering_signals=[signal(9.0)])
    assert same(model.lrm.rollout(images, 2), expected)
    fresh = copy.deepcopy(model)  # what is kept holds a graph of gradients, which cannot be copied
    assert torch.equal(fresh(images, drop_state=False)[0], model(images)[0])


def test_two_threads_sharing_a_model_agree(model, images):
    twin = SteerableLRM(model.feedforward, CONNECTIONS, 3, img_size=16).eval()
    twin.lrm = model.lrm
    how = [{"steering_signals": [signal(float(i))]} for i in range(4)]
    expected = [model(images + i, **how[i]) for i in range(4)]
    wrong = []

    def work(index: int) -> None:
        front = (model, twin)[index % 2]
        for _ in range(15):
            if not same(front(images + index, **how[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_call_that_raises_leaves_no_trace(model, images):
    steered = model(images, steering_signals=[signal()])
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    model(images, forward_passes=1, steering_signals=[signal()])
    for wrong in (
        {"x": images, "steering_signals": [signal(9.0) | {"activation": torch.randn(2, 4)}]},
        {"x": images.double()},
        {"x": images, "forward_passes": 0},
    ):
        with pytest.raises((ValueError, RuntimeError)):
            model(**wrong)
    assert torch.equal(model(images, drop_state=False, forward_passes=1)[0], steered[1])
    assert same(model(images, steering_signals=[signal()]), steered)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


# The backbone


@pytest.mark.parametrize("training", [False, True])
def test_the_backbone_is_left_as_it_was_and_may_be_wrapped_twice(images, training):
    torch.manual_seed(0)
    net = toy().train(training)
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [(m.training, getattr(m, "inplace", None)) for m in net.modules()]
    first = SteerableLRM(net, CONNECTIONS, img_size=16)
    assert [m.training for m in net.modules()] == [training] * len(modes)
    outputs = first.eval()(images)
    second = LRMNet(net, CONNECTIONS[:1], img_size=16).eval()
    second(images)
    assert same(first(images), outputs)
    net.train(training)
    assert [(m.training, getattr(m, "inplace", None)) for m in net.modules()] == modes
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_in_training_every_pass_runs_whole(images):
    """Dropout and batch statistics of what no feedback reaches are each pass's own, as published."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), *toy()[2:4], *toy()[4:])
    model = LRMNet(net, [{"source": "9", "destination": "5"}], forward_passes=3, img_size=16).train()
    model(images)
    assert net[1].num_batches_tracked == 3
    statistics = net[1].running_mean.clone()
    model.eval()(images)
    assert torch.equal(net[1].running_mean, statistics)


# Weights


def test_published_keys_load_and_come_back(model, images):
    published = ours_to_published(model.state_dict(), model.lrm.connections)
    assert "lrm.3_modulation.from_7_to_3.rescale.norm.weight" in published
    assert published["lrm.3_modulation.from_7_to_3.neg_scale"].shape == (1,)
    assert "feedforward.3.running_mean" in published
    other = SteerableLRM(toy(), CONNECTIONS, 3, img_size=16).eval()
    assert not torch.allclose(other(images)[-1], model(images)[-1])
    other.load_state_dict(published, strict=True)
    assert same(other(images), model(images))
    again = published_to_ours(published, model.lrm.connections)
    wanted = model.lrm.state_dict()
    assert again.keys() == wanted.keys()
    assert all(torch.equal(again[key], wanted[key]) for key in wanted)


def test_the_spellings_of_published_checkpoints_load():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = toy()

        def forward(self, x):
            return self.features(x)

    connections = [{key: f"features.{value}" for key, value in c.items()} for c in CONNECTIONS]
    model, other = (SteerableLRM(Named(), connections, img_size=16) for _ in range(2))
    randomise(model)
    published = ours_to_published(model.state_dict(), model.lrm.connections)
    assert "lrm.features_3_modulation.from_features_7_to_features_3.neg_scale" in published
    spelled = {
        "module." + key.replace("feedforward.", "backbone.").replace("features_", "features"): value
        for key, value in published.items()
    }
    assert "module.lrm.features3_modulation.from_features7_to_features3.neg_scale" in spelled
    assert "module.backbone.features.0.weight" in spelled
    other.load_state_dict(spelled, strict=True)
    wanted = model.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in other.state_dict().items())


def test_our_own_keys_load(model, images):
    for weights in (model.state_dict(), model.lrm.state_dict()):
        other = SteerableLRM(toy(), CONNECTIONS, 3, img_size=16).eval()
        other.load_state_dict(weights)
        assert same(other(images), model(images))


def _without(key):
    return lambda weights: weights.pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("feedforward.0.weight"), r"missing \['feedforward.0.weight'\]"),
        (_without("lrm.0_modulation.from_4_to_0.rescale.norm.bias"), r"missing \['lrm.0_.*rescale.norm.bias'\]"),
        (_without("lrm.0_modulation.from_4_to_0.neg_scale"), r"pos_scale of lrm.0_.*expected neg_scale and pos_scale"),
        (
            lambda w: w.update({"lrm.0_modulation.from_7_to_0.pos_scale": torch.ones(1)}),
            r"unexpected \['lrm.0_modulation.from_7_to_0.pos_scale'\]",
        ),
        (
            lambda w: w.update({"lrm.0_modulation.from_4_to_0.modulation.bias": torch.ones(9)}),
            r"lrm.0_.*modulation.bias: got \(9,\), expected \(4,\)",
        ),
        (lambda w: w.update({"backbone.0.weight": torch.ones(4, 3, 3, 3)}), "'backbone.0.weight' is given twice"),
    ],
)
def test_weights_that_do_not_fit_raise_in_published_names_and_load_nothing(model, change, message):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = {k: v + 1 for k, v in ours_to_published(model.state_dict(), model.lrm.connections).items()}
    change(weights)
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(weights, strict=True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_weights_may_be_incomplete_only_on_demand(model):
    weights = ours_to_published(model.state_dict(), model.lrm.connections)
    bias = weights.pop("feedforward.7.bias")
    weights["feedforward.7.weight"] = weights["feedforward.7.weight"] + 1
    result = model.load_state_dict(weights, strict=False)
    assert result.missing_keys == ["backbone.7.bias"]
    assert torch.equal(model.feedforward[7].weight, weights["feedforward.7.weight"])
    assert torch.equal(model.feedforward[7].bias, bias)


def test_the_published_connections_grow_from_model_to_model():
    one, two, three = PUBLISHED_CONNECTIONS.values()
    assert two[: len(one)] == one
    assert three[: len(two)] == two
    assert [len(c) for c in (one, two, three)] == [2, 4, 5]


# Mistakes


@pytest.mark.parametrize(
    ("connections", "message"),
    [
        ([{"source": "77", "destination": "3"}], r"no step '77' to be the source of a connection"),
        ([{"source": "7", "destination": "4"}], "not followed by a rectifier.*choices: 0, 3"),
        (
            [{"source": "7", "target": "3"}],
            "the keys source, target, expected source and destination",
        ),
        ([{}], "got a connection with the keys none"),
        ([], "at least one connection"),
    ],
)
def test_connections_that_make_no_sense_raise(connections, message):
    with pytest.raises(ValueError, match=message):
        SteerableLRM(toy(), connections, img_size=16)


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        ([signal() | {"source": "6"}], "cannot steer '6'; sources of feedback: 7, 4, 5"),
        ([signal() | {"activation": torch.randn(2, 4)}], r"got shape \(2, 4\), expected shape \(batch, 5,\)"),
        ([signal() | {"activation": torch.randn(5)}], "expected shape"),
        ([signal() | {"activation": [1.0] * 5}], "got list, expected a tensor"),
        ([signal(), signal()], "steered twice"),
        (
            [signal(alhpa=0.5)],
            "got unknown keys: alhpa; missing keys: none; expected source, activation, strength",
        ),
        (
            [{"source": "7", "template": torch.randn(2, 5)}],
            "keys: template; missing keys: activation, strength",
        ),
        ([signal((1, 2, 3))], r"got \(1, 2, 3\), expected a number or a pair \(negative, positive\)"),
        ([signal("strong")], "got 'strong'"),
        ([signal(float("nan"))], "strength: got nan"),
        ([signal(None)], "got None"),
        ([signal(batch=3)], "batches differ: got images 2, activation for '7' 3"),
    ],
)
@pytest.mark.parametrize("passes", [1, 2])
def test_signals_that_make_no_sense_raise_even_where_no_pass_is_steered(model, images, signals, message, passes):
    with pytest.raises(ValueError, match=message):
        model(images, forward_passes=passes, steering_signals=signals)


def test_stepping_on_with_another_batch_raises(model, images):
    model(images)
    with pytest.raises(ValueError, match=r"images 3, kept state 2; expected one number, or 1\. drop_state=True"):
        model(torch.randn(3, 3, 16, 16), drop_state=False)


@pytest.mark.parametrize("passes", [0, -1])
def test_no_pass_at_all_raises(model, images, passes):
    with pytest.raises(ValueError, match=f"forward_passes: got {passes}, expected a whole number of at least 1"):
        model(images, forward_passes=passes)
    with pytest.raises(ValueError, match=f"forward_passes: got {passes}, expected a whole number of at least 1"):
        LRMNet(toy(), CONNECTIONS, forward_passes=passes, img_size=16)


def test_the_one_model_takes_published_paths_only_on_demand():
    connections = [Connection(**c) for c in CONNECTIONS]
    plain = LRM(toy(), connections, 16)
    assert not any(isinstance(path, PublishedFeedback) for path in plain.paths.values())
    published = LRM(toy(), connections, 16, feedback=PublishedFeedback)
    assert all(isinstance(path, PublishedFeedback) for path in published.paths.values())


class Reused(nn.Module):
    """One convolution that is called twice, each time before a rectifier; one pooled rectifier that is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.relu, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Linear(4, 5)

    def forward(self, x):
        x = self.relu(self.twice(self.first(x)))
        return self.fc(self.relu(self.twice(x)).mean((2, 3)))


def test_a_reused_module_sends_from_its_last_call_and_receives_in_all_as_published(images):
    """The reference are hooks on the module, as in the published code."""
    torch.manual_seed(0)
    net = Reused()
    model = LRMNet(net, [{"source": "relu", "destination": "twice"}], img_size=16).eval()
    randomise(model)
    path = model.lrm.paths["relu->twice"]
    sent = []
    keep = net.relu.register_forward_hook(lambda module, inputs, output: sent.append(output.clone()))
    first = net(images)
    keep.remove()
    hook = net.twice.register_forward_hook(lambda module, inputs, output: output + output * path(sent[1], output))
    second = net(images)
    hook.remove()
    outputs = model(images)
    torch.testing.assert_close(outputs[0], first)
    torch.testing.assert_close(outputs[1], second)
    assert not torch.allclose(first, second)
