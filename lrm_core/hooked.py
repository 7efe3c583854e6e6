"""Run a backbone whole in each pass, with forward hooks that live for this pass only.

This is the way for a backbone that `torch.fx` cannot read: control flow on values, attributes set in forward, outputs
in objects of a library. Its steps are calls of modules. Its stem is the images, so later passes repeat everything.

Unusual: a hook acts only in the thread and the task that run the pass (`contextvars`). Other threads may use the same
backbone meanwhile. The hooks are gone afterwards, also when the pass raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from lrm_core.passes import Stem
from lrm_core.steps import PASSING_FUNCTIONS, RECTIFIERS, Adjust, Place, Steps, is_rectifier, rectifies
from lrm_core.writes import memories, tensors

_RUNNING: ContextVar[object] = ContextVar("the pass that runs here")

Seen = Callable[[str, tuple[Any, ...], Any], Any]


@contextmanager
def hooks(backbone: nn.Module, seen: Seen, modules: Iterable[str] | None = None) -> Iterator[None]:
    """Call `seen(step, inputs, output)` after each call of a module. What it returns, if not None, is the output.

    Args:
        modules: paths of the modules that matter; None for all.
    """
    this, counts, handles = object(), dict[str, int](), list[RemovableHandle]()
    chosen = None if modules is None else set(modules)

    def hook_of(path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            if _RUNNING.get(None) is not this:
                return None
            count = counts[path] = counts.get(path, -1) + 1
            return seen(f"{path}@{count}" if count else path, inputs, output)

        return hook

    token = _RUNNING.set(this)
    try:
        for path, module in backbone.named_modules():
            scripted = isinstance(module, torch.jit.ScriptModule)  # takes no hooks
            if path and not scripted and (chosen is None or path in chosen):
                handles.append(module.register_forward_hook(hook_of(path)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        _RUNNING.reset(token)


class _PassedOn(NamedTuple):
    """A tensor was made from another by dropout. What reads it after its first `known` readers reads the other, too."""

    tensor: Tensor
    known: int


class _Readers(TorchFunctionMode):
    """Notes which functions read which tensors. Functions that a noted function calls are not noted.

    Attributes:
        of: by identity of a tensor, what read it: `torch.relu` for all rectifiers and gates, any other function, or
            `_PassedOn`. None stands for a change in place, after which it is another value.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, list[Any]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _SAYS_NOTHING:
            return result
        note = torch.relu if rectifies(func, args, kwargs) else func
        for tensor in tensors([*args, *kwargs.values()]):
            found = self.of.setdefault(id(tensor), [])
            if func not in PASSING_FUNCTIONS:
                found.extend([note, None] if tensor is result else [note])
            elif tensor is not result:
                found.append(_PassedOn(result, len(self.of.get(id(result), ()))))
        return result

    def rectified(self, tensor: Tensor, times: int) -> None:
        """A rectifier was called on a tensor: what it read last, so many times, it read to rectify."""
        found = self.of.get(id(tensor), [])
        last = [index for index in range(len(found)) if found[index] is not None][-times:]
        for index in last:
            found[index] = torch.relu

    def since(self, tensor: Tensor, count: int) -> list[Any]:
        """What read a tensor after the first `count` entries, until its next change in place."""
        found = self.of.get(id(tensor), [])[count:]
        found = found[: found.index(None)] if None in found else found
        inside = [self.since(*each) if isinstance(each, _PassedOn) else [each] for each in found]
        return [function for each in inside for function in each]


