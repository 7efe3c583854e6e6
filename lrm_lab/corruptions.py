"""Common corruptions at five severities, those of Tiny ImageNet-C (Hendrycks & Dietterich 2019).

Unusual: the benchmark's lengths, such as the width of a blur, are meant for pictures of 64 px. Here they are scaled
with the picture. Noise comes from a generator that the caller gives.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor


def corrupt(
    name: str, severity: int, pixels: Float[Tensor, "b 3 s s"], generator: torch.Generator
) -> Float[Tensor, "b 3 s s"]:
    """Pixels in 0–1 with a common corruption at severity 1 to 5 of Tiny ImageNet-C.

    Raises:
        ValueError: there is no such corruption or severity.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption: got {name!r}, expected one of {', '.join(CORRUPTIONS)}")
    if severity not in range(1, 6):
        raise ValueError(f"severity: got {severity}, expected 1 to 5")
    levels, function = CORRUPTIONS[name]
    return function(pixels, levels[severity - 1], generator).clamp(0, 1)


def _gaussian_noise(pixels: Tensor, level: float, generator: torch.Generator) -> Tensor:
    return pixels + level * torch.randn(pixels.shape, generator=generator)


def _shot_noise(pixels: Tensor, level: float, generator: torch.Generator) -> Tensor:
    return torch.poisson(pixels * level, generator=generator) / level


def _impulse_noise(pixels: Tensor, level: float, generator: torch.Generator) -> Tensor:
    from skimage.util import random_noise

    seed = int(torch.randint(2**31, (1,), generator=generator))
    return torch.from_numpy(random_noise(pixels.numpy(), mode="s&p", amount=level, rng=seed)).float()


def _gaussian_blur(pixels: Tensor, level: float, generator: torch.Generator) -> Tensor:
    from torchvision.transforms.v2.functional import gaussian_blur

    sigma = level * pixels.shape[-1] / 64
    return gaussian_blur(pixels, [2 * int(4 * sigma + 0.5) + 1] * 2, [sigma, sigma])


def _zoom_blur(pixels: Tensor, level: float, generator: torch.Generator) -> Tensor:
    from torchvision.transforms.v2.functional import InterpolationMode, affine

    bilinear = InterpolationMode.BILINEAR
    zooms = [
        affine(pixels, 0.0, [0.0, 0.0], 1 + 0.01 * i, [0.0, 0.0], interpolation=bilinear) for i in range(int(level))
    ]
    return torch.stack([pixels, *zooms]).mean(0)


def _brightness(pixels: Tensor, level: float, generator: torch.Generator) -> Tensor:
    from skimage.color import hsv2rgb, rgb2hsv

    hsv = rgb2hsv(pixels.numpy(), channel_axis=1)
    hsv[:, 2] = (hsv[:, 2] + level).clip(0, 1)
    return torch.from_numpy(hsv2rgb(hsv, channel_axis=1)).float()


def _contrast(pixels: Tensor, level: float, generator: torch.Generator) -> Tensor:
    mean = pixels.mean((2, 3), keepdim=True)
    return mean + level * (pixels - mean)


def _pixelate(pixels: Tensor, level: float, generator: torch.Generator) -> Tensor:
    small = int(pixels.shape[-1] * level)

    def change(picture: Image.Image) -> Image.Image:
        box = Image.Resampling.BOX
        return picture.resize((small, small), box).resize(picture.size, box)

    return _as_pictures(pixels, change)


def _jpeg(pixels: Tensor, level: float, generator: torch.Generator) -> Tensor:
    def change(picture: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(level))
        return Image.open(buffer)

    return _as_pictures(pixels, change)


def _as_pictures(pixels: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Pixels that Pillow changed in 8 bits, as in the benchmark."""
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image

    pictures = (to_pil_image(picture) for picture in (255 * pixels).round().to(torch.uint8))
    return torch.stack([pil_to_tensor(change(picture)) for picture in pictures]).float() / 255


CORRUPTIONS: dict[str, tuple[tuple[float, ...], Callable[[Tensor, float, torch.Generator], Tensor]]] = {
    "Gaussian noise": ((0.04, 0.08, 0.12, 0.15, 0.18), _gaussian_noise),
    "shot noise": ((250.0, 100.0, 50.0, 30.0, 15.0), _shot_noise),
    "impulse noise": ((0.01, 0.02, 0.05, 0.08, 0.14), _impulse_noise),
    "Gaussian blur": ((0.5, 0.75, 1.0, 1.25, 1.5), _gaussian_blur),
    "zoom blur": ((6.0, 11.0, 16.0, 21.0, 26.0), _zoom_blur),
    "brightness": ((0.1, 0.2, 0.3, 0.4, 0.5), _brightness),
    "contrast": ((0.4, 0.3, 0.2, 0.1, 0.05), _contrast),
    "pixelate": ((0.9, 0.8, 0.7, 0.6, 0.5), _pixelate),
    "JPEG": ((65.0, 58.0, 50.0, 40.0, 25.0), _jpeg),
}
