"""Searching crowded scenes: a gallery of composite scenes with known contents is searched for every class by its name.

Unusual: the first pass is given its best chance. It ranks by the goal's support in its output, by the logit of the
class itself (no words in between), and by places. A verdict that was fitted without steering ranks too. What looking
gains is reported against each of these. The first stage of a CLIP is the cosine of text and image, in place of places.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from lrm_core.trials import Trials, make_trials
from lrm_lab.composite_controls import has_image_tower, similarities
from lrm_lab.goals import class_familiarity, features_of, supports_of, verdict_of
from lrm_lab.statistics import mean_interval, resampling
from prior.captions import with_article
from steering.evidence import UNSTEERED
from steering.goals import Goal
from steering.rollouts import class_goals, run_unsteered
from steering.search.gallery import RERANK, Gallery
from steering.search.hits import Hit
from steering.steerer import Steerer

KINDS = ("blend", "side", "inset", "grid")  # two objects, two, two (one of them small), four
DEPTHS = (32, RERANK, 512)  # candidates that are looked at
PAGE = 10  # hits of a page of results


def measure(
    steerer: Steerer,
    pixels: Float[Tensor, "n 3 s s"],
    labels: Int[Tensor, " n"],
    *,
    scenes: int = 1000,
    queries: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """mAP and P@1 of every way to rank, and how often an image is said to show a goal that no image shows.

    Args:
        pixels: labelled images, in 0–1.
        scenes: number of scenes of each kind.
        queries: number of classes to search for. None means all.

    Raises:
        ValueError: the model is a classifier, and has no calibrated verdict.
    """
    is_open = steerer.network.is_open
    if not is_open:  # a search by open words has at least a presumed one
        verdict_of(steerer)
    classes = len(steerer.class_names)
    trials = [make_trials(kind, pixels, labels, classes, scenes, seed + i) for i, kind in enumerate(KINDS)]
    truth = torch.cat([torch.zeros(scenes, classes).scatter_(1, t.scenes.labels, 1.0) for t in trials]).bool()
    asked = [c for c in range(classes) if bool(truth[:, c].any())]
    step = max(len(asked) // queries, 1) if queries else 1
    asked = asked[::step][:queries]
    scores = _first_pass(steerer, trials, class_goals(steerer), asked)
    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery.open(folder, steerer, keep="first-pass")  # the same images are looked at for every class
        pairs = ((name, to_pil_image(picture)) for t in trials for name, picture in _named(t))
        report = gallery.add(pairs)
        if report.skipped or report.images != len(truth):
            raise RuntimeError(f"{report.images} of {len(truth)} scenes were indexed: {report.skipped}")
        ranked, said = _search(gallery, asked, truth)
        scores |= ranked
    rows = torch.tensor(asked)
    entries = {name: _entry(values[:, rows], truth[:, rows]) for name, values in scores.items()}
    best = max(("output", "class"), key=lambda name: entries[name]["mAP"])
    weights = resampling(len(asked))
    own = entries[f"steered {RERANK}"]["AP"]
    against = {}
    for name in [name for name in ("output", "class", "places", "unsteered") if name in entries]:
        difference = own - entries[name]["AP"]
        against[name] = {
            "relative": float(own.mean() / entries[name]["AP"].mean() - 1),
            "difference": float(difference.mean()),
            "interval": mean_interval(difference, weights),
        }
    ways = {name: {key: value for key, value in e.items() if key != "AP"} for name, e in entries.items()}
    about = {"scenes": len(truth), "queries": len(asked), "shown_by": float(truth[:, rows].float().sum(0).mean())}
    measured = {**about, "best_of_output": best, "ways": ways, "against": against, "present": said}
    return {**measured, "first_stage": "cosine"} if is_open else measured


def _named(trials: Trials) -> list[tuple[str, Tensor]]:
    """Scenes by names that tell what is in them: `grid/17-c3-c20-c41-c7-`."""
    scenes = zip(trials.scenes.labels.tolist(), trials.scenes.pixels, strict=True)
    kind = trials.scenes.kind
    return [(f"{kind}/{i}-{''.join(f'c{c}-' for c in inside)}", picture) for i, (inside, picture) in enumerate(scenes)]


def _first_pass(
    steerer: Steerer, trials: Sequence[Trials], goals: Float[Tensor, "c m"], asked: Sequence[int]
) -> dict[str, Tensor]:
    """Scores (scenes, classes) that need no steered pass. Those by goals are told for the classes `asked` alone."""
    scores: dict[str, list[Tensor]] = {"output": [], "class": [], "unsteered": []}
    unaided = steerer.verdicts.get(f"{steerer.language.prior.source}{UNSTEERED}")
    familiarity, network = class_familiarity(steerer), steerer.network
    if has_image_tower(steerer):
        scores["zero_shot"] = [similarities(steerer, t.scenes.pixels) for t in trials]
    for trial in tqdm(trials, desc="first pass", disable=None):
        unsteered = run_unsteered(network, trial.scenes.pixels)
        seen, count = unsteered.seen, len(unsteered.first)
        scores["class"].append(unsteered.first.log_softmax(1).cpu())
        supports = torch.full((count, len(goals)), -torch.inf)
        judged = supports.clone()
        for row in asked:
            many, known = goals[row].expand(count, -1), familiarity[row].expand(count)
            supports[:, row] = supports_of(network, seen, many).cpu()
            if unaided is not None:
                judged[:, row] = unaided.probability(features_of(network, seen, seen, many, known)).cpu()
        scores["output"].append(supports)
        if unaided is not None:
            scores["unsteered"].append(judged)
    return {name: torch.cat(parts) for name, parts in scores.items() if parts}


def _search(
    gallery: Gallery, asked: Sequence[int], truth: Bool[Tensor, "n m"]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Scores (scenes, classes) of every way to search, and how often images are said to show a goal."""
    steerer, count = gallery.steerer, len(truth)
    has_prototypes = not steerer.network.is_open
    place = {row["path"]: number for number, row in enumerate(_in_order(gallery))}
    names = ["places", *(f"steered {depth}" for depth in DEPTHS), *(["prototype"] * has_prototypes), "oracle"]
    scores = {name: torch.full(truth.shape, -torch.inf) for name in names}
    said = {"present": 0, "present_rightly": 0, "false": 0, "false_alone": 0, "images_said": 0, "images_right": 0}
    expected = 0.0
    for label in tqdm(asked, desc="searches", disable=None):
        query = with_article(steerer.class_names[label])
        nearest = _nearest(gallery, query, count)
        rows = [place[hit.path] for hit in nearest]
        score = torch.tensor([hit.score for hit in nearest])
        scores["places"][rows, label] = score
        for depth in DEPTHS:
            looked = torch.tensor([float("nan") if hit.alone is None else hit.alone for hit in nearest[:depth]])
            scores[f"steered {depth}"][rows, label] = torch.cat([1 + looked, score[depth:].clamp(max=0.999)])
        inside = truth[rows, label].float()
        scores["oracle"][rows, label] = torch.cat([1 + inside[:RERANK], score[RERANK:].clamp(max=0.999)])
        there = gallery.search(query, top=PAGE)
        right = [bool(truth[place[hit.path], label]) for hit in there.present]
        said["images_said"] += len(right)
        said["images_right"] += sum(right)
        expected += there.expected
        is_said = there.answer == "present"
        said["present"] += is_said
        said["present_rightly"] += is_said and bool(there) and bool(truth[place[there[0].path], label])
        nowhere = gallery.search(query, top=PAGE, where=f"path NOT LIKE '%-c{label}-%'")
        said["false"] += nowhere.answer == "present"
        said["false_alone"] += bool(nowhere.present)
        if has_prototypes:
            goal: Goal = steerer.prototype_goal(steerer.class_names[label])
            by_mean = sorted(gallery.search(goal, top=count, fold=False), key=lambda hit: -hit.score)
            rows = [place[hit.path] for hit in by_mean]
            values = [1 + (hit.alone or 0.0) for hit in by_mean[:RERANK]]
            values += [min(hit.score, 0.999) for hit in by_mean[RERANK:]]
            scores["prototype"][rows, label] = torch.tensor(values)
    rates: dict[str, Any] = {name: said[name] / len(asked) for name in said if not name.startswith("images")}
    rates |= {name: said[name] for name in ("images_said", "images_right")} | {"images_expected": expected}
    return scores, rates


