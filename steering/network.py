"""A network looks at photographs: first passes, steered passes, heatmaps, and first passes as bytes, without words.

Unusual: the first pass over an image never depends on the goal. An image with K goals costs one first pass and a batch
of K steered ones. The object holds no state between calls, so threads may share it. A network in half precision takes
float32 and gives float32: only what lies between is half.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lrm_base.checks import MOST_PASSES, finite_number, whole_number
from lrm_base.frame import STEP
from lrm_core import LRM, State, Steer, Stem
from lrm_core.backbones import Preprocessing
from lrm_core.feedback import Strength
from lrm_core.packing import Layout
from lrm_core.places import class_evidence
from steering.algebra import combine
from steering.evidence import Seen, features, support
from steering.heatmap import steering_heatmap
from steering.images import framed

DETAIL = (0.5, 4.0)  # smallest and largest factor of `Network.in_detail`

if hasattr(os, "register_at_fork"):  # a forked process has lost torch's threads, and would wait for them for ever
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


@dataclass(frozen=True)
class Defaults:
    """What a look uses unless told otherwise. They were chosen on composites of training images (`steering.json`).

    Attributes:
        strength: gain of the goal's feedback.
        passes: number of passes in all, the unsteered first one included.
        num_samples, sampling_steps: how many samples the diffusion prior draws, and in how many steps.
    """

    strength: float
    passes: int
    num_samples: int = 16
    sampling_steps: int = 10


@dataclass(frozen=True)
class Glance(Seen):
    """Images after their first, unsteered pass: all that any goal needs, and what the pass says of every class.

    Attributes:
        stem, state: what the next pass starts from.
        shape: rows and columns of pixels in which the images were seen.
    """

    stem: Stem = field(kw_only=True)
    state: State = field(kw_only=True)
    shape: tuple[int, int] = field(kw_only=True)

    def expand(self, count: int) -> Glance:
        """The glance at one image, as a view for a batch of `count` goals."""

        def view(value: Tensor) -> Tensor:
            return value.expand(count, *value.shape[1:])

        embedding, windows = (None if part is None else view(part) for part in (self.embedding, self.windows))
        seen = Seen(view(self.output), view(self.places), embedding, windows)
        return Glance.of(seen, self.stem.expand(count), self.state.expand(count), self.shape)

    @classmethod
    def of(cls, seen: Seen, stem: Stem, state: State, shape: tuple[int, int]) -> Glance:
        """What a first pass saw, and what the next one starts from."""
        return cls(seen.output, seen.places, seen.embedding, seen.windows, stem=stem, state=state, shape=shape)


class Network:
    """A backbone with feedback, ready to look at photographs. All tensors live on `device`.

    Attributes:
        model: the backbone with its feedback connections.
        card: the weight card, with the class names and the name of the output.
        preprocessing: size, mean and standard deviation of the pixels.
        defaults: strength and passes unless told otherwise.
        notes: what is to be said of every look through this network; one sentence each.
    """

    def __init__(
        self, model: LRM, card: dict[str, Any], preprocessing: Preprocessing, defaults: Defaults, device: torch.device
    ) -> None:
        self.model, self.card, self.preprocessing = model, card, preprocessing
        self.defaults, self.device = defaults, device
        self.notes: tuple[str, ...] = ()

    def with_model(self, model: LRM) -> Network:
        """This network with another model that has the same outputs, for controls and ablations. The card stays."""
        return self._like(model=model)

    def with_defaults(self, defaults: Defaults) -> Network:
        """The same model with other defaults."""
        return self._like(defaults=defaults)

    def _like(self, **changes: Any) -> Network:
        """A copy with other attributes. What was computed from them is computed anew."""
        other = object.__new__(type(self))
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("class_names", "_layouts")})
        other.__dict__.update({"notes": (), **changes})
        return other

    def in_detail(self, detail: float) -> Network:
        """This network with photographs `detail` times as large, 0.5 to 4. A look then costs the square of that.

        Raises:
            ValueError: `detail` is out of range, or the network squashes what it sees to a square of one size.
        """
        detail = finite_number("detail", detail, *DETAIL)
        if detail == 1:
            return self
        if not self.preprocessing.keeps_aspect:
            raise ValueError(f"detail: got {detail:g}, expected 1: {self.card['name']} sees squares of one size")
        size = max(1, round(self.preprocessing.size * detail / STEP)) * STEP
        note = f"seen at {size} px instead of {self.preprocessing.size} px, for which the verdict was calibrated"
        return self._like(preprocessing=replace(self.preprocessing, size=size), notes=(note,))

    @property
    def dtype(self) -> torch.dtype:
        """The numbers that the passes compute with: float32, bfloat16 or float16."""
        return next(self.model.parameters()).dtype

    def in_precision(self, dtype: torch.dtype) -> Network:
        """This network with its parameters converted, in place. A pass over an empty image tells whether it can run.

        Raises:
            ValueError: the device cannot compute with these numbers.
        """
        self.model.to(dtype)
        size = self.preprocessing.size
        try:
            glance = self.glance(torch.zeros(1, 3, size, size, device=self.device))
            self.heatmap(glance, glance.output.new_ones(1, self.width), passes=2)
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:120]
            raise ValueError(
                f"dtype: got {_spelled(dtype)}, expected numbers that {self.device} can compute with here; choices: "
                f"float32 ({reason})"
            ) from None
        return self

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """What the network can name, in the order of its outputs."""
        return tuple(entry["name"] for entry in self.card["classes"])

    @property
    def is_open(self) -> bool:
        """Whether any words can be looked for, not only what the class names cover."""
        return False

    @property
    def width(self) -> int:
        """M, the number of values of a goal."""
        return len(self.class_names)

    def names_for(self, query: str) -> tuple[str, ...]:
        """The alternatives of a look, in the order of the values that `asked` gives: the class names."""
        return self.class_names

    @property
    def output(self) -> str:
        """Name of the step that is steered: the classifier."""
        return self.card["output"]

    def asked(self, seen: Seen, goals: Float[Tensor, "b m"]) -> tuple[Seen, Float[Tensor, "b c"]]:
        """What a pass says of the alternatives of a look, and each goal as logits over them.

        Of a classifier the alternatives are its classes, so nothing changes.
        """
        return seen, goals

    def support(self, seen: Seen, goals: Float[Tensor, "b m"]) -> Float[Tensor, " b"]:
        """Log-odds, in nats, of what each goal stands for; see `steering.evidence.support`."""
        said, wanted = self.asked(seen, goals)
        return support(said.output, wanted)

    def features(
        self, before: Seen, after: Seen, goals: Float[Tensor, "b m"], familiarity: Float[Tensor, " b"]
    ) -> Float[Tensor, "b f"]:
        """What verdicts read; see `steering.evidence.features`."""
        first, wanted = self.asked(before, goals)
        return features(first, self.asked(after, goals)[0], wanted, familiarity, self._standing(before, goals))

    def _standing(self, seen: Seen, goals: Float[Tensor, "b m"]) -> Float[Tensor, " b"] | None:
        """How far images lie above images at large; see `steering.evidence.features`. None for a classifier."""
        return None

    def spelled(self, goals: Float[Tensor, "b m"]) -> Float[Tensor, "b c"]:
        """Goals as logits over the alternatives of a look, to show what they were understood as."""
        return goals

    def kept(self, glance: Glance) -> tuple[np.ndarray, np.ndarray]:
        """What a gallery keeps of images: outputs (b, M), and what the first stage compares with, (b, M), at length 1.

        The latter is the square root of the class evidence by places.
        """
        return glance.output.float().cpu().numpy(), glance.places.float().clamp(min=0).sqrt().cpu().numpy()

    def indexed(
        self, inputs: Float[Tensor, "b 3 h w"], *, pack: bool
    ) -> tuple[np.ndarray, np.ndarray, list[str], list[bytes] | None]:
        """A first pass for a gallery: what `kept` gives, the likeliest class by places, and with `pack` the bytes."""
        glance = self.glance(inputs)
        sees = [self.class_names[index] for index in glance.places.argmax(1).tolist()]
        return *self.kept(glance), sees, self.pack(glance) if pack else None

    def direction(self, goal: Float[Tensor, " m"]) -> np.ndarray:
        """What the first stage of a search compares images with: the goal's class probabilities q at length 1, (M,).

        Its cosine with the square root of an image's class evidence p is Σ q_c √p_c / |q|. For a goal of one class,
        this ranks images by the probability of that class.
        """
        chances = goal.float().softmax(-1).cpu().numpy()
        return chances / np.linalg.norm(chances)

    def combine(self, weights: Sequence[float], goals: Float[Tensor, "t m"]) -> Float[Tensor, " m"]:
        """One goal of several; see `steering.algebra.combine`."""
        return combine(weights, goals)

    def over_picture(self, heatmap: Float[Tensor, "h w"], width: int, height: int) -> Float[Tensor, "_ _"]:
        """A heatmap of what was seen as one of the whole picture of that size. Here the whole picture is seen."""
        return heatmap

    def pixels(self, picture: Image.Image) -> Float[Tensor, "1 3 h w"]:
        """A photograph as the backbone takes it: the whole picture in its frame (`lrm_base.frame`), normalised."""
        return self.as_input(np.asarray(framed(picture, self.preprocessing.frame))[None])

    def as_input(self, pixels: np.ndarray) -> Float[Tensor, "b 3 h w"]:
        """Images in one frame, (b, h, w, 3) uint8, normalised."""
        shown = rearrange(torch.from_numpy(pixels.copy()).to(self.device), "b h w c -> b c h w")
        return self.preprocessing.normalise(shown.float() / 255)

    @torch.no_grad()
    def glance(self, inputs: Float[Tensor, "b 3 h w"]) -> Glance:
        """The first, unsteered pass over normalised images. It serves every goal."""
        stem = self.model.stem(inputs.to(self.dtype))
        return self._glanced(stem, (inputs.shape[-2], inputs.shape[-1]))

    def _glanced(self, stem: Stem, shape: tuple[int, int]) -> Glance:
        seen, state = self._pass(stem)
        return Glance.of(seen, stem, state, shape)

    def _pass(self, stem: Stem, state: State | None = None, steer: Sequence[Steer] = ()) -> tuple[Seen, State]:
        """One pass: what it says, and the state for the next one."""
        output, after = self.model.step(stem, state, steer)
        return self._seen(output, after), after

    def _seen(self, output: Tensor, state: State) -> Seen:
        return Seen(output.float(), class_evidence(self.model, self.output, output, state))

    @cached_property
    def _layouts(self) -> dict[tuple[int, int], Layout]:
        return {}

    def _layout(self, shape: tuple[int, int]) -> Layout:
        if self.dtype != torch.float32:
            got = _spelled(self.dtype)
            raise ValueError(f"dtype: got {got}, expected float32: a gallery keeps first passes of float32 alone")
        if shape not in self._layouts:
            self._layouts[shape] = Layout.of(self.model, *shape)
        return self._layouts[shape]

    def pack(self, glance: Glance) -> list[bytes]:
        """A glance as bytes, one string for each image: what any steered pass starts from, in half precision.

        Raises:
            ValueError: the network is not one of float32.
        """
        return self._layout(glance.shape).pack(glance.stem, glance.state)

    def unpack(self, packed: Sequence[bytes], shape: tuple[int, int] | None = None) -> Glance:
        """The glance at the images whose bytes `pack` gave.

        Args:
            shape: rows and columns of pixels in which the images were seen; a square of the network's size if None.

        Raises:
            ValueError: they come from another network or another shape, or this network is not one of float32.
        """
        size = self.preprocessing.size
        shape = (size, size) if shape is None else shape
        stem, state = self._layout(shape).unpack(list(packed), self.device)
        seen = self._seen(state.activations[self.output], state)
        return Glance.of(seen, stem, state, shape)

    @torch.no_grad()
    def unsteered(self, glance: Glance, passes: int | None = None) -> list[Float[Tensor, "b m"]]:
        """Outputs of all passes without a goal; the first is the glance's own. `passes` is the default if None."""
        passes = self.defaults.passes if passes is None else whole_number("passes", passes, 1, MOST_PASSES)
        outputs, state = [self._output(glance)], glance.state
        for _ in range(passes - 1):
            output, state = self.model.step(glance.stem, state)
            outputs.append(output.float())
        return outputs

    def _output(self, seen: Seen) -> Float[Tensor, "b m"]:
        """What the step `output` gave in a pass, in the space of goals."""
        return seen.output

    @torch.no_grad()
    def steer(
        self,
        glance: Glance,
        goals: Float[Tensor, "b m"],
        *,
        strength: Strength | None = None,
        passes: int | None = None,
    ) -> Seen:
        """What the last steered pass says, with one goal for each image of the glance."""
        state, steer = self.before_last(glance, goals, strength=strength, passes=passes)
        return self._pass(glance.stem, state, [steer])[0]

    @torch.no_grad()
    def before_last(
        self,
        glance: Glance,
        goals: Float[Tensor, "b m"],
        *,
        strength: Strength | None = None,
        passes: int | None = None,
    ) -> tuple[State, Steer]:
        """The state before the last steered pass, and what steers that pass. A caller runs the pass, or inspects it.

        Args:
            goals: logits, one goal for each image.
            strength: gain of the goal's feedback, or (negative, positive). The default if None.
            passes: number of passes in all, at least 2. The default if None.

        Raises:
            ValueError: a strength is not finite or too large, or there are fewer than two passes.
        """
        passes = self.defaults.passes if passes is None else whole_number("passes", passes, 2, MOST_PASSES)
        steer = Steer(self.output, goals, self.defaults.strength if strength is None else strength)
        self.model.check([steer])
        state = glance.state
        for _ in range(passes - 2):
            _, state = self.model.step(glance.stem, state, [steer])
        return state, steer

    def heatmap(
        self,
        glance: Glance,
        goals: Float[Tensor, "b m"],
        *,
        strength: Strength | None = None,
        passes: int | None = None,
    ) -> tuple[Seen, Float[Tensor, "b h w"]]:
        """Like `steer`, with heatmaps in 0–1 that show where the goal was found. Raises like `before_last`."""
        state, steer = self.before_last(glance, goals, strength=strength, passes=passes)
        output, after, heatmaps = steering_heatmap(
            self.model, self.output, glance.stem, glance.state, state, steer, goals
        )
        return self._seen(output, after), heatmaps


def _spelled(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
