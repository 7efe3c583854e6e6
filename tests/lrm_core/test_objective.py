"""The losses: what a goal asks for, what an absent goal must not do, and that the generator decides the rest."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrm_core import LRM, Connection
from lrm_core.backbones import Preprocessing
from lrm_core.objective import GoalConfig, Objective

CLASSES = 12
GROUPS = torch.zeros(2, CLASSES)
GROUPS[0, :4] = 1  # 0–3 are dogs
GROUPS[1, 3:7] = 1  # 3–6 are pets


def objective(groups=GROUPS, smoothing=0.0):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    )
    model = LRM(net, [Connection("4", "0")], 16)
    nn.init.normal_(model.paths["4->0"].projection.weight, std=0.1)
    made = Objective(model, Preprocessing(16), "4", CLASSES, groups, smoothing)
    return made


def remember(made):
    depth = made.memory.depth
    labels = torch.arange(CLASSES).repeat_interleave(depth)
    noise = torch.randn(len(labels), CLASSES, generator=torch.Generator().manual_seed(5))
    made.memory.add(5 * F.one_hot(labels, CLASSES).float() + noise, labels)
    return made


def batch(count=16):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 16, 16, generator=generator), torch.arange(count) % CLASSES


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def choose(goals, count=400, made=None):
    made = made or objective()
    present = torch.zeros(count, CLASSES)
    labels = torch.randint(0, CLASSES, (count, 2), generator=generator(9))
    present.scatter_(1, labels, 1.0)
    first = torch.randn(count, CLASSES, generator=generator(8))
    return present, first, *made._choose(present, first, goals, generator(7))


def test_seeing_is_the_cross_entropy_averaged_over_passes():
    made = objective(smoothing=0.1)
    pixels, labels = batch()
    loss, log = made(pixels, labels, 3, None, generator())
    outputs = made.model.rollout(made._prepare(pixels), 3)
    expected = sum(F.cross_entropy(o, labels, label_smoothing=0.1) for o in outputs) / 3
    torch.testing.assert_close(loss, expected)
    assert set(log) == {"loss/seeing"}


def test_nothing_is_steered_before_every_class_is_remembered():
    made = objective()
    pixels, labels = batch()
    loss, log = made(pixels, labels, 2, GoalConfig(), generator())
    assert set(log) == {"loss/seeing"}
    torch.testing.assert_close(loss, log["loss/seeing"])
    assert made.memory.counts.sum() == len(pixels)  # but these outputs are remembered


def test_the_share_of_looking_in_the_batch_is_its_share_of_the_loss():
    made = remember(objective())
    pixels, labels = batch()
    goals = GoalConfig(share=0.75)
    before = made.memory.counts.sum().item()
    loss, log = made(pixels, labels, 2, goals, generator())
    torch.testing.assert_close(loss.detach(), 0.25 * log["loss/seeing"] + 0.75 * log["loss/looking"])
    assert made.memory.counts.sum().item() - before == 4


def test_every_parameter_learns_from_looking():
    made = remember(objective())
    loss, _ = made(*batch(), 2, GoalConfig(), generator())
    loss.backward()
    still = {name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == set()


def test_the_generator_decides_scenes_and_goals():
    made = remember(objective())
    losses = []
    for seed in (0, 0, 1):
        state = {k: v.clone() for k, v in made.state_dict().items()}
        losses.append(made(*batch(), 2, GoalConfig(), generator(seed))[0].item())
        made.load_state_dict(state)
    assert losses[0] == losses[1] != losses[2]


def test_the_margin_favours_the_goal_in_the_loss():
    """With only present goals, the favoured goal costs less; with only absent ones, it costs more."""
    made = remember(objective())
    pixels, labels = batch(48)

    def looking(absent, margin):
        goals = GoalConfig(absent=absent, margin=margin, margin_slope=0.0, group=0.0, kinds={"blend": 1.0})
        return made._looking(pixels, labels, 48, 2, goals, generator())[0].item()

    assert looking(0.0, 2.0) < looking(0.0, 0.0)
    assert looking(1.0, 2.0) > looking(1.0, 0.0)


def test_the_margin_falls_with_the_strength_and_never_below_zero():
    made = remember(objective())
    pixels, labels = batch(48)

    def looking(strength, **margins):
        goals = GoalConfig(absent=0.0, strength=(strength, strength), group=0.0, **margins)
        return made._looking(pixels, labels, 48, 2, goals, generator())[0].item()

    assert looking(1.5, margin=2.0, margin_slope=-2.0) == pytest.approx(looking(1.5, margin=1.0, margin_slope=0.0))
    assert looking(1.5, margin=1.0, margin_slope=-9.0) == pytest.approx(looking(1.5, margin=0.0, margin_slope=0.0))


def test_the_target_of_an_absent_goal_is_what_is_there_half_and_half(monkeypatch):
    made = remember(objective())
    seen = {}
    real = F.cross_entropy

    def spy(output, target, **options):
        seen["target"] = target
        return real(output, target, **options)

    monkeypatch.setattr(F, "cross_entropy", spy)
    goals = GoalConfig(absent=1.0, group=0.0, kinds={"blend": 1.0})
    pixels, labels = batch(CLASSES)
    made._looking(pixels, labels, 40, 2, goals, generator())
    values = seen["target"].sort(1, descending=True).values
    assert set(values[:, 0].tolist()) <= {0.5, 1.0}  # 1 where both objects are of one class
    torch.testing.assert_close(values.sum(1), torch.ones(40))
    assert (values[:, 0] == 0.5).any()


def test_a_present_goal_is_one_class_of_the_scene():
    present, _, members, is_there = choose(GoalConfig(absent=0.0, group=0.0))
    assert is_there.all()
    assert members.sum(1).eq(1).all()
    assert (members * present).sum(1).eq(1).all()


def test_an_absent_goal_is_never_among_what_is_there():
    for hard in (0.0, 1.0):
        present, _, members, is_there = choose(GoalConfig(absent=1.0, hard=hard, group=0.0))
        assert not is_there.any()
        assert members.sum(1).eq(1).all()
        assert (members * present).sum() == 0


def test_a_hard_absent_goal_is_one_that_the_first_pass_ranks_high():
    present, first, members, _ = choose(GoalConfig(absent=1.0, hard=1.0, group=0.0))
    rank = first.masked_fill(present > 0, -torch.inf).argsort(1, descending=True).argsort(1)
    assert (rank * members).sum(1).max() < 10


def test_groups_serve_as_goals_without_clashing_with_what_is_there():
    present, _, members, is_there = choose(GoalConfig(absent=0.5, group=1.0), count=1000)
    is_group = members.sum(1) > 1
    assert (is_group & is_there).any()
    assert (is_group & ~is_there).any()
    groups = {tuple(row) for row in GROUPS.tolist()}
    assert all(tuple(row) in groups for row in members[is_group].tolist())
    overlap = (members * present).sum(1)
    assert overlap[is_there].min() >= 1
    assert overlap[~is_there].max() == 0


def test_classes_without_a_group_and_tables_without_groups_are_goals_by_themselves():
    _, _, members, _ = choose(GoalConfig(group=1.0))
    assert members[:, 7:].any()
    _, _, members, _ = choose(GoalConfig(group=1.0), made=objective(torch.zeros(0, CLASSES)))
    assert members.sum(1).eq(1).all()


def test_absent_goals_are_as_frequent_as_asked_for():
    *_, is_there = choose(GoalConfig(absent=0.3), count=4000)
    assert abs((~is_there).float().mean() - 0.3) < 0.03
