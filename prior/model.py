"""Prior: from a text embedding (N-D) to goal vectors in a backbone's output space (M-D).

Training runs through dalle2-pytorch's `DiffusionPrior` (see `prior.train`); what it learns is used here without it: the
network, its cosine schedule and the statistics of the outputs. Configuration and statistics travel inside the
safetensors file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrm_base.card import load_weights, save_weights
from prior.network import PriorNetwork
from prior.sample import cosine_schedule, ddim


class Prior(nn.Module):
    """A trained diffusion prior.

    Args:
        network: predicts clean standardised outputs.
        mean, std: (M,) of the backbone's outputs over the training images, in logits.
        timesteps: of the cosine schedule that the network was trained with.
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
        """Goal vectors for text embeddings (unit length): `num_samples` each, in logits of the backbone.

        Every text gets the same starting noise: a text's samples do not depend on what stands beside it in the batch.

        Raises:
            ValueError: the embeddings' width is not the one that the prior was trained with.
        """
        if text_embed.shape[-1] != self.network.text_width:
            raise ValueError(
                f"text embedding: expected width {self.network.text_width}, got {text_embed.shape[-1]}; "
                "was the prior trained with another text encoder?"
            )
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(num_samples, self.network.dim, generator=generator).to(self.mean)
        count = len(text_embed)
        text = text_embed.to(self.mean).repeat_interleave(num_samples, 0)

        def denoise(x: Tensor, time: int) -> Tensor:
            times = torch.full((len(x),), time, device=x.device)
            return self.network.forward_with_cond_scale(x, times, cond_scale=guidance, text_embed=text)

        clean = ddim(denoise, noise.repeat(count, 1), self.alphas, steps)
        return (clean * self.std + self.mean).unflatten(0, (count, num_samples))

    def goals(self, text_embed: Float[Tensor, "b n"], **options: Any) -> Float[Tensor, "b m"]:
        """One goal for each text: the mean of its samples. Options as in `sample`."""
        return self.sample(text_embed, **options).mean(1)

    def save(self, path: str | Path, card: dict[str, Any]) -> None:
        """Write weights and card; the architecture goes into the card under `network`."""
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
            ValueError: files are missing, altered or not a prior's.
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
