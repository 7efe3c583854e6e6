"""Attacks beside geometry and a second implementation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("art", reason="needs the extra `evaluate`")

from lrm_lab.attacks import PLAIN, Attacker, Normalised, RolledOut, frozen, make_targets

CPU, EPSILON = torch.device("cpu"), 2 / 255


@pytest.fixture(scope="module")
def attacker(small):
    return Attacker(RolledOut(small, 2), 32, 6, CPU)


def own_gradient(small, pixels, labels, *, through=True):
    """Of the second pass's loss, pass by pass; without `through` what the first pass leaves counts as given."""
    pixels = pixels.clone().requires_grad_()
    with torch.enable_grad():
        inputs = small.preprocessing.normalise(pixels)
        _, state = small.model(inputs)
        output, _ = small.model(inputs, state if through else state.detach())
        return torch.autograd.grad(F.cross_entropy(output, labels, reduction="sum"), pixels)[0]


def test_attacks_are_led_by_the_gradient_through_all_passes(small, attacker, grey):
    pixels, labels = grey
    found = torch.from_numpy(attacker.estimator.loss_gradient(pixels.numpy(), np.eye(6)[labels]))
    expected = own_gradient(small, pixels, labels)
    scale = float((found * expected).sum() / expected.square().sum())  # the library's loss is the mean
    torch.testing.assert_close(found, scale * expected, atol=1e-4 * float(found.abs().max()), rtol=1e-4)
    short = own_gradient(small, pixels, labels, through=False)
    assert F.cosine_similarity(expected.flatten(1), short.flatten(1)).min() < 0.99


def test_fgsm_is_one_step_along_the_sign_of_the_gradient(small, attacker, grey):
    found = attacker.fgsm(*grey, EPSILON)
    expected = (grey[0] + EPSILON * own_gradient(small, *grey).sign()).clamp(0, 1)
    torch.testing.assert_close(found, expected)


def test_pgd_reaches_the_loss_of_a_second_implementation(small, attacker, grey):
    pixels, labels = grey
    steps, current = 10, pixels
    for _ in range(steps):
        current = current + 2.5 * EPSILON / steps * own_gradient(small, current, labels).sign()
        current = current.clamp(pixels - EPSILON, pixels + EPSILON).clamp(0, 1)
    target = RolledOut(small, 2)
    loss = {
        name: F.cross_entropy(target(x), labels, reduction="none").mean()
        for name, x in {
            "clean": pixels,
            "second": current,
            "library": attacker.pgd(pixels, labels, EPSILON, steps, random_start=False),
            "random start": attacker.pgd(pixels, labels, EPSILON, steps),
        }.items()
    }
    assert loss["library"] >= 0.999 * loss["second"] > 1.5 * loss["clean"]
    assert loss["random start"] >= 0.98 * loss["second"]


def test_on_a_linear_network_the_attacks_fool_what_geometry_allows_and_nothing_else():
    generator = torch.Generator().manual_seed(1)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 6, bias=False)).requires_grad_(False)
    linear[1].weight.copy_(torch.randn(6, 192, generator=generator))
    pixels = 0.3 + 0.4 * torch.rand(60, 3, 8, 8, generator=generator)  # the range 0–1 limits nothing
    labels = linear(pixels).argmax(1)
    logits, weight = linear(pixels), linear[1].weight
    margins = logits.gather(1, labels[:, None]) - logits
    reach = (weight[labels][:, None] - weight[None]).abs().sum(-1)  # that ε of every pixel moves a margin by, over ε
    radii = (margins / reach).nan_to_num(torch.inf).amin(1)
    epsilon = float(radii.median())
    attacker = Attacker(linear, 8, 6, CPU)
    pgd = linear(attacker.pgd(pixels, labels, epsilon)).argmax(1) == labels
    ensemble = linear(attacker.autoattack(pixels, labels, epsilon, 10, 10)).argmax(1) == labels
    safe, lost = radii > 1.001 * epsilon, radii < 0.9 * epsilon
    assert safe.sum() > 20
    assert lost.sum() > 20
    for right in (pgd, ensemble):
        assert right[safe].all()
        assert right[lost].float().mean() < 0.1


@pytest.mark.parametrize("name", ["fgsm", "pgd", "autoattack"])
def test_an_attack_stays_in_the_ball_and_in_range_and_repeats_itself(attacker, grey, name):
    epsilon = 0.25  # the ensemble leaves what it cannot fool as it is
    pixels, labels = ((grey[0] - 0.5) * 12 + 0.5).clamp(0, 1)[:8], grey[1][:8]
    more = (3, 5) if name == "autoattack" else ()
    states = np.random.get_state()[1], torch.get_rng_state()  # noqa: NPY002
    first, second = (getattr(attacker, name)(pixels, labels, epsilon, *more) for _ in range(2))
    assert torch.equal(first, second)
    assert np.array_equal(states[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(states[1], torch.get_rng_state())
    assert (first - pixels).abs().max() <= epsilon + 1e-6
    assert (first - pixels).abs().max() > 0.9 * epsilon
    assert first.min() == 0
    assert first.max() == 1


def test_another_seed_starts_elsewhere(small, attacker, grey):
    other = Attacker(RolledOut(small, 2), 32, 6, CPU, seed=1)
    pixels, labels = grey[0][:4], grey[1][:4]
    assert not torch.equal(other.pgd(pixels, labels, EPSILON, 2), attacker.pgd(pixels, labels, EPSILON, 2))


def test_targets_are_every_pass_and_the_twin(small, grey):
    targets = make_targets(small, small.model.backbone)
    assert list(targets) == ["pass1", "pass2", PLAIN]
    assert isinstance(targets[PLAIN], Normalised)
    torch.testing.assert_close(targets[PLAIN](grey[0]), targets["pass1"](grey[0]))
    assert list(make_targets(small, None)) == ["pass1", "pass2"]


def test_networks_are_as_they_were_even_after_an_error(make_network):
    net = make_network()
    net.fc.requires_grad_(False)
    net.relu.eval()

    def modes():
        return [p.requires_grad for p in net.parameters()], [m.training for m in net.modules()]

    def fail():
        with frozen([net]):
            raise RuntimeError(f"inside: {any(map(any, modes()))}")

    before = modes()
    with pytest.raises(RuntimeError, match="inside: False"):
        fail()
    assert modes() == before == ([True, True, False, False], [True, True, False, True, True])
