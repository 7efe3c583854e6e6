"""Choose how a backbone is run, and prove on a probe that the first pass is the bare backbone.

The graph is taken where it can be read, has all steps that connections name, and gives the numbers of the backbone.
Otherwise the backbone runs whole, by hooks.

Unusual: all this happens on shadows (`lrm_core.shadow`), once for each combination of modes that is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrm_core.feedback import Connection
from lrm_core.graph import Graph, Site, check_inputs, run_node
from lrm_core.hooked import Calls, Hooked, hooks
from lrm_core.shadow import kept_random_states, modes, shadow
from lrm_core.steps import Steps
from lrm_core.traced import Traced
from lrm_core.writes import tensors

Way = Traced | Hooked
TOLERANCE = 1e-5  # of the largest number: sums in another order


@dataclass(frozen=True, eq=False)
class Reading:
    """A backbone in one combination of modes, ready to run with its connections.

    Attributes:
        way: how it runs.
        sources: the step of each source.
        arriving: for each destination, the connections that end there.
        values: of the sources and destinations on the probe.
    """

    way: Way
    sources: Mapping[str, Any]
    arriving: Mapping[Any, tuple[Connection, ...]]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Reader:
    """What does not depend on modes.

    Attributes:
        connections: of the model.
        image_size: side in pixels of the probe.
        all_calls: whether a name stands for all calls of a module as a destination, and for the last as a source, as in
            the published code. Otherwise it stands for the first call.
    """

    connections: Sequence[Connection]
    image_size: int
    all_calls: bool

    def read(self, backbone: nn.Module, known: Mapping[Site, str] | None = None) -> Reading:
        """Read a backbone in its present modes.

        Args:
            known: names that were given in other modes.

        Raises:
            ValueError: a connection does not fit; the backbone needs more than images; or it cannot run on an image of
                that size.
        """
        check_inputs(backbone)
        probe = Probe.of(backbone, self.image_size)
        try:
            graph = Graph.of(shadow(backbone), known)
        except ValueError as error:
            return self._hooked(backbone, probe, str(error))
        try:
            sources, arriving = self._steps(graph)
        except ValueError as error:
            if not graph.opaque:
                raise
            whole = ", ".join(f"{path} ({reason})" for path, reason in list(graph.opaque.items())[:3])
            try:
                return self._hooked(backbone, probe, f"torch.fx cannot read {whole}")
            except ValueError:
                raise error from None
        difference = ""
        for early in (True, False) if probe.modes == "eval" else (False,):
            way = Traced.of(graph, backbone, probe.modes, sources.values(), arriving, early)
            now, values = probe.difference(way, _named(sources, arriving))
            if not now:
                return Reading(way, sources, arriving, values)
            difference = difference or now
        return self._hooked(backbone, probe, f"the graph differs from the backbone: {difference}")

    def _hooked(self, backbone: nn.Module, probe: Probe, reason: str) -> Reading:
        calls = probe.calls()
        try:
            sources, arriving = self._steps(calls)
        except ValueError as error:
            raise ValueError(f"{error}; only modules are steps here, since {reason}") from None
        way = Hooked.of(calls, probe.modes, reason, sources.values(), arriving)
        difference, values = probe.difference(way, _named(sources, arriving))
        if difference:
            raise ValueError(f"{type(backbone).__name__}: {reason}; and by hooks the first pass differs: {difference}")
        return Reading(way, sources, arriving, values)

    def _steps(self, graph: Steps) -> tuple[dict[str, Any], dict[Any, tuple[Connection, ...]]]:
        order = {node: index for index, node in enumerate(graph.nodes)}
        sources: dict[str, Any] = {}
        arriving: dict[Any, tuple[Connection, ...]] = {}
        for connection in self.connections:
            source = graph.calls(connection.source, "source")[-1 if self.all_calls else 0]
            destinations = graph.calls(connection.destination, "destination")
            destinations = destinations if self.all_calls else destinations[:1]
            graph.check_destination(connection.destination)
            if order[source] <= order[destinations[0]]:
                raise ValueError(
                    f"source {connection.source!r} does not come after destination {connection.destination!r}, "
                    "so this is not feedback"
                )
            sources[connection.source] = source
            for destination in destinations:
                arriving[destination] = (*arriving.get(destination, ()), connection)
        return sources, arriving


def _named(sources: Mapping[str, Any], arriving: Mapping[Any, Sequence[Connection]]) -> dict[Any, list[str]]:
    """For each step that is a source or a destination, the names that connections give it."""
    names: dict[Any, list[str]] = {}
    for name, step in sources.items():
        names.setdefault(step, []).append(name)
    for step, connections in arriving.items():
        names.setdefault(step, []).extend(connection.destination for connection in connections)
    return names


@dataclass(frozen=True, eq=False)
class Probe:
    """An image, and what the bare backbone makes of it.

    Attributes:
        backbone: in the modes that are read. It is never run itself, but shadows of it are.
        modes: see `lrm_core.shadow.modes`.
        images: one image for evaluation mode, two otherwise, since some norms cannot train on one.
        output: what the backbone returns; None if it cannot run on these images in training mode.
        buffers: after the run.
    """

    backbone: nn.Module
    modes: str
    images: Tensor
    output: Any
    buffers: Mapping[str, Tensor]

    @classmethod
    def of(cls, backbone: nn.Module, image_size: int) -> Probe:
        """Run the bare backbone.

        Raises:
            ValueError: the backbone cannot run in evaluation mode on an image of that size.
        """
        now = modes(backbone)
        first = next(backbone.parameters(), torch.empty(0))
        kind = first.dtype if first.is_floating_point() else torch.float32
        channels = [module.in_channels for module in backbone.modules() if isinstance(module, nn.Conv2d)][:1]
        error: Exception | None = None
        images = torch.empty(0)
        for count in dict.fromkeys([*channels, 3, 1]):
            shape = (1 if now == "eval" else 2, count, image_size, image_size)
            images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(first.device, kind)
            copied = shadow(backbone)
            try:
                with kept_random_states(), torch.no_grad():
                    output = copied(images.clone())
                return cls(backbone, now, images, output, dict(copied.named_buffers()))
            except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as raised:
                error = error or raised
        if now != "eval":
            return cls(backbone, now, images, None, {})
        raise ValueError(
            f"image_size: got {image_size}, expected the side of an image that the backbone takes, "
            f"but it raises: {error}"
        ) from error

    def calls(self) -> Calls:
        """The calls of modules on the probe."""
        with kept_random_states(), torch.no_grad():
            return Calls.of(shadow(self.backbone), self.images.clone())

    def difference(self, way: Way, wanted: Mapping[Any, Sequence[str]]) -> tuple[str, dict[str, Any]]:
        """How a first pass without feedback differs from the bare backbone, and the activations of steps.

        The first is empty if they do not differ, or if the bare backbone cannot run in training mode on the probe.
        """
        if self.output is None:
            return "", {}
        copied = shadow(self.backbone)
        with kept_random_states(), torch.no_grad():
            output, values = way.run(copied, way.stem(copied, self.images), lambda step, value: value, wanted)
        if self.images.is_meta:
            return "", values
        buffers = dict(copied.named_buffers())
        apart = _apart(self.output, output)
        written = [name for name, value in self.buffers.items() if _apart(value, buffers[name])]
        step = self._first(way) if apart or written else None
        if step is not None:
            return f"step {step!r} is the first that differs", values
        if apart:
            return f"what it returns differs by {apart}", values
        return (f"the buffer {written[0]} differs" if written else ""), values

    def _first(self, way: Way) -> str | None:
        """The first step whose value differs."""
        bare: dict[str, Tensor] = {}

        def seen(step: str, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                bare[step] = output.clone()

        with kept_random_states(), torch.no_grad():
            copied = shadow(self.backbone)
            with hooks(copied, seen):
                copied(self.images.clone())
        names: dict[Any, list[str]] = {}
        for name, step in way.graph.steps.items():
            names.setdefault(step, []).append(name)
        ours: dict[str, Any] = {}
        with kept_random_states(), torch.no_grad():
            copied = shadow(self.backbone)
            if isinstance(way, Hooked):
                _, ours = way.run(copied, way.stem(copied, self.images), lambda step, value: value, names)
            else:
                values: dict[Any, Any] = {way.graph.images: self.images.clone()}
                for node in (*way.stem_nodes, *way.body_nodes):
                    values[node] = run_node(node, way.graph, copied, values)
                    whole = values[node].clone() if isinstance(values[node], Tensor) else values[node]
                    ours |= dict.fromkeys(names.get(node, ()), whole)
        return next((name for name, value in bare.items() if name in ours and _apart(value, ours[name])), None)


def _apart(first: Any, second: Any) -> str:
    """How two outputs differ; empty if they do not."""
    if type(first) is not type(second):
        return f"its type, {type(first).__name__} and {type(second).__name__}"
    ours, theirs = (
        tensors(vars(value) if hasattr(value, "__dict__") and not tensors(value) else value)
        for value in (first, second)
    )
    if len(ours) != len(theirs):
        return f"the number of tensors, {len(ours)} and {len(theirs)}"
    for one, other in zip(ours, theirs, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"its shape or type, {tuple(one.shape)} {one.dtype} and {tuple(other.shape)} {other.dtype}"
        if not torch.equal(one, other) and one.numel():
            gap, size = ((each.double().nan_to_num()).abs().max() for each in (one - other, one))
            if not gap <= TOLERANCE * size or not torch.equal(one.isnan(), other.isnan()):
                return f"{gap:.3g} of {size:.3g}"
    return ""
