"""What steering does and does not do, measured on validation images: the numbers behind the README's table.

Unusual: the opponent is not the unsteered network but a control that knows the goal without feedback, a constant
added to the goal's unsteered logit. Steering earns its place where, at an equal rate of absent goals, it finds more
present ones. Intervals are percentile bootstraps over scenes (Efron 1979), paired where two rates are compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error
from tqdm import tqdm

from lrm_base.data import Split
from lrm_core.scenes import KINDS
from prior.captions import with_article
from steering.evidence import features
from steering.steerer import Steerer
from steering.trials import (
    Hits,
    Trials,
    class_goals,
    constant_hits,
    make_trials,
    run_steered,
    run_unsteered,
    steering_hits,
    top1,
)

STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
CONSTANTS = tuple(i * 0.1 for i in range(-60, 101))  # negative: an eager network must be held back to compare
ABSENT_RATES = (0.05, 0.10)
NUM_RESAMPLES = 1000


def rate_at(present: Float[Tensor, "r s"], absent: Float[Tensor, "r s"], level: float) -> Float[Tensor, " r"]:
    """Present rate where the absent rate reaches `level`, linear between settings; each row on its own.

    Settings run from cautious to eager. Where even the most eager stays below the level, its present rate is taken;
    where even the most cautious exceeds it, a mixture of that setting and of never saying yes.
    """
    present, absent = (F.pad(rates, (1, 0)) for rates in (present, absent.cummax(1).values))
    above = absent >= level
    index = torch.where(above.any(1), above.float().argmax(1), absent.shape[1] - 1)
    before = (index - 1).clamp(min=0)
    rows = torch.arange(len(absent))
    low, high = absent[rows, before], absent[rows, index]
    share = ((level - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    return present[rows, before] + share * (present[rows, index] - present[rows, before])


def interval(values: Float[Tensor, " r"]) -> list[float]:
    """The central 95 % of bootstrap values."""
    return [float(values.quantile(0.025)), float(values.quantile(0.975))]


def resampling(count: int, seed: int = 0) -> Float[Tensor, "r b"]:
    """Weights of bootstrap samples of `count` scenes."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(0, count, (NUM_RESAMPLES, count), generator=generator)
    return torch.zeros(NUM_RESAMPLES, count).scatter_add_(1, picks, torch.ones(picks.shape)) / count


def against_control(steered: Hits, controls: Sequence[Hits]) -> dict[str, Any]:
    """Present rates at equal absent rates: steered, the best control, their difference with its interval.

    `steered` runs over constants on the steered output at the default strength, so that feedback is the only
    difference from the control; or over strengths.
    """
    weights = resampling(len(steered.present))
    result: dict[str, Any] = {}
    for level in ABSENT_RATES:
        own = float(rate_at(*steered.rates(), level))
        rates = [float(rate_at(*control.rates(), level)) for control in controls]
        best = max(range(len(rates)), key=rates.__getitem__)
        difference = rate_at(*steered.rates(weights), level) - rate_at(*controls[best].rates(weights), level)
        result[f"{level:.0%}"] = {
            "steered": own,
            "control": rates[best],
            "difference": own - rates[best],
            "interval": interval(difference),
        }
    return result


def evaluate_kind(steerer: Steerer, trials: Trials, goals: Tensor, embeddings: Tensor) -> tuple[dict[str, Any], Any]:
    """Everything about one kind of scene; and per-trial (probability, unsteered logit, answer) for pooling."""
    unsteered = run_unsteered(steerer, trials.scenes.pixels)
    steered = steering_hits(steerer, trials, unsteered, goals, STRENGTHS)
    afters = [run_steered(steerer, unsteered, goals[classes]) for classes in (trials.present, trials.absent)]
    controls = [constant_hits(output, output, trials, CONSTANTS) for output in (unsteered.first, unsteered.last)]
    without = {
        "present": float(top1(unsteered.last, trials.present).float().mean()),
        "absent": float(top1(unsteered.last, trials.absent).float().mean()),
    }
    rates, scores, logits, outcomes = {}, [], [], []
    for name, classes, after in zip(("present", "absent"), (trials.present, trials.absent), afters, strict=True):
        rates[name] = float(top1(after, classes).float().mean())
        values = features(unsteered.first, after, goals[classes], steerer.familiarity(embeddings[classes]))
        if steerer.verdict is None:
            raise ValueError("this model has no calibrated verdict; `python -m steering.calibrate` makes it")
        scores.append(steerer.verdict.probability(values.cpu()))
        index = classes[:, None].to(after.device)
        logits.append(torch.stack([unsteered.first.gather(1, index), unsteered.last.gather(1, index)])[..., 0].cpu())
        outcomes.append(torch.full((len(classes),), int(name == "present")))
    score, logit, outcome = torch.cat(scores), torch.cat(logits, 1), torch.cat(outcomes)
    j_without, j_with = without["present"] - without["absent"], rates["present"] - rates["absent"]
    result = {
        "scenes": len(trials.present),
        "unsteered": without,
        "steered": rates,
        "J_unsteered": j_without,
        "J_steered": j_with,
        "J_ratio": j_with / max(j_without, 1e-9),
        "control": against_control(constant_hits(afters[0], afters[1], trials, CONSTANTS), controls),
        "control_by_strength": against_control(steered, controls),
        "curve": {
            "strength": list(STRENGTHS),
            "present": steered.rates()[0][0].tolist(),
            "absent": steered.rates()[1][0].tolist(),
        },
        **presence(score, logit, outcome),
    }
    return result, (score, logit, outcome)