def _nearest(gallery: Gallery, query: str, count: int) -> list[Hit]:
    """All images in the order of the first stage. What was looked at tells how likely it shows the query."""
    if not gallery.steerer.network.is_open:
        return sorted(gallery.search(query, top=count, rerank=max(DEPTHS), fold=False), key=lambda hit: -hit.score)
    looked = {hit.path: hit for hit in gallery.search(query, top=count, rerank=max(DEPTHS), fold=False, threshold=0.0)}
    ranked = gallery.search(query, top=count, rerank=0, fold=False)  # relevance ends nowhere without a look
    return [looked.get(hit.path, hit) for hit in ranked]


def _in_order(gallery: Gallery) -> list[dict[str, Any]]:
    """The scenes in the order in which they were made."""
    order = {kind: index for index, kind in enumerate(KINDS)}

    def key(row: dict[str, Any]) -> tuple[int, int]:
        kind, _, rest = row["path"].partition("/")
        return order[kind], int(rest.partition("-")[0])

    return sorted(gallery.images(), key=key)


def average_precision(scores: Float[Tensor, "n q"], truth: Bool[Tensor, "n q"]) -> Float[Tensor, " q"]:
    """For every query, the mean of the precisions at the ranks of its right images, by scikit-learn."""
    from sklearn.metrics import average_precision_score

    finite = scores.clamp(min=-1e9).double().numpy()
    pairs = zip(truth.T.numpy(), finite.T, strict=True)
    return torch.tensor([float(average_precision_score(right, values)) for right, values in pairs])


def _entry(scores: Float[Tensor, "n q"], truth: Bool[Tensor, "n q"]) -> dict[str, Any]:
    precision, weights = average_precision(scores, truth), resampling(truth.shape[1])
    first = truth.gather(0, scores.argmax(0, keepdim=True))[0].float()
    return {
        "AP": precision,
        "mAP": float(precision.mean()),
        "mAP_interval": mean_interval(precision, weights),
        "P@1": float(first.mean()),
        "P@1_interval": mean_interval(first, weights),
    }
