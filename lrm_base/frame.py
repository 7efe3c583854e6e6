"""The frame: which shape a network sees a photograph in.

Unusual: no part of a photograph is cut off. Either the whole photograph is squashed to a square, or it keeps its
aspect. The sides of a frame that keeps its aspect are multiples of a step, so that every map of the network is whole. A
strip is squashed to 3:1, since a longer frame costs more and shows no more.
"""

from __future__ import annotations

from dataclasses import dataclass

STEP = 32  # pixels
LONGEST = 3.0  # long side over short side


@dataclass(frozen=True)
class Frame:
    """The size of what a network sees.

    Attributes:
        size: the side of a square, or the short side of a frame that keeps its aspect, in pixels.
        keeps_aspect: whether the long side follows from the photograph's aspect.
    """

    size: int
    keeps_aspect: bool = False

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of pixels in which a photograph of some width and height is seen."""
        if not self.keeps_aspect:
            return self.size, self.size
        aspect = min(max(width, height) / max(min(width, height), 1), LONGEST)
        long = max(round(self.size * aspect / STEP) * STEP, self.size)
        return (long, self.size) if height > width else (self.size, long)
