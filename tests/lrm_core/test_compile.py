"""A pass compiles as one graph, in both modes; it runs in bf16 by autocast, and keeps the memory format of images."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lrm_core import LRM, Connection, Steer
from lrm_core.backbones import find_backbone

CASES = [
    "torchvision resnet18", "torchvision alexnet", "torchvision vgg11", "torchvision mobilenet_v3_small",
    "torchvision convnext_tiny", "torchvision densenet121", "timm resnet18", "timm vit_tiny_patch16_224",
    "timm efficientnet_lite0", "ours efficientnet_lite0",
]  # fmt: skip
QUICK = ("torchvision resnet18", "timm vit_tiny_patch16_224", "ours efficientnet_lite0")


def wrapped(case: str) -> LRM:
    """A network of ten classes and 64 px with random weights, and feedback that acts."""
    torch.manual_seed(0)
    library, name = case.split()
    if library == "timm":
        import timm

        size = {"img_size": 64} if "vit" in name else {}
        net = timm.create_model(name, num_classes=10, **size)
    elif library == "torchvision":
        from torchvision import models

        net = models.get_model(name, weights=None, num_classes=10)
    else:
        entry = find_backbone(name)
        return trained(
            LRM(entry.build(num_classes=10), entry.connections, 64, feedback=entry.feedback, rule=entry.rule)
        )
    return trained(LRM.wrap(net, 64, print=False))


def trained(model: LRM) -> LRM:
    with torch.no_grad():
        for path in model.paths.values():
            path.projection.weight.normal_(0, 0.1)
    return model


def classifier(model: LRM) -> str:
    return next(name for name in model.sources if model.activation_shapes[name] == (10,))


def three_passes(run, model: LRM) -> list[torch.Tensor]:
    """The outputs of a first pass, of one with its state, and of one with its state and a goal."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    goal = Steer(classifier(model), torch.randn(1, 10, generator=torch.Generator().manual_seed(2)), 2.0)
    torch.manual_seed(3)
    first, state = run(images)
    second, _ = run(images, state)
    third, state = run(images, state, [goal])
    assert state.num_passes == 2
    return [first, second, third, *state.activations.values()]


def one_graph(case: str) -> None:
    """A compiled model gives the numbers of the plain one in both modes, and the same running statistics."""
    model = wrapped(case)
    for training in (False, True):
        model.train(training)
        other = copy.deepcopy(model)
        expected = three_passes(model, model)
        outputs = three_passes(torch.compile(other, fullgraph=True, backend="eager"), other)
        for output, wanted in zip(outputs, expected, strict=True):
            torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5)
        assert not torch.equal(outputs[1], outputs[2])
        ours, theirs = other.state_dict(), model.state_dict()
        assert all(torch.allclose(ours[key], value) for key, value in theirs.items()), "other running statistics"


def gradients(case: str) -> None:
    """A compiled model has the gradients of the plain one."""
    model = wrapped(case).train()
    other = copy.deepcopy(model)
    for run, each in ((model, model), (torch.compile(other, fullgraph=True, backend="aot_eager"), other)):
        sum(output.square().mean() for output in three_passes(run, each)[:3]).backward()
    for (name, parameter), same in zip(model.named_parameters(), other.parameters(), strict=True):
        assert parameter.grad is not None, name
        torch.testing.assert_close(same.grad, parameter.grad, rtol=1e-3, atol=1e-4)


def changes_of_mode(case: str) -> None:
    """A compiled model sees that it, or one of its modules, has changed its mode."""
    model = wrapped(case).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    images = torch.randn(2, 3, 64, 64)
    dropout = next(module for module in model.modules() if isinstance(module, nn.Dropout))
    for module, mode in ((model, False), (model, True), (model, False), (dropout, True)):
        module.train(mode)
        outputs = []
        for run in (model.backbone, lambda images: compiled(images)[0]):
            torch.manual_seed(0)
            outputs.append(run(images).detach())
        assert torch.equal(*outputs), (type(module).__name__, mode)


