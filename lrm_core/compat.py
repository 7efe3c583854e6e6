"""`LRMNet` and `SteerableLRM`: the calls of the published code (Konkle & Alvarez, NeurIPS 2023) on top of `LRM`.

Both are thin fronts of one `LRM` whose paths are `PublishedFeedback`, so that published weights give published numbers.

Unusual: with `drop_state=False` a call goes on from the call before. So a front, unlike its `LRM`, keeps the state and
the goals of its last call. Calls with `drop_state=True` read nothing that is kept, and may run in several threads. The
backbone is never changed. The published code adds a ReLU after each destination; here it is the backbone's own, because
a destination must be followed by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from lrm_base.checks import finite_number, strength, whole_number
from lrm_core.feedback import Connection, PublishedFeedback, Strength
from lrm_core.model import LRM, State, Steer
from lrm_core.published_keys import ours_to_published, published_to_ours

__all__ = ["PUBLISHED_CONNECTIONS", "LRMNet", "SteerableLRM", "ours_to_published", "published_to_ours"]

_LRM1 = [
    {"source": "classifier.6", "destination": "features.8"},
    {"source": "features.9", "destination": "features.0"},
]
_LRM2 = [
    *_LRM1,
    {"source": "classifier.6", "destination": "features.10"},
    {"source": "features.12", "destination": "features.3"},
]
PUBLISHED_CONNECTIONS: dict[str, list[dict[str, str]]] = {
    "alexnet_lrm1": _LRM1,
    "alexnet_lrm2": _LRM2,
    "alexnet_lrm3": [*_LRM2, {"source": "classifier.2", "destination": "features.6"}],
}
"""The `mod_connections` of the published models around torchvision's AlexNet."""


@dataclass(frozen=True)
class _Kept:
    """What a call keeps for a later call with `drop_state=False`: its last state and its goals."""

    state: State
    goals: tuple[Steer, ...]


