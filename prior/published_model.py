"""A prior in the published format: projections of the text, dalle2-pytorch's network, and its diffusion, sampled.

The published `TextToImageDiffusion` projects CLIP's text embedding and token encodings to the width of the backbone's
output. Unusual, and kept since the weights were trained with it: padding is projected too, so an empty position among
the first 77 holds the projection's offset, not the network's learned padding. Not kept: the released `sample`, one step
from uniform noise, which exists by name only. dalle2-pytorch is not needed; it is the oracle of the tests.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prior.published_network import Memory, PublishedNetwork
from prior.sample import Posterior, cosine_schedule, ddim, ddpm, posterior

TEXT_ENCODER = ("ViT-B-16", "openai")
"""What the published priors read: OpenCLIP's name and tag, for `TextEncoder.load`."""

CONTEXT_LENGTH = 77  # of CLIP; the published encodings are padded to it
METHODS = ("ddim", "ddpm", "published-one-step")


class PublishedPrior(nn.Module):
    """A prior in the published format: from a text's embedding and token encodings to goals in a backbone's logits.

    Args:
        text_width: of the embeddings and encodings. dim: of the goals. timesteps: of the diffusion.
        token_encodings: whether it was trained with them; `sample` then asks for them.
        image_embed_scale: what the outputs were multiplied by in training, and samples are divided by; the square root
            of `dim` if None, as in dalle2-pytorch and in the released loader.
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
        """Goals for texts, encoded as `prior.templates.encode_with_templates` does: `num_samples` each, in logits.

        Every text gets the same noise: a text's samples do not depend on what stands beside it in the batch.

        Args:
            text_encodings: zeros are padding, which may be left off.
            steps: calls of the network; 10 for `ddim` if None. eta: 0 is deterministic after the start, 1 with all
                steps is `ddpm`. guidance: above 1 moves samples away from those of no text.
            method: `ddim`; `ddpm`, ancestral sampling over all time steps; or `published-one-step`, what the released
                `sample` did: a single ancestral step from the last time, started from noise uniform in 0–1 and left in
                the network's scale. It is mostly noise, and here for comparison.
            seed: of the noise, unless a `generator` on the CPU is given.

        Raises:
            ValueError: a text of another width or without its token encodings, or options that the method has not.
        """
        steps = self._check_method(method, steps, eta, guidance)
        embedding, encodings = self._project(text_embed, text_encodings)
        net = self.network
        texts = [net.read(embedding[[i]], None if encodings is None else encodings[[i]]) for i in range(len(embedding))]
        no_text = net.read(embedding[:1], None, keep=torch.zeros(1, dtype=torch.bool, device=embedding.device))
        generator = generator or torch.Generator().manual_seed(seed)
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
                found = ddpm(denoise, noise, self.posterior, generator=generator)
            else:
                found = ddim(denoise, noise, self.alphas, steps, eta=eta, generator=generator)
            samples.append(found / self.image_embed_scale)
        return torch.stack(samples)

    def goals(
        self, text_embed: Float[Tensor, "b n"], text_encodings: Float[Tensor, "b t n"] | None = None, **options: Any
    ) -> Float[Tensor, "b m"]:
        """One goal for each text: the mean of its samples. Options as in `sample`."""
        return self.sample(text_embed, text_encodings, **options).mean(1)

    @torch.no_grad()
    def predict(
        self,
        noisy: Float[Tensor, "b m"],
        time: int,
        text_embed: Float[Tensor, "b n"],
        text_encodings: Float[Tensor, "b t n"] | None = None,
    ) -> Float[Tensor, "b m"]:
        """The network's clean outputs at one time step, in its own scale: logits times `image_embed_scale`."""
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
        """The published training loss: mean squared error at one random time for each row.

        Args:
            outputs: the backbone's, in logits. drop: how often the text, and independently the noisy output, is hidden.
        """
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
        """ᾱ of every time step, as the file states it."""
        return self.diffusion_prior.noise_scheduler.alphas_cumprod

    @property
    def posterior(self) -> Posterior:
        scheduler = self.diffusion_prior.noise_scheduler
        return Posterior(
            scheduler.posterior_mean_coef1, scheduler.posterior_mean_coef2, scheduler.posterior_log_variance_clipped
        )

    def _project(self, text_embed: Tensor, text_encodings: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Texts in the network's width; encodings padded to CLIP's context first."""
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
        if method not in METHODS:
            raise ValueError(f"method: got {method!r}, choices: {', '.join(METHODS)}")
        expected = {"ddim": steps or 10, "ddpm": self.timesteps, "published-one-step": 1}[method]
        if method != "ddim" and (steps not in (None, expected) or eta):
            raise ValueError(f"method {method}: got steps={steps}, eta={eta}; it has {expected} steps and no eta")
        if method == "published-one-step" and guidance != 1:
            raise ValueError(f"method {method}: got guidance={guidance}; it has none")
        return expected if steps is None else steps


class _DiffusionPrior(nn.Module):
    """Gives network and schedule their published keys."""

    def __init__(self, network: PublishedNetwork, timesteps: int) -> None:
        super().__init__()
        self.noise_scheduler = _Scheduler(timesteps)
        self.net = network


class _Scheduler(nn.Module):
    """The buffers of dalle2-pytorch's `NoiseScheduler`, cosine, all of which are in the published files."""

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
    """The network as the samplers call it. Without text it still sees the noisy output; dalle2-pytorch hides both."""

    def __init__(self, network: PublishedNetwork, text: Memory, no_text: Memory, guidance: float) -> None:
        self.network, self.text, self.no_text, self.guidance = network, text, no_text, guidance

    def __call__(self, noisy: Tensor, time: int) -> Tensor:
        times = noisy.new_full((len(noisy),), time)
        found = self.network.predict(self.text, noisy, times)
        if self.guidance == 1:
            return found
        return torch.lerp(self.network.predict(self.no_text, noisy, times), found, self.guidance)
