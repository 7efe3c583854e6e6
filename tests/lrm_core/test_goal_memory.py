"""The goals of training: remembered outputs of classes and of groups."""

import torch

from lrm_core.goal_memory import GoalMemory


def filled(classes=3, depth=4):
    memory = GoalMemory(classes, depth)
    outputs = torch.randn(classes * depth, classes, generator=torch.Generator().manual_seed(0))
    memory.add(outputs, torch.arange(classes).repeat_interleave(depth))
    return memory, outputs.reshape(classes, depth, classes)


def test_it_is_ready_only_when_every_class_was_seen_often_enough():
    memory = GoalMemory(2, 3)
    memory.add(torch.randn(5, 2), torch.tensor([0, 0, 0, 1, 1]))
    assert not memory.ready
    memory.add(torch.randn(1, 2), torch.tensor([1]))
    assert memory.ready


def test_a_prototype_is_the_mean_output_of_its_class_also_before_it_is_full():
    memory, outputs = filled()
    torch.testing.assert_close(memory.prototypes(), outputs.mean(1))
    young = GoalMemory(2, 10)
    young.add(torch.tensor([[2.0, 0.0], [4.0, 2.0]]), torch.tensor([1, 1]))
    assert young.prototypes().tolist() == [[0.0, 0.0], [3.0, 1.0]]


def test_the_oldest_output_gives_way():
    memory = GoalMemory(1, 2)
    memory.add(torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, dtype=torch.long))
    assert sorted(memory.outputs.flatten().tolist()) == [2.0, 3.0]


def test_what_is_remembered_carries_no_gradient():
    memory = GoalMemory(2, 2)
    memory.add(torch.randn(2, 2, requires_grad=True), torch.tensor([0, 1]))
    assert not memory.prototypes().requires_grad


def test_a_goal_for_one_class_is_its_mean_or_one_of_its_outputs():
    memory, outputs = filled()
    members = torch.eye(3)
    means = memory.draw(members, torch.Generator().manual_seed(0), single_output=0.0)
    torch.testing.assert_close(means, outputs.mean(1))
    ones = memory.draw(members, torch.Generator().manual_seed(0), single_output=1.0)
    for label in range(3):
        assert any(torch.allclose(ones[label], output) for output in outputs[label])


def test_a_goal_for_a_group_is_the_mean_over_its_classes():
    memory, outputs = filled()
    goal = memory.draw(torch.tensor([[1.0, 0.0, 1.0]]), torch.Generator(), single_output=0.0)
    torch.testing.assert_close(goal[0], (outputs[0].mean(0) + outputs[2].mean(0)) / 2)


def test_the_generator_decides_the_draw():
    memory, _ = filled()
    members = torch.eye(3).repeat(10, 1)

    def draw(seed):
        return memory.draw(members, torch.Generator().manual_seed(seed), single_output=0.5)

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_a_checkpoint_carries_the_memory():
    memory, _ = filled()
    other = GoalMemory(3, 4)
    other.load_state_dict(memory.state_dict())
    assert other.ready
    assert torch.equal(other.prototypes(), memory.prototypes())
