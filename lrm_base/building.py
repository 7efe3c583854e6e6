"""Modules whose weights are loaded right after they are built."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def no_random_start() -> Iterator[None]:
    """Within this context modules are built without the random start of their weights, in half the time.

    The caller then loads all weights. The state of the random generator is the same afterwards as before.
    """
    with torch.random.fork_rng(devices=[]), _NoRandomStart():
        yield


_STARTS = {Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_}


class _NoRandomStart(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _STARTS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
