"""A CLIP image tower looks at photographs: any words are goals, and the alternatives are a bank of common things.

The output of such a network is an embedding. What it says of words is a cosine, which means nothing by itself: some
words are near to all images, and some images are near to all words. So words are set against a bank of common things.
The softmax over the bank and the words gives their probability, as for a classifier whose last class is what was asked
for. All that is read from classifiers (support, evidence, margin, verdicts) is read from these alternatives.

Unusual: things of the bank that mean the same as the words are left out of the comparison, or they would be rivals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from lrm_core import LRM, State, Steer, Stem
from lrm_core.backbones import Preprocessing
from lrm_core.feedback import Strength
from lrm_core.joint import OUTPUT, Anatomy
from steering.evidence import Seen
from steering.heatmap import merge
from steering.network import Defaults, Glance, Network

SAME = 0.8  # cosine, without what all texts share, from which on two texts mean the same
NEVER = -1e4  # the logit of an alternative that is left out


@dataclass(frozen=True, eq=False)
class Bank:
    """What words are set against.

    Attributes:
        names: common things, as they are shown.
        embeddings: (C, M), of unit length, of the names as texts.
        centre: (M,), what texts at large share.
    """

    names: tuple[str, ...]
    embeddings: Tensor
    centre: Tensor

    def alike(self, goals: Float[Tensor, "b m"]) -> Bool[Tensor, "b c"]:
        """Which things mean the same as goals."""
        centred, others = (
            F.normalize(each - self.centre, dim=-1) for each in (F.normalize(goals, dim=-1), self.embeddings)
        )
        return centred @ others.T > SAME


class JointNetwork(Network):
    """A CLIP image tower with feedback from its embedding. See `Network`.

    The class names are those of the bank. `Seen.output` and `Seen.places` speak of the bank, and `Seen.embedding` and
    `Seen.windows` are embeddings. Goals are embeddings, too.

    Attributes:
        bank: what words are set against.
        scale: by which cosines are multiplied before a softmax.
        images: (n, M), of unit length: embeddings of images at large, against which an image is set; None if there are
            none.
    """

    def __init__(
        self,
        model: LRM,
        card: dict[str, Any],
        preprocessing: Preprocessing,
        defaults: Defaults,
        device: torch.device,
        anatomy: Anatomy,
        bank: Bank,
        scale: float,
        images: Float[Tensor, "n m"] | None = None,
    ) -> None:
        super().__init__(model, card, preprocessing, defaults, device)
        self.anatomy, self.bank, self.scale, self.images = anatomy, bank, scale, images

    def against(self, names: Sequence[str], embeddings: Float[Tensor, "c m"]) -> JointNetwork:
        """The same network with other alternatives than the bank."""
        changed = self._like(bank=Bank(tuple(names), embeddings, self.bank.centre))
        assert isinstance(changed, JointNetwork)
        return changed

    def with_images(self, images: Float[Tensor, "n m"]) -> JointNetwork:
        """The same network with other images at large; see `images`."""
        changed = self._like(images=images.to(self.device, torch.float32))
        assert isinstance(changed, JointNetwork)
        return changed

    @property
    def is_open(self) -> bool:
        """Whether any words can be looked for."""
        return True

    @property
    def width(self) -> int:
        """M, the number of values of a goal."""
        return self.bank.embeddings.shape[1]

    @property
    def output(self) -> str:
        """Name of the step that is steered: the embedding."""
        return OUTPUT

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """What the bank names."""
        return self.bank.names

    def names_for(self, query: str) -> tuple[str, ...]:
        """The alternatives of a look: the bank, and what is looked for."""
        return (*self.class_names, query)

    def _pass(self, stem: Stem, state: State | None = None, steer: Sequence[Steer] = ()) -> tuple[Seen, State]:
        steps = [*self.model.sources, self.anatomy.patches]
        output, activations, _ = self.model.inspect(stem, state, steer, steps)
        patches = self.anatomy.embed(activations[self.anatomy.patches]).float()
        number = 1 if state is None else state.num_passes + 1
        return self._read(output.float(), patches), State({OUTPUT: activations[OUTPUT]}, number)

    def _read(self, embedding: Tensor, patches: Float[Tensor, "b h w m"]) -> Seen:
        windows = F.normalize(_windows(patches), dim=-1)
        names = self.bank.embeddings.T
        output = self.scale * F.normalize(embedding, dim=-1) @ names
        places = (self.scale * windows @ names).softmax(-1).mean(1)
        return Seen(output, places, embedding, windows)

    def unpack(self, packed: Sequence[bytes], shape: tuple[int, int] | None = None) -> Glance:
        """See `Network.unpack`. The places are read again, by the late steps of a pass."""
        size = self.preprocessing.size
        shape = (size, size) if shape is None else shape
        stem, _ = self._layout(shape).unpack(list(packed), self.device)
        with torch.no_grad():
            return self._glanced(stem, shape)

    def _output(self, seen: Seen) -> Float[Tensor, "b m"]:
        assert seen.embedding is not None
        return seen.embedding

    def asked(self, seen: Seen, goals: Float[Tensor, "b m"]) -> tuple[Seen, Float[Tensor, "b c"]]:
        """What a pass says of the bank and of each goal, and the goal as the last of these alternatives."""
        assert seen.embedding is not None
        assert seen.windows is not None
        directions = F.normalize(goals.float(), dim=-1)
        alike = self.bank.alike(directions)
        own = self.scale * (F.normalize(seen.embedding, dim=-1) * directions).sum(-1, keepdim=True)
        output = torch.cat([seen.output.masked_fill(alike, NEVER), own], -1)
        here = self._at_windows(seen.windows, directions, alike).mean(1, keepdim=True)
        places = seen.places.masked_fill(alike, 0.0)
        places = places / places.sum(-1, keepdim=True).clamp(min=1e-12) * (1 - here)
        wanted = torch.full_like(output, NEVER)
        wanted[:, -1] = 0.0
        return Seen(output, torch.cat([places, here], -1)), wanted

    def _standing(self, seen: Seen, goals: Float[Tensor, "b m"]) -> Float[Tensor, " b"]:
        """See `Network._standing`. Without images at large it is 0."""
        assert seen.embedding is not None
        directions = F.normalize(goals.float(), dim=-1)
        if self.images is None:
            return directions.new_zeros(len(directions))
        usual = directions @ self.images.T  # (b, n)
        own = (F.normalize(seen.embedding, dim=-1) * directions).sum(-1)
        return (own - usual.mean(-1)) / usual.std(-1).clamp(min=1e-6)

    def _at_windows(self, windows: Tensor, directions: Tensor, alike: Tensor) -> Float[Tensor, "b p"]:
        """The probability of the goal among the alternatives, at each window."""
        others = (self.scale * windows @ self.bank.embeddings.T).masked_fill(alike[:, None], NEVER).logsumexp(-1)
        own = self.scale * torch.einsum("bpm,bm->bp", windows, directions)
        return torch.sigmoid(own - others)

    def spelled(self, goals: Float[Tensor, "b m"]) -> Float[Tensor, "b c"]:
        """How near the alternatives lie to each goal, as logits; the goal itself is the last."""
        near = self.scale * F.normalize(goals.float(), dim=-1) @ self.bank.embeddings.T
        near = near.masked_fill(self.bank.alike(goals.float()), NEVER)
        return torch.cat([near, near.new_full((len(near), 1), self.scale)], -1)

    @torch.no_grad()
    def heatmap(
        self,
        glance: Glance,
        goals: Float[Tensor, "b m"],
        *,
        strength: Strength | None = None,
        passes: int | None = None,
    ) -> tuple[Seen, Float[Tensor, "b h w"]]:
        """Like `steer`, with heatmaps: the probability of the goal at each patch, as the mean of both passes."""
        after = self.steer(glance, goals, strength=strength, passes=passes)
        directions = F.normalize(goals.float(), dim=-1)
        alike = self.bank.alike(directions)
        maps = []
        for seen in (glance, after):
            assert seen.windows is not None
            patches = seen.windows[:, : self._patches(seen.windows.shape[1])]
            chances = self._at_windows(patches, directions, alike)
            maps.append(rearrange(chances, "b (h w) -> b h w", h=round(patches.shape[1] ** 0.5)))
        return after, merge(maps)

    @staticmethod
    @lru_cache(64)
    def _patches(windows: int) -> int:
        """How many of the windows are single patches."""
        side = next(side for side in range(1, 1000) if len(_corners(side, side)) == windows)
        return side * side

    def kept(self, glance: Glance) -> tuple[np.ndarray, np.ndarray]:
        """The embeddings, and the same at unit length."""
        assert glance.embedding is not None
        return glance.embedding.cpu().numpy(), F.normalize(glance.embedding, dim=-1).cpu().numpy()

    @torch.no_grad()
    def indexed(
        self, inputs: Float[Tensor, "b 3 h w"], *, pack: bool
    ) -> tuple[np.ndarray, np.ndarray, list[str], list[bytes] | None]:
        """See `Network.indexed`. What it sees is the nearest thing of the bank; places are not read."""
        stem = self.model.stem(inputs.to(self.dtype))
        output, state = self.model.step(stem)
        output = output.float()
        unit = F.normalize(output, dim=-1)
        sees = [self.bank.names[index] for index in (unit @ self.bank.embeddings.T).argmax(1).tolist()]
        shape = (inputs.shape[-2], inputs.shape[-1])
        return output.cpu().numpy(), unit.cpu().numpy(), sees, self._layout(shape).pack(stem, state) if pack else None

    def direction(self, goal: Float[Tensor, " m"]) -> np.ndarray:
        """The goal at unit length: the first stage is the cosine of text and image."""
        return F.normalize(goal.float(), dim=-1).cpu().numpy()

    def combine(self, weights: Sequence[float], goals: Float[Tensor, "t m"]) -> Float[Tensor, " m"]:
        """One goal of several: the weighted sum of their directions. See `steering.algebra.combine` for the weights."""
        scale = goals.new_tensor(list(weights))
        if bool((scale < 0).all()):
            scale = -scale
        return F.normalize((scale[:, None] * F.normalize(goals, dim=-1)).sum(0), dim=-1)

    def over_picture(self, heatmap: Float[Tensor, "h w"], width: int, height: int) -> Float[Tensor, "_ _"]:
        """A heatmap of what was seen as one of the whole picture. What was cut off is 0."""
        frame = self.preprocessing.frame
        if not frame.crops:
            return heatmap
        high, wide = frame.scaled(width, height)
        left, top, right, _ = frame.window(width, height)
        cell = (right - left) / heatmap.shape[1]
        canvas = heatmap.new_zeros(max(round(high / cell), heatmap.shape[0]), max(round(wide / cell), heatmap.shape[1]))
        row = min(round(top / cell), canvas.shape[0] - heatmap.shape[0])
        column = min(round(left / cell), canvas.shape[1] - heatmap.shape[1])
        canvas[row : row + heatmap.shape[0], column : column + heatmap.shape[1]] = heatmap
        return canvas


@lru_cache(64)
def _corners(height: int, width: int) -> tuple[tuple[int, int, int], ...]:
    """Square windows of a map, (row, column, side): each position, then sides that double, half overlapping."""
    found = []
    side = 1
    while side < min(height, width):
        step = max(side // 2, 1)
        rows, columns = range(0, height - side + 1, step), range(0, width - side + 1, step)
        found += [(row, column, side) for row in rows for column in columns]
        side *= 2
    return (*found, (0, 0, min(height, width)))


def _windows(patches: Float[Tensor, "b h w m"]) -> Float[Tensor, "b p m"]:
    """The means of patches over all windows; single patches come first."""
    height, width = patches.shape[1:3]
    sums = F.pad(patches.cumsum(1).cumsum(2), (0, 0, 1, 0, 1, 0))
    row, column, side = torch.tensor(_corners(height, width), device=patches.device).unbind(-1)
    total = sums[:, row + side, column + side] - sums[:, row, column + side]
    total = total - sums[:, row + side, column] + sums[:, row, column]
    return total / (side * side)[:, None]
