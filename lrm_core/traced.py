"""Run a backbone by its graph: the stem once, the steps that feedback reaches in each pass.

What no feedback reaches is the stem. All passes and all goals share it. The rest is the body.

Unusual: both run as generated functions; see `lrm_core.generated`. Operations in place run in place, as in the plain
network, unless they would overwrite what is kept: the images, the values of a stem, or an activation that a pass
returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from lrm_core.generated import Part, Run, generate, roots
from lrm_core.graph import Graph, after
from lrm_core.passes import Stem
from lrm_core.steps import Adjust, Place
from lrm_core.writes import may_write, written


@dataclass(frozen=True, eq=False)
class Traced:
    """A graph that is divided into stem and body, and that runs.

    Attributes:
        graph: the steps.
        modes: the modes of the backbone's modules in which the graph holds.
        destinations: the steps that feedback changes, in running order.
        stem_nodes, body_nodes: what runs once, and what runs in each pass, in running order.
        places: what the stem keeps: the values that the body reads, the destinations and the sources.
        captured: the first of these, sources and destinations, whose values are kept as they are when they are made.
        first: the function of the stem.
        body: the function of the body that returns the activations of the sources.
        made: functions that were made since, of parts of the stem and of bodies that return other activations.
    """

    graph: Graph
    modes: str
    destinations: tuple[fx.Node, ...]
    stem_nodes: tuple[fx.Node, ...]
    body_nodes: tuple[fx.Node, ...]
    places: Mapping[Place, fx.Node]
    captured: tuple[fx.Node, ...]
    first: Run
    body: Run
    made: dict[Any, Run] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        graph: Graph,
        backbone: nn.Module,
        modes: str,
        sources: Iterable[fx.Node],
        destinations: Iterable[fx.Node],
        early: bool,
    ) -> Traced:
        """Divide a graph.

        Args:
            early: whether the stem holds everything that does not depend on a destination. Otherwise it ends before the
                first step that does, so that all steps run in the order of the plain network.
        """
        runs = [node for node in graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
        targets = set(destinations)
        ordered = tuple(node for node in graph.nodes if node in targets)
        reached = after(ordered)
        body = {node for node in runs if node in reached}
        body |= _beside(graph, runs, body)
        if not early or _order_matters(graph, runs, body, backbone):
            first = min((index for index, node in enumerate(runs) if node in body), default=len(runs))
            body = set(runs[first:])
        stem = {node for node in runs if node not in body}
        for node in graph.nodes:  # parameters and buffers are read where they are used
            if node.op == "get_attr":
                stem |= {node} if any(user in stem for user in node.users) else set()
                body |= {node} if any(user not in stem for user in node.users) else set()
        sources = tuple(sources)
        wanted = {*targets, *sources}
        kept = [
            node
            for node in graph.nodes
            if node.op not in ("get_attr", "output")
            and node not in body
            and (node in wanted or any(user not in stem for user in node.users))
        ]
        stem_nodes, body_nodes = (tuple(node for node in graph.nodes if node in part) for part in (stem, body))
        captured = tuple(node for node in kept if node in wanted)
        others = tuple(node for node in kept if node not in wanted)
        given = (*captured, *others)
        return cls(
            graph,
            modes,
            ordered,
            stem_nodes,
            body_nodes,
            {Place(node.name, modes): node for node in given},
            captured,
            generate(graph, backbone, Part(stem_nodes, (graph.images,), others, captured)),
            generate(graph, backbone, Part(body_nodes, given, graph.output, tuple(sources), ordered)),
        )

    def varies(self, step: fx.Node) -> bool:
        """Whether a step may differ between passes."""
        return step in self.destinations or step in self.body_nodes

    def sample(self, stem: Stem) -> Tensor:
        """A value of the stem with one entry for each image."""
        return stem.values[Place(self.destinations[0].name, self.modes)]

    def stem(self, backbone: nn.Module, images: Tensor) -> Stem:
        """Run the stem."""
        return self._stem(self.first(backbone, self.graph.constants, None, images))

    def until(self, backbone: nn.Module, images: Tensor, name: str) -> Any:
        """Run the stem as far as the node of that name, and give its value.

        Raises:
            ValueError: the stem has no such node.
        """
        nodes = self.stem_nodes[: self._index(name) + 1]
        run = self._made(("until", name), backbone, Part(nodes, (self.graph.images,), nodes[-1]))
        return run(backbone, self.graph.constants, None, images)[0]

    def since(self, backbone: nn.Module, value: Any, name: str) -> Stem:
        """Run the stem from the value of the node of that name on. The value is not overwritten.

        Raises:
            ValueError: the stem has no such node.
        """
        first = self._index(name)
        read = [node for node in self.stem_nodes[:first] if node.op == "get_attr"]
        nodes = (*read, *self.stem_nodes[first + 1 :])
        part = Part(nodes, (self.stem_nodes[first],), self._kept()[len(self.captured) :], self.captured)
        return self._stem(self._made(("since", name), backbone, part)(backbone, self.graph.constants, None, value))

    def run(
        self, backbone: nn.Module, stem: Stem, adjust: Adjust, wanted: Mapping[fx.Node, Sequence[str]]
    ) -> tuple[Any, dict[str, Any]]:
        """One pass: (what the backbone returns, activations of the steps in `wanted`, by the names given there)."""
        nodes = tuple(wanted)
        part = Part(self.body_nodes, self._kept(), self.graph.output, nodes, self.destinations)
        run = self._made(nodes, backbone, part)
        output, found = run(backbone, self.graph.constants, adjust, *self._given(stem))
        return output, {name: value for node, value in zip(nodes, found, strict=True) for name in wanted[node]}

    def usual(self, backbone: nn.Module, stem: Stem, adjust: Adjust) -> tuple[Any, tuple[Tensor, ...]]:
        """One pass: (what the backbone returns, activations of the sources)."""
        return self.body(backbone, self.graph.constants, adjust, *self._given(stem))

    def _stem(self, values: tuple[Any, tuple[Any, ...]]) -> Stem:
        others, captured = values
        return Stem(dict(zip(self.places, (*captured, *others), strict=True)))

    def _kept(self) -> tuple[fx.Node, ...]:
        return tuple(self.places.values())

    def _given(self, stem: Stem) -> list[Any]:
        return [stem.values[place] for place in self.places]

    def _index(self, name: str) -> int:
        found = [index for index, node in enumerate(self.stem_nodes) if node.name == name]
        if not found:
            raise ValueError(f"model: got no step {name} before all feedback, expected the mode of when it was found")
        return found[0]

    def _made(self, key: Any, backbone: nn.Module, part: Part) -> Run:
        if key not in self.made:
            self.made[key] = generate(self.graph, backbone, part)
        return self.made[key]


def _beside(graph: Graph, runs: Sequence[fx.Node], body: set[fx.Node]) -> set[fx.Node]:
    """What belongs to a module of the body and does not depend on images, such as counting the batches of a norm."""
    scopes = {graph.scopes[node] for node in body} - {
        graph.scopes[node] for node in runs if node in graph.on_images and node not in body
    }
    found = {node for node in runs if node not in graph.on_images and graph.scopes[node] in scopes}
    frontier = [node for node in runs if node not in body and node not in found]
    while frontier:  # what the stem reads is the stem's
        for used in frontier.pop().all_input_nodes:
            if used in found:
                found.remove(used)
                frontier.append(used)
    return found


def _order_matters(graph: Graph, runs: Sequence[fx.Node], body: set[fx.Node], backbone: nn.Module) -> bool:
    """Whether running the stem before the body could change what a step reads, because another one writes in place."""
    first = min((index for index, node in enumerate(runs) if node in body), default=len(runs))
    late = runs[first:]
    memory = roots(graph, backbone)

    def of(nodes: Iterable[fx.Node]) -> set[Any]:
        return {root for used in nodes if used.op != "get_attr" for root, _ in memory[used]}

    def reads(moved: bool) -> set[Any]:
        return of(used for node in late if (node not in body) is moved for used in node.all_input_nodes)

    def writes(moved: bool) -> set[Any]:
        steps = [node for node in late if (node not in body) is moved and may_write(node, backbone)]
        return of(used for node in steps for used in written(node, backbone))

    return bool(reads(True) & writes(False)) or bool(writes(True) & reads(False))
