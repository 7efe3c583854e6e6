"""A feedback path of low rank that reads what is at each place: `MatchedFeedback`.

A path from 1,000 goals to 1,000 channels has a million weights, and it learns few photographs by heart. This path goes
through a short code of the source. The code is multiplied, place by place, by a key of the features that are there:

    f = P · (code ⊙ (1 + K x))        code = E · tanh(norm(source)) + e

So a goal chooses channels and places at once (x are the rectified features of the destination at that place or token,
brought to a root mean square of 1). The constant e is feedback that does not depend on the source: what later passes do
in any scene. The projection P starts at zero, so the later passes of a new model equal its first.
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
from lrm_core.layouts import Layout, fitted

RANK = 48
SOFTNESS = 0.2  # of tanh(norm(x)): a classifier's peak lies 8 standard deviations above its mean output
CONSTANT_SCALE, KEY_SCALE = 1.0, 0.02  # standard deviations of what a new path starts with
CODE_SCALE = 0.3


class MatchedFeedback(nn.Module):
    """The path of one connection to a map or to tokens.

    Args:
        source: layout of the source's activation. A shape without the batch is a vector (c,), tokens (t, c) without
            places, or a map (c, h, w).
        destination: likewise, but no vector.
        rank: length of the code.

    Raises:
        ValueError: a layout is not known, or the destination is a vector.
    """

    def __init__(
        self, source: Layout | tuple[int, ...], destination: Layout | tuple[int, ...], rank: int = RANK
    ) -> None:
        super().__init__()
        self.source, self.destination = Layout.of(source), Layout.of(destination)
        if self.destination.kind == "vector":
            raise ValueError(
                f"destination: got {self.destination.shape}, expected a map (c, h, w) or (h, w, c), or tokens (t, c), "
                "since a code is matched with what is at each place"
            )
        channels, wanted = self.source.channels, self.destination.channels
        self.norm: nn.Module = nn.GroupNorm(1, channels) if self.source.is_map else nn.LayerNorm(channels)
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
        self, source: Float[Tensor, "b ..."], destination: Float[Tensor, "d ..."], strength: Strength | None = None
    ) -> Float[Tensor, "b ..."]:
        """The factor f of the destination, in the destination's layout.

        `strength` replaces the learned gain: one number, or (negative, positive). The constant is scaled by their mean,
        so gain 0 gives exactly the plain backbone.

        Raises:
            ValueError: patch tokens do not fit a grid; see `lrm_core.layouts.Layout.grid_of`.
        """
        activation = torch.tanh(self.norm(self.source.with_channels_first(source)))
        negative, positive = self.gain.unbind() if strength is None else strength_pair(strength)
        activation = negative * activation.clamp(max=0) + positive * activation.clamp(min=0)
        constant = self.code.bias * ((negative + positive) / 2)
        if self.source.is_map:
            code = _at_each_place(activation, self.code.weight, 1) + rearrange(constant, "r -> r 1 1")
        else:
            code = F.linear(activation, self.code.weight, constant)  # (b, r) or (b, t, r)
        code = fitted(code, self.source, self.destination, destination)
        axis = 1 if self.destination.kind == "map" else -1
        features = self.destination.chosen(destination).clamp(min=0)
        features = F.normalize(features, dim=axis) * features.shape[axis] ** 0.5
        matched = code * (1 + _at_each_place(features, self.keys.weight, axis))
        return self.destination.spread(_at_each_place(matched, self.projection.weight, axis))


def _at_each_place(value: Tensor, weight: Tensor, axis: int) -> Tensor:
    """A linear map of the channels, which lie on axis 1 of a map or on the last axis."""
    if axis == 1:
        return F.conv2d(value, rearrange(weight, "out channels -> out channels 1 1"))
    return F.linear(value, weight)


@torch.no_grad()
def start_codes(classifier: nn.Linear, paths: Iterable[nn.Module], scale: float = CODE_SCALE) -> None:
    """Start the codes of goals at the classifier's singular vectors, so that classes that look alike have like codes.

    Paths of other kinds, and paths that were trained to look for goals, stay as they are. Where there are fewer classes
    than numbers in a code, the other numbers start at random.

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
        path.code.weight[: directions.shape[1]].copy_(scale * directions.T / codes.square().mean().sqrt())
