"""The network of the published priors: dalle2-pytorch's `DiffusionPriorNetwork` without dalle2-pytorch.

After Ramesh et al. 2022 (unCLIP, section 2.2): a causal transformer reads text tokens, the text embedding, the time
step, the noisy output and a learned query. What it answers at the query is the prediction. Modules are named as in the
published files, so that these load strictly. Unusual: attention is causal, so no text token depends on the time step or
on the noise. The 257 text tokens are therefore read once (`read`). Each denoising call (`predict`) then computes three
tokens, where dalle2-pytorch computes 260.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

COSINE_SCALE = 4.0  # factor of queries and of keys; dalle2-pytorch's 16 is its square
MAX_DISTANCE = 128  # positions; from here on all distances share the last bucket of the position bias

Memory = list[tuple[Tensor, Tensor]]
"""One pair for each layer: keys and values of the tokens that were read, each (b, j, head width)."""


class PublishedNetwork(nn.Module):
    """Predicts clean outputs from noisy ones, a time step and a text.

    Args:
        dim: width of the outputs and of all tokens.
        depth: number of layers.
        heads, head_width: number and width of the attention heads.
        feedforward: inner width of the feed-forward layers; 4 · dim if None.
        max_text_len: number of text positions. Empty positions hold learned tokens.
        buckets: number of buckets of the relative position bias.
        rotated: how many numbers of a head's query and key are rotated; 32, or all of a narrower head, if None.
    """

    def __init__(
        self,
        dim: int,
        depth: int = 6,
        heads: int = 8,
        head_width: int = 64,
        feedforward: int | None = None,
        max_text_len: int = 256,
        buckets: int = 32,
        rotated: int | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.max_text_len = dim, max_text_len
        self.learned_query = nn.Parameter(torch.randn(dim))
        self.null_text_encodings = nn.Parameter(torch.randn(1, max_text_len, dim))
        self.null_text_embeds = nn.Parameter(torch.randn(1, 1, dim))
        self.null_image_embed = nn.Parameter(torch.randn(1, dim))
        first, second = (nn.Sequential(nn.Linear(width, 2 * dim), nn.SiLU()) for width in (dim, 2 * dim))
        time = _Holder(net=nn.Sequential(first, second, nn.Linear(2 * dim, dim)))
        self.to_time_embeds = nn.Sequential(nn.Sequential(nn.Identity(), time))  # the published nesting
        self.causal_transformer = _Transformer(
            dim, depth, heads, head_width, feedforward or 4 * dim, buckets, rotated or min(32, head_width)
        )

    def read(
        self,
        text_embed: Float[Tensor, "b d"],
        text_encodings: Float[Tensor, "b t d"] | None = None,
        keep: Bool[Tensor, " b"] | None = None,
    ) -> Memory:
        """Read texts, once for all time steps.

        Args:
            text_encodings: positions that hold only zeros count as empty. Positions from `max_text_len` on are ignored.
            keep: a row with False is read as no text (classifier-free guidance). If None, all rows are kept.
        """
        count = len(text_embed)
        if keep is None:
            keep = text_embed.new_ones(count, dtype=torch.bool)
        if text_encodings is None:
            text_encodings = text_embed.new_zeros(count, 0, self.dim)
        text_encodings = text_encodings[:, : self.max_text_len]
        text_encodings = F.pad(text_encodings, (0, 0, 0, self.max_text_len - text_encodings.shape[1]))
        stands = (text_encodings != 0).any(-1, keepdim=True) & keep[:, None, None]
        tokens = torch.where(stands, text_encodings, self.null_text_encodings)
        text = torch.where(keep[:, None, None], text_embed[:, None], self.null_text_embeds)
        return self.causal_transformer(torch.cat([tokens, text], 1))[1]

    def predict(
        self,
        memory: Memory,
        noisy: Float[Tensor, "n d"],
        times: Float[Tensor, " n"],
        keep: Bool[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n d"]:
        """The predicted clean outputs.

        Args:
            memory: what `read` returned, of n texts or of one text that all rows share.
            keep: the noisy output of a row with False is hidden. If None, none is hidden.
        """
        if keep is not None:
            noisy = torch.where(keep[:, None], noisy, self.null_image_embed)
        time = self.to_time_embeds(_sinusoids(times, self.dim))
        tokens = torch.stack([time, noisy, self.learned_query.expand_as(noisy)], 1)
        return self.causal_transformer(tokens, memory)[0][:, -1]


class _Transformer(nn.Module):
    """The module that the published files call `causal_transformer`."""

    def __init__(
        self, dim: int, depth: int, heads: int, head_width: int, feedforward: int, buckets: int, rotated: int
    ) -> None:
        super().__init__()
        rotary = _Holder(freqs=nn.Parameter(10000 ** (-torch.arange(0, rotated, 2) / rotated), requires_grad=False))
        self.rel_pos_bias = _Holder(relative_attention_bias=nn.Embedding(buckets, heads))
        self.layers = nn.ModuleList(
            nn.ModuleList([_Attention(dim, heads, head_width, rotary), _feed_forward(dim, feedforward)])
            for _ in range(depth)
        )
        self.norm = _LayerNorm(dim)
        self.project_out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        start = memory[0][0].shape[1] if memory else 0
        positions = torch.arange(start, start + x.shape[1], device=x.device)
        bias = self._bias(positions)
        kept: Memory = []
        layers: Any = self.layers
        for index, (attend, feed) in enumerate(layers):
            attended, keys_and_values = attend(x, positions, bias, memory[index] if memory else None)
            kept.append(keys_and_values)
            x = x + attended
            x = x + feed(x)
        x = x / x.amax(-1, keepdim=True)  # dalle2-pytorch's stable layer norm
        return self.project_out(self.norm(x)), kept

    def _bias(self, positions: Tensor) -> Float[Tensor, "h i j"]:
        """What is added to the attention scores: a bias by distance, in T5's buckets, and −∞ for later tokens.

        Key 0 is the learned null key, so the key of a token stands one position behind the token.
        """
        table = self.rel_pos_bias.relative_attention_bias.weight  # (buckets, h)
        keys = torch.arange(int(positions[-1]) + 2, device=positions.device)
        distance = (positions[:, None] - keys).clamp(min=0)
        exact = len(table) // 2
        growth = math.log(MAX_DISTANCE / exact)
        far = exact + ((distance.clamp(min=1) / exact).log() / growth * (len(table) - exact)).long()
        bucket = torch.where(distance < exact, distance, far.clamp(max=len(table) - 1))
        return rearrange(table[bucket], "i j h -> h i j").masked_fill(keys > positions[:, None] + 1, -torch.inf)


class _Attention(nn.Module):
    """Cosine attention with many query heads and one key and value head.

    A learned key and value (the null key) stand before all others.
    """

    def __init__(self, dim: int, heads: int, head_width: int, rotary: _Holder) -> None:
        super().__init__()
        self.heads, self.rotary_emb = heads, rotary
        self.norm = _LayerNorm(dim)
        self.null_kv = nn.Parameter(torch.randn(2, head_width))
        self.to_q = nn.Linear(dim, heads * head_width, bias=False)
        self.to_kv = nn.Linear(dim, 2 * head_width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_width, dim, bias=False), _LayerNorm(dim))

    def forward(
        self, x: Tensor, positions: Tensor, bias: Tensor, memory: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x = self.norm(x)
        queries = rearrange(self.to_q(x), "b i (h w) -> b h i w", h=self.heads)
        keys, values = self.to_kv(x).chunk(2, -1)  # (b, i, w)
        angles = positions[:, None] * self.rotary_emb.freqs
        queries, keys = F.normalize(_rotate(queries, angles), dim=-1), F.normalize(_rotate(keys, angles), dim=-1)
        if memory:
            old_keys, old_values = (old.expand(len(x), -1, -1) for old in memory)
            keys, values = torch.cat([old_keys, keys], 1), torch.cat([old_values, values], 1)
        null_key, null_value = (null.expand(len(x), 1, -1) for null in self.null_kv)
        all_keys = torch.cat([F.normalize(null_key, dim=-1), keys], 1)
        all_values = torch.cat([null_value, values], 1)
        scores = queries @ all_keys[:, None].mT * COSINE_SCALE**2 + bias
        mixed = rearrange(scores.softmax(-1) @ all_values[:, None], "b h i w -> b i (h w)")
        return self.to_out(mixed), (keys, values)


class _LayerNorm(nn.Module):
    """Layer norm with a gain and without an offset."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.g)


