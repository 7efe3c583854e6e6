"""Samplers against an exact denoiser and against dalle2-pytorch's own schedule and DDPM."""

import pytest
import torch
from torch import nn

from prior.sample import cosine_schedule, ddim, ddpm, posterior

SPREAD = 0.5  # standard deviation of the clean values round their mean


def posterior_mean(x, alpha, mean, spread=SPREAD):
    """The best possible denoiser for clean values N(mean, spread²): their expectation given the noisy x."""
    return mean + alpha.sqrt() * spread**2 / (alpha * spread**2 + 1 - alpha) * (x - alpha.sqrt() * mean)


def samples(steps, timesteps=1000, count=4000, **options):
    alphas = cosine_schedule(timesteps)
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(count, 1, generator=generator)
    noise = torch.randn(count, 1, generator=generator)
    drawn = ddim(lambda x, t: posterior_mean(x, alphas[t], mean), noise, alphas, steps, **options)
    return mean[:, 0], drawn[:, 0]


def slope(x, y):
    return (torch.cov(torch.stack([x, y]))[0, 1] / x.var()).item()


@pytest.mark.parametrize("timesteps", [100, 1000])
def test_the_schedule_is_that_of_dalle2_pytorch(timesteps):
    from dalle2_pytorch.dalle2_pytorch import NoiseScheduler

    scheduler = NoiseScheduler(beta_schedule="cosine", timesteps=timesteps, loss_type="l2")
    torch.testing.assert_close(cosine_schedule(timesteps), scheduler.alphas_cumprod, atol=1e-6, rtol=0)


@pytest.mark.parametrize("timesteps", [100, 1000])  # of the published priors and of ours
@pytest.mark.parametrize("steps", [1, 2, 5, 10, 64])
def test_an_exact_denoiser_is_recovered_in_any_number_of_steps(steps, timesteps):
    """The slope of samples on their means, where 1 is right; dalle2-pytorch's DDIM gives 0.80 at 2 and 1.03 at 64."""
    assert slope(*samples(steps, timesteps)) == pytest.approx(1.0, abs=0.02)


def test_many_steps_recover_the_spread_too():
    mean, drawn = samples(64)
    assert (drawn - mean).std().item() == pytest.approx(SPREAD, rel=0.05)


def test_one_step_is_the_expectation():
    mean, drawn = samples(1)
    torch.testing.assert_close(drawn, mean, atol=0.01, rtol=0.0)


@pytest.mark.parametrize(("steps", "timesteps"), [(1, 7), (2, 7), (5, 7), (7, 7), (10, 1000), (64, 1000)])
def test_as_many_calls_as_steps_from_pure_noise_down_and_no_time_twice(steps, timesteps):
    times = []

    def denoise(x, time):
        times.append(time)
        return x

    ddim(denoise, torch.randn(2, 3), cosine_schedule(timesteps), steps)
    assert len(times) == steps
    assert times[0] == timesteps - 1
    assert times == sorted(set(times), reverse=True)
    if steps == timesteps:
        assert times[-1] == 0


class Exact(nn.Module):
    """The exact denoiser as dalle2-pytorch expects a prior's network."""

    dim, self_cond = 1, False

    def __init__(self, alphas):
        super().__init__()
        self.alphas, self.anchor = alphas, nn.Parameter(torch.zeros(()))

    def forward_with_cond_scale(self, x, times, *, text_embed, **_options):
        return posterior_mean(x, self.alphas[times][:, None], text_embed)


def test_full_eta_and_all_steps_agree_with_dalle2_pytorchs_ddpm(monkeypatch):
    from dalle2_pytorch import DiffusionPrior

    monkeypatch.setenv("TQDM_DISABLE", "1")
    timesteps, count = 50, 20_000
    alphas = cosine_schedule(timesteps)
    oracle = DiffusionPrior(
        Exact(alphas), image_embed_dim=1, timesteps=timesteps, condition_on_text_encodings=False, image_embed_scale=1.0
    )
    torch.manual_seed(0)
    mean = torch.full((count, 1), 0.7)
    theirs = oracle.p_sample_loop((count, 1), text_cond={"text_embed": mean}, timesteps=timesteps)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(count, 1, generator=generator)
    ours = ddim(lambda x, t: posterior_mean(x, alphas[t], mean), noise, alphas, timesteps, eta=1.0, generator=generator)
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        difference = ours.quantile(quantile) - theirs.quantile(quantile)
        assert abs(difference.item()) < 5 * SPREAD * 2.2 * (2 / count) ** 0.5  # five standard errors
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.03)


def test_without_eta_the_start_decides_and_with_it_the_generator_does():
    assert torch.equal(samples(10)[1], samples(10)[1])
    a, b, c = (samples(10, eta=1.0, generator=torch.Generator().manual_seed(seed))[1] for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("steps", [0, -1, 101])
def test_a_number_of_steps_that_the_schedule_cannot_give_is_refused(steps):
    with pytest.raises(ValueError, match=f"steps: got {steps}, expected a whole number from 1 to 100"):
        ddim(lambda x, _: x, torch.randn(1, 2), cosine_schedule(100), steps)


def test_eta_without_a_generator_is_refused():
    with pytest.raises(ValueError, match=r"eta: got 0\.5 without a generator, expected a generator or an eta of 0"):
        ddim(lambda x, _: x, torch.randn(1, 2), cosine_schedule(100), 5, eta=0.5)


@pytest.mark.parametrize("timesteps", [100, 1000])
def test_the_posterior_is_that_of_dalle2_pytorch(timesteps):
    from dalle2_pytorch.dalle2_pytorch import NoiseScheduler

    scheduler = NoiseScheduler(beta_schedule="cosine", timesteps=timesteps, loss_type="l2")
    found = posterior(scheduler.alphas_cumprod.double())
    torch.testing.assert_close(found.clean.float(), scheduler.posterior_mean_coef1, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.noisy.float(), scheduler.posterior_mean_coef2, atol=1e-3, rtol=1e-3)
    expected = scheduler.posterior_log_variance_clipped
    torch.testing.assert_close(
        found.log_variance[1:].float(), expected[1:], atol=1e-2, rtol=0
    )  # at 0 both stand for none


def test_ddpm_is_ddim_with_full_eta_and_all_steps():
    alphas = cosine_schedule(100).double()
    generator = torch.Generator().manual_seed(2)
    mean, noise = torch.randn(500, 1, generator=generator), torch.randn(500, 1, generator=generator)

    def denoise(x, time):
        return posterior_mean(x, alphas[time], mean)

    found = ddpm(denoise, noise, posterior(alphas), generator=torch.Generator().manual_seed(3))
    again = ddim(denoise, noise, alphas, 100, eta=1.0, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, again, atol=1e-5, rtol=0)
    assert slope(mean[:, 0], found[:, 0]) == pytest.approx(1.0, abs=0.1)
    assert (found - mean).std().item() == pytest.approx(SPREAD, rel=0.1)


def test_single_steps_follow_one_another_to_the_same_end():
    alphas = cosine_schedule(7)
    steps = posterior(alphas)

    def denoise(x, time):
        return posterior_mean(x, alphas[time], 0.3)

    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    whole = ddpm(denoise, noise, steps, generator=torch.Generator().manual_seed(1))
    generator, x = torch.Generator().manual_seed(1), noise
    for time in range(6, -1, -1):
        x = ddpm(denoise, x, steps, generator=generator, times=[time])
    assert torch.equal(x, whole)
