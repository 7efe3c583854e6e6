"""The feedback model: multiplicative, stateless, exact, and clear about mistakes."""

import threading

import pytest
import torch
from torch import nn

from lrm_core import LRM, Connection, State, Steer
from lrm_core.backbones import BACKBONES, AttentionPool, MiniNet
from lrm_core.train import begin_looking


def toy() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6),
        nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


CONNECTIONS = (Connection("7", "3"), Connection("4", "0"), Connection("5", "3"))


@pytest.fixture
def model() -> LRM:
    torch.manual_seed(0)
    lrm = LRM(toy(), CONNECTIONS, 16).eval()
    for path in lrm.paths.values():
        nn.init.normal_(path.projection.weight)
    return lrm


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def goal(strength: float | tuple[float, float] = 1.0, mix: float = 1.0) -> Steer:
    return Steer("7", torch.randn(3, 5, generator=torch.Generator().manual_seed(2)), strength, mix)


def test_the_first_pass_is_the_plain_backbone(model, images):
    assert torch.equal(model(images)[0], model.backbone(images))


def test_gain_zero_is_the_plain_backbone(model, images):
    for path in model.paths.values():
        nn.init.zeros_(path.gain)
    assert torch.equal(model.rollout(images, 3)[-1], model.backbone(images))


def test_strength_zero_switches_off_only_the_steered_source(images):
    torch.manual_seed(0)
    lrm = LRM(toy(), CONNECTIONS[:1], 16).eval()
    nn.init.normal_(lrm.paths["7->3"].projection.weight)
    assert torch.equal(lrm.rollout(images, 2, [goal(0.0)])[-1], lrm.backbone(images))
    assert not torch.equal(lrm.rollout(images, 2, [goal(1.0)])[-1], lrm.backbone(images))


def test_an_untrained_model_repeats_its_first_pass(images):
    outputs = LRM(toy(), CONNECTIONS, 16).eval().rollout(images, 3)
    assert torch.equal(outputs[0], outputs[2])


def test_stepping_equals_rollout(model, images):
    outputs = model.rollout(images, 3, [goal(2.0)])
    first, state = model(images)
    second, state = model(images, state, [goal(2.0)])
    third, state = model(images, state, [goal(2.0)])
    assert all(torch.equal(a, b) for a, b in zip(outputs, (first, second, third), strict=True))
    assert state.num_passes == 3


def test_feedback_is_x_plus_x_times_f(images):
    torch.manual_seed(0)
    lrm = LRM(toy(), CONNECTIONS[:1], 16).eval()
    path = lrm.paths["7->3"]
    nn.init.normal_(path.projection.weight)
    first, state = lrm(images)
    _, inside, changes = lrm.inspect(lrm.stem(images), state, (), ["3"])
    x = lrm.backbone[:4](images)
    activation = torch.tanh(nn.functional.layer_norm(first, (5,)))
    factor = activation @ path.projection.weight.T  # gain 1
    torch.testing.assert_close(changes["3"], x * factor[:, :, None, None])
    torch.testing.assert_close(inside["3"], x + x * factor[:, :, None, None])


def test_what_is_absent_stays_absent(model):
    """A feature that is zero cannot be raised by any goal."""
    nn.init.zeros_(model.backbone[3].weight)
    nn.init.zeros_(model.backbone[3].bias)
    outputs = model.rollout(torch.randn(3, 3, 16, 16), 3, [goal(50.0)])
    assert torch.equal(outputs[0], outputs[-1])


def test_an_adding_model_adds_the_same_factor_and_a_multiplying_one_scales_by_it(images):
    torch.manual_seed(0)
    multiplying = LRM(toy(), CONNECTIONS, 16, rule="multiply").eval()
    for path in multiplying.paths.values():
        nn.init.normal_(path.projection.weight)
    adding = LRM(multiplying.backbone, CONNECTIONS, 16, rule="add").eval()
    adding.load_state_dict(multiplying.state_dict())
    _, state = adding(images)
    x = adding.backbone[:4](images)
    seen = {}
    for lrm in (multiplying, adding):  # only the late destination: what reaches it is alike in both
        lrm.paths["4->0"].gain.data.zero_()
        seen[lrm.rule] = lrm.inspect(lrm.stem(images), state, [goal(2.0)], ["3"])
    factor = seen["add"][2]["3"]
    torch.testing.assert_close(seen["add"][1]["3"], x + factor)
    torch.testing.assert_close(seen["multiply"][2]["3"], x * factor)
    torch.testing.assert_close(seen["multiply"][1]["3"], x + x * factor)


