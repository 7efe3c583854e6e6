"""A backbone as an ordered list of named steps, read by `torch.fx`. The backbone itself is not changed.

A step that is a module has the module's path as its name (`features.8`, `layer1.0.bn1`). Another operation has the path
of the module around it and its own name (`layer1.0.add`). There are no hooks, nothing is registered on the module, its
parameters keep their names, and two wrappers may share one backbone.

Unusual: a graph holds for one combination of modes, since what a forward reads of `self.training` becomes a constant.
The name of an operation stands for one place in the source code, so it means the same in every mode. A module whose
forward cannot be read is one step, without steps inside it. Only the images are an input; other arguments of forward
keep their defaults. A Python value that forward reads from an attribute is the value at the time of reading.
"""

from __future__ import annotations

import inspect
import operator
import random
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from lrm_core.shadow import (
    fingerprint,
    kept_random_states,
    random_states,
    restore_random_states,
    same_random_states,
)
from lrm_core.steps import PASSING, PASSING_FUNCTIONS, Steps, is_rectifier, numbered, rectifies

_FX = str(Path(fx.__file__).parent)
_READING = threading.RLock()  # torch.fx exchanges methods of `nn.Module` while it reads

Site = tuple[Any, ...]


class Unreadable(Exception):
    """A forward does what a graph cannot hold."""


def passed(value: Any) -> Any:
    """A step that returns what it is given: the output of a module that returns its input."""
    return value


