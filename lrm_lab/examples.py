"""Examples of what steering does in scenes: the first trials of a seed, and failures.

Unusual: no picture is chosen by hand. The heatmaps are those of the first trials of a seed. The failures are the worst
by a stated rule, and every kind of scene shows as many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lrm_core.trials import Trials, make_trials
from lrm_lab.goals import class_familiarity, features_of, verdict_of
from lrm_lab.trials import COMPOSITES
from lrm_lab.where import peak_in_box
from prior.captions import with_article
from steering.evidence import Seen, Verdict
from steering.network import Network
from steering.rollouts import Unsteered, class_goals, run_unsteered
from steering.steerer import Steerer

Box = tuple[float, float, float, float]
Truth = Literal["present", "absent"]
RULES = {
    "misses": "present goals given a probability below one half, the lowest first",
    "hallucinations": "absent goals given a probability of one half or more, the highest first",
    "misplaced": "present goals answered “present” whose heatmap does not peak in the object, the highest first",
}


@dataclass(frozen=True, eq=False)
class Item:
    """One goal that was looked for in one scene.

    Attributes:
        kind, trial: kind of the scene, and its number among those of its kind.
        heatmap: (h, w), in 0–1, over the picture.
        names: what is in the scene.
        box: left, top, right and bottom of the goal's object, in 0–1 of the picture. None if it is absent.
    """

    kind: str
    trial: int
    picture: Image.Image
    heatmap: Float[Tensor, "h w"]
    query: str
    truth: Truth
    probability: float
    names: tuple[str, ...]
    box: Box | None


@dataclass(frozen=True, eq=False)
class Examples:
    """The trials that are shown, the failures, and how many there were.

    Attributes:
        shown: kind of scene → for each of its first trials, the present goal and the absent one.
        failures: rule → items; see `RULES`. Each kind has at most as many failures as trials that are shown.
        counts: kind of scene → counts over all its trials; see `summary`.
    """

    seed: int
    trials: int
    shown: Mapping[str, tuple[tuple[Item, Item], ...]]
    failures: Mapping[str, tuple[Item, ...]]
    counts: Mapping[str, dict[str, int | float]]


def gather(
    steerer: Steerer,
    pixels: Float[Tensor, "n 3 s s"],
    labels: Int[Tensor, " n"],
    *,
    per_kind: int = 4,
    trials: int = 200,
    seed: int = 0,
) -> Examples:
    """Look for a present and an absent goal in `trials` scenes of every kind of composite, and choose by rule.

    Args:
        pixels: labelled images, in 0–1.
        per_kind: number of trials that are shown of each kind, and most failures of each kind.

    Raises:
        ValueError: the model has no calibrated verdict, the images are of too few classes, or more trials are to be
            shown than there are.
    """
    if not 1 <= per_kind <= trials:
        raise ValueError(f"per_kind: got {per_kind}, expected 1 to {trials}, the number of trials")
    verdict = verdict_of(steerer)
    goals = class_goals(steerer)
    familiarity = class_familiarity(steerer)
    shown: dict[str, tuple[tuple[Item, Item], ...]] = {}
    failures: dict[str, tuple[Item, ...]] = dict.fromkeys(RULES, ())
    counts: dict[str, dict[str, int | float]] = {}
    for number, kind in enumerate(tqdm(COMPOSITES, desc="examples", disable=None)):
        made = make_trials(kind, pixels, labels, len(steerer.class_names), trials, seed + number)
        # small batches: heatmaps keep a graph of gradients
        unsteered = run_unsteered(steerer.network, made.scenes.pixels, batch=50)
        present = _items(steerer, verdict, made, unsteered, goals, familiarity, "present")
        absent = _items(steerer, verdict, made, unsteered, goals, familiarity, "absent")
        placed = [] if kind == "blend" else [i for i in present if verdict.answer(i.probability) == "present"]
        failed = _failures(present, absent, placed)
        shown[kind] = tuple(zip(present[:per_kind], absent[:per_kind], strict=True))
        for rule, items in failed.items():
            failures[rule] += tuple(items[:per_kind])
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (item.box for item in placed) if box]
        counts[kind] = {
            "trials": trials,
            **{rule: len(items) for rule, items in failed.items()},
            "placed": len(placed),
            "misplaced_by_chance": len(areas) - sum(areas),
        }
    return Examples(seed, trials, shown, failures, counts)


def _items(
    steerer: Steerer,
    verdict: Verdict,
    trials: Trials,
    unsteered: Unsteered,
    goals: Tensor,
    familiarity: Tensor,
    truth: Truth,
) -> list[Item]:
    """Look for the present or the absent goal of every trial."""
    from torchvision.transforms.functional import to_pil_image

    scenes, classes = trials.scenes, trials.present if truth == "present" else trials.absent
    place = classes.to(goals.device)
    after, heatmaps = _look(steerer.network, unsteered, goals[place])
    values = features_of(steerer.network, unsteered.seen, after, goals[place], familiarity[place])
    probabilities = verdict.probability(values.cpu()).tolist()
    items = []
    for index, (label, probability) in enumerate(zip(classes.tolist(), probabilities, strict=True)):
        inside = scenes.labels[index].tolist()
        items.append(
            Item(
                kind=scenes.kind,
                trial=index,
                picture=to_pil_image(scenes.pixels[index].cpu()),
                heatmap=heatmaps[index].cpu().clone(),
                query=with_article(steerer.class_names[label]),
                truth=truth,
                probability=probability,
                names=tuple(steerer.class_names[other] for other in inside),
                box=tuple(scenes.boxes[index, inside.index(label)].tolist()) if truth == "present" else None,
            )
        )
    return items


def _look(network: Network, unsteered: Unsteered, goals: Float[Tensor, "b m"]) -> tuple[Seen, Float[Tensor, "b h w"]]:
    """What the last steered pass says at the model's defaults, and its heatmaps."""
    seen, heatmaps = [], []
    parts = goals.split([len(glance.output) for glance in unsteered.glances])
    for glance, part in zip(unsteered.glances, parts, strict=True):
        after, heatmap = network.heatmap(glance, part)
        seen.append(after)
        heatmaps.append(heatmap)
    return Seen.cat(seen), torch.cat(heatmaps)


