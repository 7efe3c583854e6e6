"""Searching crowded scenes: a gallery of composite scenes with known contents, searched for every class by its name.

Unusual: the first pass is given its best case. It ranks by its output, by its output read as the class itself (no words
in between), and by places; a verdict that was fitted without steering ranks as well. What re-ranking gains is told
against each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from prior.captions import with_article
from steering.evaluate.composites import similarities
from steering.evaluate.statistics import mean_interval, resampling
from steering.evaluate.words import bounds, markdown_table, percent, signed
from steering.evidence import UNSTEERED, features, support
from steering.goals import Goal
from steering.search.gallery import RERANK, Gallery, Hits
from steering.steerer import Steerer
from steering.trials import Trials, class_goals, make_trials, run_unsteered

KINDS = ("blend", "side", "inset", "grid")  # two objects, two, two (one of them small), four
DEPTHS = (32, RERANK, 512)  # candidates that are looked at
SAID = (0.5, 0.8)  # probabilities from which on an image counts as said to show the goal
NAMES = {
    "output": "first pass, its output",
    "class": "first pass, the class itself (no words)",
    "places": "first pass, by places (the first stage)",
    "unsteered": "verdict fitted without steering, all images",
    "zero_shot": "the text encoder's own image tower",
    **{f"steered {depth}": f"**looking at the {depth} nearest**" for depth in DEPTHS},
    "prototype": f"looking at the {RERANK} nearest, goals by mean outputs",
    "oracle": f"oracle: the {RERANK} nearest in the right order",
}


def measure(
    steerer: Steerer,
    pixels: Float[Tensor, "n 3 s s"],
    labels: Int[Tensor, " n"],
    *,
    scenes: int = 1000,
    queries: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """mAP and P@1 of every way to rank, and how often a goal that nothing shows is said to be shown.

    Args:
        pixels: labelled images, in 0–1. scenes: of each kind. queries: classes to search for, all by default.

    Raises:
        ValueError: the model has no calibrated verdict for goals by its prior.
    """
    if steerer.verdict is None:
        raise ValueError("this model has no calibrated verdict; `python -m steering.calibrate` makes it")
    classes = len(steerer.class_names)
    trials = [make_trials(kind, pixels, labels, classes, scenes, seed + i) for i, kind in enumerate(KINDS)]
    truth = torch.cat([torch.zeros(scenes, classes).scatter_(1, t.scenes.labels, 1.0) for t in trials]).bool()
    asked = [c for c in range(classes) if bool(truth[:, c].any())]
    step = max(len(asked) // queries, 1) if queries else 1
    asked = asked[::step][:queries]
    scores = _first_pass(steerer, trials, class_goals(steerer))
    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery.open(folder, steerer, keep="first-pass")  # the same images are looked at for every class
        pairs = ((name, to_pil_image(picture)) for t in trials for name, picture in _named(t))
        report = gallery.add(pairs)
        if report.skipped or report.images != len(truth):
            raise RuntimeError(f"{report.images} of {len(truth)} scenes were indexed: {report.skipped}")
        found, said = _search(gallery, asked, truth)
        scores |= found
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
    return {**about, "best_of_output": best, "ways": ways, "against": against, "present": said}


def _named(trials: Trials) -> list[tuple[str, Tensor]]:
    """Scenes by names that tell what is in them: `grid/17-c3-c20-c41-c7-`."""
    rows = zip(trials.scenes.labels.tolist(), trials.scenes.pixels, strict=True)
    kind = trials.scenes.kind
    return [(f"{kind}/{i}-{''.join(f'c{c}-' for c in inside)}", picture) for i, (inside, picture) in enumerate(rows)]


def _first_pass(steerer: Steerer, trials: Sequence[Trials], goals: Float[Tensor, "m m"]) -> dict[str, Tensor]:
    """Scores (scenes, classes) that need no steered pass."""
    found: dict[str, list[Tensor]] = {"output": [], "class": [], "unsteered": []}
    unaided = steerer.verdicts.get(f"{steerer.language.prior.source}{UNSTEERED}")
    familiarity = steerer.familiarity(steerer.embed([with_article(name) for name in steerer.class_names]))
    if steerer.language.text.sees:
        found["zero_shot"] = [similarities(steerer, t.scenes.pixels) for t in trials]
    for trial in tqdm(trials, desc="first pass", disable=None):
        seen = run_unsteered(steerer, trial.scenes.pixels)
        count = len(seen.first)
        found["class"].append(seen.first.log_softmax(1).cpu())
        supports, judged = [], []
        for goal, known in zip(goals, familiarity, strict=True):
            many = goal.expand(count, -1)
            supports.append(support(seen.first, many))
            if unaided is not None:
                values = features(seen.first, seen.first, seen.places, many, known.expand(count))
                judged.append(unaided.probability(values))
        found["output"].append(torch.stack(supports, 1).cpu())
        if judged:
            found["unsteered"].append(torch.stack(judged, 1).cpu())
    return {name: torch.cat(parts) for name, parts in found.items() if parts}


def _search(
    gallery: Gallery, asked: Sequence[int], truth: Bool[Tensor, "n m"]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Scores of every search, from the whole ranking of each; and what is said of goals that are there and are not."""
    steerer, count = gallery.steerer, len(truth)
    place = {name: row for row, name in enumerate(row["path"] for row in _in_order(gallery, count))}
    names = ["places", *(f"steered {depth}" for depth in DEPTHS), "prototype", "oracle"]
    scores = {name: torch.full(truth.shape, -torch.inf) for name in names}
    said: dict[str, list[tuple[float, bool]]] = {"there": [], "not there": [], "uncorrected": []}
    right: dict[float, list[int]] = {level: [0, 0] for level in SAID}
    for label in tqdm(asked, desc="searches", disable=None):
        query = with_article(steerer.class_names[label])
        hits = gallery.search(query, top=count, rerank=max(DEPTHS))
        nearest = sorted(hits, key=lambda hit: -hit.score)
        rows = [place[hit.path] for hit in nearest]
        score = torch.tensor([hit.score for hit in nearest])
        scores["places"][rows, label] = score
        for depth in DEPTHS:
            looked = torch.tensor([float("nan") if hit.alone is None else hit.alone for hit in nearest[:depth]])
            scores[f"steered {depth}"][rows, label] = torch.cat([1 + looked, score[depth:].clamp(max=0.999)])
        inside = truth[rows, label].float()
        scores["oracle"][rows, label] = torch.cat([1 + inside[:RERANK], score[RERANK:].clamp(max=0.999)])
        there = gallery.search(query, top=RERANK)
        _count(there, place, truth[:, label], right)
        best = there[0]
        said["there"].append((best.probability or 0.0, bool(truth[place[best.path], label])))
        nowhere = gallery.search(query, top=RERANK, where=f"path NOT LIKE '%-c{label}-%'")
        said["not there"].append((max(hit.probability or 0.0 for hit in nowhere), False))
        said["uncorrected"].append((max(hit.alone or 0.0 for hit in nowhere), False))
        goal: Goal = steerer.prototype_goal(steerer.class_names[label])
        by_mean = gallery.search(goal, top=count)
        rows = [place[hit.path] for hit in by_mean]
        values = [1 + (hit.alone or 0.0) if hit.looked_at else min(hit.score, 0.999) for hit in by_mean]
        scores["prototype"][rows, label] = torch.tensor(values)
    rates = {
        f"{level:g}": {
            "answered": float(np.mean([p >= level for p, _ in said["there"]])),
            "found_rightly": float(np.mean([p >= level and ok for p, ok in said["there"]])),
            "false": float(np.mean([p >= level for p, _ in said["not there"]])),
            "false_uncorrected": float(np.mean([p >= level for p, _ in said["uncorrected"]])),
            "images_said": right[level][1],
            "images_right": right[level][0],
        }
        for level in SAID
    }
    return scores, rates


