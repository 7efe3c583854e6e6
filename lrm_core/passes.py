"""What goes into a pass and comes out of it: the stem of the images, the state of the pass before, and the goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lrm_base import checks
from lrm_core.feedback import Strength
from lrm_core.layouts import Layout
from lrm_core.steps import Place


@dataclass(frozen=True)
class Steer:
    """A goal for one pass: it replaces the activation that `source` had in the pass before.

    Attributes:
        source: name of a step that feedback comes from, usually the classifier.
        target: (b, …) or (1, …), an activation of that step: for a classifier of M classes (b, M) logits.
        strength: replaces the gain of every path out of `source`: one number, or (negative, positive), each at most
            1000 in size. 0 switches these paths off. A `PublishedFeedback` multiplies its gain by it instead.
        mix: share of the target, 0–1; the rest is the model's own activation. 1 replaces it, 0 leaves it as it is.
    """

    source: str
    target: Tensor
    strength: Strength = 1.0
    mix: float = 1.0


@dataclass(frozen=True)
class State:
    """What the next pass needs: the activations of the sources, and how many passes have run."""

    activations: Mapping[str, Tensor]
    num_passes: int

    def detach(self) -> State:
        """The same values, detached from the graph of gradients."""
        return State({name: value.detach() for name, value in self.activations.items()}, self.num_passes)

    def expand(self, batch: int) -> State:
        """The state of one image, (1, …), repeated as a view for a batch of goals, (batch, …)."""
        return State({k: v.expand(batch, *v.shape[1:]) for k, v in self.activations.items()}, self.num_passes)


@dataclass(frozen=True)
class Stem:
    """The values of the steps that no feedback reaches. They are the same in every pass over an image."""

    values: Mapping[Place, Any]

    def expand(self, batch: int) -> Stem:
        """The stem of one image, (1, …), repeated as a view for a batch of goals, (batch, …)."""
        return Stem(
            {
                place: value.expand(batch, *value.shape[1:])
                if isinstance(value, Tensor) and value.ndim and value.shape[0] == 1
                else value
                for place, value in self.values.items()
            }
        )


def check_goals(steer: Sequence[Steer], layouts: Mapping[str, Layout]) -> None:
    """Check goals without images.

    Args:
        layouts: of each source's activation. The height and width of a map and the number of tokens may differ.

    Raises:
        ValueError: a source is unknown or steered twice, or a target, strength or mix does not fit; see `Steer`.
    """
    steered: set[str] = set()
    for goal in steer:
        if goal.source not in layouts:
            raise ValueError(f"source: cannot steer {goal.source!r}; sources of feedback: {', '.join(layouts)}")
        if goal.source in steered:
            raise ValueError(f"source: {goal.source!r} is steered twice in one pass, expected one goal for each source")
        steered.add(goal.source)
        checks.strength(goal.strength)
        checks.finite_number("mix", goal.mix)
        if not isinstance(goal.target, Tensor):
            raise ValueError(f"goal for {goal.source!r}: got {type(goal.target).__name__}, expected a tensor")
        layout, got = layouts[goal.source], tuple(goal.target.shape)
        expected = layout.shape
        # the number of places depends on the images; of an unknown layout, which axis holds them is not known
        fits = len(got) == len(expected) + 1 and (
            layout.kind == "unknown" or got[1:][layout.axis] == expected[layout.axis]
        )
        if not fits:
            raise ValueError(f"goal for {goal.source!r}: got shape {got}, expected shape (batch, {_listed(expected)})")


def arriving(images: Tensor, state: State | None, steer: Sequence[Steer]) -> dict[str, tuple[Tensor, Strength | None]]:
    """The activation of each source that sends feedback in a pass, and its strength if a goal sets it.

    Args:
        images: any value of the stem with one entry for each image.
        state: what the pass before left; None in the first pass.
        steer: goals, after `check_goals`.

    Raises:
        ValueError: the batch of a goal or of the state is neither 1 nor the number of images, or a goal has another
            spatial size than the activation that it replaces.
    """
    feedback: dict[str, tuple[Tensor, Strength | None]] = {}
    for name, own in ({} if state is None else state.activations).items():
        _check_batch(f"state of {name!r}", own, len(images))
        feedback[name] = (own, None)
    for goal in steer:
        target = goal.target
        _check_batch(f"goal for {goal.source!r}", target, len(images))
        if goal.source in feedback:
            own, _ = feedback[goal.source]
            if target.shape[1:] != own.shape[1:]:
                raise ValueError(
                    f"goal for {goal.source!r}: got shape {tuple(target.shape)}, "
                    f"expected shape (batch, {_listed(own.shape[1:])}), as the activation that it replaces"
                )
            if len(target) > len(own):  # the state of one image serves all goals
                own = own.expand(len(target), *own.shape[1:])
            target = target.to(own).expand_as(own)
            if goal.mix != 1.0:
                target = goal.mix * target + (1 - goal.mix) * own
        elif target.is_floating_point():
            target = target.to(images.device)
        else:
            target = target.to(images)
        feedback[goal.source] = (target, checks.strength(goal.strength))
    return feedback


def _check_batch(name: str, value: Tensor, count: int) -> None:
    if len(value) not in (1, count):
        expected = "1" if count == 1 else f"1 or {count}"
        raise ValueError(f"{name}: got a batch of {len(value)}, expected {expected}, since there are {count} images")


def _listed(shape: Sequence[int]) -> str:
    return str(tuple(shape))[1:-1]
