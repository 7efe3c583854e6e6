"""The frame: which shape a network sees a photograph in.

Three ways are known. The whole photograph is squashed to a square. Or it keeps its aspect; the sides of such a frame
are multiples of a step, so that every map of the network is whole, and a strip is squashed to 3:1, since a longer frame
costs more and shows no more. Or the middle square is cut out, as CLIP's image towers were trained.
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
        crops: whether the middle square is seen and the rest is cut off. Not together with `keeps_aspect`.
        bicubic: whether pixels are resampled bicubically, otherwise bilinearly.
    """

    size: int
    keeps_aspect: bool = False
    crops: bool = False
    bicubic: bool = False

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of pixels in which a photograph of some width and height is seen."""
        if not self.keeps_aspect:
            return self.size, self.size
        aspect = min(max(width, height) / max(min(width, height), 1), LONGEST)
        long = max(round(self.size * aspect / STEP) * STEP, self.size)
        return (long, self.size) if height > width else (self.size, long)

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns to which the whole photograph is resampled, before anything is cut off.

        Of a frame that crops, the short side is `size`. The long side is rounded down, as in torchvision's Resize.
        """
        if not self.crops:
            return self.shape(width, height)
        short = max(min(width, height), 1)
        return (
            max(int(self.size * height / short), self.size),
            max(int(self.size * width / short), self.size),
        )

    def window(self, width: int, height: int) -> tuple[int, int, int, int]:
        """What is seen of the resampled photograph, in its pixels: left, top, right, bottom.

        The middle is rounded as in torchvision's CenterCrop.
        """
        high, wide = self.scaled(width, height)
        rows, columns = self.shape(width, height)
        left, top = round((wide - columns) / 2), round((high - rows) / 2)
        return left, top, left + columns, top + rows