def test_only_an_adding_model_finds_what_is_not_there(images):
    """A destination that is zero everywhere stays zero by multiplication, and is filled by addition."""
    found = {}
    for rule in ("multiply", "add"):
        torch.manual_seed(0)
        lrm = LRM(toy(), CONNECTIONS[:1], 16, rule=rule).eval()
        nn.init.zeros_(lrm.backbone[3].weight)
        nn.init.zeros_(lrm.backbone[3].bias)
        nn.init.normal_(lrm.paths["7->3"].projection.weight)
        _, state = lrm(images)
        _, inside, _ = lrm.inspect(lrm.stem(images), state, [goal(5.0)], ["3"])
        found[rule] = inside["3"]
    assert not found["multiply"].any()
    assert (found["add"] > 0).any()


@pytest.mark.parametrize("rule", ["multiply", "add"])
def test_gain_zero_is_the_plain_small_network_too(rule):
    torch.manual_seed(0)
    entry = BACKBONES["mini"]
    model = LRM(MiniNet(5, (8, 8, 8, 8, 16)), entry.connections, 32, rule=rule).eval()
    begin_looking(model, entry, 6.0)
    for path in model.paths.values():
        nn.init.normal_(path.projection.weight)
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model.rollout(images, 3)[-1], model.backbone(images))
    for path in model.paths.values():
        nn.init.zeros_(path.gain)
    assert torch.equal(model.rollout(images, 3)[-1], model.backbone(images))


def test_templates_that_are_zero_are_average_pooling_and_learn_nothing():
    torch.manual_seed(0)
    net = MiniNet(5, (8, 8, 8, 8, 16)).eval()
    seen = {}
    net.layer3.register_forward_hook(lambda module, given, output: seen.update(maps=output))
    output = net(torch.randn(2, 3, 64, 64))
    assert seen["maps"].shape[-2:] == (4, 4)
    torch.testing.assert_close(output, net.fc(seen["maps"].mean((2, 3))))  # values start as what they read
    values = torch.rand(3, 7, 4, 5)
    for alike in (0.0, 2.5):  # the same answer everywhere is no preference
        pooled = AttentionPool()(values, torch.full((3, 6, 4, 5), alike))
        torch.testing.assert_close(pooled, values.mean((2, 3)), rtol=1e-6, atol=1e-6)
    output.sum().backward()
    assert not net.attend.weight.grad.any()
    assert net.value.weight.grad.any()


class Colours(nn.Module):
    """Sees red, green and blue; a template and a value for each. Places are weighed as in `MiniNet`."""

    def __init__(self):
        super().__init__()
        self.attend, self.value = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1, bias=False)
        self.templates, self.values, self.pool, self.fc = nn.ReLU(), nn.ReLU(), AttentionPool(), nn.Linear(3, 3)
        with torch.no_grad():
            for layer in (self.attend, self.value, self.fc):
                layer.weight.copy_(torch.eye(3).reshape(layer.weight.shape))
            for layer in (self.attend, self.fc):
                layer.bias.zero_()

    def forward(self, x):
        return self.fc(self.pool(self.values(self.value(x)), self.templates(self.attend(x))))


def test_a_goal_raises_the_weight_of_the_places_where_its_template_answers():
    model = LRM(Colours(), [Connection("fc", "attend")], 8).eval().requires_grad_(False)
    model.paths["fc->attend"].projection.weight.copy_(6 * torch.eye(3))
    image = torch.zeros(1, 3, 4, 8)
    image[:, 0, :, :6], image[:, 2, :, 6:] = 1.0, 1.0  # red, and less blue
    stem = model.stem(image)
    first, state = model.step(stem)
    torch.testing.assert_close(first, torch.tensor([[0.75, 0.0, 0.25]]))

    def look(label, strength):
        steer = Steer("fc", 9 * torch.eye(3)[label][None], strength)
        output, inside, _ = model.inspect(stem, state, [steer], ["templates"])
        weights = inside["templates"].mean(1)[0]  # (h, w)
        return output[0], weights[0, 0] / weights[0, -1]  # of a red and of a blue place

    for label, expected in ((0, lambda ratio: ratio > 3), (2, lambda ratio: ratio < 1 / 3)):
        output, ratio = look(label, (0.0, 1.0))
        assert expected(ratio)
        assert output[label] > first[0, label] + 0.1
        assert output.argmax() == label
    output, ratio = look(1, (0.0, 1.0))  # green is nowhere: no place is better than another
    assert ratio == 1
    torch.testing.assert_close(output, first[0])


def test_negative_and_positive_gain_act_on_their_own_sign(model, images):
    both = model.rollout(images, 2, [goal((1.0, 1.0))])[-1]
    assert torch.equal(both, model.rollout(images, 2, [goal(1.0)])[-1])
    assert not torch.equal(both, model.rollout(images, 2, [goal((0.0, 1.0))])[-1])
    assert not torch.equal(both, model.rollout(images, 2, [goal((1.0, 0.0))])[-1])


