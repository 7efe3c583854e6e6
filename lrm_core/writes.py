"""Operations in place: which steps write to what they are given, which values may share memory, and how to write apart.

Unusual: whatever is not known to fill memory of its own may share that of what it reads, and whatever is unknown may
write. So a mistake costs a copy and never a wrong number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, fx, nn

from lrm_core.graph import passed

_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_SAME_WITHOUT = ("relu_", "sigmoid_", "tanh_", "clamp_")  # methods that differ from those without _ in nothing else
_KNOWN = ("torch", "_operator", "builtins", "math")  # packages whose functions say by their name that they write

# What fills memory of its own, unless it works in place.
_OWN_MODULES = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.Linear, nn.Bilinear,
    nn.Embedding, nn.MultiheadAttention, nn.LocalResponseNorm, nn.Softmax, nn.LogSoftmax, nn.Tanh, nn.Sigmoid,
    nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.ReLU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.LeakyReLU, nn.PReLU,
    nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd,
)  # fmt: skip
_OWN_NAMES = frozenset((
    "add", "sub", "rsub", "mul", "truediv", "div", "floordiv", "neg", "pow", "exp", "log", "sqrt", "rsqrt", "abs",
    "matmul", "mm", "bmm", "addmm", "baddbmm", "linear", "conv1d", "conv2d", "conv3d", "cat", "concat", "stack",
    "relu", "relu6", "gelu", "silu", "mish", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu", "celu",
    "selu", "prelu", "sigmoid", "tanh", "softplus", "softmax", "log_softmax", "clamp", "clip", "mean", "sum", "amax",
    "amin", "var", "std", "norm", "layer_norm", "group_norm", "batch_norm", "normalize", "max_pool2d", "avg_pool2d",
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate", "scaled_dot_product_attention",
    "clone", "roll", "eq", "ne", "lt", "le", "gt", "ge", "size", "dim", "numel", "stride", "len",
    "is_floating_point", "zeros_like", "ones_like", "rand_like", "randn_like",
))  # fmt: skip
_NUMBERS = ("shape", "dtype", "device", "ndim")  # attributes that hold no memory


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
    return not _is_known(target) or _in_place_argument(target, node.args, node.kwargs)


def written(node: fx.Node, backbone: nn.Module) -> Sequence[fx.Node]:
    """The values that a step that may write may write to: the first argument, or any if the step is unknown."""
    target: Any = node.target
    known = _is_torchs(backbone.get_submodule(target)) if node.op == "call_module" else True
    known = known and (node.op != "call_function" or _is_known(target)) and "out" not in node.kwargs
    if known and node.args and isinstance(node.args[0], fx.Node):
        return (node.args[0],)
    return node.all_input_nodes


def may_share(node: fx.Node, backbone: nn.Module) -> bool:
    """Whether what a step returns may lie in memory that it was given."""
    target: Any = node.target
    if node.op == "get_attr" or may_write(node, backbone):
        return True
    if node.op == "call_module":
        return not isinstance(backbone.get_submodule(target), _OWN_MODULES)
    if node.op == "call_method":
        return target not in _OWN_NAMES
    if target is getattr:
        return node.args[1] not in _NUMBERS
    return getattr(target, "__name__", "") not in _OWN_NAMES


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _is_known(function: Any) -> bool:
    return (getattr(function, "__module__", None) or "torch").partition(".")[0] in _KNOWN


def _in_place_argument(function: Any, args: Any, kwargs: Any) -> bool:
    try:
        return bool(signature(function).bind(*args, **kwargs).arguments.get("inplace", False))
    except (TypeError, ValueError):  # a function in C; none of them has this argument
        return False


def out_of_place(node: fx.Node, backbone: nn.Module) -> tuple[str, Any, Any, Any] | None:
    """A step that writes, without writing: (kind, target, args, kwargs), as in torch.fx; None if there is no such form.

    The kind `apart` is the function of that name. Dropout is left out: its forms may draw other numbers.
    """
    target: Any = node.target
    if node.op == "call_module":
        module = backbone.get_submodule(target)
        whole = _is_torchs(module) and not hasattr(module, "p")
        return ("apart", target, node.args, node.kwargs) if whole else None
    if node.op == "call_method" and target in _SAME_WITHOUT:
        return node.op, target[:-1], node.args, node.kwargs
    if node.op != "call_function" or not _is_known(target) or "dropout" in target.__name__:
        return None
    if not _in_place_argument(target, node.args, node.kwargs):
        return None
    bound = signature(target).bind(*node.args, **node.kwargs)
    bound.arguments["inplace"] = False
    return node.op, target, bound.args, bound.kwargs


def apart(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a module gives that works in place, without writing to what it is given."""
    if torch.compiler.is_compiling():  # a compiler makes no copy of it
        return module(args[0].clone(), *args[1:], **kwargs)
    other = object.__new__(type(module))
    other.__dict__.update(module.__dict__, inplace=False)
    return other(*args, **kwargs)


def copied(value: Any) -> Any:
    """A copy of a value's tensors."""
    return _mapped(value, Tensor.clone)


def together(*values: Any) -> list[Any]:
    """The values with the memory of the first copied. All that lie in it share the copy."""
    found = list(values)
    for memory in memories(found[0]):
        found = _copy(found, memory)
    return found


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


def _copy(values: list[Any], memory: int) -> list[Any]:
    """Give copies to all values of that memory. They share the memory of one copy, as before."""
    found = [each for value in values for each in tensors(value) if memories(each) == {memory}]
    layouts = {_layout(each) for each in found}
    if len(layouts) == 1:
        copy = found[0].clone()
        copies = dict.fromkeys(layouts, copy)
    else:
        largest = max(found, key=Tensor.numel)
        size = largest.untyped_storage().nbytes() // largest.element_size()
        copy = torch.as_strided(largest, (size,), (1,), 0).clone()
        copies = {each: torch.as_strided(copy, *each) for each in layouts}

    def exchanged(each: Tensor) -> Tensor:
        return copies[_layout(each)] if memories(each) == {memory} else each

    return [_mapped(value, exchanged) for value in values]


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
