"""Run a backbone by its graph: the stem once, the steps that feedback reaches in each pass.

What no feedback reaches is the stem. All passes and all goals share it. The rest is the body.

Unusual: operations in place run in place, as in the plain network, unless they would overwrite what is kept: the
images, the values of a stem, or an activation that a pass returns. Then they write to a copy; see `lrm_core.writes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from lrm_core.graph import Graph, after, filled, run_node
from lrm_core.passes import Stem
from lrm_core.steps import Adjust, Place
from lrm_core.writes import may_write, memories, spared

_VIEWS = frozenset((
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "movedim", "squeeze", "unsqueeze", "expand",
    "narrow", "select", "chunk", "split", "unbind", "contiguous", "detach", "to", "float", "type_as", "view_as",
    "expand_as", "getitem", "swapaxes", "passed", "unfold", "diagonal", "dropout",
))  # fmt: skip
_VIEW_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d)


@dataclass(frozen=True, eq=False)
class Traced:
    """A graph that is divided into stem and body, and that runs.

    Attributes:
        graph: the steps.
        modes: the modes of the backbone's modules in which the graph holds.
        destinations: the steps that feedback changes, in running order.
        stem_nodes, body_nodes: what runs once, and what runs in each pass, in running order.
        places: what the stem keeps: the values that the body reads, the destinations and the sources.
        writers: steps that may write to what they are given.
        stem_release, body_release: for each step, the values that no later step needs.
    """

    graph: Graph
    modes: str
    destinations: tuple[fx.Node, ...]
    stem_nodes: tuple[fx.Node, ...]
    body_nodes: tuple[fx.Node, ...]
    places: Mapping[Place, fx.Node]
    writers: frozenset[fx.Node]
    stem_release: Mapping[fx.Node, list[fx.Node]]
    body_release: Mapping[fx.Node, list[fx.Node]]

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
        writers = frozenset(node for node in runs if may_write(node, backbone))
        targets = set(destinations)
        ordered = tuple(node for node in graph.nodes if node in targets)
        reached = after(ordered)
        body = {node for node in runs if node in reached}
        body |= _beside(graph, runs, body)
        if not early or _order_matters(runs, body, writers, backbone):
            first = min((index for index, node in enumerate(runs) if node in body), default=len(runs))
            body = set(runs[first:])
        stem = {node for node in runs if node not in body}
        for node in graph.nodes:  # parameters and buffers are read where they are used
            if node.op == "get_attr":
                stem |= {node} if any(user in stem for user in node.users) else set()
                body |= {node} if any(user not in stem for user in node.users) else set()
        wanted = {*targets, *sources}
        kept = [
            node
            for node in graph.nodes
            if node.op not in ("get_attr", "output")
            and node not in body
            and (node in wanted or any(user not in stem for user in node.users))
        ]
        stem_nodes, body_nodes = (tuple(node for node in graph.nodes if node in part) for part in (stem, body))
        return cls(
            graph,
            modes,
            ordered,
            stem_nodes,
            body_nodes,
            {Place(node.name, modes): node for node in kept},
            writers,
            _last_uses(stem_nodes, set(kept)),
            _last_uses(body_nodes, _nodes_in(graph.output)),
        )

    def varies(self, step: fx.Node) -> bool:
        """Whether a step may differ between passes."""
        return step in self.destinations or step in self.body_nodes

    def sample(self, stem: Stem) -> Tensor:
        """A value of the stem with one entry for each image."""
        return stem.values[Place(self.destinations[0].name, self.modes)]

    def stem(self, backbone: nn.Module, images: Tensor) -> Stem:
        """Run the stem."""
        return self.stem_from(backbone, {self.graph.images: images}, self.stem_nodes)

    def stem_from(self, backbone: nn.Module, values: dict[fx.Node, Any], nodes: Sequence[fx.Node]) -> Stem:
        """Run the last nodes of the stem, from the values that they need. These values are not overwritten."""
        given = list(values.values())
        kept = memories([given, *self.graph.constants.values()])
        for node in nodes:
            self.run_node(node, backbone, values, kept, self.stem_release)
        del given  # until now, so that no other tensor could have its memory
        return Stem({place: values[node] for place, node in self.places.items()})

    def run(
        self, backbone: nn.Module, stem: Stem, adjust: Adjust, wanted: Mapping[fx.Node, Sequence[str]]
    ) -> tuple[Any, dict[str, Any]]:
        """One pass: (what the backbone returns, activations of the steps in `wanted`, by the names given there)."""
        values: dict[fx.Node, Any] = {node: stem.values[place] for place, node in self.places.items()}
        kept = memories([*values.values(), *self.graph.constants.values()])
        activations: dict[str, Any] = {}

        def finish(node: fx.Node) -> None:
            if node in self.destinations:
                values[node] = adjust(node, values[node])
            if node in wanted:
                value, memory = values[node], memories(values[node])
                if any(memory & memories(each) for other, each in values.items() if other is not node):
                    value = value.clone() if isinstance(value, Tensor) else value
                activations.update(dict.fromkeys(wanted[node], value))
                kept.update(memories(value))

        for node in self.places.values():
            finish(node)
        for node in self.body_nodes:
            self.run_node(node, backbone, values, kept, self.body_release)
            finish(node)
        return filled(self.graph.output, values), activations

    def run_node(
        self,
        node: fx.Node,
        backbone: nn.Module,
        values: dict[fx.Node, Any],
        kept: set[int],
        release: Mapping[fx.Node, list[fx.Node]],
    ) -> None:
        """Run one node into `values`, and drop what no later node reads. Memory in `kept` is not overwritten."""
        released = release.get(node, [])
        form = spared(node, backbone, values, kept, released) if node in self.writers else None
        values[node] = run_node(node, self.graph, backbone, values) if form is None else form()
        for used in released:
            del values[used]


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


def _order_matters(
    runs: Sequence[fx.Node], body: set[fx.Node], writers: frozenset[fx.Node], backbone: nn.Module
) -> bool:
    """Whether running the stem before the body could change what a step reads, because another one writes in place."""
    first = min((index for index, node in enumerate(runs) if node in body), default=len(runs))
    late = runs[first:]
    family = _families(runs, writers, backbone)

    def reads(node: fx.Node) -> set[fx.Node]:
        return {family.get(used, used) for used in node.all_input_nodes if used.op != "get_attr"}

    moved = {each for node in late if node not in body for each in reads(node)}
    moved_writes = {each for node in late if node not in body and node in writers for each in reads(node)}
    writes = {each for node in late if node in body and node in writers for each in reads(node)}
    read = {each for node in late if node in body for each in reads(node)}
    return bool(moved & writes) or bool(moved_writes & read)


def _families(runs: Sequence[fx.Node], writers: frozenset[fx.Node], backbone: nn.Module) -> dict[fx.Node, fx.Node]:
    """For nodes that may share memory with an earlier one: the first of them."""
    family: dict[fx.Node, fx.Node] = {}
    for node in runs:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        shares = node in writers or name in _VIEWS
        if node.op == "call_module":
            shares = shares or isinstance(backbone.get_submodule(str(node.target)), _VIEW_MODULES)
        if shares and node.all_input_nodes:
            used = node.all_input_nodes[0]
            family[node] = family.get(used, used)
    return family


def _last_uses(nodes: Sequence[fx.Node], kept: set[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """For each step, the values that no later step needs. Values in `kept` are left out."""
    last = {used: node for node in nodes for used in node.all_input_nodes}
    release: dict[fx.Node, list[fx.Node]] = {}
    for used, user in last.items():
        if used not in kept:
            release.setdefault(user, []).append(used)
    return release


def _nodes_in(structure: Any) -> set[fx.Node]:
    found: set[fx.Node] = set()
    fx.node.map_arg(structure, lambda node: found.add(node))
    return found
