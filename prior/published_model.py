"""A prior in the published format: projections of the text, dalle2-pytorch's network, and its diffusion.

The published `TextToImageDiffusion` projects CLIP's text embedding and token encodings to the width of the backbone's
output. Unusual: padding is projected too, because the weights were trained that way. So an empty position among the
first 77 holds the offset of the projection, not the network's learned padding. The released `sample` takes one step
from uniform noise; we keep it only as a method that must be named. dalle2-pytorch is not needed here. The tests compare
with it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lrm_base.checks import finite_number, whole_number
from lrm_base.checks import seed as check_seed
from prior.published_network import Memory, PublishedNetwork
from prior.sample import Posterior, cosine_schedule, ddim, ddpm, posterior

TEXT_ENCODER = ("ViT-B-16", "openai")
"""The text encoder of the published priors: its name and its tag in OpenCLIP, for `TextEncoder.load`."""

CONTEXT_LENGTH = 77  # CLIP's number of tokens; the published token encodings are padded to it
METHODS = ("ddim", "ddpm", "published-one-step")


class PublishedPrior(nn.Module):
    """A prior in the published format: from a text's embedding and token encodings to goals in a backbone's logits.

    Args:
        text_width: width of the embeddings and of the token encodings.
        dim: width of the goals.
        timesteps: number of time steps of the diffusion.
        token_encodings: whether the prior was trained with token encodings. If so, `sample` needs them.
        image_embed_scale: factor of the outputs in training. Samples are divided by it. None means the square root of
            `dim`, as in dalle2-pytorch and in the released loader.
        network: shape of the network, as in `PublishedNetwork`.
    """

    source = "published"

    def __init__(
        self,
        text_width: int = 512,
        dim: int = 1000,
        timesteps: int = 100,
        *,
        token_encodings: bool = True,
        image_embed_scale: float | None = None,
        **network: int,
    ) -> None:
        super().__init__()
        self.text_width, self.dim, self.timesteps = text_width, dim, timesteps
        self.image_embed_scale = dim**0.5 if image_embed_scale is None else image_embed_scale
        self.project_text_embedding = nn.Linear(text_width, dim)
        self.project_text_encoding = nn.Linear(text_width, dim) if token_encodings else None
        self.diffusion_prior = _DiffusionPrior(PublishedNetwork(dim, **network), timesteps)

    @property
    def network(self) -> PublishedNetwork:
        return self.diffusion_prior.net

    @torch.no_grad()
    def sample(
        self,
        text_embed: Float[Tensor, "b n"],
        text_encodings: Float[Tensor, "b t n"] | None = None,
        *,
        num_samples: int = 16,
        steps: int | None = None,
        eta: float = 0.0,
        guidance: float = 1.0,
        method: str = "ddim",
        seed: int = 0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b s m"]:
        """Goals in logits, `num_samples` for each text.

        Every text gets the same noise, so its samples do not depend on the other texts in the batch.

        Args:
            text_embed, text_encodings: texts as `prior.templates.encode_with_templates` encodes them. Zeros behind the
                end of the longest text may be cut off.
            steps: number of calls of the network, at most `timesteps`. None means 10 for `ddim`.
            eta: noise that `ddim` adds at each step, 0 to 1. 0 adds none; 1 with all steps is `ddpm`.
            guidance: strength of classifier-free guidance. 1 is none; more moves samples away from those without text.
            method: `ddim`; `ddpm`, which is ancestral sampling over all time steps; or `published-one-step`, which is
                what the released `sample` does. That is one ancestral step at the last time step. It starts from noise
                that is uniform in 0–1, and its result stays in the network's scale. The result is mostly noise. This
                method is here for comparison only.
            seed: number that fixes the noise, 0 to 2**63 − 1.
            generator: a generator on the CPU, used instead of the seed.

        Raises:
            ValueError: a text has another width or lacks its token encodings, a number is out of range, or the method
                does not have an option.
        """
        num_samples = whole_number("num_samples", num_samples, 1)
        eta, guidance = finite_number("eta", eta, 0, 1), finite_number("guidance", guidance, 0)
        steps = self._check_method(method, steps, eta, guidance)
        embedding, encodings = self._project(text_embed, text_encodings)
        net = self.network
        texts = [net.read(embedding[[i]], None if encodings is None else encodings[[i]]) for i in range(len(embedding))]
        no_text = net.read(embedding[:1], None, keep=torch.zeros(1, dtype=torch.bool, device=embedding.device))
        generator = generator or torch.Generator().manual_seed(check_seed(seed))
        start, shape = generator.get_state(), (num_samples, self.dim)
        samples = []
        for memory in texts:
            generator.set_state(start)
            denoise = _Denoise(net, memory, no_text, guidance)
            if method == "published-one-step":
                noise = torch.rand(shape, generator=generator).to(embedding)
                last = [self.timesteps - 1]
                samples.append(ddpm(denoise, noise, self.posterior, generator=generator, times=last))
                continue
            noise = torch.randn(shape, generator=generator).to(embedding)
            if method == "ddpm":
                clean = ddpm(denoise, noise, self.posterior, generator=generator)
            else:
                clean = ddim(denoise, noise, self.alphas, steps, eta=eta, generator=generator)
            samples.append(clean / self.image_embed_scale)
        return torch.stack(samples)

    def goals(
        self, text_embed: Float[Tensor, "b n"], text_encodings: Float[Tensor, "b t n"] | None = None, **options: Any
    ) -> Float[Tensor, "b m"]:
        """One goal for each text: the mean of its samples. The options are those of `sample`."""
        return self.sample(text_embed, text_encodings, **options).mean(1)

    @torch.no_grad()
    def predict(
        self,
        noisy: Float[Tensor, "b m"],
        time: int,
        text_embed: Float[Tensor, "b n"],
        text_encodings: Float[Tensor, "b t n"] | None = None,
    ) -> Float[Tensor, "b m"]:
        """The clean outputs that the network predicts at one time step, in logits times `image_embed_scale`.

        Args:
            noisy: noisy outputs in that scale.
            time: the time step, 0 to `timesteps` − 1.
            text_embed, text_encodings: as in `sample`.

        Raises:
            ValueError: a text has another width or lacks its token encodings, or there is no such time step.
        """
        time = whole_number("time", time, 0, self.timesteps - 1)
        memory = self.network.read(*self._project(text_embed, text_encodings))
        return self.network.predict(memory, noisy, noisy.new_full((len(noisy),), time))

    def loss(
        self,
        outputs: Float[Tensor, "b m"],
        text_embed: Float[Tensor, "b n"],
        text_encodings: Float[Tensor, "b t n"] | None = None,
        *,
        generator: torch.Generator,
        drop: float = 0.2,
    ) -> Float[Tensor, ""]:
        """The published training loss: mean squared error at one random time step for each row.

        Args:
            outputs: outputs of the backbone in logits.
            text_embed, text_encodings: as in `sample`.
            generator: draws time steps and noise.
            drop: how often a text is hidden, and how often a noisy output is hidden.

        Raises:
            ValueError: a text has another width or lacks its token encodings, or `drop` is not in 0–1.
        """
        drop = finite_number("drop", drop, 0, 1)
        scheduler, count, device = self.diffusion_prior.noise_scheduler, len(outputs), outputs.device
        embedding, encodings = self._project(text_embed, text_encodings)
        clean = outputs * self.image_embed_scale
        times = torch.randint(0, self.timesteps, (count,), generator=generator).to(device)
        noise = torch.randn(outputs.shape, generator=generator).to(outputs)
        keep_text, keep_noisy = ((torch.rand(count, generator=generator) < 1 - drop).to(device) for _ in range(2))
        signal, spread = scheduler.sqrt_alphas_cumprod[times], scheduler.sqrt_one_minus_alphas_cumprod[times]
        noisy = signal[:, None] * clean + spread[:, None] * noise
        memory = self.network.read(embedding, encodings, keep_text)
        return F.mse_loss(self.network.predict(memory, noisy, times.to(noisy), keep_noisy), clean)

    @property
    def alphas(self) -> Float[Tensor, " t"]:
        """ᾱ of every time step, as the file gives it."""
        return self.diffusion_prior.noise_scheduler.alphas_cumprod

    @property
    def posterior(self) -> Posterior:
        scheduler = self.diffusion_prior.noise_scheduler
        return Posterior(
            scheduler.posterior_mean_coef1, scheduler.posterior_mean_coef2, scheduler.posterior_log_variance_clipped
        )

    def _project(self, text_embed: Tensor, text_encodings: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Texts in the network's width. Token encodings are first padded to CLIP's number of tokens."""
        weight = self.project_text_embedding.weight
        if text_embed.shape[-1] != self.text_width:
            raise ValueError(
                f"text embedding: expected width {self.text_width}, got {text_embed.shape[-1]}; "
                f"the published priors read OpenCLIP's {', '.join(TEXT_ENCODER)}"
            )
        embedding = self.project_text_embedding(text_embed.to(weight))
        if self.project_text_encoding is None:
            if text_encodings is not None:
                raise ValueError("this prior was trained without token encodings: expected text_encodings=None")
            return embedding, None
        if text_encodings is None:
            raise ValueError(
                "this prior was trained with token encodings: expected text_encodings, as "
                "prior.templates.encode_with_templates returns them beside the embedding"
            )
        count, length, width = text_encodings.shape
        if count != len(text_embed) or width != self.text_width or length > CONTEXT_LENGTH:
            raise ValueError(
                f"text encodings: expected ({len(text_embed)}, at most {CONTEXT_LENGTH}, {self.text_width}), "
                f"got {tuple(text_encodings.shape)}"
            )
        padded = F.pad(text_encodings.to(weight), (0, 0, 0, CONTEXT_LENGTH - length))
        return embedding, self.project_text_encoding(padded)

    def _check_method(self, method: str, steps: int | None, eta: float, guidance: float) -> int:
        """The number of steps. Raises ValueError unless the method exists and has these options."""
        if method not in METHODS:
            raise ValueError(f"method: got {method!r}, choices: {', '.join(METHODS)}")
        usual = {"ddim": min(10, self.timesteps), "ddpm": self.timesteps, "published-one-step": 1}[method]
        number = usual if steps is None else whole_number("steps", steps, 1, self.timesteps)
        if method != "ddim" and (number != usual or eta):
            raise ValueError(f"method {method}: got steps={number}, eta={eta:g}; expected steps={usual}, eta=0")
        if method == "published-one-step" and guidance != 1:
            raise ValueError(f"method {method}: got guidance={guidance:g}; expected guidance=1")
        return number


