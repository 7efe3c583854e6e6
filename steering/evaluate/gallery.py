"""Pictures of what steering does in scenes, picked: the first trials of a seed, and failures by rule.

Unusual: no picture is chosen by hand. The heatmaps are those of the first trials of a seed; the failures are the worst
by a stated rule, of every kind of scene alike.
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

from lrm_core.scenes import KINDS
from prior.captions import with_article
from steering.evaluate.where import peak_in_box
from steering.evidence import Verdict, features
from steering.heatmap import steering_heatmap
from steering.steerer import Steerer
from steering.trials import Trials, Unsteered, class_goals, make_trials, run_unsteered

COMPOSITES = tuple(kind for kind in KINDS if kind != "single")
Box = tuple[float, float, float, float]
Truth = Literal["present", "absent"]
RULES = {
    "misses": "present goals given a probability below one half, the lowest first",
    "hallucinations": "absent goals given a probability of one half or more, the highest first",
    "misplaced": "present goals answered “present” whose heatmap does not peak in the object, the highest first",
}


@dataclass(frozen=True, eq=False)
class Item:
    """One goal looked for in one scene.

    kind, trial: of the scene, and its number among those of its kind. names: what is in it. box: left, top, right,
    bottom of the goal's object in 0–1 of the picture, None if it is absent. heatmap: (h, w) in 0–1 over the picture.
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
class Gallery:
    """shown: of each kind, for each of the first trials, the present goal and then the absent one.

    failures: items by rule, see `RULES`, of each kind at most as many as trials are shown.
    counts: of each kind, over all its trials; see `summary`.
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
) -> Gallery:
    """Look for a present and an absent goal in `trials` scenes of every kind of composite, and pick by rule.

    Args:
        pixels: labelled images, in 0–1. per_kind: trials shown of each kind, and the most failures of each.

    Raises:
        ValueError: the model has no calibrated verdict, the images are of too few classes, or fewer trials are asked
            for than shown.
    """
    if not 1 <= per_kind <= trials:
        raise ValueError(f"per_kind: got {per_kind} of {trials} trials, expected at least 1 and at most all")
    verdict = steerer.verdict
    if verdict is None:
        raise ValueError(
            f"{steerer.card['name']} has no calibrated verdict for goals by {steerer.language.prior.source!r}; "
            "`python -m steering.calibrate` makes it"
        )
    goals = class_goals(steerer)
    familiarity = steerer.familiarity(steerer.embed([with_article(name) for name in steerer.class_names]))
    shown: dict[str, tuple[tuple[Item, Item], ...]] = {}
    failures: dict[str, tuple[Item, ...]] = dict.fromkeys(RULES, ())
    counts: dict[str, dict[str, int | float]] = {}
    for number, kind in enumerate(tqdm(COMPOSITES, desc="gallery", disable=None)):
        made = make_trials(kind, pixels, labels, len(steerer.class_names), trials, seed + number)
        unsteered = run_unsteered(steerer, made.scenes.pixels, batch=50)  # small: heatmaps keep a graph of gradients
        present = _items(steerer, verdict, made, unsteered, goals, familiarity, "present")
        absent = _items(steerer, verdict, made, unsteered, goals, familiarity, "absent")
        placed = [] if kind == "blend" else [i for i in present if verdict.answer(i.probability) == "present"]
        failed = _failures(present, absent, placed)
        shown[kind] = tuple(zip(present[:per_kind], absent[:per_kind], strict=True))
        for rule, found in failed.items():
            failures[rule] += tuple(found[:per_kind])
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (item.box for item in placed) if box]
        counts[kind] = {
            "trials": trials,
            **{rule: len(found) for rule, found in failed.items()},
            "placed": len(placed),
            "misplaced_by_chance": len(areas) - sum(areas),
        }
    return Gallery(seed, trials, shown, failures, counts)


def _items(
    steerer: Steerer,
    verdict: Verdict,
    trials: Trials,
    unsteered: Unsteered,
    goals: Tensor,
    familiarity: Tensor,
    truth: Truth,
) -> list[Item]:
    """The present or the absent goal of every trial, looked for."""
    from torchvision.transforms.functional import to_pil_image

    scenes, classes = trials.scenes, trials.present if truth == "present" else trials.absent
    place = classes.to(goals.device)
    after, heatmaps = _look(steerer, unsteered, goals[place])
    values = features(unsteered.first, after, unsteered.places, goals[place], familiarity[place])
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


def _look(
    steerer: Steerer, unsteered: Unsteered, goals: Float[Tensor, "b m"]
) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b h w"]]:
    """Outputs of the last steered pass at the model's defaults, and its heatmaps."""
    outputs, heatmaps = [], []
    parts = goals.split([len(glance.output) for glance in unsteered.glances])
    for glance, part in zip(unsteered.glances, parts, strict=True):
        state, steer = steerer.before_last(glance, part)
        output, heatmap = steering_heatmap(steerer.model, glance.stem, state, steer, part)
        outputs.append(output)
        heatmaps.append(heatmap)
    return torch.cat(outputs), torch.cat(heatmaps)


def peaks_inside(heatmap: Float[Tensor, "h w"], box: Box) -> bool:
    """Whether the centre of the strongest cell of a heatmap lies in a box (in 0–1); a map without heat has no peak."""
    return bool(peak_in_box(heatmap[None].float(), torch.tensor([box]))[0])


def peak_of(heatmap: Float[Tensor, "h w"]) -> tuple[float, float] | None:
    """(x, y) of the centre of the strongest cell, in 0–1; None where there is no heat."""
    row, column = divmod(int(heatmap.argmax()), heatmap.shape[1])
    strong = bool(heatmap[row, column] > 0)
    return ((column + 0.5) / heatmap.shape[1], (row + 0.5) / heatmap.shape[0]) if strong else None


def _failures(present: Sequence[Item], absent: Sequence[Item], placed: Sequence[Item]) -> dict[str, list[Item]]:
    """All failures by `RULES`, the worst first; equals in the order of trials.

    placed: the items answered “present” whose object has a place; in a blend it is everywhere.
    """
    elsewhere = [i for i in placed if i.box and not peaks_inside(i.heatmap, i.box)]
    return {
        "misses": sorted((i for i in present if i.probability < 0.5), key=lambda i: i.probability),
        "hallucinations": sorted((i for i in absent if i.probability >= 0.5), key=lambda i: -i.probability),
        "misplaced": sorted(elsewhere, key=lambda i: -i.probability),
    }


def summary(gallery: Gallery) -> dict[str, Any]:
    """What the gallery shows, as plain values for JSON: `seed`, `trials`, `rules`, `kinds`, `failures`.

    kinds: of each kind, the number of trials, of `misses` (of as many present goals), of `hallucinations` (of as many
    absent goals), of `placed` goals (answered “present”, the object has a place), of those that were `misplaced`,
    and how many of them would be, on average, if the peak lay anywhere alike (`misplaced_by_chance`).
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
        for rule, items in gallery.failures.items()
    }
    kinds = {kind: dict(counts) for kind, counts in gallery.counts.items()}
    return {"seed": gallery.seed, "trials": gallery.trials, "rules": dict(RULES), "kinds": kinds, "failures": plain}