def _in_order(gallery: Gallery, count: int) -> list[dict[str, Any]]:
    """The scenes in the order that they were made in."""
    order = {kind: index for index, kind in enumerate(KINDS)}

    def key(row: dict[str, Any]) -> tuple[int, int]:
        kind, _, rest = row["path"].partition("/")
        return order[kind], int(rest.partition("-")[0])

    return sorted(gallery.images(), key=key)


def _count(hits: Hits, place: dict[str, int], truth: Bool[Tensor, " n"], right: dict[float, list[int]]) -> None:
    for hit in hits:
        for level, counts in right.items():
            if hit.probability is not None and hit.probability >= level:
                counts[0] += bool(truth[place[hit.path]])
                counts[1] += 1


def average_precision(scores: Float[Tensor, "n q"], truth: Bool[Tensor, "n q"]) -> Float[Tensor, " q"]:
    """Of every query, the mean of the precision at the rank of each right image (scikit-learn's, without ties)."""
    from sklearn.metrics import average_precision_score

    finite = scores.clamp(min=-1e9).double().numpy()
    pairs = zip(truth.T.numpy(), finite.T, strict=True)
    return torch.tensor([float(average_precision_score(right, values)) for right, values in pairs])


def _entry(scores: Float[Tensor, "n q"], truth: Bool[Tensor, "n q"]) -> dict[str, Any]:
    found, weights = average_precision(scores, truth), resampling(truth.shape[1])
    first = truth.gather(0, scores.argmax(0, keepdim=True))[0].float()
    return {
        "AP": found,
        "mAP": float(found.mean()),
        "mAP_interval": mean_interval(found, weights),
        "P@1": float(first.mean()),
        "P@1_interval": mean_interval(first, weights),
    }


