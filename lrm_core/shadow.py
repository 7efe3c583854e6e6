"""A copy of a backbone to try things on: it has the same parameters, but its own modes, buffers and attributes.

Wrapping a backbone reads it and runs it. Both may write: a forward updates buffers and sets attributes. On a shadow
this changes nothing of the user's network, and other threads may go on using the network meanwhile.

Unusual: this is no `copy.deepcopy`. Parameters are shared, so a shadow costs little memory. An object that cannot be
copied, such as a lock, is shared, too.
"""

from __future__ import annotations

import copy
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_SHARED = (str, bytes, int, float, complex, bool, type(None), type, FunctionType, BuiltinFunctionType, ModuleType,
           torch.dtype, torch.device, torch.Generator)  # fmt: skip


def modes(backbone: nn.Module) -> str:
    """Which modules are in training mode: `eval` for none, `train` for all, otherwise `mixed` and one bit for each."""
    flags: list[bool] = []
    waiting: list[nn.Module | None] = [backbone]
    while waiting:
        module = waiting.pop()
        if module is not None:
            flags.append(module.training)
            waiting.extend(module._modules.values())
    if not any(flags):
        return "eval"
    return "train" if all(flags) else f"mixed {int(''.join('01'[flag] for flag in flags), 2):x}"


def shadow(backbone: nn.Module) -> Any:
    """A copy that shares the parameters; see above."""
    return _copied(backbone, {})


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, (*_SHARED, nn.Parameter)):
        return value
    if id(value) in memo:
        return memo[id(value)]
    new: Any
    if isinstance(value, torch.jit.ScriptModule):
        new = copy.deepcopy(value)
    elif isinstance(value, nn.Module):
        new = memo[id(value)] = object.__new__(type(value))
        for name, each in value.__dict__.items():
            new.__dict__[name] = _copied(each, memo)
    elif isinstance(value, Tensor):
        new = value.detach().clone().requires_grad_(value.requires_grad)
    elif type(value) in (dict, OrderedDict):
        new = memo[id(value)] = type(value)()
        for key, each in value.items():
            new[key] = _copied(each, memo)
    elif type(value) is list:
        new = memo[id(value)] = []
        new.extend(_copied(each, memo) for each in value)
    elif type(value) is tuple:
        new = tuple(_copied(each, memo) for each in value)
    elif type(value) is set:
        new = set(value)
    elif isinstance(value, MethodType):
        new = MethodType(value.__func__, _copied(value.__self__, memo))
    else:
        try:
            new = copy.deepcopy(value, memo)
        except Exception:  # a lock, a file, a generator, …
            new = value
    memo[id(value)] = new
    memo.setdefault(-1, []).append(value)  # an address in the memo must not be used again
    return new


def fingerprint(copied: nn.Module) -> list[Any]:
    """What a forward could write on a module: its attributes, what lies in its lists and dicts, and tensors' versions.

    Two fingerprints of one shadow are equal if nothing was written between them.
    """
    found: list[Any] = []
    for module in copied.modules():
        if isinstance(module, torch.jit.ScriptModule):  # its Python side only mirrors it
            continue
        for name, value in module.__dict__.items():
            if name.startswith("_tensor_constant"):  # made by torch.fx
                continue
            inside: Any = None
            if isinstance(value, dict):
                inside = [(key, id(each), _version(each)) for key, each in value.items()]
            elif isinstance(value, list | set):
                inside = [(id(each), _version(each)) for each in value]
            found.append((name, id(value), _version(value), inside))
    return found


def _version(value: Any) -> int:
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def random_states() -> tuple[Any, ...]:
    """The states of the generators that a forward may draw from without being given one."""
    numpy = sys.modules.get("numpy")
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), cuda, random.getstate(), None if numpy is None else numpy.random.get_state()


def same_random_states(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    """Whether torch and NumPy drew nothing between two calls of `random_states`."""
    return (
        torch.equal(first[0], second[0])
        and all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))
        and (first[3] is None or (first[3][2:] == second[3][2:] and bool((first[3][1] == second[3][1]).all())))
    )


def restore_random_states(states: tuple[Any, ...]) -> None:
    """Set the generators back."""
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])
    random.setstate(states[2])
    if states[3] is not None:
        sys.modules["numpy"].random.set_state(states[3])


@contextmanager
def kept_random_states() -> Iterator[None]:
    """What is drawn inside is not drawn outside."""
    states = random_states()
    try:
        yield
    finally:
        restore_random_states(states)