CHECKS = {check.__name__: check for check in (one_graph, gradients, changes_of_mode)}


@pytest.mark.parametrize(
    ("check", "case"),
    [
        *(("one_graph", case) for case in QUICK),
        *(pytest.param("one_graph", case, marks=pytest.mark.whole) for case in CASES if case not in QUICK),
        ("gradients", "torchvision resnet18"),
        ("changes_of_mode", "torchvision alexnet"),
    ],
)
def test_a_pass_compiles_as_one_graph(check, case):
    """In a process of its own, since a compiler cannot read the checks of types that tests add."""
    if case.startswith("timm"):
        pytest.importorskip("timm")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    ran = subprocess.run(
        [sys.executable, __file__, check, case], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.mark.parametrize("case", ["torchvision resnet18", "ours efficientnet_lite0"])
def test_autocast_to_bf16_gives_near_numbers(case):
    model = wrapped(case).eval()
    with torch.no_grad():
        expected = three_passes(model, model)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = three_passes(model, model)
            images = torch.randn(2, 3, 64, 64)
            assert torch.equal(model(images)[0], model.backbone(images))
    for output, wanted in zip(outputs[:3], expected[:3], strict=True):
        assert output.dtype == torch.bfloat16
        assert (output.float() - wanted).abs().max() <= 0.05 * wanted.abs().max()


@pytest.mark.parametrize("goals", [1, 4])
def test_what_is_channels_last_stays_so_through_feedback(goals):
    model = wrapped("torchvision resnet18").eval().to(memory_format=torch.channels_last)
    images = torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    names = list(model.destinations)
    with torch.no_grad():
        stem = model.stem(images)
        _, state = model.step(stem)
        steer = [Steer(classifier(model), torch.randn(goals, 10))]
        _, seen, changes = model.inspect(stem.expand(goals), state.expand(goals), steer, names)
        plain = model.step(stem.expand(goals), state.expand(goals), steer)[0]
        contiguous = model.to(memory_format=torch.contiguous_format)
        same = contiguous.rollout(images.contiguous().expand(goals, -1, -1, -1), 2, steer)[1]
    assert set(changes) == set(names)
    for name in names:
        assert seen[name].is_contiguous(memory_format=torch.channels_last), name
        assert not seen[name].is_contiguous(), name
    torch.testing.assert_close(plain, same, rtol=1e-3, atol=1e-4)


class Branches(nn.Module):
    """A step in place for each of: what the stem keeps, what a pass returns, and values that share memory."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.late, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, x):
        x = self.act(self.conv(x))
        y = self.late(x)
        y.relu_()
        flat = y.flatten(2)
        flat += 1
        y.mul_(2)
        return self.fc((y + x).mean((2, 3)) + flat.mean(2))


def test_steps_in_place_keep_what_a_pass_returns_and_reach_all_that_share_memory():
    torch.manual_seed(0)
    net = Branches()
    model = trained(LRM(net, [Connection("fc", "conv"), Connection("late", "conv")], 16).eval())
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        stem = model.stem(images)
        before = [value.clone() for value in stem.values.values()]
        for _ in range(2):
            output, state = model.step(stem)
            assert torch.equal(output, net(images))
            assert torch.equal(state.activations["late"], net.late(net.conv(images).relu()))
            names = ["late", "relu", "flatten", "add@1", "fc"]
            inside = model.inspect(stem, None, (), [n for n in names if n in model.graph.steps])[1]
            assert torch.equal(inside["late"], state.activations["late"])
            assert torch.equal(inside["relu"], inside["late"].relu())
            assert torch.equal(inside["flatten"], inside["relu"].flatten(2))
            assert torch.equal(inside["fc"], output)
    assert all(torch.equal(a, b) for a, b in zip(before, stem.values.values(), strict=True))


if __name__ == "__main__":
    CHECKS[sys.argv[1]](sys.argv[2])
