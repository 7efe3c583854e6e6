"""The network that dalle2-pytorch's `DiffusionPrior` trains: from a text embedding (N-D) to a vision output (M-D).

This is stage 2 of DALL·E 2 (Ramesh et al. 2022) with a residual MLP instead of a transformer, because a single text
embedding needs no attention. Text and time modulate every block by adaptive layer norm (Peebles & Xie 2023).

Unusual: N and M differ, so nothing here compares text with vision by cosine, as dalle2-pytorch's own sampling does.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class PriorBlock(nn.Module):
    """x + MLP((1 + scale) · norm(x) + shift). Scale and shift come from the condition. It starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.condition = nn.Linear(width, 2 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Float[Tensor, "b w"], condition: Float[Tensor, "b w"]) -> Float[Tensor, "b w"]:
        scale, shift = self.condition(condition).chunk(2, dim=1)
        return x + self.mlp(self.norm(x) * (1 + scale) + shift)


class PriorNetwork(nn.Module):
    """Predicts the clean vision output (M-D, standardised) from a noisy one, the time step and a text embedding.

    Args:
        text_width: N, width of the text embedding, which has unit length.
        dim: M, width of the vision output.
        width, depth: inner width and number of blocks of the residual MLP.
    """

    self_cond = False

    def __init__(self, text_width: int, dim: int, width: int = 384, depth: int = 4) -> None:
        super().__init__()
        self.text_width, self.dim, self.width = text_width, dim, width
        self.embed_output = nn.Linear(dim, width)
        self.embed_time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_text = nn.Sequential(nn.Linear(text_width, width), nn.SiLU(), nn.Linear(width, width))
        self.null_text = nn.Parameter(torch.zeros(text_width))
        self.blocks = nn.ModuleList(PriorBlock(width) for _ in range(depth))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))

    def forward(
        self,
        image_embed: Float[Tensor, "b m"],
        diffusion_timesteps: Int[Tensor, " b"],
        *,
        text_embed: Float[Tensor, "b n"],
        text_encodings: Tensor | None = None,
        self_cond: Tensor | None = None,
        text_cond_drop_prob: float = 0.0,
        image_cond_drop_prob: float = 0.0,
    ) -> Float[Tensor, "b m"]:
        """The predicted clean output. The names of the arguments are dalle2-pytorch's.

        Args:
            image_embed: noisy outputs, standardised.
            text_cond_drop_prob: how often a text is hidden.

        Raises:
            ValueError: `text_encodings`, `self_cond` or `image_cond_drop_prob` is given, and this network uses none.
        """
        unused = {
            "text_encodings": text_encodings is not None,
            "self_cond": self_cond is not None,
            "image_cond_drop_prob": image_cond_drop_prob != 0,
        }
        if any(unused.values()):
            given = ", ".join(name for name, is_given in unused.items() if is_given)
            raise ValueError(f"got {given}, but this prior is conditioned on the text embedding alone")
        if text_cond_drop_prob > 0:
            drop = torch.rand(len(text_embed), 1, device=text_embed.device) < text_cond_drop_prob
            text_embed = torch.where(drop, self.null_text.to(text_embed.dtype), text_embed)
        # Entries of unit-length embeddings are about 1/sqrt(N). This brings them to about 1.
        text = self.embed_text(text_embed * math.sqrt(self.text_width))
        condition = nn.functional.silu(text + self.embed_time(_sinusoid(diffusion_timesteps, self.width)))
        x = self.embed_output(image_embed)
        for block in self.blocks:
            x = block(x, condition)
        return self.head(x)

    def forward_with_cond_scale(
        self, *args: Tensor, cond_scale: float = 1.0, text_embed: Tensor, **kwargs: Tensor
    ) -> Float[Tensor, "b m"]:
        """The prediction with classifier-free guidance (Ho & Salimans 2022).

        Args:
            cond_scale: strength of the guidance; 1 is none. The branch without text still sees the noisy output.
        """
        conditional = self.forward(*args, text_embed=text_embed, **kwargs)  # type: ignore[arg-type]
        if cond_scale == 1.0:
            return conditional
        null_text = self.null_text.expand_as(text_embed)
        unconditional = self.forward(*args, text_embed=null_text, **kwargs)  # type: ignore[arg-type]
        return unconditional + cond_scale * (conditional - unconditional)


def _sinusoid(times: Int[Tensor, " b"], width: int) -> Float[Tensor, "b w"]:
    """Sinusoidal embedding of time steps (Vaswani et al. 2017)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=times.device) * (-math.log(10_000) / (half - 1)))
    angles = times[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
