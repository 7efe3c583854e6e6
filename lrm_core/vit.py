"""A small vision transformer that trains on a CPU (Dosovitskiy et al., ICLR 2021).

Its patches are made by three convolutions (Xiao et al., NeurIPS 2021), and the classifier reads the mean of all tokens.

Unusual: every pre-activation is a module with a name (`blocks.5.expand`), so that feedback may go there. Positions are
learned on a grid and interpolated for images of another size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

GRID = 8  # rows and columns of the learned positions: those of an image of 64 px
STRIDE = 8  # pixels from one patch to the next


class Block(nn.Module):
    """Attention, then a perceptron for each token, both added to the residual stream.

    `expand` is a pre-activation. The last third of the channels of `qkv` are the values of attention.
    """

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, expansion * width)
        self.act = nn.GELU()
        self.reduce = nn.Linear(expansion * width, width)

    def forward(self, x: Any) -> Any:  # not Tensor: torch.fx passes a proxy when it reads the graph
        queries, keys, values = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, values)
        x = x + self.project(attended.transpose(1, 2).flatten(2))
        return x + self.reduce(self.act(self.expand(self.norm2(x))))


class MiniViT(nn.Module):
    """A transformer of one million parameters. An image of 64 px has 64 tokens.

    Args:
        num_classes: outputs of the classifier `fc`.
        width: channels of a token.
    """

    def __init__(
        self, num_classes: int = 200, width: int = 128, depth: int = 6, heads: int = 4, expansion: int = 3
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for wanted in (width // 4, width // 2, width):
            layers += [nn.Conv2d(channels, wanted, 3, 2, 1, bias=False), nn.BatchNorm2d(wanted), nn.ReLU()]
            channels = wanted
        self.stem = nn.Sequential(*layers, nn.Conv2d(width, width, 1))
        self.positions = nn.Parameter(0.02 * torch.randn(1, width, GRID, GRID))
        self.blocks = nn.Sequential(*(Block(width, heads, expansion) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        x = x + F.interpolate(self.positions, x.shape[2:], mode="bilinear", align_corners=False)
        return self.fc(self.norm(self.blocks(x.flatten(2).transpose(1, 2))).mean(1))