def presence(score: Tensor, logit: Float[Tensor, "2 b"], outcome: Tensor) -> dict[str, float]:
    """AUROC of the verdict's probability and the goal's unsteered logit (better pass); calibration error, 15 bins."""
    return {
        "auroc_verdict": float(binary_auroc(score, outcome)),
        "auroc_unsteered_logit": max(float(binary_auroc(_unit(row), outcome)) for row in logit),
        "calibration_error": float(binary_calibration_error(score, outcome, n_bins=15)),
    }


def _unit(values: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The same order in 0–1, where torchmetrics leaves scores as they are."""
    return (values.double() - values.min()) / (values.max() - values.min()).clamp(min=1e-9)


def evaluate_composites(
    steerer: Steerer, pixels: Float[Tensor, "n 3 s s"], labels: Tensor, count: int, seed: int
) -> dict[str, Any]:
    """All kinds of scene, and presence pooled over the composites."""
    goals = class_goals(steerer)
    embeddings = steerer.embed([with_article(name) for name in steerer.class_names])
    results: dict[str, Any] = {}
    pool = []
    for number, kind in enumerate(tqdm(KINDS, desc="scenes", disable=None)):
        trials = make_trials(kind, pixels, labels, len(steerer.class_names), count, seed + number)
        results[kind], trial = evaluate_kind(steerer, trials, goals, embeddings)
        if kind != "single":
            pool.append(trial)
    results["pooled"] = presence(
        torch.cat([p[0] for p in pool]), torch.cat([p[1] for p in pool], 1), torch.cat([p[2] for p in pool])
    )
    return results


@torch.no_grad()
def evaluate_single(steerer: Steerer, pixels: Float[Tensor, "n 3 s s"], labels: Tensor) -> dict[str, float | int]:
    """Top-1 of single images: the first pass, the last without a goal, the last with the own class's words as goal."""
    goals = class_goals(steerer)
    counts = torch.zeros(3)
    for part, answer in zip(pixels.split(250), labels.split(250), strict=True):
        unsteered = run_unsteered(steerer, part)
        steered = run_steered(steerer, unsteered, goals[answer])
        counts += torch.stack([top1(o, answer).sum() for o in (unsteered.first, unsteered.last, steered)]).cpu()
    first, last, own = (counts / len(labels)).tolist()
    return {"images": len(labels), "first_pass": first, "last_pass": last, "own_words": own}


def evaluate_words(steerer: Steerer, path: str | Path | None = None) -> dict[str, Any]:
    """Words that were held out of all training pairs: whether the goal's best class, or one of its five, is right."""
    path = Path(__file__).parent / "heldout_words.json" if path is None else Path(path)
    right = json.loads(path.read_text())
    goals = steerer.goals([with_article(word) for word in right])
    wrong, top5 = {}, 0
    for (word, names), goal in zip(right.items(), goals, strict=True):
        best = [steerer.class_names[i] for i in goal.topk(5).indices.tolist()]
        top5 += any(name in names for name in best)
        if best[0] not in names:
            wrong[word] = best
    count = len(right)
    return {"words": count, "top1": 1 - len(wrong) / count, "top5": top5 / count, "wrong": wrong}


def evaluate_photos(steerer: Steerer, folder: str | Path, seed: int = 0) -> dict[str, Any]:
    """Full-size photographs, one name that is right and one of another class: balanced accuracy of present or absent.

    A probability of one half or more counts as present.
    """
    table = json.loads((Path(folder) / "photos.json").read_text())
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[bool]] = {"right": [], "other": []}
    unsure = 0
    for entry in tqdm(table, desc="photographs", disable=None):
        other = int(torch.randint(0, len(steerer.class_names) - 1, (1,), generator=generator))
        other += other >= entry["label"]
        queries = [with_article(steerer.class_names[i]) for i in (entry["label"], other)]
        right, wrong = steerer.look_many(str(Path(folder) / entry["file"]), queries)
        assert right.probability is not None
        assert wrong.probability is not None  # evaluate_composites, before, asks for a verdict
        found["right"].append(right.probability >= 0.5)
        found["other"].append(wrong.probability < 0.5)
        unsure += (right.verdict == "unsure") + (wrong.verdict == "unsure")
    rates = {name: sum(values) / len(values) for name, values in found.items()}
    return {
        "photographs": len(table),
        "right_name_present": rates["right"],
        "other_name_absent": rates["other"],
        "balanced_accuracy": (rates["right"] + rates["other"]) / 2,
        "unsure": unsure,
    }


def image_tensors(
    source: str, split: Split, size: int, num_holdout: int = 0
) -> tuple[Float[Tensor, "n 3 s s"], Tensor]:
    """All images of a split, pixels in 0–1, and labels."""
    from lrm_base.data import DataConfig, Images, load_images

    config = DataConfig(source=source, num_holdout=num_holdout)
    images = Images(load_images(config, split), size, in_memory=True)
    assert images.pixels is not None
    return images.pixels.float() / 255, torch.tensor(images.labels)