class _Value(fx.Proxy):
    """A value of the graph. `x += y` is the operation in place, as Python means it for tensors."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


_IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv"}


class _Tracer(fx.Tracer):
    """A symbolic tracer that notes the name of each node, and that leaves whole what it cannot read."""

    proxy_buffer_attributes = True  # a buffer is read, and written, in each run

    def __init__(self, known: Mapping[Site, str]) -> None:
        super().__init__()
        self.thread = threading.get_ident()
        self.known, self.reserved = known, set(known.values())
        self.stack: list[str] = []
        self.outputs: dict[str, fx.Node] = {}
        self.sites: dict[Site, str] = {}
        self.scopes: dict[fx.Node, str] = {}
        self.opaque: dict[str, str] = {}
        self.cache: dict[str, Any] = {}
        self.contexts = _contexts()

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        return self.root.forward, [self.create_proxy("placeholder", "images", (), {})]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, torch.jit.ScriptModule) or is_rectifier(m)
        return whole or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        self.cache = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread:  # another thread uses a network meanwhile
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            result = self.create_proxy("call_module", path, args, kwargs)
        else:
            before, states = len(self.graph.nodes), random_states()
            inside = set(self.graph.nodes)
            self.stack.append(path)
            try:
                if m._forward_hooks or m._forward_pre_hooks:
                    raise Unreadable("it has forward hooks")
                result = forward(*args, **kwargs)
                if not same_random_states(states, random_states()):
                    raise Unreadable("it draws random numbers that do not depend on the images")
                if isinstance(result, fx.Proxy) and (result.node in inside or result.node.users):
                    result = self.create_proxy("call_function", passed, (result,), {})
            except Exception as error:  # fx raises many types of error, and all mean that it cannot be read
                restore_random_states(states)
                self._forget(before)
                self.opaque[path] = f"{type(error).__name__}: {error}".splitlines()[0]
                result = self.create_proxy("call_module", path, args, kwargs)
            finally:
                self.stack.pop()
        if isinstance(result, fx.Proxy):
            self.outputs[numbered(path, lambda one: one in self.outputs)] = result.node
        return result

    def _forget(self, count: int) -> None:
        """Drop all nodes behind the first `count`."""
        gone = list(self.graph.nodes)[count:]
        for node in reversed(gone):
            self.graph.erase_node(node)
        erased = set(gone)
        self.outputs = {name: node for name, node in self.outputs.items() if node not in erased}
        self.sites = {site: name for site, name in self.sites.items() if name in self.outputs}
        for key in [key for key, value in self.cache.items() if value.node in erased]:
            del self.cache[key]

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if _contexts() != self.contexts:
            raise Unreadable("it changes how gradients or types are computed, as torch.no_grad or torch.autocast do")
        node = super().create_node(kind, target, *args, **kwargs)
        self.scopes[node] = self.stack[-1] if self.stack else ""
        if kind in ("call_function", "call_method") and target is not passed:
            operation = target if isinstance(target, str) else getattr(target, "__name__", "function")
            operation = _IN_PLACE.get(operation, operation).strip("_")
            self._name(".".join([*self.stack[-1:], operation]), node)
        return node

    def _name(self, path: str, node: fx.Node) -> None:
        site = (path, *_call_site())
        repeats = 0
        while (*site, repeats) in self.sites:
            repeats += 1
        site = (*site, repeats)
        name = self.known.get(site)
        if name is None or name in self.outputs:
            name = numbered(path, lambda one: one in self.outputs or one in self.reserved)
        self.sites[site] = name
        self.outputs[name] = node


def _contexts() -> tuple[bool, ...]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled()


def _call_site() -> Site:
    """Where the code that is read now stands: file, line and instruction of all functions outside torch.fx."""
    site = []
    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "trace" and code.co_filename.startswith(_FX):
            break  # what calls it is no part of the backbone; a compiler wraps it
        if not code.co_filename.startswith(_FX) and code.co_filename != __file__:
            site += [(code.co_filename, code.co_firstlineno, frame.f_lasti)]
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(site)


@dataclass(frozen=True, eq=False)
class Graph(Steps):
    """The steps of a backbone in one combination of modes.

    Attributes:
        nodes: in running order.
        steps: nodes by name.
        output: what forward returns, with nodes in the place of tensors.
        constants: tensors that forward makes anew in each call, and that are the same in each call.
        scopes: the path of the module in whose forward a node stands.
        on_images: the nodes that depend on the images.
        opaque: modules whose forward could not be read, and why.
        sites: the name of each place in the source code.
        rectified: the nodes whose value rectifiers or gates read, and nothing else does.
        gating: the nodes that reach the output only through a sigmoid.
    """

    nodes: tuple[fx.Node, ...]
    steps: Mapping[str, fx.Node]
    output: Any
    constants: Mapping[str, Any] = field(repr=False)
    scopes: Mapping[fx.Node, str] = field(repr=False)
    on_images: frozenset[fx.Node] = field(repr=False)
    opaque: Mapping[str, str] = field(repr=False)
    sites: Mapping[Site, str] = field(repr=False)
    rectified: frozenset[fx.Node] = field(repr=False)
    gating: frozenset[fx.Node] = field(repr=False)

    @classmethod
    def of(cls, backbone: nn.Module, known: Mapping[Site, str] | None = None) -> Graph:
        """Read a backbone in its present modes. What its forward writes while it is read stays written: give a shadow.

        Args:
            known: names that were given in other modes.

        Raises:
            ValueError: it needs more than one input, or it cannot be read. Its forward branches on values, for example.
        """
        check_inputs(backbone)
        with _READING, kept_random_states():
            state = random.getstate()
            try:
                read = cls._traced(backbone, known or {})
                if random.getstate() != state:  # a type checker may have drawn: see whether it changes anything
                    for seed in (0, 1):  # the first number is above a half, and below
                        random.seed(seed)
                        if cls._traced(backbone, known or {})._text() != read._text():
                            raise Unreadable("it depends on Python's random numbers")
            except Exception as error:  # fx raises many types of error, and all mean this
                reason = f"{type(error).__name__}: {error}" if not isinstance(error, Unreadable) else str(error)
                name = type(backbone).__name__
                raise ValueError(f"{name} cannot be read by torch.fx: {reason}".splitlines()[0]) from error
        return read

    @classmethod
    def _traced(cls, backbone: nn.Module, known: Mapping[Site, str]) -> Graph:
        tracer = _Tracer(known)
        before, states, setter = fingerprint(backbone), random_states(), nn.Module.__setattr__

        def refuse(module: nn.Module, name: str, value: Any) -> None:
            if threading.get_ident() == tracer.thread and not name.startswith("_tensor_constant"):
                raise Unreadable(f"its forward sets the attribute {name}")
            setter(module, name, value)

        nn.Module.__setattr__ = refuse  # type: ignore[assignment]
        try:
            if backbone._forward_hooks or backbone._forward_pre_hooks:
                raise Unreadable("it has forward hooks")
            graph = tracer.trace(backbone)
        finally:
            nn.Module.__setattr__ = setter  # type: ignore[method-assign]
        if fingerprint(backbone) != before:
            raise Unreadable("its forward changes what it keeps")
        if not same_random_states(states, random_states()):
            raise Unreadable("it draws random numbers that do not depend on the images")
        result = next(node for node in graph.nodes if node.op == "output").args[0]
        constants = {name: value for name, value in backbone.__dict__.items() if name.startswith("_tensor_constant")}
        nodes = tuple(graph.nodes)
        on_images = after(nodes[:1])
        rectified = frozenset(node for node in on_images if _is_rectified(node, backbone))
        return cls(
            nodes, tracer.outputs, result, constants, tracer.scopes, on_images, tracer.opaque, tracer.sites,
            rectified, _gating(nodes, backbone),
        )  # fmt: skip

    def _text(self) -> list[tuple[str, str, str, str]]:
        return [(node.op, str(node.target), str(node.args), str(node.kwargs)) for node in self.nodes]

    @property
    def images(self) -> fx.Node:
        """The node of the input."""
        return self.nodes[0]

    def downstream(self, names: Iterable[str]) -> frozenset[fx.Node]:
        return after([self.find(name, "step") for name in names])


def after(nodes: Iterable[fx.Node]) -> frozenset[fx.Node]:
    """Every node whose value depends on those of `nodes`."""
    reached: set[fx.Node] = set()
    frontier = list(nodes)
    while frontier:
        for user in frontier.pop().users:
            if user not in reached:
                reached.add(user)
                frontier.append(user)
    return frozenset(reached)


def check_inputs(backbone: nn.Module) -> None:
    """Raise ValueError unless forward takes images and nothing else that it needs."""
    parameters = inspect.signature(backbone.forward).parameters.values()
    first = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)][:1]
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if not first or any(p.default is p.empty and p.kind not in open_ended and p not in first for p in parameters):
        raise ValueError(
            f"{type(backbone).__name__}: got the inputs {', '.join(p.name for p in parameters) or 'none'}, "
            "expected images and only inputs with a default beside them"
        )


def _is_rectified(node: fx.Node, backbone: nn.Module) -> bool:
    """Whether rectifiers or gates read a value, and nothing else does; looked through what passes it on."""
    users = list(node.users)
    while any(_passes(user, backbone) for user in users):
        users = [other for user in users for other in (user.users if _passes(user, backbone) else [user])]
    return bool(users) and all(_is_rectifier(user, backbone) for user in users)


def _is_rectifier(node: fx.Node, backbone: nn.Module) -> bool:
    if node.op == "call_module":
        return is_rectifier(backbone.get_submodule(str(node.target)))
    return rectifies(node.target, node.args, node.kwargs)


def _passes(node: fx.Node, backbone: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(backbone.get_submodule(str(node.target)), PASSING)
    return node.target is passed or node.target in PASSING_FUNCTIONS


_SIGMOIDS = (nn.Sigmoid, nn.Hardsigmoid)
_SIGMOID_FUNCTIONS = (F.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_", F.hardsigmoid)


def _gating(nodes: tuple[fx.Node, ...], backbone: nn.Module) -> frozenset[fx.Node]:
    """The nodes that reach the output only through a sigmoid."""
    direct: set[fx.Node] = set()
    frontier = [nodes[-1]]
    while frontier:
        for node in frontier.pop().all_input_nodes:
            if node not in direct:
                direct.add(node)
                called = backbone.get_submodule(str(node.target)) if node.op == "call_module" else None
                if not isinstance(called, _SIGMOIDS) and node.target not in _SIGMOID_FUNCTIONS:
                    frontier.append(node)
    return frozenset(nodes) - direct


def filled(structure: Any, values: Mapping[fx.Node, Any]) -> Any:
    """A structure of torch.fx with the nodes' values in it. Its lists and dicts are Python's own."""
    if isinstance(structure, fx.Node):
        return values[structure]
    if isinstance(structure, tuple):
        inside = [filled(each, values) for each in structure]
        return type(structure)(*inside) if hasattr(structure, "_fields") else tuple(inside)
    if isinstance(structure, list):
        return [filled(each, values) for each in structure]
    if isinstance(structure, dict):
        return {key: filled(each, values) for key, each in structure.items()}
    if isinstance(structure, slice):
        return slice(*(filled(each, values) for each in (structure.start, structure.stop, structure.step)))
    return structure


def run_node(node: fx.Node, graph: Graph, backbone: nn.Module, values: Mapping[fx.Node, Any]) -> Any:
    """The value of one node, from the values of the nodes before it."""
    if node.op == "get_attr":
        return attribute(backbone, str(node.target), graph.constants)
    args, kwargs = filled(node.args, values), filled(node.kwargs, values)
    if node.op == "call_module":
        return backbone.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_function":
        return node.target(*args, **kwargs)  # type: ignore[operator]
    assert node.op == "call_method", node.op
    return getattr(args[0], str(node.target))(*args[1:], **kwargs)


def attribute(backbone: nn.Module, path: str, constants: Mapping[str, Any]) -> Any:
    """A parameter, a buffer or an attribute of the backbone, or one of the graph's constants."""
    if path in constants:
        return constants[path]
    value: Any = backbone
    for part in path.split("."):
        value = getattr(value, part)
    return value