def section(found: dict[str, Any]) -> str:
    """Does looking find what is in crowded scenes?"""
    lines = ["## Does looking find what is in crowded scenes?", ""]
    own, best = found["ways"][f"steered {RERANK}"], found["best_of_output"]
    against = found["against"]
    text = (
        f"A gallery of {found['scenes']:,} scenes of two to four objects was searched for {found['queries']} classes "
    )
    text += f"by name; each is in {found['shown_by']:.0f} scenes on average. Looking at the {RERANK} nearest gives a "
    text += (
        f"mean average precision of {own['mAP']:.3f}, {100 * against[best]['relative']:+.0f} % relative to the best "
    )
    text += f"ranking by the first pass's output ({found['ways'][best]['mAP']:.3f}). Most of that is in reading the "
    text += "first pass place by place, which needs no goal: "
    text += f"{found['ways']['places']['mAP']:.3f} alone, to which looking adds "
    text += f"{signed(against['places']['difference'], against['places']['interval'], 1, 3)}."
    if (unaided := against.get("unsteered")) is not None:
        text += " Against a verdict fitted on the first pass alone, asked of every image, the difference is "
        text += f"{signed(unaided['difference'], unaided['interval'], 1, 3)}."
    rows = [
        (NAMES[n], f"{e['mAP']:.3f} {bounds(e['mAP_interval'], 1, 3)}", percent(e["P@1"]))
        for n, e in sorted(found["ways"].items(), key=lambda pair: list(NAMES).index(pair[0]))
    ]
    lines += [text, "", markdown_table(("ranked by", "mAP", "first hit is right"), rows), ""]
    lines += [
        f"Of {RERANK} looks some would find anything; probabilities are corrected for how frequent the goal is in the "
        "gallery. The same searches were made without the images that show the class:",
        "",
    ]
    head = (
        "said to show it, from",
        "right, of the images said",
        "queries whose best is said, and right",
        "queries of what nothing shows for which one is said",
    )
    table = [
        (
            f"a probability of {float(level):.0%}",
            f"{e['images_right']} of {e['images_said']}",
            percent(e["found_rightly"]),
            f"{percent(e['false'])} (uncorrected {percent(e['false_uncorrected'])})",
        )
        for level, e in found["present"].items()
    ]
    return "\n".join([*lines, markdown_table(head, table)])


def rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What the README's table says of it."""
    ways, best = found["ways"], found["best_of_output"]
    own, gain = ways[f"steered {RERANK}"]["mAP"], found["against"][best]["relative"]
    what = f"search of {found['scenes']:,} crowded scenes, mAP: first pass's output / looking at the {RERANK} nearest"
    bar = "≥ +25 %" if gain >= 0.25 else "≥ +25 %, **missed**"
    places = found["against"]["places"]
    added = signed(places["difference"], places["interval"], 1, 3)
    level = max(found["present"], key=float)
    false = found["present"][level]
    return [
        (what, f"{ways[best]['mAP']:.3f} / {own:.3f} = {100 * gain:+.0f} %", bar),
        ("… by places alone, without a goal (what looking adds)", f"{ways['places']['mAP']:.3f} ({added})", "> 0"),
        (
            f"… queries of what no image shows, for which one is said to ({float(level):.0%})",
            f"{percent(false['false'])} (uncorrected {percent(false['false_uncorrected'])})",
            "",
        ),
    ]