def test_mix_zero_keeps_the_models_own_feedback(model, images):
    model.paths["7->3"].gain.data.fill_(1.0)
    own = model.rollout(images, 2)[-1]
    torch.testing.assert_close(model.rollout(images, 2, [goal(1.0, mix=0.0)])[-1], own)
    half = model.rollout(images, 2, [goal(1.0, mix=0.5)])[-1]
    assert not torch.allclose(half, own)
    assert not torch.allclose(half, model.rollout(images, 2, [goal(1.0)])[-1])


def test_steering_from_the_first_pass_on_demand(model, images):
    usual = model.rollout(images, 2, [goal()])
    early = model.rollout(images, 2, [goal()], steer_first=True)
    assert torch.equal(usual[0], model.backbone(images))
    assert not torch.equal(early[0], usual[0])


def test_one_goal_serves_a_batch_and_one_image_serves_many_goals(model, images):
    target = torch.randn(1, 5)
    together = model.rollout(images, 2, [Steer("7", target)])[-1]
    torch.testing.assert_close(together[1:2], model.rollout(images[1:2], 2, [Steer("7", target)])[-1])
    stem = model.stem(images[:1])
    _, state = model.step(stem)
    goals = torch.randn(4, 5)
    many, _ = model.step(stem.expand(4), state.expand(4), [Steer("7", goals)])
    one, _ = model.step(stem, state, [Steer("7", goals[2:3])])
    torch.testing.assert_close(many[2:3], one)


def test_two_threads_agree(model, images):
    expected = [model.rollout(images + i, 3, [goal(float(i))])[-1] for i in range(4)]
    wrong = []

    def work(index: int) -> None:
        for _ in range(20):
            if not torch.equal(model.rollout(images + index, 3, [goal(float(index))])[-1], expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_call_that_raises_leaves_no_trace(model, images):
    before = model.rollout(images, 2)[-1]
    with pytest.raises(ValueError, match="expected shape"):
        model.rollout(images, 2, [Steer("7", torch.randn(3, 4), 9.0)])
    assert torch.equal(model.rollout(images, 2)[-1], before)


def test_the_backbone_is_left_as_it_was(images):
    net = toy().train()
    keys, modes = set(net.state_dict()), [m.training for m in net.modules()]
    statistics = net[3].running_mean.clone()
    LRM(net, CONNECTIONS, 16)
    assert set(net.state_dict()) == keys
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(net[3].running_mean, statistics)
    assert not any(m._forward_hooks for m in net.modules())


def test_two_wrappers_share_a_backbone_without_meeting(model, images):
    before = model.rollout(images, 2)[-1]
    other = LRM(model.backbone, CONNECTIONS[:1], 16).eval()
    nn.init.normal_(other.paths["7->3"].projection.weight)
    other.rollout(images, 2)
    assert torch.equal(model.rollout(images, 2)[-1], before)


def test_in_place_rectifiers_do_not_spoil_sources_or_gradients(images):
    torch.manual_seed(0)
    lrm = LRM(toy(), [Connection("2", "0")], 16)
    outputs = lrm.rollout(images, 2)
    sum(o.sum() for o in outputs).backward()
    _, state = lrm(images)
    assert (state.activations["2"] < 0).any(), "a convolution's output has negative values; its ReLU overwrote them"


@pytest.mark.parametrize("name", ["mini", "alexnet", "resnet18", "vgg11"])
def test_every_parameter_of_a_registered_backbone_gets_a_gradient(name):
    entry = BACKBONES[name]
    torch.manual_seed(0)
    size = entry.preprocessing.size if name == "mini" else 64
    model = LRM(entry.build(num_classes=7), entry.connections, size).eval()
    begin_looking(model, entry, 6.0)  # templates that are zero answer nowhere and rest
    for path in model.paths.values():
        nn.init.normal_(path.projection.weight, std=0.01)
    outputs = model.rollout(torch.randn(2, 3, size, size), 3)
    torch.stack([nn.functional.cross_entropy(o, torch.tensor([1, 2])) for o in outputs]).mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_a_misspelt_source_raises_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"no step 'clasifier.6' to be the source.*did you mean classifier.6"):
        LRM(BACKBONES["alexnet"].build(num_classes=3), [Connection("clasifier.6", "features.8")])


def test_names_are_matched_whole_not_as_substrings():
    with pytest.raises(ValueError, match=r"no step 'features\.1x'"):
        LRM(BACKBONES["alexnet"].build(num_classes=3), [Connection("classifier.6", "features.1x")])


