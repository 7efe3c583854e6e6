"""Propose feedback connections for a backbone that nobody has described.

The classifier, the last linear or convolutional layer, goes to the last pre-activation of each of the last two stages.
The last map goes to the last pre-activation of an early stage.

Unusual: a stage is found by its resolution, not by a name, since every library names stages otherwise. A backbone of
fewer than three resolutions, such as a vision transformer, is divided into four stages of equal depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lrm_core.feedback import Connection
from lrm_core.graph import Graph, check_inputs
from lrm_core.layouts import Layout
from lrm_core.reading import Probe, Reader
from lrm_core.shadow import shadow
from lrm_core.steps import Steps
from lrm_core.tracking import End, layouts

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
        found = _connections(steps, layouts(steps, evaluated, probe.images), evaluated)
        if found:
            Reader(found, image_size, all_calls=False).read(evaluated)
    except ValueError:
        found = ()
    if not found:  # what torch.fx cannot read may hold all of it, or it runs by hooks, and only modules are steps
        steps = probe.calls()
        found = _connections(steps, layouts(steps, evaluated, probe.images), evaluated)
    if not found:
        raise ValueError(
            f"backbone: {type(backbone).__name__} has no linear or convolutional layer behind a pre-activation, "
            "so no connection can be proposed; expected connections, for example Connection(…, anywhere=True)"
        )
    return found


def _connections(steps: Steps, ends: Mapping[Any, End], backbone: nn.Module) -> tuple[Connection, ...]:
    order = {step: index for index, step in enumerate(steps.nodes)}
    known = {step: end.layout for step, end in ends.items() if end.layout.kind != "unknown"}
    classifiers = [step for name, step in steps.steps.items() if _is_layer(name, backbone) and step in known]
    if not classifiers:
        return ()
    last = max(classifiers, key=order.__getitem__)
    classifier = _name(steps, last)
    places = {
        name: known[steps.steps[name]]
        for name in steps.pre_activations()
        if steps.steps[name] in known
        and steps.steps[name] not in steps.gating
        and last in steps.downstream([name])
        and _has_places(known[steps.steps[name]])
    }
    stages = _stages(places)
    if not stages:
        return ()
    pairs = [(classifier, stage) for stage in stages[-2:]]
    early = stages[max(len(stages) - 2, 0) // 2]
    behind = steps.downstream([early])
    maps = [
        step for step, layout in known.items() if _has_places(layout) and step in behind and order[step] < order[last]
    ]
    if maps:
        pairs.append((_name(steps, max(maps, key=order.__getitem__)), early))
    return tuple(Connection(*pair) for pair in dict.fromkeys(pairs))


def _stages(places: Mapping[str, Layout]) -> list[str]:
    """The last pre-activation of each stage, in running order."""
    by_resolution = {layout.places: name for name, layout in places.items()}
    names = list(places)
    if len(by_resolution) >= 3 or len(names) < NUM_STAGES:
        return sorted(by_resolution.values(), key=names.index)
    return [names[len(names) * (stage + 1) // NUM_STAGES - 1] for stage in range(NUM_STAGES)]


def _has_places(layout: Layout) -> bool:
    """Whether an activation is more than a vector: a map of several places or channels, or tokens on a grid."""
    return layout.places is not None and sum(size > 1 for size in (layout.channels, *layout.places)) > 1


def _is_layer(name: str, backbone: nn.Module) -> bool:
    return isinstance(dict(backbone.named_modules()).get(name.partition("@")[0]), nn.Linear | nn.Conv2d)


def _name(steps: Steps, step: Any) -> str:
    """The shortest path of a step."""
    return min((name for name, other in steps.steps.items() if other == step), key=lambda name: name.count("."))
