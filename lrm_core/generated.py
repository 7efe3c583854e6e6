"""Steps of a graph as the source text of one Python function.

The function does what the plain network does, and two things more. Feedback changes the values of destinations. And
what is kept is not overwritten: the values that the function is given, the graph's constants, and captured values.

Unusual: which values may share memory is settled from the graph, before anything runs. So a run asks no value for its
memory, and nothing is copied unless a step may write to what is kept. Such a step runs out of place where this means
the same. Otherwise it writes to a copy. Where other values that are still needed may share the memory, the run looks
which of them do, since they have to share the copy, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from lrm_core.graph import Graph
from lrm_core.writes import apart, copied, may_share, may_write, out_of_place, together, written

Run = Callable[..., tuple[Any, tuple[Any, ...]]]
"""(backbone, constants of the graph, adjust, *given values) → (result, captured values)."""

Roots = frozenset[tuple[Any, int | None]]
"""The memory that a value may lie in: pairs of (what filled it, index of a destination or None).

With a destination, the value lies there only if feedback did not change this destination.
"""


@dataclass(frozen=True)
class Part:
    """What a generated function runs.

    Attributes:
        nodes: in running order.
        given: nodes whose values are arguments of the function.
        result: a structure with nodes in the place of values, which are returned as they are at the end.
        captured: nodes whose values are returned as they are when they are made.
        destinations: nodes whose values feedback changes; empty in a stem.
    """

    nodes: Sequence[fx.Node]
    given: Sequence[fx.Node]
    result: Any
    captured: Sequence[fx.Node] = ()
    destinations: Sequence[fx.Node] = ()


def generate(graph: Graph, backbone: nn.Module, part: Part) -> Run:
    """The function that runs a part of a graph, on this backbone or on another one of the same structure."""
    writer = _Writer(graph, backbone, part)
    text = writer.text()
    names: dict[str, Any] = {**writer.objects, "apart": apart, "copied": copied, "together": together}
    exec(compile(text, "<steps of a backbone>", "exec"), names)
    run: Run = names["run"]
    return run


def roots(graph: Graph, backbone: nn.Module, destinations: Sequence[fx.Node] = ()) -> dict[fx.Node, Roots]:
    """For each node, the memory that its value may lie in, after feedback."""
    found: dict[fx.Node, Roots] = {}
    for node in graph.nodes:
        own: Roots = frozenset({(node, None)})
        if node.op != "output" and may_share(node, backbone):
            own = own.union(*(found[used] for used in node.all_input_nodes))
        if node in destinations:
            index = destinations.index(node)
            own = frozenset({(root, index) for root, _ in own} | {(("changed", node), None)})
        found[node] = own
    return found


class _Writer:
    """Writes the text of a function.

    Attributes:
        objects: what the text calls by a name of its own: functions, types, and constants without a literal.
    """

    def __init__(self, graph: Graph, backbone: nn.Module, part: Part) -> None:
        self.graph, self.backbone, self.part = graph, backbone, part
        self.objects: dict[str, Any] = {}
        self.lines: list[str] = []
        self.variables = {node: f"v{index}" for index, node in enumerate(graph.nodes)}
        self.modules = {"": "backbone"}
        self.roots = roots(graph, backbone, part.destinations)
        fixed = [node for node in graph.nodes if node.op == "get_attr" and node.target in graph.constants]
        self.kept = {root for node in (*part.given, *fixed) for root, _ in self.roots[node]}
        self.kept -= {("changed", node) for node in part.destinations}
        self.last = {used: index for index, node in enumerate(part.nodes) for used in node.all_input_nodes}
        fx.node.map_arg(part.result, lambda node: self.last.update({node: len(part.nodes)}))
        self.alive = dict.fromkeys(part.given)  # an ordered set

    def text(self) -> str:
        """The text of a module that defines `run`."""
        for node in self.part.given:
            self.finish(node)
        for index, node in enumerate(self.part.nodes):
            self.run(index, node)
            self.release(index, node.all_input_nodes)
            self.alive[node] = None
            self.finish(node)
            self.release(index, [node])
        captured = "".join(f"kept_{self.variables[node]}, " for node in self.part.captured)
        self.lines.append(f"return {self.value(self.part.result)}, ({captured})")
        arguments = ["backbone", "constants", "adjust", *(self.variables[node] for node in self.part.given)]
        return f"def run({', '.join(arguments)}):\n    " + "\n    ".join(self.lines) + "\n"

    def finish(self, node: fx.Node) -> None:
        """What follows when a value was made: feedback changes it, and it is captured."""
        name = self.variables[node]
        if node in self.part.destinations:
            index = self.part.destinations.index(node)
            self.lines += [
                f"before = {name}", f"{name} = adjust({index}, before)", f"same{index} = {name} is before", "del before"
            ]  # fmt: skip
        if node in self.part.captured:
            self.lines.append(f"kept_{name} = {name}")
            self.kept |= {root for root, _ in self.roots[node]}

    def release(self, index: int, nodes: Sequence[fx.Node]) -> None:
        """Drop the values that no later step reads."""
        gone = [used for used in nodes if used in self.alive and self.last.get(used, -1) <= index]
        if gone:
            self.lines.append(f"del {', '.join(self.variables[used] for used in gone)}")
        for used in gone:
            del self.alive[used]

    def run(self, index: int, node: fx.Node) -> None:
        """One step."""
        value = self.call(node.op, node.target, node.args, node.kwargs)
        for used in written(node, self.backbone) if may_write(node, self.backbone) else ():
            if used.op == "get_attr" and used.target not in self.graph.constants:
                continue  # a network may write to its own buffers
            hit = {flag for root, flag in self.roots[used] if root in self.kept}
            if not hit:
                continue
            when = "" if None in hit else " or ".join(sorted(f"same{flag}" for flag in hit))
            others = self.sharing(index, used)
            form = out_of_place(node, self.backbone)
            if form is not None and not others and self.last[used] == index and node.args[:1] == (used,):
                spared = self.call(*form)
                value = f"{spared} if {when} else {value}" if when else spared
                continue
            names = ", ".join(self.variables[each] for each in (used, *others))
            copy = f"{names} = {'together' if others else 'copied'}({names})"
            self.lines.append(f"if {when}: {copy}" if when else copy)
        self.lines.append(f"{self.variables[node]} = {value}")

    def sharing(self, index: int, used: fx.Node) -> list[fx.Node]:
        """Other values that a step at this index or a later one reads, and that may share the memory of a value."""
        here = {root for root, _ in self.roots[used]}
        return [
            other
            for other in self.alive
            if other is not used
            and self.last.get(other, -1) >= index
            and any(root in here for root, _ in self.roots[other])
        ]

    def call(self, kind: str, target: Any, args: Any, kwargs: Any) -> str:
        """The text that calculates a step. Of the kinds of torch.fx; `apart` is a module that does not write."""
        if kind == "get_attr":
            if target in self.graph.constants:
                return f"constants[{target!r}]"
            parent, _, name = target.rpartition(".")
            return _attribute(self.module(parent), name)
        first = [] if kind != "apart" else [self.module(target)]
        if kind == "call_method":
            function, args = _attribute(self.value(args[0]), target), args[1:]
        elif kind == "call_module":
            function = self.module(target)
        else:
            function = "apart" if kind == "apart" else self.named(target)
        given = [*first, *map(self.value, args), *(f"{key}={self.value(each)}" for key, each in kwargs.items())]
        return f"{function}({', '.join(given)})"

    def module(self, path: str) -> str:
        """The variable of a module. It is looked up once in a run."""
        if path not in self.modules:
            parent, _, name = path.rpartition(".")
            text = _attribute(self.module(parent), name)
            self.modules[path] = f"m{len(self.modules)}"
            self.lines.append(f"{self.modules[path]} = {text}")
        return self.modules[path]

    def named(self, value: Any) -> str:
        """A global name for an object."""
        name = next((name for name, each in self.objects.items() if each is value), None)
        if name is None:
            name = f"o{len(self.objects)}_{getattr(value, '__name__', '')}"
            name = name if name.isidentifier() else f"o{len(self.objects)}"
            self.objects[name] = value
        return name

    def value(self, structure: Any) -> str:
        """The text of a structure of torch.fx. Its lists and dicts are Python's own."""
        if isinstance(structure, fx.Node):
            return self.variables[structure]
        if isinstance(structure, tuple):
            inside = "".join(f"{self.value(each)}, " for each in structure)
            return f"{self.named(type(structure))}({inside})" if hasattr(structure, "_fields") else f"({inside})"
        if isinstance(structure, list):
            return f"[{', '.join(map(self.value, structure))}]"
        if isinstance(structure, dict):
            return f"{{{', '.join(f'{self.value(key)}: {self.value(each)}' for key, each in structure.items())}}}"
        if isinstance(structure, slice):
            return f"slice({', '.join(map(self.value, (structure.start, structure.stop, structure.step)))})"
        if structure is None or structure is ... or type(structure) in (bool, int, str):
            return repr(structure)
        return self.named(structure)


def _attribute(owner: str, name: str) -> str:
    return f"{owner}.{name}" if name.isidentifier() else f"getattr({owner}, {name!r})"