_SAYS_NOTHING = (
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda")),
    Tensor.size, Tensor.dim, Tensor.is_floating_point, Tensor.__len__, Tensor.stride, Tensor.numel,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Calls(Steps):
    """The calls of modules in one run of a backbone, in the order in which they end.

    Attributes:
        nodes: names of the steps.
        steps: the same, by name.
        rectified: steps whose output rectifiers or gates read, and nothing else does.
        gating: empty, since it is not known which step depends on which.
        writes_images: whether the backbone overwrites its input.
    """

    nodes: tuple[str, ...]
    steps: Mapping[str, str]
    rectified: frozenset[str]
    writes_images: bool
    gating: frozenset[str] = frozenset()

    @classmethod
    def of(cls, backbone: nn.Module, images: Tensor) -> Calls:
        """Run a backbone in its present modes and note its calls. What it writes stays written: give a shadow."""
        outputs: dict[str, tuple[Any, int]] = {}
        readers = _Readers()
        version = images._version

        def seen(step: str, inputs: tuple[Any, ...], output: Any) -> None:
            module = backbone.get_submodule(step.partition("@")[0])
            if is_rectifier(module):  # torch's own read once; x · sigmoid(1.702 x) reads twice
                readers.rectified(inputs[0], 1 if isinstance(module, RECTIFIERS) else 2)
            outputs[step] = (output, len(readers.of.get(id(output), ())))

        with hooks(backbone, seen), readers:
            backbone(images)
        rectified = set()
        for step, (output, count) in outputs.items():
            found = readers.since(output, count) if isinstance(output, Tensor) else []
            if found and all(function is torch.relu for function in found):
                rectified.add(step)
        return cls(tuple(outputs), {step: step for step in outputs}, frozenset(rectified), images._version != version)

    def downstream(self, names: Iterable[str]) -> frozenset[str]:
        """Every call that ends after the first of these: which of them depend on it is not known."""
        starts = [self.nodes.index(self.find(name, "step")) for name in names]
        return frozenset(self.nodes[min(starts) + 1 :]) if starts else frozenset()


@dataclass(frozen=True, eq=False)
class Hooked:
    """A backbone that runs whole in each pass.

    Attributes:
        graph: its steps.
        modes: the modes of its modules.
        reason: why it is not run by a graph.
        sources: the steps whose activations a pass returns.
        destinations: the steps that feedback changes, in running order.
        places: what the stem keeps: the images.
    """

    graph: Calls
    modes: str
    reason: str
    sources: frozenset[str]
    destinations: tuple[str, ...]
    places: Mapping[Place, str]

    @classmethod
    def of(cls, graph: Calls, modes: str, reason: str, sources: Iterable[str], destinations: Iterable[str]) -> Hooked:
        """Prepare to run with these sources and destinations."""
        targets = set(destinations)
        ordered = tuple(step for step in graph.nodes if step in targets)
        return cls(graph, modes, reason, frozenset(sources), ordered, {Place("images", modes): "images"})

    def varies(self, step: str) -> bool:
        """Whether a step may differ between passes."""
        return self.graph.nodes.index(step) >= self.graph.nodes.index(self.destinations[0])

    def sample(self, stem: Stem) -> Tensor:
        """A value of the stem with one entry for each image."""
        return stem.values[Place("images", self.modes)]

    def stem(self, backbone: nn.Module, images: Tensor) -> Stem:
        """The images."""
        return Stem(dict.fromkeys(self.places, images))

    def run(
        self, backbone: nn.Module, stem: Stem, adjust: Adjust, wanted: Mapping[str, Sequence[str]]
    ) -> tuple[Any, dict[str, Any]]:
        """One pass: (what the backbone returns, activations of the steps in `wanted`, by the names given there).

        Raises:
            ValueError: a source or a destination was not called, or a destination is no tensor.
        """
        activations: dict[str, Any] = {}
        called: set[str] = set()

        def seen(step: str, inputs: tuple[Any, ...], output: Any) -> Any:
            called.add(step)
            if step in self.destinations:
                if not isinstance(output, Tensor):
                    raise ValueError(f"step {step!r}: got {type(output).__name__}, expected a tensor (batch, …)")
                output = adjust(self.destinations.index(step), output)
            if step not in wanted:
                return output
            kept, goes_on = output, output
            if isinstance(output, Tensor):  # a later operation in place must not reach it
                if step in self.sources or memories(output) & memories(inputs):
                    kept = output.clone()
                else:
                    goes_on = output.clone()
            activations.update(dict.fromkeys(wanted[step], kept))
            return goes_on

        needed = {*self.destinations, *wanted}
        images = self.sample(stem)
        with hooks(backbone, seen, {step.partition("@")[0] for step in needed}):
            output = backbone(images.clone() if self.graph.writes_images else images)
        missing = [step for step in self.graph.nodes if step in needed and step not in called]
        if missing:
            raise ValueError(f"step {missing[0]!r}: not called in this pass (modules in mode {self.modes})")
        return output, activations