class _SwiGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, -1)
        return value * F.silu(gate)


class _Holder(nn.Module):
    """Holds parameters and modules under the names of the published keys."""

    freqs: Tensor
    relative_attention_bias: nn.Embedding

    def __init__(self, **held: Any) -> None:
        super().__init__()
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


def _feed_forward(dim: int, inner: int) -> nn.Sequential:
    into, out = nn.Linear(dim, 2 * inner, bias=False), nn.Linear(inner, dim, bias=False)
    # `out` is number 5 in the published keys. dalle2-pytorch can have a norm and dropout in place of the identities.
    return nn.Sequential(_LayerNorm(dim), into, _SwiGLU(), nn.Identity(), nn.Identity(), out)


def _rotate(x: Tensor, angles: Float[Tensor, "i f"]) -> Tensor:
    """Rotary positions (Su et al. 2021). The first 2 f numbers are rotated, in pairs of neighbours."""
    turned, rest = x[..., : 2 * angles.shape[-1]], x[..., 2 * angles.shape[-1] :]
    a, b = rearrange(turned, "... (f pair) -> pair ... f", pair=2)
    cos, sin = angles.cos(), angles.sin()
    rotated = rearrange([a * cos - b * sin, b * cos + a * sin], "pair ... f -> ... (f pair)")
    return torch.cat([rotated, rest], -1)


def _sinusoids(times: Float[Tensor, " n"], dim: int) -> Float[Tensor, "n d"]:
    half = dim // 2
    rates = torch.exp(torch.arange(half, device=times.device) * (-math.log(10000) / (half - 1)))
    angles = times[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)
