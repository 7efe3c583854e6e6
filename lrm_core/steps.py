"""What the two ways of running a backbone share: the names of its steps, and the places where a stem keeps values.

A step that is a module has the module's path as its name (`features.8`, `layer1.0.bn1`). Its second call is `PATH@1`,
its third `PATH@2`. Cards written before 2026-12 spell them `PATH_1` and `PATH_2`, and these names are still found.
"""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RECTIFIERS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU)
RECTIFIER_FUNCTIONS: tuple[Any, ...] = (F.relu, torch.relu, F.relu6, F.leaky_relu, F.gelu, F.silu, "relu", "relu_")

Adjust = Callable[[Any, Tensor], Tensor]
"""Gives a destination its value after feedback: (step, value before feedback) → value."""


class Place(NamedTuple):
    """A place in a backbone of which a stem keeps the value.

    Attributes:
        name: of the value.
        modes: the modes of the backbone's modules in which the stem was made; see `lrm_core.shadow.modes`.
    """

    name: str
    modes: str


class Steps(ABC):
    """The named steps of a backbone in running order.

    Attributes:
        nodes: everything that runs, in order.
        steps: what a connection may name. The values are elements of `nodes`.
    """

    nodes: Sequence[Any]
    steps: Mapping[str, Any]

    def find(self, name: str, role: str) -> Any:
        """The step of that exact name. Raises ValueError with the nearest names if there is none."""
        if name in self.steps:
            return self.steps[name]
        older = re.fullmatch(r"(.+)_(\d+)", name)
        if older and f"{older[1]}@{older[2]}" in self.steps:
            return self.steps[f"{older[1]}@{older[2]}"]
        near = difflib.get_close_matches(name, self.steps, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choices: {', '.join(self.steps)}"
        raise ValueError(f"no step {name!r} to be the {role} of a connection; {hint}")

    def calls(self, name: str, role: str) -> list[Any]:
        """The step of that name and, if it is a module's first call, the steps of its later calls."""
        found = [self.find(name, role)]
        while f"{name}@{len(found)}" in self.steps:
            found.append(self.steps[f"{name}@{len(found)}"])
        return found

    @abstractmethod
    def is_pre_activation(self, step: Any, backbone: nn.Module) -> bool:
        """Whether rectifiers read the value of a step, and nothing else does."""

    @abstractmethod
    def downstream(self, names: Iterable[str]) -> frozenset[Any]:
        """Every step whose value may depend on the outputs of these steps, without the steps themselves."""

    def check_destination(self, name: str, backbone: nn.Module) -> None:
        """Raise ValueError unless only rectifiers read the step: a negative gain must be followed by rectification."""
        if not self.is_pre_activation(self.find(name, "destination"), backbone):
            valid = [other for other, step in self.steps.items() if self.is_pre_activation(step, backbone)]
            raise ValueError(
                f"destination {name!r} is not followed by a rectifier, but feedback scales pre-activations, "
                f"so that what is absent stays absent; choices: {', '.join(valid)}"
            )


def numbered(path: str, taken: Callable[[str], bool]) -> str:
    """The path, followed by `@1`, `@2`, … if it is taken."""
    candidate, count = path, 0
    while taken(candidate):
        count += 1
        candidate = f"{path}@{count}"
    return candidate
