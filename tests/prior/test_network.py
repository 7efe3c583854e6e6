"""The prior's network: guidance, its null branch, and the conditions it does not have."""

import pytest
import torch

from prior.network import PriorNetwork


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = PriorNetwork(6, 4, 16, 2)
    for parameter in made.parameters():  # a new network's blocks are the identity, whatever the text
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return torch.randn(3, 4), torch.tensor([0, 5, 999]), torch.nn.functional.normalize(torch.randn(3, 6), dim=1)


def test_guidance_of_one_is_the_conditional_prediction(network, inputs):
    x, times, text = inputs
    conditional = network(x, times, text_embed=text)
    assert torch.equal(network.forward_with_cond_scale(x, times, cond_scale=1.0, text_embed=text), conditional)


def test_guidance_goes_along_the_line_from_the_null_text_to_the_text(network, inputs):
    x, times, text = inputs
    conditional = network(x, times, text_embed=text)
    null = network(x, times, text_embed=network.null_text.expand(3, 6))
    for scale in (0.0, 0.5, 3.0):
        guided = network.forward_with_cond_scale(x, times, cond_scale=scale, text_embed=text)
        torch.testing.assert_close(guided, null + scale * (conditional - null))
    assert not torch.allclose(conditional, null)


def test_the_null_branch_keeps_the_noisy_output(network, inputs):
    x, times, text = inputs
    nothing = network.forward_with_cond_scale(x, times, cond_scale=0.0, text_embed=text)
    other = network.forward_with_cond_scale(x + 1, times, cond_scale=0.0, text_embed=text)
    assert not torch.allclose(nothing, other)


def test_a_dropped_text_is_the_null_text(network, inputs):
    x, times, text = inputs
    dropped = network(x, times, text_embed=text, text_cond_drop_prob=1.0)
    assert torch.equal(dropped, network(x, times, text_embed=network.null_text.expand(3, 6)))
    torch.manual_seed(0)
    some = network(x.repeat(50, 1), times.repeat(50), text_embed=text.repeat(50, 1), text_cond_drop_prob=0.5)
    is_null = torch.isclose(some, dropped.repeat(50, 1), atol=1e-5).all(1)
    assert 40 < is_null.sum() < 110


def test_text_and_time_both_matter(network, inputs):
    x, times, text = inputs
    base = network(x, times, text_embed=text)
    assert not torch.allclose(network(x, times, text_embed=text.flip(0)), base)
    assert not torch.allclose(network(x, times + 100, text_embed=text), base)


@pytest.mark.parametrize(
    "condition",
    [{"text_encodings": torch.zeros(3, 2, 6)}, {"self_cond": torch.zeros(3, 4)}, {"image_cond_drop_prob": 0.1}],
)
def test_conditions_that_the_network_does_not_have_are_refused(network, inputs, condition):
    x, times, text = inputs
    with pytest.raises(
        ValueError, match=f"got {next(iter(condition))}, but .* conditioned on the text embedding alone"
    ):
        network(x, times, text_embed=text, **condition)


def test_a_new_network_learns_in_every_parameter_within_two_steps(inputs):
    x, times, text = inputs
    torch.manual_seed(0)
    network = PriorNetwork(6, 4, 16, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        network(x, times, text_embed=text).square().sum().backward()
        optimizer.step()
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == ["null_text"]  # it learns where a text is dropped
