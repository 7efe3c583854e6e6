"""Checkpoints appear whole or not at all, and restore everything that was prepared or registered."""

import os

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from lrm_base import checkpoint
from lrm_base.checkpoint import load_latest_checkpoint, save_checkpoint


@pytest.fixture
def training():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    return accelerator, model, optimizer


def learn(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()


def test_weights_momentum_randomness_and_progress_come_back(training, tmp_path):
    accelerator, model, optimizer = training
    learn(model, optimizer)
    save_checkpoint(accelerator, tmp_path, 7, {"epoch": 2, "batch": 3})
    learn(model, optimizer)
    expected = model.weight.clone()
    learn(model, optimizer)
    assert load_latest_checkpoint(accelerator, tmp_path) == {"step": 7, "epoch": 2, "batch": 3}
    learn(model, optimizer)  # the same images are drawn, and the momentum is the same
    assert torch.equal(model.weight, expected)


def test_without_a_checkpoint_there_is_nothing_to_restore(training, tmp_path):
    assert load_latest_checkpoint(training[0], tmp_path / "none") is None


@pytest.mark.parametrize("moment", ["save_state", "progress", "rename"])
def test_a_run_killed_while_it_writes_leaves_the_checkpoint_before(training, tmp_path, monkeypatch, moment):
    accelerator, model, optimizer = training
    save_checkpoint(accelerator, tmp_path, 1, {})
    kept = model.weight.clone()
    learn(model, optimizer)

    def killed(*_arguments, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "save_state":
            patch.setattr(accelerator, "save_state", killed)
        elif moment == "progress":
            patch.setattr(checkpoint.json, "dumps", killed)
        else:
            patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(accelerator, tmp_path, 2, {})
    assert load_latest_checkpoint(accelerator, tmp_path) == {"step": 1}
    assert torch.equal(model.weight, kept)
    save_checkpoint(accelerator, tmp_path, 2, {})  # what was left lying about is no hindrance
    assert load_latest_checkpoint(accelerator, tmp_path) == {"step": 2}


def test_the_newest_two_are_kept(training, tmp_path):
    for step in (1, 2, 30, 4):
        save_checkpoint(training[0], tmp_path, step, {})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000004", "step-00000030"]


def test_the_same_step_may_be_written_again(training, tmp_path):
    save_checkpoint(training[0], tmp_path, 1, {"batch": 9})
    save_checkpoint(training[0], tmp_path, 1, {"batch": 0})
    assert load_latest_checkpoint(training[0], tmp_path) == {"step": 1, "batch": 0}
