"""A feedback path of low rank that reads what is at each place: `MatchedFeedback`.

A path from 1,000 goals to 1,000 channels has a million weights, and it learns few photographs by heart. This path goes
through a short code of the source. The code is multiplied, place by place, by a key of the features that are there:

    f = P · (code ⊙ (1 + K x))        code = E · tanh(norm(source)) + e

So a goal chooses channels and places at once (x are the rectified features of the destination at that place, brought to
a root mean square of 1). The constant e is feedback that does not depend on the source: what later passes do in any
scene. The projection P starts at zero, so the later passes of a new model equal its first.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lrm_base.profiles import classifier_profiles
from lrm_core.feedback import Strength, strength_pair

RANK = 48
SOFTNESS = 0.2  # of tanh(norm(x)): a classifier's peak lies 8 standard deviations above its mean output
CONSTANT_SCALE, KEY_SCALE = 1.0, 0.02  # standard deviations of what a new path starts with
CODE_SCALE = 0.3


class MatchedFeedback(nn.Module):
    """The path of one connection to a map.

    Args:
        source_shape: shape of the source's activation without the batch: (c,) for a vector, (c, h, w) for a map.
        destination_shape: (c, h, w).
        rank: length of the code.

    Raises:
        ValueError: the source is neither a vector nor a map, or the destination is no map.
    """

    def __init__(self, source_shape: tuple[int, ...], destination_shape: tuple[int, ...], rank: int = RANK) -> None:
        super().__init__()
        if len(source_shape) not in (1, 3) or len(destination_shape) != 3:
            raise ValueError(
                f"shape: got {source_shape} to {destination_shape}, expected a vector (c,) or a map (c, h, w) to a map"
            )
        channels, wanted = source_shape[0], destination_shape[0]
        self.norm: nn.Module = nn.LayerNorm(channels) if len(source_shape) == 1 else nn.GroupNorm(1, channels)
        self.gain = nn.Parameter(torch.ones(2))  # for negative and for positive activations
        self.code = nn.Linear(channels, rank)
        self.keys = nn.Linear(wanted, rank, bias=False)
        self.projection = nn.Linear(rank, wanted, bias=False)
        with torch.no_grad():
            self.norm.weight.fill_(SOFTNESS)
            nn.init.normal_(self.code.weight, std=channels**-0.5)
            nn.init.normal_(self.code.bias, std=CONSTANT_SCALE)
            nn.init.normal_(self.keys.weight, std=KEY_SCALE)
            nn.init.zeros_(self.projection.weight)

    def forward(
        self, source: Float[Tensor, "b ..."], destination: Float[Tensor, "d c h w"], strength: Strength | None = None
    ) -> Float[Tensor, "b c h w"]:
        """The factor f of the destination.

        `strength` replaces the learned gain: one number, or (negative, positive). The constant is scaled by their mean,
        so gain 0 gives exactly the plain backbone.
        """
        activation = torch.tanh(self.norm(source))
        negative, positive = self.gain.unbind() if strength is None else strength_pair(strength)
        activation = negative * activation.clamp(max=0) + positive * activation.clamp(min=0)
        constant = self.code.bias * ((negative + positive) / 2)
        if source.ndim == 2:
            code = rearrange(F.linear(activation, self.code.weight, constant), "b r -> b r 1 1")
        else:
            code = _everywhere(activation, self.code.weight) + rearrange(constant, "r -> r 1 1")
            if code.shape[-2:] != destination.shape[-2:]:
                code = F.interpolate(code, destination.shape[-2:], mode="bilinear", align_corners=False)
        features = destination.clamp(min=0)
        features = F.normalize(features, dim=1) * features.shape[1] ** 0.5
        return _everywhere(code * (1 + _everywhere(features, self.keys.weight)), self.projection.weight)


def _everywhere(maps: Tensor, weight: Tensor) -> Tensor:
    """A linear map of the channels at every place."""
    return F.conv2d(maps, rearrange(weight, "out channels -> out channels 1 1"))


@torch.no_grad()
def start_codes(classifier: nn.Linear, paths: Iterable[nn.Module], scale: float = CODE_SCALE) -> None:
    """Start the codes of goals at the classifier's singular vectors, so that classes that look alike have like codes.

    Paths of other kinds, and paths that were trained to look for goals, stay as they are.

    Args:
        paths: paths from the classifier's output.
        scale: root mean square of the codes of goals for one class each.
    """
    new = [
        path
        for path in paths
        if isinstance(path, MatchedFeedback) and not (path.projection.weight.any() and path.code.weight.any())
    ]
    if not new:
        return
    profiles = classifier_profiles(classifier.weight)
    left, values, _ = torch.linalg.svd(classifier.weight - classifier.weight.mean(0), full_matrices=False)
    for path in new:
        directions = left[:, : len(path.code.weight)] * values[: len(path.code.weight)].sqrt()
        codes = torch.tanh(path.norm(profiles)) @ directions
        path.code.weight.copy_(scale * directions.T / codes.square().mean().sqrt())
