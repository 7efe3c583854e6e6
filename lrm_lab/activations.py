"""Activations of every layer in every pass, as features of images. RDMs and encoding models are made from them.

Unusual: a layer is a source or a destination of feedback, or the output. It is read in each pass, steered or not. Maps
keep all their positions. If a layer then has too many features, a sparse random projection (Li et al. 2006) reduces
them. The projection is the same in every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lrm_core import State, Steer
from steering.network import Network

MAX_FEATURES = 4096
Project = Callable[[str, Float[np.ndarray, "b p"]], Float[np.ndarray, "b q"]]


def layer_names(network: Network) -> tuple[str, ...]:
    """Sources and destinations of feedback and the output, in the order in which they run. A tensor is named once."""
    model = network.model
    destinations = list(model.destinations.values())
    wanted = {*destinations, *model.sources, network.output}
    order = {node: index for index, node in enumerate(model.graph.nodes)}
    inside = model.graph.downstream(destinations) | {model.graph.steps[name] for name in destinations}
    names = {node: name for name, node in model.graph.steps.items() if name in wanted and node in inside}
    return tuple(names[node] for node in sorted(names, key=order.__getitem__))


@torch.no_grad()
def pass_features(
    network: Network,
    pixels: Float[Tensor, "n 3 s s"],
    layers: Sequence[str],
    *,
    goal: Float[Tensor, " m"] | None = None,
    passes: int | None = None,
    project: Project | None = None,
    batch: int = 64,
) -> list[dict[str, Float[np.ndarray, "n _"]]]:
    """Activations of every pass, flattened with all their positions: for each pass, layer → (n, units).

    A destination is read after feedback and before its rectifier. With a goal, all passes but the first are steered, at
    the default strength.

    Args:
        pixels: normalised, as `Network.pixels` gives them.
        project: function that reduces a layer's activations, batch by batch. None leaves them as they are.
    """
    model, defaults = network.model, network.defaults
    passes = defaults.passes if passes is None else passes
    steer = [] if goal is None else [Steer(network.output, goal[None].to(network.device), defaults.strength)]
    steps = tuple(dict.fromkeys((*layers, *model.sources)))
    parts: list[dict[str, list[np.ndarray]]] = [{name: [] for name in layers} for _ in range(passes)]
    for part in pixels.split(batch):
        stem = model.stem(part.to(network.device))
        state: State | None = None
        for index in range(passes):
            _, seen, _ = model.inspect(stem, state, steer if index else (), steps)
            state = State({name: seen[name] for name in model.sources}, index + 1)
            for name in layers:
                values = seen[name].flatten(1).float().cpu().numpy()
                parts[index][name].append(values if project is None else project(name, values))
    return [{name: np.concatenate(values) for name, values in one.items()} for one in parts]


def random_projection(max_features: int = MAX_FEATURES, seed: int = 0) -> Project:
    """A projection that brings layers with more features down to `max_features`. It is the same in every pass."""
    from sklearn.random_projection import SparseRandomProjection

    fitted: dict[str, SparseRandomProjection] = {}

    def project(name: str, values: Float[np.ndarray, "b p"]) -> Float[np.ndarray, "b q"]:
        if values.shape[1] <= max_features:
            return values
        if name not in fitted:
            fitted[name] = SparseRandomProjection(max_features, random_state=seed).fit(values[:1])
        return fitted[name].transform(values).astype(np.float32)

    return project