def peaks_inside(heatmap: Float[Tensor, "h w"], box: Box) -> bool:
    """Whether the centre of a heatmap's strongest cell lies in a box, in 0–1. A map without heat has no peak."""
    return bool(peak_in_box(heatmap[None].float(), torch.tensor([box]))[0])


def peak_of(heatmap: Float[Tensor, "h w"]) -> tuple[float, float] | None:
    """(x, y) of the centre of the strongest cell, in 0–1. None where there is no heat."""
    row, column = divmod(int(heatmap.argmax()), heatmap.shape[1])
    strong = bool(heatmap[row, column] > 0)
    return ((column + 0.5) / heatmap.shape[1], (row + 0.5) / heatmap.shape[0]) if strong else None


def _failures(present: Sequence[Item], absent: Sequence[Item], placed: Sequence[Item]) -> dict[str, list[Item]]:
    """All failures by `RULES`, the worst first. Equal ones stay in the order of their trials.

    Args:
        placed: the items that were answered “present” and whose object has a place. In a blend it is everywhere.
    """
    elsewhere = [i for i in placed if i.box and not peaks_inside(i.heatmap, i.box)]
    return {
        "misses": sorted((i for i in present if i.probability < 0.5), key=lambda i: i.probability),
        "hallucinations": sorted((i for i in absent if i.probability >= 0.5), key=lambda i: -i.probability),
        "misplaced": sorted(elsewhere, key=lambda i: -i.probability),
    }


def summary(examples: Examples) -> dict[str, Any]:
    """The examples as plain values for JSON, without pictures.

    `kinds` counts, for each kind of scene: `trials`; `misses` among as many present goals; `hallucinations` among as
    many absent goals; `placed`, the present goals that were answered “present” and whose object has a place;
    `misplaced`, the placed goals whose heatmap peaks elsewhere; and `misplaced_by_chance`, how many would be misplaced
    if peaks lay at random.
    """
    plain = {
        rule: [
            {
                "kind": item.kind,
                "trial": item.trial,
                "query": item.query,
                "truth": item.truth,
                "probability": round(item.probability, 4),
                "names": list(item.names),
                "box": None if item.box is None else [round(side, 4) for side in item.box],
            }
            for item in items
        ]
        for rule, items in examples.failures.items()
    }
    kinds = {kind: dict(counts) for kind, counts in examples.counts.items()}
    return {"seed": examples.seed, "trials": examples.trials, "rules": dict(RULES), "kinds": kinds, "failures": plain}
