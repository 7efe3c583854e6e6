"""Operations in place: which steps write to what they are given, and how what is kept is spared.

Unusual: whether two values share memory is asked of the values themselves, in each run. So views need no list of
operations, and nothing is copied unless a step is about to write to memory that is kept.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, fx, nn

from lrm_core.graph import filled, passed

_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_SAME_WITHOUT = ("relu_", "sigmoid_", "tanh_", "clamp_")  # methods that differ from those without _ in nothing else
_KNOWN = ("torch", "_operator", "builtins", "math")  # packages whose functions say by their name that they write


def may_write(node: fx.Node, backbone: nn.Module) -> bool:
    """Whether a step may write to what it is given. What is unknown may."""
    target: Any = node.target
    if node.op == "call_method":
        return target.endswith("_") and not target.endswith("__")
    if node.op == "call_module":
        module = backbone.get_submodule(target)
        return not _is_torchs(module) or bool(getattr(module, "inplace", False))
    if node.op != "call_function" or target is passed:
        return False
    name = getattr(target, "__name__", "")
    if target in _OPERATORS or "out" in node.kwargs or (name.endswith("_") and not name.endswith("__")):
        return True
    if (getattr(target, "__module__", None) or "torch").partition(".")[0] not in _KNOWN:
        return True
    return _in_place_argument(target, node.args, node.kwargs)


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _in_place_argument(function: Any, args: Any, kwargs: Any) -> bool:
    try:
        return bool(signature(function).bind(*args, **kwargs).arguments.get("inplace", False))
    except (TypeError, ValueError):  # a function in C; none of them has this argument
        return False


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a value: itself, or what lies in its tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [tensor for each in value for tensor in tensors(each)]
    return [tensor for each in value.values() for tensor in tensors(each)] if isinstance(value, dict) else []


def memories(value: Any) -> set[int]:
    """What tells whether values share memory. It holds while the values live."""
    return {each.untyped_storage()._cdata for each in tensors(value)}


def spared(
    node: fx.Node, backbone: nn.Module, values: dict[fx.Node, Any], kept: set[int], released: list[fx.Node]
) -> Callable[[], Any] | None:
    """Prepare a step that may write, so that memory in `kept` is not overwritten.

    Args:
        values: of the steps before. Those that share the memory of a value that is written get copies that share memory
            with each other.
        released: steps that no later step reads.

    Returns:
        The step out of place, where this means the same and needs no copy; otherwise None.
    """
    for used in node.all_input_nodes:
        if used.op == "get_attr" and not str(used.target).startswith("_tensor_constant"):
            continue  # a network may write to its own buffers
        written = kept & memories(values[used])
        if not written:
            continue
        alone = not any(written & memories(value) for other, value in values.items() if other is not used)
        form = _out_of_place(node, backbone, values) if alone and used in released and used in node.args[:1] else None
        if form is not None:
            return form
        for memory in written:
            _copy(values, memory)
    return None


def _out_of_place(node: fx.Node, backbone: nn.Module, values: dict[fx.Node, Any]) -> Callable[[], Any] | None:
    """The same step without writing. Dropout is left out: its forms may draw other numbers."""
    target: Any = node.target
    args, kwargs = filled(node.args, values), filled(node.kwargs, values)
    if node.op == "call_module":
        module = backbone.get_submodule(target)
        if not _is_torchs(module) or hasattr(module, "p"):
            return None
        other = object.__new__(type(module))
        other.__dict__.update(module.__dict__, inplace=False)
        return lambda: other(*args, **kwargs)
    if node.op == "call_method" and target in _SAME_WITHOUT:
        return lambda: getattr(args[0], target[:-1])(*args[1:], **kwargs)
    if node.op == "call_function" and "dropout" not in target.__name__ and _in_place_argument(target, args, kwargs):
        bound = signature(target).bind(*args, **kwargs)
        bound.arguments["inplace"] = False
        return lambda: target(*bound.args, **bound.kwargs)
    return None


def _copy(values: dict[fx.Node, Any], memory: int) -> None:
    """Give copies to all values of that memory. They share the memory of one copy, as before."""
    found = [each for value in values.values() for each in tensors(value) if memories(each) == {memory}]
    layouts = {_layout(each) for each in found}
    if len(layouts) == 1:
        copy = found[0].clone()
        copies = dict.fromkeys(layouts, copy)
    else:
        largest = max(found, key=Tensor.numel)
        size = largest.untyped_storage().nbytes() // largest.element_size()
        copy = torch.as_strided(largest, (size,), (1,), 0).clone()
        copies = {each: torch.as_strided(copy, *each) for each in layouts}
    for node, value in values.items():
        values[node] = _mapped(value, lambda each: copies[_layout(each)] if memories(each) == {memory} else each)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset()


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _mapped(each, function) for key, each in value.items()}
    if isinstance(value, tuple | list):
        inside = [_mapped(each, function) for each in value]
        return (
            type(value)(*inside)
            if hasattr(value, "_fields") or type(value).__module__ == "torch.return_types"
            else type(value)(inside)
        )
    return value
