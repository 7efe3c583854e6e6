"""A backbone as an ordered list of named steps. The backbone itself is not changed.

`torch.fx` reads the module once. Its steps then run one by one, so that feedback can change the output of any step.
There are no hooks, nothing is registered on the module, its parameters keep their names, and two wrappers may share one
backbone. A step that is a module has the module's path as its name (`features.8`, `layer1.0.bn1`). Another operation
has the path of the module around it and its own name (`layer1.0.add`).

Unusual: the graph tells which steps no feedback can reach, so that later passes need not repeat them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

RECTIFIERS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU)
RECTIFIER_FUNCTIONS: tuple[Any, ...] = (F.relu, torch.relu, F.relu6, F.leaky_relu, F.gelu, F.silu, "relu", "relu_")


class _PathTracer(fx.Tracer):
    """A symbolic tracer that notes the module path of each node."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.names: dict[fx.Node, str] = {}
        self.outputs: dict[str, fx.Node] = {}

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = self.path_of_module(m)
        self.stack.append(path)
        try:
            result = super().call_module(m, forward, args, kwargs)
        finally:
            self.stack.pop()
        if isinstance(result, fx.Proxy):
            self.outputs[self._unused(path)] = result.node
        return result

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        if kind in ("call_function", "call_method"):
            operation = target if isinstance(target, str) else getattr(target, "__name__", "function")
            path = self._unused(".".join([*self.stack[-1:], operation.strip("_")]))
            self.outputs[path] = node
        return node

    def _unused(self, path: str) -> str:
        """The path, followed by `_1`, `_2`, … if a module is called again, such as the one ReLU of a block."""
        candidate, count = path, 0
        while candidate in self.outputs:
            count += 1
            candidate = f"{path}_{count}"
        return candidate


@dataclass(frozen=True)
class Graph:
    """The steps of a backbone: `nodes` in running order, `steps` by name, and the node of the `output`."""

    nodes: tuple[fx.Node, ...]
    steps: Mapping[str, fx.Node]
    output: fx.Node

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        memo.update({id(node): node for node in self.nodes})  # other objects in the copy keep these nodes, too
        return self  # immutable and free of tensors; fx nodes cannot be copied one by one

    @classmethod
    def of(cls, backbone: nn.Module) -> Graph:
        """Trace a backbone.

        Raises:
            ValueError: it cannot be traced, for example because its forward branches on values; it needs more than one
                input; or it does not return one tensor.
        """
        tracer = _PathTracer()
        try:
            graph = tracer.trace(backbone)
        except Exception as error:  # fx raises many types of error, and all mean this
            raise ValueError(f"{type(backbone).__name__} cannot be traced by torch.fx: {error}") from error
        nodes = tuple(graph.nodes)
        inputs = [node for node in nodes if node.op == "placeholder"]
        if not inputs or any(not node.args for node in inputs[1:]):
            raise ValueError(
                f"{type(backbone).__name__}: got the inputs {', '.join(str(node.target) for node in inputs)}, "
                "expected images and only inputs with a default beside them"
            )
        result = next(node for node in nodes if node.op == "output").args[0]
        if not isinstance(result, fx.Node):
            raise ValueError(f"{type(backbone).__name__}: got the output {result!r}, expected one tensor")
        return cls(nodes=nodes, steps=dict(tracer.outputs), output=result)

    def inputs(self, images: Tensor) -> dict[fx.Node, Any]:
        """The values that a run starts from: the images, and the defaults of any other input."""
        first, *others = (node for node in self.nodes if node.op == "placeholder")
        return {first: images, **{node: node.args[0] for node in others}}

    def find(self, name: str, role: str) -> fx.Node:
        """The step of that exact name. Raises ValueError with the nearest names if there is none."""
        if name in self.steps:
            return self.steps[name]
        near = difflib.get_close_matches(name, self.steps, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choices: {', '.join(self.steps)}"
        raise ValueError(f"no step {name!r} to be the {role} of a connection; {hint}")

    def check_destination(self, name: str, backbone: nn.Module) -> None:
        """Raise ValueError unless only rectifiers read the step: a negative gain must be followed by rectification."""
        users = list(self.find(name, "destination").users)
        if not users or not all(_is_rectifier(user, backbone) for user in users):
            valid = [
                step
                for step, node in self.steps.items()
                if node.users and all(_is_rectifier(user, backbone) for user in node.users)
            ]
            raise ValueError(
                f"destination {name!r} is not followed by a rectifier, but feedback scales pre-activations, "
                f"so that what is absent stays absent; choices: {', '.join(valid)}"
            )

    def downstream(self, names: Iterable[str]) -> frozenset[fx.Node]:
        """Every node whose value depends on the outputs of these steps, without the steps themselves."""
        reached: set[fx.Node] = set()
        frontier = [self.steps[name] for name in names]
        while frontier:
            for user in frontier.pop().users:
                if user not in reached:
                    reached.add(user)
                    frontier.append(user)
        return frozenset(reached)


def _is_rectifier(node: fx.Node, backbone: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(backbone.get_submodule(str(node.target)), RECTIFIERS)
    return node.target in RECTIFIER_FUNCTIONS


def run_node(node: fx.Node, backbone: nn.Module, values: Mapping[fx.Node, Any]) -> Any:
    """The value of one node, from the values of the nodes before it."""
    args = fx.node.map_arg(node.args, values.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
    if node.op == "call_module":
        module = backbone.get_submodule(str(node.target))
        if getattr(module, "inplace", False):  # never overwrite an activation that may be needed again
            args = tuple(value.clone() if isinstance(value, Tensor) else value for value in args)
        return module(*args, **kwargs)
    if node.op == "call_function":
        return node.target(*args, **kwargs)  # type: ignore[operator]
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "get_attr":
        value: Any = backbone
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value
    raise AssertionError(f"unexpected node {node.op}")
