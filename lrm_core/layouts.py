"""How the numbers of an activation lie: a vector, a map, a map with channels last, or tokens.

Feedback goes from any layout to any other. Channels go through a projection; places go by interpolation:

- A map and a grid of patch tokens are the same thing in another order. Another resolution is bilinear interpolation.
- Prefix tokens (class, distillation, register tokens) have no place. They come first and go to the prefix tokens of the
  destination, one to one. A prefix token without a counterpart gets the mean over all places.
- A vector acts alike everywhere, prefix tokens included. To a vector goes the mean over all places.
- Tokens without a grid, such as those of a layer that mixes tokens, have no places. Equally many of them on both sides
  go one to one. Otherwise they give their mean, and get what a vector gives or gets.

Unusual: a map with channels last is worked on as a view, without a copy. The grid of tokens is known for the image on
which a model was made. For other images it follows from the number of patch tokens; see `Layout.grid_of`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Kind = Literal["vector", "map", "channels_last", "tokens", "unknown"]
FORMS = "'c', 'c h w', 'h w c', 't c', or '1+14x14 c' for 1 prefix token before patch tokens on a grid of 14 by 14"
_AXES: dict[str, Kind] = {"c": "vector", "c h w": "map", "h w c": "channels_last", "t c": "tokens"}
_GRID = re.compile(r"(?:(\d+)\+)?(\d+)x(\d+) c")
_ASPECT = math.log(2)  # a grid is taken if its aspect is wrong by less than this factor
_BY_AXES: tuple[Kind, ...] = ("vector", "tokens", "map")


@dataclass(frozen=True)
class Layout:
    """The layout of an activation, without the batch.

    Attributes:
        kind: `vector` (c,), `map` (c, h, w), `channels_last` (h, w, c), `tokens` (t, c), or `unknown`.
        shape: on the image on which the model was made. Sizes other than that of the channels may differ on others.
        prefix: the number of tokens without a place. They come before the patch tokens.
        grid: rows and columns of the patch tokens, which lie row by row; None if tokens have no places.
        part: the first channel that feedback scales and the one behind the last; None for all channels.
        why: of an unknown layout, the reason.

    Raises:
        ValueError: the shape does not fit the kind or the grid, or there are no such channels as the part.
    """

    kind: Kind
    shape: tuple[int, ...]
    prefix: int = 0
    grid: tuple[int, int] | None = None
    part: tuple[int, int] | None = None
    why: str = ""

    def __post_init__(self) -> None:
        if self.kind == "unknown":
            return
        if len(self.shape) != {"vector": 1, "tokens": 2}.get(self.kind, 3):
            raise ValueError(f"shape: got {self.shape}, expected that of the layout {self.text!r}")
        if self.kind == "tokens" and self.grid and self.prefix + math.prod(self.grid) != self.shape[0]:
            raise ValueError(f"layout: got {self.text!r} for {self.shape[0]} tokens, expected as many as there are")
        if self.part is not None and not 0 <= self.part[0] < self.part[1] <= self.shape[self.axis]:
            raise ValueError(f"channels: got {self.part}, expected a range of the {self.shape[self.axis]} channels")

    @classmethod
    def of(cls, shape: Layout | tuple[int, ...]) -> Layout:
        """A layout by the number of axes: a vector (c,), tokens (t, c) without places, or a map (c, h, w).

        A layout is returned as it is.

        Raises:
            ValueError: there are more axes or none, or the layout is unknown.
        """
        if isinstance(shape, Layout):
            if shape.kind == "unknown":
                raise ValueError(shape.why)
            return shape
        if len(shape) not in (1, 2, 3):
            raise ValueError(f"shape: got {shape}, expected a vector (c,), tokens (t, c) or a map (c, h, w)")
        return cls(_BY_AXES[len(shape) - 1], shape)

    @classmethod
    def read(cls, name: str, text: Any, shape: tuple[int, ...] | None = None) -> Layout:
        """The layout that a text says; see `FORMS`.

        Args:
            name: of the argument that holds the text, for the message of an error.
            text: a string; a card may hold anything.
            shape: of the activation; None to check the text alone.

        Raises:
            ValueError: the text is none of these forms, or does not fit the shape.
        """
        found = _GRID.fullmatch(text) if isinstance(text, str) else None
        kind = "tokens" if found else _AXES.get(text) if isinstance(text, str) else None
        if kind is None:
            raise ValueError(f"{name}: got {text!r}, expected {FORMS}")
        grid = (int(found[2]), int(found[3])) if found else None
        prefix = int(found[1] or 0) if found else 0
        if shape is None:
            shape = {"vector": (1,), "tokens": (prefix + math.prod(grid or (1,)), 1)}.get(kind, (1, 1, 1))
        try:
            return cls(kind, shape, prefix, grid)
        except ValueError as error:
            raise ValueError(f"{name}: got {text!r} for an activation of shape {shape}; {error}") from None

    @property
    def text(self) -> str:
        """The layout in the form in which a connection says it."""
        if self.grid:
            return f"{self.prefix}+{self.grid[0]}x{self.grid[1]} c"
        return next((text for text, kind in _AXES.items() if kind == self.kind), self.kind)

    @property
    def axis(self) -> int:
        """The axis of the channels in `shape`."""
        return 0 if self.kind in ("vector", "map") else -1

    @property
    def channels(self) -> int:
        """The number of channels that feedback reads or scales."""
        return self.shape[self.axis] if self.part is None else self.part[1] - self.part[0]

    @property
    def is_map(self) -> bool:
        """Whether the places are two axes, with the channels before or behind them."""
        return self.kind in ("map", "channels_last")

    @property
    def places(self) -> tuple[int, int] | None:
        """Rows and columns on the image on which the model was made; None without places."""
        if self.is_map:
            height, width = self.shape[1:] if self.kind == "map" else self.shape[:2]
            return height, width
        return self.grid

    def with_channels_first(self, value: Tensor) -> Tensor:
        """A map with its channels first, (b, c, h, w), as a view. Other layouts stay as they are."""
        return rearrange(value, "b h w c -> b c h w") if self.kind == "channels_last" else value

    def chosen(self, value: Tensor) -> Tensor:
        """The channels that feedback scales, as a view of an activation (b, …)."""
        if self.part is None:
            return value
        return value.narrow(self.axis if self.axis < 0 else 1, self.part[0], self.channels)

    def spread(self, factor: Tensor) -> Tensor:
        """A factor for the chosen channels as one for all channels. It is 0 for the others."""
        if self.part is None:
            return factor
        around = (self.part[0], self.shape[self.axis] - self.part[1])
        return F.pad(factor, (0, 0, 0, 0, *around) if self.kind == "map" else around)

    def grid_of(self, count: int, near: tuple[int, int] | None = None) -> tuple[int, int]:
        """Rows and columns of so many patch tokens.

        Both ends of a path see the same image. So it is the grid whose aspect is nearest to that of the other end where
        that is a map. Otherwise it is the grid nearest to the one on which the model was made.

        Args:
            near: rows and columns at the other end; None if they are not known.

        Raises:
            ValueError: every grid of so many tokens has another aspect, by a factor of 2 or more.
        """
        rows, columns = near or self.grid or (1, 1)
        if (near is None or near == self.grid) and self.grid and math.prod(self.grid) == count:
            return self.grid
        grids = [(height, count // height) for height in range(1, count + 1) if count % height == 0]
        wanted = math.log(rows / columns)
        best = min(grids, key=lambda grid: abs(math.log(grid[0] / grid[1]) - wanted), default=(0, 0))
        if not count or abs(math.log(best[0] / best[1]) - wanted) >= _ASPECT:
            raise ValueError(
                f"tokens: got {count} patch tokens, expected a grid with an aspect like {rows} by {columns}"
            )
        return best


def fitted(value: Tensor, source: Layout, destination: Layout, like: Tensor) -> Tensor:
    """Bring projected values to the layout and the resolution of a destination.

    Args:
        value: what the source gives: (b, c, h, w) for both kinds of map, otherwise in its own layout. It has the
            channels of the destination.
        like: the destination's value, (d, …).

    Returns:
        The values in a shape that broadcasts to (b, …) of the destination.

    Raises:
        ValueError: patch tokens do not fit a grid; see `Layout.grid_of`.
    """
    if source.kind == "vector":
        return _everywhere(value, destination)
    if source.kind == destination.kind == "tokens" and _one_to_one(value, source, destination, like):
        return value
    has_places = source.places is not None
    if has_places and destination.places is not None:
        return _resampled(value, source, destination, like)
    patches = value if source.is_map else value[:, source.prefix :]
    return _everywhere(patches.mean((2, 3) if source.is_map else 1), destination)


def _one_to_one(value: Tensor, source: Layout, destination: Layout, like: Tensor) -> bool:
    same = source.prefix == destination.prefix and source.grid == destination.grid
    unknown = source.grid is None or destination.grid is None
    return value.shape[1] == like.shape[1] and (same or unknown)


def _everywhere(vector: Tensor, destination: Layout) -> Tensor:
    """A vector (b, c), alike at all places."""
    forms = {"vector": "b c", "tokens": "b 1 c", "map": "b c 1 1", "channels_last": "b 1 1 c"}
    return rearrange(vector, f"b c -> {forms[destination.kind]}")


def _resampled(value: Tensor, source: Layout, destination: Layout, like: Tensor) -> Tensor:
    """Places to places, prefix tokens to prefix tokens."""
    firsts: Tensor | None = None
    target = _size(destination, like)
    if source.is_map:
        maps = value
    else:
        firsts, patches = value[:, : source.prefix], value[:, source.prefix :]
        rows, _ = source.grid_of(patches.shape[1], target)
        maps = rearrange(patches, "b (h w) c -> b c h w", h=rows)
    here = (maps.shape[-2], maps.shape[-1])
    size = target or destination.grid_of(like.shape[1] - destination.prefix, here)
    resized = maps if here == size else F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    if destination.kind == "map":
        return resized
    if destination.kind == "channels_last":
        return rearrange(resized, "b c h w -> b h w c")
    tokens = rearrange(resized, "b c h w -> b (h w) c")
    if not destination.prefix:
        return tokens
    given = tokens[:, :0] if firsts is None else firsts[:, : destination.prefix]
    missing = destination.prefix - given.shape[1]
    mean = rearrange(maps.mean((2, 3)), "b c -> b 1 c").expand(-1, missing, -1)
    return torch.cat([given, mean, tokens], 1)


def _size(layout: Layout, value: Tensor) -> tuple[int, int] | None:
    """Rows and columns of a map; None for tokens."""
    if not layout.is_map:
        return None
    height, width = value.shape[2:] if layout.kind == "map" else value.shape[1:3]
    return height, width
