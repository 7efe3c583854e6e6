"""Modules without the random start of their weights: `lrm_base.building`."""

import pytest
import torch
from torch import nn

from lrm_base.building import no_random_start

MAKERS = [
    lambda: nn.Linear(4, 4),
    lambda: nn.Conv2d(2, 2, 3),
    lambda: nn.MultiheadAttention(4, 2),
    lambda: nn.Embedding(4, 2),
]


@pytest.mark.parametrize("make", MAKERS)
def test_the_random_generator_does_not_notice(make) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with no_random_start():
        make()
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("make", MAKERS)
def test_no_weight_is_drawn(make) -> None:
    state = torch.get_rng_state()
    with no_random_start():
        make()
        assert torch.equal(torch.get_rng_state(), state)
    make()
    assert not torch.equal(torch.get_rng_state(), state)


def test_what_is_not_random_is_set() -> None:
    with no_random_start():
        norm = nn.BatchNorm2d(3)
    assert torch.equal(norm.weight, torch.ones(3))
    assert torch.equal(norm.running_var, torch.ones(3))
