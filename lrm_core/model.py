"""LRM: any backbone with long-range modulatory feedback (Konkle & Alvarez, NeurIPS 2023).

In a later pass each destination has the value x + x · Σ f, where f comes from the sources in the pass before. Steering
replaces the activation of a source by a goal, so that the pass looks for something.

Unusual: the model holds parameters only. A pass returns a `State`, and the caller gives it to the next pass. So threads
may share a model. The steps that no feedback reaches run once for all passes. The backbone is read anew for each
combination of modes that is used, and in an object that was unpickled or copied.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lrm_base import checks
from lrm_core.feedback import Connection, Feedback
from lrm_core.layouts import Layout
from lrm_core.passes import State, Steer, Stem, arriving, check_goals
from lrm_core.proposals import propose
from lrm_core.reading import Reader, Reading
from lrm_core.shadow import modes, shadow
from lrm_core.steps import Anywhere, Steps
from lrm_core.traced import Traced
from lrm_core.tracking import End, ends

__all__ = ["LRM", "Rule", "State", "Steer", "Stem"]

Rule = Literal["multiply", "rectify", "add"]
_READ = threading.RLock()  # one reading of modes at a time


class LRM(nn.Module):
    """A backbone with feedback connections between its named steps.

    Args:
        backbone: any module whose forward takes images (b, c, h, w) and nothing else without a default. It may return
            anything. It runs as a graph of steps where `torch.fx` can read it, otherwise whole, by hooks; `repr` tells.
        connections: feedback paths; see `Connection`. Destinations must be pre-activations (followed by a rectifier or
            a gate), or stages with such steps inside.
        image_size: side in pixels of a square image. The backbone runs on such an image, to learn the shapes and to
            prove that the first pass is the bare backbone. Nothing of the backbone is changed by this.
        feedback: makes a path from the layouts of its source and its destination (`lrm_core.layouts.Layout`):
            `Feedback`, or `PublishedFeedback` for published weights.
        rule: `rectify` is x · max(0, 1 + Σ f): feedback may silence a feature, but it cannot turn a negative
            pre-activation positive, so what is absent stays absent. `multiply` is the publication's x + x · Σ f, which
            breaks this where Σ f is below -1. `add` is x + Σ f, a control that can see what is not there.
        all_calls: whether a module's name stands for its last call as a source and for all its calls as a destination,
            as in the published code. Otherwise it stands for the first call, and `NAME@1` for the second.

    Attributes:
        connections: as they were given.
        destinations: the name of the step that each connection's destination stands for, by the name that was given.
        layouts: of each source.

    Raises:
        ValueError: there is no connection or one is named twice; a step does not exist; a destination is not a
            pre-activation and not `anywhere`, or is the residual stream of a transformer (unless the rule is `add`); a
            source does not come after its destination or is no tensor; a layout is not known, or what a connection says
            does not fit the step; the backbone cannot run on an image of that size; or the first pass would differ from
            the bare backbone, by the step that is named.
    """

    def __init__(
        self,
        backbone: nn.Module,
        connections: Sequence[Connection],
        image_size: int = 224,
        *,
        feedback: Callable[..., nn.Module] = Feedback,
        rule: Rule = "rectify",
        all_calls: bool = False,
    ) -> None:
        super().__init__()
        if not connections:
            raise ValueError("connections: got none, expected at least one connection")
        _check_distinct(connections, connections)
        if rule not in get_args(Rule):
            raise ValueError(f"rule: got {rule!r}; choices: {', '.join(get_args(Rule))}")
        image_size = checks.whole_number("image_size", image_size, 1)
        self.backbone, self.rule, self.image_size = backbone, rule, image_size
        self.connections = tuple(connections)
        self.sources = tuple(dict.fromkeys(c.source for c in connections))
        self._readings: dict[str, Reading] = {}
        self._names: Mapping[Any, str] | None = None
        reading = self._resolved(image_size, all_calls)
        for name, value in reading.values.items():
            if not isinstance(value, Tensor) or value.ndim < 2:
                got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"step {name!r}: got {got}, expected a tensor (batch, …) to connect")
        sources, destinations = ends(reading, backbone, image_size)
        self.layouts = {name: _given_layout(name, sources[name], self.connections) for name in self.sources}
        self.activation_shapes = {name: layout.shape for name, layout in self.layouts.items()}
        self.paths = nn.ModuleDict(
            {
                c.key: feedback(self.layouts[c.source], _scaled(c, destinations[step.destination], rule))
                for step, c in self._given.items()
            }
        )

    @classmethod
    def wrap(
        cls,
        backbone: nn.Module,
        image_size: int = 224,
        *,
        connections: Sequence[Connection] | None = None,
        print: bool = True,
        feedback: Callable[..., nn.Module] = Feedback,
        rule: Rule = "rectify",
    ) -> LRM:
        """A new model of any backbone, with proposed connections. See `LRM` for the arguments.

        The classifier is connected to the last pre-activations of the last two stages, and the last map to that of an
        early stage. The rule is `rectify`, so that no factor is below 0.

        Args:
            connections: used instead of the proposed ones.
            print: whether to write the proposed connections to standard error, one a line.

        Raises:
            ValueError: nothing can be proposed for this backbone. Or `LRM` raises it.
        """
        if connections is None:
            connections = propose(backbone, checks.whole_number("image_size", image_size, 1))
            if print:
                sys.stderr.writelines(f"connection: {c.source} -> {c.destination}\n" for c in connections)
        return cls(backbone, connections, image_size, feedback=feedback, rule=rule)

    def _resolved(self, image_size: int, all_calls: bool) -> Reading:
        """Read the backbone with the connections' own steps in the place of stages.

        Names of stages are resolved once, in evaluation mode, so that they mean the same place in every mode.
        """
        given = [replace(c, destination=Anywhere(c.destination)) if c.anywhere else c for c in self.connections]
        self._reader = Reader(given, image_size, all_calls)
        reading = self._evaluated()
        steps = reading.way.graph
        resolved = [c if c.anywhere else replace(c, destination=steps.destination(c.destination)) for c in given]
        _check_distinct(resolved, self.connections)
        if resolved != given:
            self._reader, self._readings = Reader(resolved, image_size, all_calls), {}
            reading = self._evaluated()
        self._given = dict(zip(resolved, self.connections, strict=True))
        self.destinations = {c.destination: str(step.destination) for step, c in self._given.items()}
        return reading

    def _evaluated(self) -> Reading:
        """How the backbone runs in evaluation mode, which gives the steps their names."""
        evaluated = shadow(self.backbone).eval()
        reading = self._reader.read(evaluated)
        self._names = reading.way.graph.sites if isinstance(reading.way, Traced) else {}
        self._readings[modes(evaluated)] = replace(reading, values={})
        return reading

    def _reading(self) -> Reading:
        """How the backbone runs in its present modes. It is read when a combination of modes is first used.

        Raises:
            ValueError: a connection's step is missing in these modes. Or they differ from evaluation mode in a way that
                connections do not fit.
        """
        now = modes(self.backbone)
        if torch.compiler.is_compiling() or now not in self._readings:
            self._read(now)
        return self._readings[now]

    def _read(self, now: str) -> None:
        """Read the backbone in its present modes, unless it was read. A compiler runs this and keeps nothing of it."""
        with _READ:
            if self._names is None:
                self._evaluated()
            if now not in self._readings:
                try:
                    reading = self._reader.read(shadow(self.backbone), self._names)
                except ValueError as error:
                    raise ValueError(f"backbone in mode {now}: {error}") from error
                self._readings[now] = replace(reading, values={})

    _read._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as torch.compiler.assume_constant_result does

    def _arriving(self, reading: Reading) -> list[list[Connection]]:
        """For each destination, the connections that end there."""
        return [[self._given[each] for each in reading.arriving[step]] for step in reading.way.destinations]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readings": {}, "_names": None}  # they hold nodes of torch.fx, and are read anew

    @property
    def graph(self) -> Steps:
        """The named steps of the backbone in its present modes."""
        return self._reading().way.graph

    def traced(self) -> Traced:
        """The graph that runs in the present modes. Raises ValueError if the backbone runs by hooks."""
        way = self._reading().way
        if not isinstance(way, Traced):
            raise ValueError(f"model: got a backbone that runs whole, by hooks, since {way.reason}; expected a graph")
        return way

    def extra_repr(self) -> str:
        """How the backbone runs, and the connections."""
        try:
            way = self._reading().way
        except ValueError as error:
            return f"cannot run: {error}"
        if isinstance(way, Traced):
            how = f"runs as a graph, {len(way.stem_nodes)} steps once and {len(way.body_nodes)} in each pass"
        else:
            how = f"runs whole in each pass, by hooks, since {way.reason}"
        return f"{how}\nconnections: {', '.join(f'{c.source} -> {c.destination}' for c in self.connections)}"

    def stem(self, images: Float[Tensor, "b c h w"]) -> Stem:
        """Run the steps that no feedback reaches; all passes over these images share the result.

        A backbone that runs by hooks has no such steps. Its stem is the images.

        Args:
            images: normalised as the backbone expects them.

        Raises:
            ValueError: a connection's step is missing in the present modes of the backbone.
        """
        return self._reading().way.stem(self.backbone, images)

    def step(self, stem: Stem, state: State | None = None, steer: Sequence[Steer] = ()) -> tuple[Any, State]:
        """One pass over images whose stem is known: (what the backbone returns, state for the next pass).

        Without a state this is the first pass. No feedback arrives in it, except from the goals in `steer`.

        Raises:
            ValueError: a goal does not fit; see `check`. Or the batch of a goal or of the state is neither 1 nor the
                number of images, or a goal has another spatial size than the activation that it replaces. Or the stem
                was made in other modes of the backbone, or by another model.
        """
        output, activations = self._run(stem, state, steer)
        return output, State(activations, 1 if state is None else state.num_passes + 1)

    def varies(self, name: str) -> bool:
        """Whether a step's activation may differ between passes. Raises ValueError if there is no such step."""
        way = self._reading().way
        return way.varies(way.graph.find(name, "inspected step"))

    def inspect(
        self, stem: Stem, state: State | None = None, steer: Sequence[Steer] = (), steps: Sequence[str] = ()
    ) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        """The same pass as `step`, seen from inside: (output, activations of `steps`, changes at the destinations).

        A change is what feedback adds to a destination, x · Σ f. A destination that no feedback reaches in this pass
        has no change. The activation of a destination includes its change. Changes have the names that connections
        give.

        Raises:
            ValueError: a step does not exist or lies before all feedback. Or `step` raises it.
        """
        for name in steps:
            if not self.varies(name):
                raise ValueError(f"steps: {name!r} lies before all feedback, so it is the same in every pass")
        changes: dict[str, Tensor] = {}
        output, activations = self._run(stem, state, steer, steps, changes)
        return output, activations, changes

    def _run(
        self,
        stem: Stem,
        state: State | None,
        steer: Sequence[Steer],
        wanted: Sequence[str] | None = None,
        changes: dict[str, Tensor] | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """One pass: (output, activations of the steps in `wanted`, or of the sources).

        Args:
            changes: takes what feedback adds to each destination.
        """
        self.check(steer)
        reading = self._reading()
        way = reading.way
        if stem.values.keys() != way.places.keys():
            made = next((place.modes for place in stem.values), way.modes)
            if made != way.modes:
                raise ValueError(
                    f"stem: made with the backbone in mode {made}, but it is in mode {way.modes} now; "
                    "expected a stem that was made in the mode of the pass"
                )
            raise ValueError("stem: got that of another model, expected one that this model made")
        feedback = arriving(way.sample(stem), state, steer)
        connections = self._arriving(reading)

        def adjust(index: int, value: Tensor) -> Tensor:
            factor = self._factor(connections[index], value, feedback)
            if factor is None:
                return value
            if self.rule == "add":
                change = factor.expand_as(value)
            else:
                change = value * (factor.clamp(min=-1) if self.rule == "rectify" else factor)
                if changes is None:
                    return change.add_(value)
            if changes is not None:
                changes.update(dict.fromkeys([c.destination for c in connections[index]], change))
            return value + change

        if wanted is None and isinstance(way, Traced):
            output, values = way.usual(self.backbone, stem, adjust)
            return output, dict(zip(self.sources, values, strict=True))
        steps: dict[Any, list[str]] = {}
        for name in self.sources if wanted is None else wanted:
            step = reading.sources.get(name) or way.graph.find(name, "inspected step")
            steps.setdefault(step, []).append(name)
        return way.run(self.backbone, stem, adjust, steps)

    def forward(
        self, images: Float[Tensor, "b c h w"], state: State | None = None, steer: Sequence[Steer] = ()
    ) -> tuple[Any, State]:
        """One pass: (output, state for the next pass). See `step`."""
        return self.step(self.stem(images), state, steer)

    def rollout(
        self,
        images: Float[Tensor, "b c h w"],
        passes: int = 2,
        steer: Sequence[Steer] = (),
        *,
        steer_first: bool = False,
    ) -> list[Any]:
        """Outputs of several passes. The goals act from the second pass on, or from the first with `steer_first`.

        Raises:
            ValueError: `passes` is not a whole number above 0. Or `step` raises it.
        """
        passes = checks.whole_number("passes", passes, 1)
        self.check(steer)
        stem = self.stem(images)
        state: State | None = None
        outputs = []
        for index in range(passes):
            output, state = self.step(stem, state, steer if index or steer_first else ())
            outputs.append(output)
        return outputs

    def check(self, steer: Sequence[Steer]) -> None:
        """Check the goals of a pass without running it.

        Batches and the spatial sizes of maps depend on the images, and only a pass can check them.

        Raises:
            ValueError: a source is unknown or steered twice, or a target, strength or mix does not fit; see `Steer`.
        """
        check_goals(steer, self.layouts)

    def _factor(
        self, connections: Sequence[Connection], value: Tensor, feedback: Mapping[str, tuple[Tensor, Any]]
    ) -> Tensor | None:
        """Σ f at a destination; None if no feedback arrives there in this pass."""
        total: Tensor | None = None
        for connection in connections:
            if connection.source in feedback:
                activation, strength = feedback[connection.source]
                factor = self.paths[connection.key](activation, value, strength)
                total = factor if total is None else total + factor
        return total


def _given_layout(source: str, end: End, connections: Sequence[Connection]) -> Layout:
    """The layout of a source: what connections say, otherwise what was found."""
    said = list(dict.fromkeys(c.source_layout for c in connections if c.source == source and c.source_layout))
    if len(said) > 1:
        raise ValueError(f"source_layout: got {' and '.join(map(repr, said))} for {source!r}, expected one layout")
    return Layout.read("source_layout", said[0], end.layout.shape) if said else end.layout


def _scaled(connection: Connection, end: End, rule: Rule) -> Layout:
    """The layout of what a connection scales. Raises ValueError for the residual stream and for what does not fit."""
    if end.is_normed() and rule != "add":
        raise ValueError(
            f"destination {connection.destination!r}: got a value of the residual stream that LayerNorms read. They "
            "undo a gain that all channels of a token share: 1e-5 of it is left. Expected a pre-activation, such as "
            "that of an mlp, or the values of attention"
        )
    layout = end.layout
    if connection.destination_layout is not None:
        layout = Layout.read("destination_layout", connection.destination_layout, layout.shape)
    part = connection.channels
    if part == "values":
        part = end.values()
        if part is None:
            raise ValueError(
                f"channels: got 'values' for {connection.destination!r}, expected a layer of which attention reads "
                "consecutive channels as its values"
            )
    return layout if part is None else replace(layout, part=part)


def _check_distinct(connections: Sequence[Connection], given: Sequence[Connection]) -> None:
    """Raise ValueError if two connections have the same source and the same destination."""
    if len({(c.source, c.destination) for c in connections}) < len(connections):
        raise ValueError(f"connections: a connection is named twice: {', '.join(c.key for c in given)}")
