"""Propose feedback connections for a backbone that nobody has described.

The classifier, the last linear or convolutional layer, goes to the last pre-activation of each of the last two stages.
The last map goes to the last pre-activation of an early stage.

Unusual: a stage is found by its resolution, not by a name, since every library names stages otherwise. A backbone of
fewer than three resolutions, such as a vision transformer, is divided into four stages of equal depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrm_core.feedback import Connection
from lrm_core.graph import Graph, check_inputs, run_node
from lrm_core.hooked import hooks
from lrm_core.reading import Probe
from lrm_core.shadow import kept_random_states, shadow
from lrm_core.steps import Steps

Shape = tuple[int, ...]
NUM_STAGES = 4  # of a backbone of equal resolution


def propose(backbone: nn.Module, image_size: int) -> tuple[Connection, ...]:
    """Connections for a backbone. The backbone is not changed.

    Args:
        image_size: side in pixels of a square image that the backbone takes.

    Raises:
        ValueError: the backbone needs more than images or cannot run at that size. Or it has no classifier, or no
            pre-activation before it.
    """
    check_inputs(backbone)
    evaluated = shadow(backbone).eval()
    probe = Probe.of(evaluated, image_size)
    try:
        steps: Steps = Graph.of(shadow(evaluated))
        shapes = _shapes_of_graph(steps, evaluated, probe)  # type: ignore[arg-type]
        found = _connections(steps, shapes, evaluated)
    except ValueError:
        found = ()
    if not found:  # what torch.fx cannot read may hold all of it
        steps = probe.calls()
        found = _connections(steps, _shapes_of_calls(evaluated, probe), evaluated)
    if not found:
        raise ValueError(
            f"backbone: {type(backbone).__name__} has no linear or convolutional layer behind a pre-activation, "
            "so no connection can be proposed; expected connections, for example Connection(…, anywhere=True)"
        )
    return found


def _connections(steps: Steps, shapes: Mapping[Any, Shape], backbone: nn.Module) -> tuple[Connection, ...]:
    order = {step: index for index, step in enumerate(steps.nodes)}
    classifiers = [step for name, step in steps.steps.items() if _is_layer(name, backbone) and step in shapes]
    if not classifiers:
        return ()
    last = max(classifiers, key=order.__getitem__)
    classifier = _name(steps, last)
    places = {
        name: shapes[steps.steps[name]]
        for name in steps.pre_activations()
        if steps.steps[name] in shapes
        and steps.steps[name] not in steps.gating
        and last in steps.downstream([name])
        and _has_places(shapes[steps.steps[name]])
    }
    stages = _stages(places, backbone)
    if not stages:
        return ()
    pairs = [(classifier, stage) for stage in stages[-2:]]
    early = stages[max(len(stages) - 2, 0) // 2]
    behind = steps.downstream([early])
    dims = len(places[stages[-1]])
    maps = [
        step
        for step, shape in shapes.items()
        if len(shape) == dims and _has_places(shape) and step in behind and order[step] < order[last]
    ]
    if maps:
        pairs.append((_name(steps, max(maps, key=order.__getitem__)), early))
    return tuple(Connection(*pair) for pair in dict.fromkeys(pairs))


def _stages(places: Mapping[str, Shape], backbone: nn.Module) -> list[str]:
    """The last pre-activation of each stage, in running order."""
    by_resolution = {_resolution(name, shape, backbone): name for name, shape in places.items()}
    names = list(places)
    if len(by_resolution) >= 3 or len(names) < NUM_STAGES:
        return sorted(by_resolution.values(), key=names.index)
    return [names[len(names) * (stage + 1) // NUM_STAGES - 1] for stage in range(NUM_STAGES)]


def _resolution(name: str, shape: Shape, backbone: nn.Module) -> Shape:
    """Places without channels. A linear layer has its channels last, as tokens have."""
    last = len(shape) == 2 or isinstance(_module(name, backbone), nn.Linear)
    return shape[:-1] if last else shape[1:]


def _has_places(shape: Shape) -> bool:
    """Whether an activation, without the batch, is more than a vector."""
    return len(shape) in (2, 3) and sum(size > 1 for size in shape) > 1


def _module(name: str, backbone: nn.Module) -> nn.Module | None:
    return dict(backbone.named_modules()).get(name.partition("@")[0])


def _is_layer(name: str, backbone: nn.Module) -> bool:
    return isinstance(_module(name, backbone), nn.Linear | nn.Conv2d)


def _name(steps: Steps, step: Any) -> str:
    """The shortest path of a step."""
    return min((name for name, other in steps.steps.items() if other == step), key=lambda name: name.count("."))


def _shapes_of_graph(graph: Graph, backbone: nn.Module, probe: Probe) -> dict[Any, Shape]:
    """The shapes, without the batch, of the nodes that have names and give tensors."""
    named, shapes = set(graph.steps.values()), dict[Any, Shape]()
    copied = shadow(backbone)
    values: dict[Any, Any] = {graph.images: probe.images.clone()}
    with kept_random_states(), torch.no_grad():
        for node in graph.nodes[1:-1]:
            values[node] = run_node(node, graph, copied, values)
            if node in named and isinstance(values[node], Tensor):
                shapes[node] = tuple(values[node].shape[1:])
    return shapes


def _shapes_of_calls(backbone: nn.Module, probe: Probe) -> dict[Any, Shape]:
    shapes: dict[Any, Shape] = {}

    def seen(step: str, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            shapes[step] = tuple(output.shape[1:])

    copied = shadow(backbone)
    with kept_random_states(), torch.no_grad(), hooks(copied, seen):
        copied(probe.images.clone())
    return shapes