class _DiffusionPrior(nn.Module):
    """Holds the network and the schedule under their published keys."""

    def __init__(self, network: PublishedNetwork, timesteps: int) -> None:
        super().__init__()
        self.noise_scheduler = _Scheduler(timesteps)
        self.net = network


class _Scheduler(nn.Module):
    """The buffers of dalle2-pytorch's cosine `NoiseScheduler`. The published files hold all of them."""

    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor
    posterior_log_variance_clipped: Tensor

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        alphas = cosine_schedule(timesteps).double()
        before = torch.cat([alphas.new_ones(1), alphas[:-1]])
        step = posterior(alphas)
        buffers = {
            "betas": 1 - alphas / before,
            "alphas_cumprod": alphas,
            "alphas_cumprod_prev": before,
            "sqrt_alphas_cumprod": alphas.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - alphas).sqrt(),
            "log_one_minus_alphas_cumprod": (1 - alphas).log(),
            "sqrt_recip_alphas_cumprod": (1 / alphas).sqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / alphas - 1).sqrt(),
            "posterior_variance": (1 - alphas / before) * (1 - before) / (1 - alphas),
            "posterior_log_variance_clipped": step.log_variance,
            "posterior_mean_coef1": step.clean,
            "posterior_mean_coef2": step.noisy,
            "p2_loss_weight": torch.ones_like(alphas),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.float())


class _Denoise:
    """The network as the samplers call it.

    The branch without text still sees the noisy output. In dalle2-pytorch that branch sees neither.
    """

    def __init__(self, network: PublishedNetwork, text: Memory, no_text: Memory, guidance: float) -> None:
        self.network, self.text, self.no_text, self.guidance = network, text, no_text, guidance

    def __call__(self, noisy: Tensor, time: int) -> Tensor:
        times = noisy.new_full((len(noisy),), time)
        with_text = self.network.predict(self.text, noisy, times)
        if self.guidance == 1:
            return with_text
        return torch.lerp(self.network.predict(self.no_text, noisy, times), with_text, self.guidance)
