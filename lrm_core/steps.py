"""What the two ways of running a backbone share: the names of its steps, and the places where a stem keeps values.

A step that is a module has the module's path as its name (`features.8`, `layer1.0.bn1`). Its second call is `PATH@1`,
its third `PATH@2`. Cards written before 2026-12 spell them `PATH_1` and `PATH_2`, and these names are still found.

Unusual: a destination may also be named by the stage around it; see `Steps.destination`.
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

# What counts as a rectifier or a gate. Feedback multiplies a pre-activation by 1 + f ≥ 0, so its sign stays.
# - act(x) = 0 for x ≤ 0: ReLU, ReLU6, a clamp at 0 from below. A silent unit stays silent exactly.
# - act(x) ≤ 0 for x ≤ 0: GELU, SiLU, Mish and Hardswish go no lower than −0.4. LeakyReLU, PReLU, RReLU, ELU, CELU and
#   SELU keep the sign of x. A unit that is not above 0 does not rise above 0.
# Tanh, Softsign and the shrinkages are none. They are odd: below 0 is a signal as strong as above 0, not silence.
# Sigmoid, Hardsigmoid and Softplus are none. They are above 0 at x = 0, so a factor of 0 would raise a silent unit.
RECTIFIERS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU,
)  # fmt: skip
_BY_NAME = ("QuickGELU", "QuickGELUActivation")  # x · sigmoid(1.702 x) of CLIP, a class of each library's own
RECTIFIER_FUNCTIONS: tuple[Any, ...] = (
    F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, "relu", "relu_", F.relu6, F.gelu, F.silu,
    F.mish, F.hardswish, F.leaky_relu, F.leaky_relu_, F.prelu, torch.prelu, Tensor.prelu, "prelu", F.rrelu, F.rrelu_,
    torch.rrelu, torch.rrelu_, F.elu, F.elu_, F.celu, F.celu_, torch.celu, torch.celu_, F.selu, F.selu_, torch.selu,
    torch.selu_,
)  # fmt: skip
_CLAMPS: tuple[Any, ...] = (
    torch.clamp, torch.clamp_, torch.clip, torch.clip_, torch.clamp_min, torch.clamp_min_,
    Tensor.clamp, Tensor.clamp_, Tensor.clip, Tensor.clip_, Tensor.clamp_min, Tensor.clamp_min_,
    "clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_",
)  # fmt: skip

# What passes a value on, scaled by a factor of at least 0. A destination may lie before it.
PASSING: tuple[type[nn.Module], ...] = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
PASSING_FUNCTIONS: tuple[Any, ...] = (
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout, torch.dropout_, torch.feature_dropout,
    torch.feature_dropout_,
)  # fmt: skip


def is_rectifier(module: nn.Module) -> bool:
    """Whether a module is a rectifier or a gate."""
    return isinstance(module, RECTIFIERS) or type(module).__name__ in _BY_NAME


def rectifies(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function, or a method by its name, is a rectifier or a gate when it is called with these arguments."""
    if function in _CLAMPS:
        lowest = args[1] if len(args) > 1 else kwargs.get("min")
        return isinstance(lowest, int | float) and lowest == 0
    return function in RECTIFIER_FUNCTIONS


Adjust = Callable[[int, Tensor], Tensor]
"""Gives a destination its value after feedback: (its index in the way's destinations, value before) → value."""


class Anywhere(str):
    """The name of a destination that need not be a pre-activation; see `lrm_core.Connection`."""


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
        rectified: the steps whose value rectifiers or gates read, and nothing else does.
        gating: the steps that reach the output only through a sigmoid, such as those of squeeze-and-excitation.
    """

    nodes: Sequence[Any]
    steps: Mapping[str, Any]
    rectified: frozenset[Any]
    gating: frozenset[Any]

    def find(self, name: str, role: str) -> Any:
        """The step of that exact name. A destination may also be the name of a stage; see `destination`.

        Raises:
            ValueError: there is no such step. The message has the nearest names.
        """
        if role == "destination" and not isinstance(name, Anywhere):
            name = self.destination(name)
        if name in self.steps:
            return self.steps[name]
        older = re.fullmatch(r"(.+)_(\d+)", name)
        if older and f"{older[1]}@{older[2]}" in self.steps:
            return self.steps[f"{older[1]}@{older[2]}"]
        near = difflib.get_close_matches(name, self.steps, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choices: {', '.join(self.steps)}"
        raise ValueError(f"no step {name!r} to be the {role} of a connection; {hint}")

    def destination(self, name: str) -> str:
        """The name of the step that a destination's name stands for.

        A stage is a module with steps inside that is no pre-activation itself. `layer2` stands for the last
        pre-activation inside it, `layer2[0]` for the first. Steps inside a squeeze-and-excitation gate count only if
        there are no others. Any other name stands for itself.
        """
        if self.steps.get(name) in self.rectified:
            return name
        stage = name.removesuffix("[0]")
        if stage != name and name in self.steps:
            return name
        inside = [step for step in self.pre_activations() if step.startswith(f"{stage}.")]
        inside = [step for step in inside if self.steps[step] not in self.gating] or inside
        if not inside:
            return name
        return inside[0 if stage != name else -1]

    def pre_activations(self) -> list[str]:
        """The names of the steps whose value rectifiers or gates read, in running order, one name for each step."""
        first: dict[Any, str] = {}
        for name, step in self.steps.items():
            if step in self.rectified:
                first.setdefault(step, name)
        order = {step: index for index, step in enumerate(self.nodes)}
        return [first[step] for step in sorted(first, key=order.__getitem__)]

    def calls(self, name: str, role: str) -> list[Any]:
        """The step of that name and, if it is a module's first call, the steps of its later calls."""
        found = [self.find(name, role)]
        while f"{name}@{len(found)}" in self.steps:
            found.append(self.steps[f"{name}@{len(found)}"])
        return found

    @abstractmethod
    def downstream(self, names: Iterable[str]) -> frozenset[Any]:
        """Every step whose value may depend on the outputs of these steps, without the steps themselves."""

    def check_destination(self, name: str) -> None:
        """Raise ValueError unless the step is a pre-activation, or its name is `Anywhere`."""
        if isinstance(name, Anywhere) or self.find(name, "destination") in self.rectified:
            return
        why = "is not followed by a rectifier, but feedback scales pre-activations, so that what is absent stays absent"
        valid = [other for other, step in self.steps.items() if step in self.rectified]
        if not valid:
            raise ValueError(
                f"destination {name!r} {why}; no step of this backbone is followed by one, "
                "so only Connection(…, anywhere=True) can end here"
            )
        raise ValueError(f"destination {name!r} {why}; choices: {', '.join(valid)}")


def numbered(path: str, taken: Callable[[str], bool]) -> str:
    """The path, followed by `@1`, `@2`, … if it is taken."""
    candidate, count = path, 0
    while taken(candidate):
        count += 1
        candidate = f"{path}@{count}"
    return candidate
