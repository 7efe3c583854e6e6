"""`LRMNet` and `SteerableLRM`: the calls of the published code (Konkle & Alvarez, NeurIPS 2023) on top of `LRM`.

Both are thin fronts of one `LRM` whose paths are `PublishedFeedback`, so that published weights give published numbers.

Unusual: `drop_state=False` steps on from the call before, so a front, unlike its `LRM`, keeps something: the state that
the last call left and the goals of that call. Calls with `drop_state=True` read nothing that is kept and may run
in several threads. Nothing is ever written on the backbone; the ReLU that the published code adds after a destination
is the backbone's own here, since a destination must be followed by one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrm_core.feedback import Connection, PublishedFeedback, Strength
from lrm_core.model import LRM, State, Steer

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
    """What a call leaves for one with `drop_state=False`: its state, and the goals that it ended with."""

    state: State
    goals: tuple[Steer, ...]


class _Front(nn.Module):
    """What the two published classes share: construction, passes one after the other, loading."""

    def __init__(
        self,
        network: nn.Module,
        mod_connections: Sequence[Mapping[str, str]],
        forward_passes: int,
        img_size: int,
        return_list: bool,
    ) -> None:
        super().__init__()
        _check_passes(forward_passes)
        connections = [_connection(given) for given in mod_connections]
        self.lrm = LRM(network, connections, img_size, feedback=PublishedFeedback)
        self.forward_passes = forward_passes
        self.return_list = return_list
        self._kept: _Kept | None = None

    @property
    def feedforward(self) -> nn.Module:
        """The backbone, under its published name."""
        return self.lrm.backbone

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # a copy begins anew: what is kept may hold a graph of gradients

    def _run(
        self,
        images: Tensor,
        drop_state: bool,
        forward_passes: int | None,
        return_list: bool | None,
        goals: tuple[Steer, ...] | None = None,
        steer_first: bool = False,
    ) -> list[Tensor] | Tensor:
        passes = _check_passes(self.forward_passes if forward_passes is None else forward_passes)
        kept = None if drop_state else self._kept
        state = None if kept is None else kept.state
        now = goals or ()
        self.lrm.check(now)  # also where no pass of this call is steered
        _widest(images, state, now)
        outputs = []
        for index in range(passes):
            steer = now
            if index == 0 and kept is None and not steer_first:
                steer = ()
            elif index == 0 and kept is not None and goals is None:
                steer = kept.goals
            if index == 0 or self.training:  # as published: each pass has its own dropout and batch statistics
                stem = self.lrm.stem(images)
            wide = _widest(images, state, steer)
            output, state = self.lrm.step(
                stem.expand(wide) if images.shape[0] < wide else stem,
                None if state is None else state.expand(wide),
                steer,
            )
            outputs.append(output)
        assert state is not None
        self._kept = _Kept(state, now)  # only now: a call that raises leaves what was kept before it
        return outputs if (self.return_list if return_list is None else return_list) else outputs[-1]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load published weights, in any published spelling (see `published_to_ours`), or our own.

        Raises:
            ValueError: keys are missing or unexpected (only if `strict`) or of another shape; they are named as
                published.
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
                f"the weights do not fit {type(self).__name__} with {len(connections)} connections: "
                f"missing {missing}, unexpected {unexpected}, of another shape {wrong}"
            )
        return self.lrm.load_state_dict(given, strict, assign)


class LRMNet(_Front):
    """A backbone with feedback connections, called as published.

    Args:
        network: the backbone; see `LRM`. It is neither altered nor copied.
        mod_connections: dicts of `source` and `destination`, names of modules of the backbone.
        forward_passes: passes of a call that does not say.
        img_size: side in pixels of the largest image expected; norms of maps have weights for its positions. Images
            of other sizes may be given.
        return_list: whether a call that does not say returns the outputs of all passes, as published, or of the last.

    Raises:
        ValueError: a connection has other keys, or makes no sense; see `LRM`.
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

        With `drop_state=False` the first pass steps on from the last call.
        """
        return self._run(x, drop_state, forward_passes, return_list)


class SteerableLRM(_Front):
    """`LRMNet` with goals, called as published.

    Args:
        network, mod_connections, forward_passes, return_list, img_size: as for `LRMNet`; their order is as published.
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
            x: images, as the backbone expects them.
            drop_state: start anew; if False, the first pass steps on from the last call, so that calls of one pass
                with the same signals are the passes of one call. Without signals it is still steered by those of
                the last call, with their strength; an empty list steers no more.
            forward_passes, return_list: for this call, instead of what the model was made with.
            steering_signals: dicts (or one) of `source`, a source of feedback; `activation` (b, …) or (1, …), the goal;
                `strength`, a number or (negative, positive), which multiplies the learned gains of the paths out
                of the source; and `alpha` (1 if left out), the goal's share, the rest being the model's own
                activation. One image may be given with several goals; its steered outputs are one for each.
            first_pass_steering: steer the first pass of all too, which has no activation of its own to mix with.

        Raises:
            ValueError: a signal has other keys, steers what is no source, or has an activation or strength that does
                not fit; the batches of images, goals and kept state differ; or there is no pass.
        """
        goals = None if steering_signals is None else _goals(steering_signals, x)
        return self._run(x, drop_state, forward_passes, return_list, goals, first_pass_steering)


def _check_passes(passes: int) -> int:
    if passes < 1:
        raise ValueError(f"forward_passes: got {passes}, expected at least 1")
    return passes


def _connection(given: Mapping[str, str]) -> Connection:
    if set(given) != {"source", "destination"}:
        raise ValueError(f"a connection has the keys source and destination; got {', '.join(given) or 'none'}")
    return Connection(**given)


def _goals(signals: Mapping[str, Any] | Sequence[Mapping[str, Any]], images: Tensor) -> tuple[Steer, ...]:
    """Steering signals as goals, on the device of the images."""
    goals = []
    for signal in [signals] if isinstance(signals, Mapping) else signals:
        unknown = signal.keys() - {"source", "activation", "strength", "alpha"}
        missing = [key for key in ("source", "activation", "strength") if key not in signal]
        if unknown or missing:
            raise ValueError(
                f"a steering signal has the keys source, activation, strength and, if wanted, alpha; "
                f"unknown: {', '.join(sorted(unknown)) or 'none'}; missing: {', '.join(missing) or 'none'}"
            )
        activation = signal["activation"]
        if not isinstance(activation, Tensor):
            raise ValueError(f"activation for {signal['source']!r}: expected a tensor, got {type(activation).__name__}")
        strength = _strength(signal["strength"])
        goals.append(Steer(signal["source"], activation.to(images), strength, float(signal.get("alpha", 1.0))))
    return tuple(goals)


def _strength(given: Any) -> Strength:
    try:
        negative, positive = torch.as_tensor(given, dtype=torch.float64).expand(2).tolist()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"strength: expected a number or a pair (negative, positive), got {given!r}") from None
    return negative, positive


def _widest(images: Tensor, state: State | None, goals: Sequence[Steer]) -> int:
    """The batch of a pass: one image or one goal serves many of the others."""
    batches = {"images": images.shape[0]}
    if state is not None:
        batches["kept state"] = next(iter(state.activations.values())).shape[0]
    batches |= {f"activation for {goal.source!r}": goal.target.shape[0] for goal in goals}
    wide = max(batches.values())
    if any(batch not in (1, wide) for batch in batches.values()):
        listed = ", ".join(f"{name} {batch}" for name, batch in batches.items())
        raise ValueError(f"batches differ: {listed}; expected one number, or 1. drop_state=True starts anew")
    return wide


_PATH_KEYS = {
    "neg_scale": "gain.0",
    "pos_scale": "gain.1",
    "rescale.norm.weight": "norm.weight",
    "rescale.norm.bias": "norm.bias",
    "modulation.weight": "projection.weight",
    "modulation.bias": "projection.bias",
}
"""Published names within a path, and ours; our gain is both of theirs."""
_GAINS = ("neg_scale", "pos_scale")


def published_to_ours(state_dict: Mapping[str, Any], connections: Sequence[Connection]) -> dict[str, Any]:
    """Weights under published keys as weights of an `LRM` with `PublishedFeedback`.

    Accepted are the published model's own keys; those of published checkpoints (a leading `module.`, `backbone.` for
    `feedforward.`, `features8` for `features_8` in the names of paths); and ours, which stay. Unknown keys stay too.

    Raises:
        ValueError: one of the two gains of a path is missing, or two spellings of one key are given.
    """
    table = {
        _published_prefix(c) + published: f"paths.{c.key}.{ours}"
        for c in connections
        for published, ours in _PATH_KEYS.items()
    }
    weights: dict[str, Any] = {}
    for key, value in state_dict.items():
        name = key.removeprefix("module.")
        if name.startswith(("lrm.backbone.", "lrm.paths.")):
            name = name.removeprefix("lrm.")
        elif name.startswith("feedforward."):
            name = "backbone." + name.removeprefix("feedforward.")
        else:
            name = table.get(name) or table.get(re.sub(r"features(\d+)", r"features_\1", name), name)
        if name in weights:
            raise ValueError(f"{key!r} is given twice, in two spellings")
        weights[name] = value
    for connection in connections:
        path = f"paths.{connection.key}.gain"
        halves = {gain: weights.pop(f"{path}.{i}") for i, gain in enumerate(_GAINS) if f"{path}.{i}" in weights}
        if len(halves) == 1:
            raise ValueError(
                f"the weights have {', '.join(halves)} of {_published_prefix(connection)} but not the other gain; "
                f"expected {' and '.join(_GAINS)}"
            )
        if halves:
            weights[path] = torch.cat([halves[gain].reshape(1) for gain in _GAINS])
    return weights


def ours_to_published(state_dict: Mapping[str, Any], connections: Sequence[Connection]) -> dict[str, Any]:
    """The way back: weights of an `LRM` with `PublishedFeedback`, or of a front, under the published keys."""
    table = {
        f"paths.{c.key}.{ours}": _published_prefix(c) + published
        for c in connections
        for published, ours in _PATH_KEYS.items()
    }
    published: dict[str, Any] = {}
    for key, value in state_dict.items():
        name = key.removeprefix("lrm.")
        if f"{name}.0" in table:  # a gain
            published |= {table[f"{name}.{i}"]: value[i : i + 1] for i in range(2)}
        elif name in table:
            published[table[name]] = value
        else:
            published["feedforward." + name.removeprefix("backbone.")] = value
    return published


def _published_prefix(connection: Connection) -> str:
    source, destination = (name.replace(".", "_") for name in (connection.source, connection.destination))
    return f"lrm.{destination}_modulation.from_{source}_to_{destination}."
