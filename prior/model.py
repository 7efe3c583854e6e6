"""A trained prior: from a text embedding (N-D) to goal vectors in a backbone's output space (M-D).

`prior.train` trains it through dalle2-pytorch's `DiffusionPrior`. Using it does not need dalle2-pytorch: the network,
its cosine schedule and the statistics of the outputs are enough. The architecture is kept in the card beside the
weights, and the statistics among the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from lrm_base.card import load_weights, save_weights
from lrm_base.checks import finite_number, whole_number
from lrm_base.checks import seed as check_seed
from prior.network import PriorNetwork
from prior.sample import cosine_schedule, ddim


class Prior(nn.Module):
    """A trained diffusion prior.

    Args:
        network: predicts clean outputs, standardised.
        mean, std: (M,), mean and deviation of the backbone's outputs over the training images, in logits.
        timesteps: length of the cosine schedule that the network was trained with.
    """

    source = "diffusion"

    mean: Tensor
    std: Tensor
    alphas: Tensor

    def __init__(self, network: PriorNetwork, mean: Tensor, std: Tensor, timesteps: int = 1000) -> None:
        super().__init__()
        self.network, self.timesteps = network, timesteps
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("alphas", cosine_schedule(timesteps), persistent=False)

    @property
    def text_width(self) -> int:
        """N, width of the text embeddings that it takes."""
        return self.network.text_width

    @property
    def dim(self) -> int:
        """M, width of the goals that it gives."""
        return self.network.dim

    @torch.no_grad()
    def sample(
        self,
        text_embed: Float[Tensor, "b n"],
        *,
        num_samples: int = 16,
        steps: int = 10,
        guidance: float = 1.0,
        seed: int = 0,
    ) -> Float[Tensor, "b s m"]:
        """Goal vectors in logits of the backbone, `num_samples` for each text.

        Every text gets the same starting noise, so its samples do not depend on the other texts in the batch.

        Args:
            text_embed: embeddings of unit length.
            steps: number of calls of the network, at most `timesteps`.
            guidance: strength of classifier-free guidance; 1 is none, 0 leaves the text out.
            seed: number that fixes the starting noise, 0 to 2**63 − 1.

        Raises:
            ValueError: the embeddings have another width than in training, or a number is out of range.
        """
        num_samples = whole_number("num_samples", num_samples, 1)
        guidance = finite_number("guidance", guidance, 0)
        if text_embed.shape[-1] != self.network.text_width:
            raise ValueError(
                f"text embedding: expected width {self.network.text_width}, got {text_embed.shape[-1]}; "
                "was the prior trained with another text encoder?"
            )
        generator = torch.Generator().manual_seed(check_seed(seed))
        noise = torch.randn(num_samples, self.network.dim, generator=generator).to(self.mean)
        count = len(text_embed)
        text = repeat(text_embed.to(self.mean), "b n -> (b s) n", s=num_samples)

        def denoise(x: Tensor, time: int) -> Tensor:
            times = torch.full((len(x),), time, device=x.device)
            return self.network.forward_with_cond_scale(x, times, cond_scale=guidance, text_embed=text)

        clean = ddim(denoise, repeat(noise, "s m -> (b s) m", b=count), self.alphas, steps)
        return rearrange(clean * self.std + self.mean, "(b s) m -> b s m", b=count)

    def goals(self, text_embed: Float[Tensor, "b n"], **options: Any) -> Float[Tensor, "b m"]:
        """One goal for each text: the mean of its samples. The options are those of `sample`."""
        return self.sample(text_embed, **options).mean(1)

    def save(self, path: str | Path, card: dict[str, Any]) -> None:
        """Write the weights and the card. The architecture goes into the card under `network`."""
        network = self.network
        architecture = {
            "text_width": network.text_width,
            "dim": network.dim,
            "width": network.width,
            "depth": len(network.blocks),
            "timesteps": self.timesteps,
        }
        save_weights(path, self.state_dict(), {**card, "kind": "diffusion", "network": architecture}, half=True)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> tuple[Prior, dict[str, Any]]:
        """A prior in evaluation mode, and its card.

        Raises:
            ValueError: a file is missing, was altered, or does not hold a prior.
        """
        tensors, card = load_weights(path)
        try:
            given = card["network"]
            with torch.random.fork_rng(devices=[]):
                network = PriorNetwork(given["text_width"], given["dim"], given["width"], given["depth"])
            prior = cls(network, tensors["mean"], tensors["std"], given["timesteps"])
            prior.load_state_dict(tensors)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{path} does not hold a prior as its card says: {error}") from None
        return prior.eval().requires_grad_(False).to(device), card
