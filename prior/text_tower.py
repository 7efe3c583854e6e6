"""CLIP's text tower in plain layers (Radford et al. 2021), for folders of this project.

Unusual: it runs without `open_clip`, whose import takes seconds. Its parts have OpenCLIP's names, so it reads
OpenCLIP's weights and gives the same numbers. Token embeddings that are stored in 8 bits stay so in memory: of tens of
thousands of rows a text needs a few.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lrm_base.building import no_random_start
from lrm_base.card import ROW_SCALE, from_eight_bits

SHAPE = frozenset({"context_length", "vocab_size", "width", "heads", "layers"})


class EightBitEmbedding(nn.Module):
    """An embedding whose rows are whole numbers from -127 to 127, with a scale for each row."""

    weight: Tensor
    row_scale: Tensor

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_tokens, width, dtype=torch.int8))
        self.register_buffer("row_scale", torch.zeros(num_tokens))

    @property
    def embedding_dim(self) -> int:
        """Width of the embeddings."""
        return self.weight.shape[1]

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t width"]:
        """The embedding of each token."""
        rows = from_eight_bits(self.weight[ids].flatten(0, 1), self.row_scale[ids].flatten())
        return rows.view(*ids.shape, -1)


class Block(nn.Module):
    """A block of a transformer: attention, then two linear layers, each with a layer norm before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=nn.GELU(), c_proj=nn.Linear(4 * width, width))
        )

    def forward(self, x: Float[Tensor, "b t width"], attn_mask: Float[Tensor, "t t"]) -> Float[Tensor, "b t width"]:
        """The encodings of the tokens after this block."""
        normal = self.ln_1(x)
        x = x + self.attn(normal, normal, normal, need_weights=False, attn_mask=attn_mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Blocks in a row."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, x: Float[Tensor, "b t width"], attn_mask: Float[Tensor, "t t"]) -> Float[Tensor, "b t width"]:
        """The encodings of the tokens after all blocks."""
        for block in self.resblocks:
            x = block(x, attn_mask)
        return x


class TextTower(nn.Module):
    """A causal text transformer that is read at the end token. `prior.text.run_text_tower` runs it.

    Args:
        shape: OpenCLIP's `text_cfg` with the keys `SHAPE` and no others.
        embed_dim: width of the embeddings of texts.
        tensors: its weights by OpenCLIP's names, in any precision. Those of the tokens may be in 8 bits, with their row
            scales.

    Raises:
        ValueError: a weight is missing, unknown or of another shape.
    """

    pool_type = "argmax"  # OpenCLIP's name for reading the end token, which has the highest number

    def __init__(self, shape: Mapping[str, int], embed_dim: int, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        width = shape["width"]
        self.context_length = shape["context_length"]
        in_eight_bits = any(key.endswith(ROW_SCALE) for key in tensors)
        embedding = EightBitEmbedding if in_eight_bits else nn.Embedding
        with no_random_start():
            self.token_embedding = embedding(shape["vocab_size"], width)
            self.positional_embedding = nn.Parameter(torch.empty(self.context_length, width))
            self.transformer = Transformer(width, shape["heads"], shape["layers"])
            self.ln_final = nn.LayerNorm(width)
            self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        named = {key.replace(f"weight{ROW_SCALE}", ROW_SCALE[1:]): value for key, value in tensors.items()}
        try:
            self.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in named.items()}, assign=True)
        except RuntimeError as error:
            raise ValueError(" ".join(str(error).split())) from None

    @property
    def attn_mask(self) -> Float[Tensor, "t t"]:
        """What is added to attention: -inf where a token would look at a later one."""
        start = self.positional_embedding
        return start.new_full((self.context_length, self.context_length), -torch.inf).triu_(1)