class _Front(nn.Module):
    """The common part of the two published classes: construction, passes, loading."""

    def __init__(
        self,
        network: nn.Module,
        mod_connections: Sequence[Mapping[str, str]],
        forward_passes: int,
        img_size: int,
        return_list: bool,
    ) -> None:
        super().__init__()
        forward_passes = whole_number("forward_passes", forward_passes, 1)
        img_size = whole_number("img_size", img_size, 1)
        connections = [_connection(given) for given in mod_connections]
        self.lrm = LRM(network, connections, img_size, feedback=PublishedFeedback, rule="multiply", all_calls=True)
        self.forward_passes = forward_passes
        self.return_list = return_list
        self._kept: _Kept | None = None

    @property
    def feedforward(self) -> nn.Module:
        """The backbone, under its published name."""
        return self.lrm.backbone

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # a copy starts without it: it may hold a graph of gradients

    def _run(
        self,
        images: Tensor,
        drop_state: bool,
        forward_passes: int | None,
        return_list: bool | None,
        goals: tuple[Steer, ...] | None = None,
        steer_first: bool = False,
    ) -> list[Tensor] | Tensor:
        given = self.forward_passes if forward_passes is None else forward_passes
        passes = whole_number("forward_passes", given, 1)
        kept = None if drop_state else self._kept
        state = None if kept is None else kept.state
        now = goals or ()
        self.lrm.check(now)  # even if no pass of this call is steered
        _widest(images, state, now)
        outputs = []
        for index in range(passes):
            steer = now
            if index == 0 and kept is None and not steer_first:
                steer = ()
            elif index == 0 and kept is not None and goals is None:
                steer = kept.goals
            if index == 0 or self.training:  # as published, each pass has its own dropout and batch statistics
                stem = self.lrm.stem(images)
            wide = _widest(images, state, steer)
            output, state = self.lrm.step(
                stem.expand(wide) if images.shape[0] < wide else stem,
                None if state is None else state.expand(wide),
                steer,
            )
            outputs.append(output)
        assert state is not None
        self._kept = _Kept(state, now)  # only now, so that a call that raises changes nothing
        return outputs if (self.return_list if return_list is None else return_list) else outputs[-1]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load published weights, in any published spelling (see `published_to_ours`), or our own.

        Raises:
            ValueError: a tensor has another shape, or, if `strict`, a key is missing or unexpected. The error names
                them as published.
        """
        connections, wanted = self.lrm.connections, self.lrm.state_dict()
        given = published_to_ours(state_dict, connections)
        known = {key: value for key, value in given.items() if key in wanted}
        shapes = ours_to_published({key: wanted[key] for key in known}, connections)
        wrong = [
            f"{key}: got {tuple(value.shape)}, expected {tuple(shapes[key].shape)}"
            for key, value in ours_to_published(known, connections).items()
            if value.shape != shapes[key].shape
        ]
        missing = list(ours_to_published({key: v for key, v in wanted.items() if key not in given}, connections))
        unexpected = [key for key in given if key not in wanted]
        if wrong or (strict and (missing or unexpected)):
            raise ValueError(
                f"state_dict does not fit {type(self).__name__} with {len(connections)} connections: "
                f"missing {missing}, unexpected {unexpected}, of another shape {wrong}"
            )
        return self.lrm.load_state_dict(given, strict, assign)


class LRMNet(_Front):
    """A backbone with feedback connections, called as published.

    Args:
        network: the backbone; see `LRM`. It is neither changed nor copied.
        mod_connections: dicts of `source` and `destination`, names of modules of the backbone.
        forward_passes: passes of a call, unless the call gives another number.
        img_size: side in pixels of the largest image expected. The norms of maps have a weight for each position of
            such an image. Images of other sizes are allowed.
        return_list: whether a call returns the outputs of all passes, as published, or only of the last, unless the
            call says otherwise.

    Raises:
        ValueError: a connection has other keys or does not fit the backbone (see `LRM`), or a number is not a whole
            number above 0.
    """

    def __init__(
        self,
        network: nn.Module,
        mod_connections: Sequence[Mapping[str, str]],
        forward_passes: int = 2,
        img_size: int = 224,
        return_list: bool = True,
    ) -> None:
        super().__init__(network, mod_connections, forward_passes, img_size, return_list)

    def forward(
        self,
        x: Float[Tensor, "b 3 h w"],
        drop_state: bool = True,
        forward_passes: int | None = None,
        return_list: bool | None = None,
    ) -> list[Float[Tensor, "b m"]] | Float[Tensor, "b m"]:
        """Outputs of all passes, or of the last without `return_list`.

        With `drop_state=False` the first pass goes on from the last call.

        Raises:
            ValueError: the batches of images and kept state differ, or there is no pass.
        """
        return self._run(x, drop_state, forward_passes, return_list)


class SteerableLRM(_Front):
    """`LRMNet` with goals, called as published.

    Args:
        network, mod_connections, forward_passes, return_list, img_size: see `LRMNet`. The order is as published.
    """

    def __init__(
        self,
        network: nn.Module,
        mod_connections: Sequence[Mapping[str, str]],
        forward_passes: int = 2,
        return_list: bool = True,
        img_size: int = 224,
    ) -> None:
        super().__init__(network, mod_connections, forward_passes, img_size, return_list)

    def forward(
        self,
        x: Float[Tensor, "b 3 h w"],
        drop_state: bool = True,
        forward_passes: int | None = None,
        return_list: bool | None = None,
        steering_signals: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        first_pass_steering: bool = False,
    ) -> list[Tensor] | Tensor:
        """Outputs (b, m) of all passes, or of the last without `return_list`.

        Args:
            x: images, normalised as the backbone expects them.
            drop_state: start anew. If False, the first pass goes on from the last call, so that several calls of one
                pass with the same signals give the passes of one call. Without signals this pass is still steered by
                the signals of the last call; an empty list stops the steering.
            forward_passes, return_list: for this call, instead of the model's own.
            steering_signals: one dict or several. Their keys are `source`, a source of feedback; `activation`, the
                goal, (b, …) or (1, …); `strength`, a number or (negative, positive), which multiplies the learned gains
                of the paths out of the source; and, optionally, `alpha`, the goal's share from 0 to 1 (1 by default).
                The rest is the model's own activation. One image with several goals gives an output for each.
            first_pass_steering: steer the very first pass too. It has no activation of its own to mix with.

        Raises:
            ValueError: a signal has other keys, an unknown source, or an activation, strength or alpha that does not
                fit; the batches of images, goals and kept state differ; or there is no pass.
        """
        goals = None if steering_signals is None else _goals(steering_signals, x)
        return self._run(x, drop_state, forward_passes, return_list, goals, first_pass_steering)


def _connection(given: Mapping[str, str]) -> Connection:
    if set(given) != {"source", "destination"}:
        raise ValueError(
            f"mod_connections: got a connection with the keys {', '.join(map(str, given)) or 'none'}, "
            "expected source and destination"
        )
    return Connection(**given)


def _goals(signals: Mapping[str, Any] | Sequence[Mapping[str, Any]], images: Tensor) -> tuple[Steer, ...]:
    """Steering signals as goals, on the device of the images."""
    goals = []
    for signal in [signals] if isinstance(signals, Mapping) else signals:
        unknown = signal.keys() - {"source", "activation", "strength", "alpha"}
        missing = [key for key in ("source", "activation", "strength") if key not in signal]
        if unknown or missing:
            raise ValueError(
                f"steering_signals: got unknown keys: {', '.join(sorted(map(str, unknown))) or 'none'}; "
                f"missing keys: {', '.join(missing) or 'none'}; "
                "expected source, activation, strength and, if wanted, alpha"
            )
        activation = signal["activation"]
        if not isinstance(activation, Tensor):
            raise ValueError(f"activation for {signal['source']!r}: got {type(activation).__name__}, expected a tensor")
        alpha = finite_number("alpha", signal.get("alpha", 1.0))
        goals.append(Steer(signal["source"], activation.to(images), _strength(signal["strength"]), alpha))
    return tuple(goals)


def _strength(given: Any) -> Strength:
    """The strength of a signal. As published, one number may also come as a sequence of one."""
    alone = isinstance(given, list | tuple | Tensor | np.ndarray) and np.ndim(given) == 1 and len(given) == 1
    return strength(given[0] if alone else given)


def _widest(images: Tensor, state: State | None, goals: Sequence[Steer]) -> int:
    """The batch of a pass: one image may come with many goals, and one goal with many images."""
    batches = {"images": images.shape[0]}
    if state is not None:
        batches["kept state"] = next(iter(state.activations.values())).shape[0]
    batches |= {f"activation for {goal.source!r}": goal.target.shape[0] for goal in goals}
    wide = max(batches.values())
    if any(batch not in (1, wide) for batch in batches.values()):
        listed = ", ".join(f"{name} {batch}" for name, batch in batches.items())
        raise ValueError(
            f"batches differ: got {listed}; expected one number, or 1. drop_state=True starts without kept state"
        )
    return wide