@pytest.mark.parametrize(
    ("connections", "message"),
    [
        ([], "at least one"),
        ([Connection("7", "3")] * 2, "named twice"),
        ([Connection("7", "4")], "not followed by a rectifier.*choices: 0, 3"),
        ([Connection("0", "3")], "does not come after"),
    ],
)
def test_connections_that_make_no_sense_raise(connections, message):
    with pytest.raises(ValueError, match=message):
        LRM(toy(), connections, 16)


@pytest.mark.parametrize(
    ("steer", "message"),
    [
        ([Steer("6", torch.randn(3, 5))], "cannot steer '6'; sources of feedback: 7, 4, 5"),
        ([goal(), goal()], "steered twice"),
        ([Steer("7", torch.randn(5))], "expected shape"),
    ],
)
def test_goals_that_make_no_sense_raise(model, images, steer, message):
    with pytest.raises(ValueError, match=message):
        model.rollout(images, 2, steer)


class MapSource(nn.Module):
    """Its late map is a source of feedback, and its size depends on the image."""

    def __init__(self):
        super().__init__()
        self.first, self.relu1 = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()
        self.second, self.relu2, self.head = nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.relu2(self.second(self.relu1(self.first(x)))).mean((2, 3)))


@pytest.fixture
def with_map() -> LRM:
    torch.manual_seed(0)
    lrm = LRM(MapSource(), [Connection("relu2", "first"), Connection("head", "second")], 16).eval()
    for path in lrm.paths.values():
        nn.init.normal_(path.projection.weight)
    return lrm


def test_a_map_goal_has_the_size_that_the_images_give_its_source(with_map):
    large = torch.randn(2, 3, 32, 32)
    fitting = Steer("relu2", torch.rand(2, 6, 8, 8))
    outputs = with_map.rollout(large, 3, [fitting], steer_first=True)
    assert not torch.equal(outputs[-1], with_map.rollout(large, 3)[-1])
    with pytest.raises(ValueError, match=r"'relu2': got shape \(1, 6, 4, 4\), expected shape \(batch, 6, 8, 8\)"):
        with_map.rollout(large, 2, [Steer("relu2", torch.rand(1, 6, 4, 4))])
    with pytest.raises(ValueError, match=r"'relu2': got shape \(1, 5, 8, 8\), expected shape \(batch, 6, 4, 4\)"):
        with_map.rollout(large, 2, [Steer("relu2", torch.rand(1, 5, 8, 8))])


@pytest.mark.parametrize("steer_first", [False, True])
@pytest.mark.parametrize(("source", "shape"), [("head", (5,)), ("relu2", (6, 4, 4))])
def test_a_goal_of_another_batch_than_the_images_raises(with_map, source, shape, steer_first):
    steer = [Steer(source, torch.randn(2, *shape))]
    for count, expected in ((3, "1 or 3"), (1, "1")):
        with pytest.raises(ValueError, match=rf"goal for '{source}': got a batch of 2, expected {expected}, since"):
            with_map.rollout(torch.randn(count, 3, 16, 16), 2, steer, steer_first=steer_first)


def test_a_state_of_another_batch_than_the_images_raises(model, images):
    _, state = model(images[:2])
    with pytest.raises(ValueError, match=r"state of '\d': got a batch of 2, expected 1 or 3, since there are 3 images"):
        model(images, state)


def test_a_state_of_one_image_serves_several(model, images):
    image, target = images[:1], torch.randn(3, 5)
    _, state = model(image)
    several = [model(image.expand(3, -1, -1, -1), each, [Steer("7", target)])[0] for each in (state, state.expand(3))]
    torch.testing.assert_close(*several)


def test_a_goal_of_whole_numbers_is_a_goal(model, images):
    whole = torch.tensor([[3, 0, -1, 2, 5]])
    for first in (False, True):
        got = model.rollout(images, 2, [Steer("7", whole)], steer_first=first)[-1]
        assert torch.equal(got, model.rollout(images, 2, [Steer("7", whole.float())], steer_first=first)[-1])


def test_no_pass_at_all_raises(model, images):
    with pytest.raises(ValueError, match="passes: got 0"):
        model.rollout(images, 0)


def test_inspecting_the_stem_raises(model, images):
    model_without_early = LRM(model.backbone, CONNECTIONS[:1], 16).eval()
    with pytest.raises(ValueError, match="before all feedback"):
        model_without_early.inspect(model_without_early.stem(images), None, (), ["0"])


def test_a_state_can_be_detached(model, images):
    _, state = model(images)
    assert any(value.requires_grad for value in state.activations.values())
    detached = state.detach()
    assert isinstance(detached, State)
    assert not any(value.requires_grad for value in detached.activations.values())


def test_a_module_without_steps_says_why():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(
        ValueError, match=r"no step '7'.*only modules are steps here, since Branching cannot be read by"
    ):
        LRM(Branching(), CONNECTIONS)
