"""Samplers as plain functions of a denoiser, noise and a schedule.

Unusual: dalle2-pytorch's own DDIM makes one call too few and shrinks its samples (slope 0.89 at five steps, where 1 is
right). Ours recovers the distribution of an exact denoiser with any number of steps, even one. `ddpm` takes the
posterior as an argument, because the files of the published priors carry their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lrm_base.checks import finite_number, whole_number

Denoise = Callable[[Tensor, int], Tensor]
"""(noisy (b, m), time step) → predicted clean (b, m)."""


def cosine_schedule(timesteps: int) -> Float[Tensor, " t"]:
    """Cumulative signal variance ᾱ after each step (Nichol & Dhariwal 2021, eq. 17), as dalle2-pytorch computes it."""
    x = torch.linspace(0, timesteps, timesteps + 1, dtype=torch.float64)
    signal = torch.cos((x / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = (1 - signal[1:] / signal[:-1]).clamp(0, 0.999)
    return torch.cumprod(1 - betas, dim=0).float()


@torch.no_grad()
def ddim(
    denoise: Denoise,
    noise: Float[Tensor, "b m"],
    alphas: Float[Tensor, " t"],
    steps: int,
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b m"]:
    """Denoising diffusion implicit sampling (Song et al. 2021, eq. 12).

    Args:
        denoise: the network.
        noise: where sampling starts, standard normal.
        alphas: ᾱ of every time step that the network was trained with.
        steps: how often `denoise` is called, 1 to len(alphas).
        eta: how much noise is added at each step, 0 to 1. 0 adds none. 1 with all steps is ancestral sampling (DDPM).
        generator: draws that noise; needed unless `eta` is 0.

    Raises:
        ValueError: `steps` or `eta` is out of range, or `eta` is given without a generator.
    """
    steps = whole_number("steps", steps, 1, len(alphas))
    eta = finite_number("eta", eta, 0, 1)
    if eta and generator is None:
        raise ValueError(f"eta: got {eta:g} without a generator, expected a generator or an eta of 0")
    times = [len(alphas) * k // steps - 1 for k in range(steps, 0, -1)]  # evenly spaced, the last time step first
    x = noise
    for index, time in enumerate(times):
        clean = denoise(x, time)
        if index + 1 == len(times):
            return clean
        alpha, following = alphas[time], alphas[times[index + 1]]
        direction = (x - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        spread = eta * ((1 - following) / (1 - alpha) * (1 - alpha / following)).clamp(min=0).sqrt()
        x = following.sqrt() * clean + (1 - following - spread**2).clamp(min=0).sqrt() * direction
        if eta:
            x = x + spread * torch.randn(x.shape, generator=generator).to(x)
    raise AssertionError("unreachable: the last step returns")


class Posterior(NamedTuple):
    """The distribution of x before a noising step, given x after it and the clean value, for every time step.

    This is q(x_{t−1} | x_t, x_0) of Ho et al. 2020, eq. 6 and 7.
    """

    clean: Float[Tensor, " t"]
    """Weight of the clean value in the mean."""
    noisy: Float[Tensor, " t"]
    """Weight of the noisy value in the mean."""
    log_variance: Float[Tensor, " t"]


def posterior(alphas: Float[Tensor, " t"]) -> Posterior:
    """The posterior of a schedule. `alphas`: ᾱ of every time step."""
    before = torch.cat([alphas.new_ones(1), alphas[:-1]])
    betas = 1 - alphas / before
    variance = betas * (1 - before) / (1 - alphas)
    return Posterior(
        betas * before.sqrt() / (1 - alphas),
        (1 - before) * (1 - betas).sqrt() / (1 - alphas),
        variance.clamp(min=1e-20).log(),
    )


@torch.no_grad()
def ddpm(
    denoise: Denoise,
    noise: Float[Tensor, "b m"],
    given: Posterior,
    *,
    generator: torch.Generator,
    times: Sequence[int] | None = None,
) -> Float[Tensor, "b m"]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2). `denoise` is called for every time step, the last one first.

    Args:
        noise: where sampling starts, standard normal.
        given: the posterior of the schedule.
        generator: draws the noise that each step adds.
        times: only these time steps, in this order. The result is still noisy unless the last of them is 0.
    """
    x = noise
    for time in reversed(range(len(given.clean))) if times is None else times:
        mean = given.clean[time] * denoise(x, time) + given.noisy[time] * x
        drawn = torch.randn(x.shape, generator=generator).to(x)  # dalle2-pytorch draws at time 0 too
        x = mean + (0.5 * given.log_variance[time]).exp() * drawn if time else mean
    return x
