"""Where steering acts, which connections carry it, and how large its changes are.

The pointing game (Zhang et al., IJCV 2018) asks whether the peak of a map lies in the named object. To see what a
connection carries, it is taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from lrm_core.model import LRM
from lrm_core.trials import Trials, Triplets, build
from lrm_lab.goals import supports_of
from lrm_lab.named import NamedNetwork
from lrm_lab.statistics import CONSTANTS, auroc, mean_interval, rate_at, resampling
from lrm_lab.trials import constant_top_one, run_both
from steering.heatmap import class_activation_map
from steering.network import Glance, Network
from steering.rollouts import class_goals, run_unsteered
from steering.steerer import Steerer

PLACES = ("side", "cutmix", "inset", "grid")  # kinds whose objects lie somewhere


def named_boxes(trials: Trials) -> Float[Tensor, "b 4"]:
    """Left, top, right and bottom, in 0–1, of the object that the present goal names."""
    which = (trials.scenes.labels == trials.present[:, None]).float().argmax(1)
    return trials.scenes.boxes[torch.arange(len(which)), which]


def peak_in_box(maps: Float[Tensor, "b h w"], boxes: Float[Tensor, "b 4"]) -> Bool[Tensor, " b"]:
    """Whether the centre of a map's largest cell lies in the box. A map without heat has no peak."""
    rows, columns = maps.shape[1:]
    best = maps.flatten(1).argmax(1).cpu()
    y, x = (best // columns + 0.5) / rows, (best % columns + 0.5) / columns
    left, top, right, bottom = boxes.unbind(1)
    return (x > left) & (x < right) & (y > top) & (y < bottom) & (maps.flatten(1).amax(1).cpu() > 0)


def measure(
    steerer: Steerer,
    triplets: Sequence[Triplets],
    pixels: Float[Tensor, "n 3 s s"],
    labels: Tensor,
    *,
    scenes: int = 500,
    ablation_scenes: int = 300,
) -> dict[str, Any]:
    """Measure pointing, ablations and changes. Returns plain values for JSON.

    Args:
        triplets: one group for each kind of scene.
        pixels: labelled images, in 0–1.
        scenes: number of scenes of each kind for the pointing game.
        ablation_scenes: number of scenes of each kind for the rest.
    """
    goals = class_goals(steerer)
    placed = [group for group in triplets if group.kind in PLACES]
    return {
        "pointing": {
            g.kind: pointing(steerer.network, build(g[:scenes], pixels, labels), goals)
            for g in tqdm(placed, "where", disable=None)
        },
        "ablation": ablation(
            steerer.network, [build(g[:ablation_scenes], pixels, labels) for g in triplets if g.kind != "single"], goals
        ),
        "changes": {
            g.kind: changes(steerer.network, build(g[:ablation_scenes], pixels, labels), goals) for g in placed
        },
    }


def pointing(network: Network, trials: Trials, goals: Float[Tensor, "c m"]) -> dict[str, Any]:
    """How often the peak of the heatmap, and of the unsteered class-activation map, lies in the named object.

    `area` is the object's mean share of the canvas, which a peak at random would reach. Insets differ in size. For
    them, `by_size` tells the same for each third of the sizes.
    """
    boxes = named_boxes(trials)
    weights = resampling(len(boxes))
    unsteered = run_unsteered(network, trials.scenes.pixels)
    steered, plain = [], []
    start = 0
    for glance in unsteered.glances:
        wanted = goals[trials.present[start : start + len(glance.output)]]
        start += len(glance.output)
        steered.append(network.heatmap(glance, wanted)[1].cpu())
        plain.append(_without_steering(network, glance, wanted).cpu())
    inside, base = (peak_in_box(torch.cat(maps), boxes).float() for maps in (steered, plain))
    sides = (boxes[:, 2] - boxes[:, 0]).sqrt() * (boxes[:, 3] - boxes[:, 1]).sqrt()
    entry: dict[str, Any] = {
        "scenes": len(inside),
        "area": float((sides**2).mean()),
        "steered": float(inside.mean()),
        "steered_interval": mean_interval(inside, weights),
        "unsteered_cam": float(base.mean()),
        "unsteered_cam_interval": mean_interval(base, weights),
        "difference_interval": mean_interval(inside - base, weights),
    }
    if trials.scenes.kind == "inset":
        third = sides.argsort().argsort() * 3 // len(sides)
        entry["by_size"] = [
            {
                "side": [float(sides[third == i].min()), float(sides[third == i].max())],
                "steered": float(inside[third == i].mean()),
                "unsteered_cam": float(base[third == i].mean()),
            }
            for i in range(3)
        ]
    return entry


def _without_steering(network: Network, glance: Glance, goals: Float[Tensor, "b m"]) -> Float[Tensor, "b h w"]:
    """The map of the first pass alone: a class-activation map, or the probability of the goal at each patch."""
    if isinstance(network, NamedNetwork):
        return network.first_map(glance, goals)
    return class_activation_map(network.model, network.output, glance.stem, glance.state, goals)


def without(model: LRM, index: int) -> LRM:
    """The same network without one of its connections. The parameters are shared."""
    kept = [connection for i, connection in enumerate(model.connections) if i != index]
    training = model.training
    feedback = type(model.paths[kept[0].key])
    fewer = LRM(model.backbone, kept, model.image_size, feedback=feedback, rule=model.rule)
    fewer.paths = torch.nn.ModuleDict({c.key: model.paths[c.key] for c in kept})
    return fewer.train(training)


def ablation(network: Network, trials: Sequence[Trials], goals: Float[Tensor, "c m"]) -> dict[str, Any]:
    """What is left when each connection is taken away: means over kinds of scene.

    These are J, top-1 of present goals at 5 % absent ones, and the AUROC of the support. The last connection from the
    output is never taken away: without it a network cannot be steered.
    """
    seen = {id(t): run_unsteered(network, t.scenes.pixels) for t in trials}
    entries = {"none": _summary(network, trials, goals, seen)}
    model = network.model
    for index, connection in enumerate(tqdm(model.connections, desc="ablations", disable=None)):
        if sum(c.source == network.output for c in model.connections) == 1 and connection.source == network.output:
            continue
        fewer = network.with_model(without(model, index))
        entries[f"{connection.source} → {connection.destination}"] = _summary(fewer, trials, goals, None)
    return {"scenes": len(trials[0].present), "without": entries}


def _summary(network: Network, trials: Sequence[Trials], goals: Tensor, seen: dict[int, Any] | None) -> dict[str, Any]:
    rows: dict[str, list[float]] = {"J": [], "present_at_5%": [], "auroc_support": []}
    for trial in trials:
        unsteered = run_unsteered(network, trial.scenes.pixels) if seen is None else seen[id(trial)]
        looks = run_both(network, trial, unsteered, goals)
        there, not_there = (after.output for after in looks)
        curve = constant_top_one(there, not_there, trial, CONSTANTS)
        present, absent = constant_top_one(there, not_there, trial, (0.0,)).rates()
        pairs = zip(looks, (trial.present, trial.absent), strict=True)
        scores = [supports_of(network, after, goals[classes]) for after, classes in pairs]
        outcome = torch.cat([torch.full((len(s),), i) for i, s in ((1, scores[0]), (0, scores[1]))])
        rows["J"].append(float(present - absent))
        rows["present_at_5%"].append(float(rate_at(*curve.rates(), 0.05)))
        rows["auroc_support"].append(auroc(torch.cat(scores).cpu(), outcome))
    return {name: sum(values) / len(values) for name, values in rows.items()}


@torch.no_grad()
def changes(network: Network, trials: Trials, goals: Float[Tensor, "c m"]) -> dict[str, Any]:
    """How much feedback adds in the last steered pass, for a goal that is there, and where it adds it.

    `relative` is mean |x · Σ f| over mean |x|, in the destination. `inside` is, for maps, the mean within the named
    object's box over the mean elsewhere; 1 means that feedback prefers neither.
    """
    boxes = named_boxes(trials)
    sizes: dict[str, list[Tensor]] = {}
    inside: dict[str, list[Tensor]] = {}
    start = 0
    for glance in run_unsteered(network, trials.scenes.pixels).glances:
        rows = slice(start, start + len(glance.output))
        start = rows.stop
        state, steer = network.before_last(glance, goals[trials.present[rows]])
        destinations = list(dict.fromkeys(network.model.destinations.values()))
        _, after, change = network.model.inspect(glance.stem, state, [steer], destinations)
        for name, value in change.items():
            before = after[network.model.destinations[name]] - value
            sizes.setdefault(name, []).append(value.abs().flatten(1).mean(1) / before.abs().flatten(1).mean(1))
            if value.ndim == 4:
                inside.setdefault(name, []).append(_inside(value.abs().mean(1), boxes[rows]))
    return {
        name: {"relative": float(torch.cat(relative).mean())}
        | ({"inside": float(torch.cat(inside[name]).median())} if name in inside else {})
        for name, relative in sizes.items()
    }


def _inside(maps: Float[Tensor, "b h w"], boxes: Float[Tensor, "b 4"]) -> Float[Tensor, " b"]:
    height, width = maps.shape[1:]
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    left, top, right, bottom = (side[:, None, None] for side in boxes.unbind(1))
    mask = ((x > left) & (x < right) & (y[:, None] > top) & (y[:, None] < bottom)).to(maps)
    means = [(maps * m).sum((1, 2)) / m.sum((1, 2)).clamp(min=1) for m in (mask, 1 - mask)]
    return means[0] / means[1].clamp(min=1e-12)
