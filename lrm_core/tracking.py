"""Find the layouts of a backbone's steps, from where their numbers come; see `lrm_core.origins`.

So it does not matter which library a backbone is from, nor whether its sides are equal. Prefix tokens are tokens
without a place, since a parameter has none. A grid is what the places of the other tokens make.

Unusual: no second image size is tried, since many transformers take only one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrm_core.graph import Graph, after
from lrm_core.layouts import FORMS, Layout
from lrm_core.origins import HALF, NOTHING, UNKNOWN, Origin, follow, varies
from lrm_core.reading import Probe, Reading
from lrm_core.shadow import shadow
from lrm_core.steps import PASSING, RECTIFIERS, Steps

_OF_MAPS = (
    nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm, nn.Linear, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, *RECTIFIERS, *PASSING,
)  # fmt: skip
_OF_MAP_FUNCTIONS = frozenset((
    "add", "iadd", "mul", "imul", "cat", "flatten", "mean", "adaptive_avg_pool2d", "max_pool2d", "avg_pool2d", "pad",
    "relu", "relu_", "relu6", "hardswish", "silu", "gelu", "sigmoid", "tanh", "clamp", "dropout", "passed",
))  # fmt: skip


def layout_of(name: str, shape: tuple[int, ...], origin: Origin | None, count: int) -> Layout:
    """The layout of a step of so many images from its shape, batch included, and its origin.

    It is unknown if there is no origin, but a vector is a vector.
    """
    sizes, why = shape[1:], ""
    if not sizes:
        why = "it has one axis"
    elif shape[0] != count or (origin is not None and not _is_batch(origin.arrays[0])):
        why = "its first axis is not that of the images"
    elif len(sizes) == 1:
        return Layout("vector", sizes)
    elif origin is None or len(sizes) > 3:
        why = "it was not made of images by functions of torch" if origin is None else f"it has {len(sizes)} axes"
    else:
        found = _map(sizes, origin) if len(sizes) == 3 else _tokens(sizes, origin)
        if found is not None:
            return found
        why = "its channels are not on one axis, or its places on no grid"
    return Layout("unknown", sizes, why=_unknown(name, sizes, why))


def _unknown(name: str, sizes: tuple[int, ...], why: str) -> str:
    return (
        f"layout of step {name!r}: got shape {sizes}, but {why}; expected a connection that says it, "
        f"Connection(…, source_layout=…) or Connection(…, destination_layout=…): {FORMS}"
    )


def _along(array: Tensor, axis: int) -> Tensor:
    """The numbers along one axis, at the end of all others, where prefix tokens are not."""
    for other in range(array.ndim):
        if other != axis:
            array = array.narrow(other, array.shape[other] - 1, 1)
    return array.flatten()


def _changes(channel: Tensor, axis: int) -> bool:
    """Whether the channel changes along an axis. Learned tokens, which have none, are passed over."""
    line = _along(channel, axis)
    return varies(line[line != NOTHING])


def _is_batch(image: Tensor) -> bool:
    line = _along(image, 0)
    return bool((line < 0).all()) or torch.equal(line, torch.arange(len(line), dtype=line.dtype))


def _map(sizes: tuple[int, ...], origin: Origin) -> Layout | None:
    """A map, if the channels lie on the first axis or on the last and rows and columns on the others, in this order."""
    channel = [_changes(origin.arrays[1], axis) for axis in (1, 2, 3)]
    rows, columns = (
        [varies(part(_along(origin.arrays[2], axis))) for axis in (1, 2, 3)]
        for part in (lambda line: line // HALF, lambda line: line % HALF)
    )
    for kind, axes in (("map", (0, 1, 2)), ("channels_last", (2, 0, 1))):
        others = [
            (channel, axes[1]), (channel, axes[2]), (rows, axes[0]), (rows, axes[2]), (columns, axes[0]),
            (columns, axes[1]),
        ]  # fmt: skip
        if not any(changes[axis] for changes, axis in others):
            return Layout(kind, sizes)  # type: ignore[arg-type]
    return None


def _tokens(sizes: tuple[int, ...], origin: Origin) -> Layout | None:
    """Tokens, if the channels lie on the last axis and the places are known, and row by row."""
    if _changes(origin.arrays[1], 1):
        return None
    place = _along(origin.arrays[2], 1)
    if (place == UNKNOWN).any():
        return None
    if (place == place[0]).all() and len(place) > 1:  # a layer mixed the tokens, or there are learned ones only
        return Layout("tokens", sizes)
    prefix = int((place >= 0).int().argmax())
    patches = place[prefix:]
    rows, columns = (patches // HALF).unique(), (patches % HALF).unique()
    whole = (rows[:, None] * HALF + columns).flatten()
    return Layout("tokens", sizes, prefix, (len(rows), len(columns))) if torch.equal(whole, patches) else None


@dataclass(frozen=True)
class End:
    """What a connection may end at, or begin at.

    Attributes:
        layout: of the step.
        origin: of its numbers; None if they were not followed.
    """

    layout: Layout
    origin: Origin | None = None

    def is_normed(self) -> bool:
        """Whether a LayerNorm undoes what feedback does there; see `Origin.is_normed`."""
        return self.origin is not None and self.origin.is_normed()

    def values(self) -> tuple[int, int] | None:
        """The channels that attention reads as its values: the first and the one behind the last.

        None if it does not read any, or if they do not lie side by side.
        """
        read = [] if self.origin is None else [origin.arrays[1] for origin in self.origin.values()]
        channels = torch.cat([channel.flatten() for channel in read]).unique() if read else torch.empty(0)
        if not len(channels) or int(channels[-1] - channels[0]) != len(channels) - 1 or channels[0] < 0:
            return None
        return int(channels[0]), int(channels[-1]) + 1


def layouts(steps: Steps, backbone: nn.Module, images: Tensor) -> dict[Any, End]:
    """The layouts of all steps that have a name and are tensors.

    Args:
        steps: of the backbone in its present modes.
        images: (1, c, h, w), which the backbone takes. It sees two of them where it can, so that the axis of the batch
            shows.
    """
    names: dict[Any, str] = {}
    for name, step in steps.steps.items():
        names.setdefault(step, name)
    count = 2
    try:
        found = follow(steps, backbone, images[:1].repeat(count, 1, 1, 1))
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):  # it takes one image only
        count = 1
        found = follow(steps, backbone, images[:1])
    return {step: End(layout_of(names[step], shape, origin, count), origin) for step, (shape, origin) in found.items()}


def ends(reading: Reading, backbone: nn.Module, image_size: int) -> tuple[dict[str, End], dict[str, End]]:
    """The layouts of the sources and of the destinations of a reading in evaluation mode, by their names.

    They are known without a run where the steps are vectors or maps and the backbone holds nothing that could give a
    map another layout.
    """
    steps = reading.way.graph
    targets = {c.destination: step for step, connections in reading.arriving.items() for c in connections}
    shapes = {name: tuple(value.shape[1:]) for name, value in reading.values.items()}
    maps = [step for name, step in (*reading.sources.items(), *targets.items()) if len(shapes[name]) > 1]
    if all(len(shape) in (1, 3) for shape in shapes.values()) and _only_maps(steps, backbone, maps):
        known = {name: End(Layout.of(shape)) for name, shape in shapes.items()}
        return {name: known[name] for name in reading.sources}, {name: known[name] for name in targets}
    evaluated = shadow(backbone).eval()
    try:
        found, why = layouts(steps, evaluated, Probe.of(evaluated, image_size).images), ""
    except Exception as error:  # whatever a forward raises because its functions are seen
        found, why = {}, f"it cannot be followed: {error}"

    def end(name: str, step: Any) -> End:
        if step in found:
            return found[step]
        if len(shapes[name]) == 1:
            return End(Layout.of(shapes[name]))
        return End(Layout("unknown", shapes[name], why=_unknown(name, shapes[name], why)))

    return (
        {name: end(name, step) for name, step in reading.sources.items()},
        {name: end(name, step) for name, step in targets.items()},
    )


def _only_maps(steps: Steps, backbone: nn.Module, maps: Sequence[Any]) -> bool:
    """Whether steps with three axes are maps with channels first: nothing moves axes, and no linear layer is before."""
    if not isinstance(steps, Graph):
        return False
    linear = []
    for node in steps.nodes:
        if node.op == "call_module":
            module = backbone.get_submodule(str(node.target))
            if type(module).__module__.partition(".modules.")[0] != "torch.nn" or not isinstance(module, _OF_MAPS):
                return False
            linear += [node] if isinstance(module, nn.Linear) else []
        elif node.op in ("call_function", "call_method"):
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            if name not in _OF_MAP_FUNCTIONS:
                return False
    return not {*linear, *after(linear)} & {*maps}
