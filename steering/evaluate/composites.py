"""The composite-image challenge: does looking for something find it, and only it?

For each kind of scene, a goal that is there and one that is not (Konkle & Alvarez 2023, whose challenge had blends).
Opponents know the goal as well and lack long-range multiplicative feedback: see `opponents`. Steering earns its place
where, at an equal rate of absent goals, it finds more present ones.

Unusual: goals meet both sides with the same constant in nats on the goal's logit, swept; otherwise a network would
win by being eager.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error
from tqdm import tqdm

from lrm_core.feedback import Strength
from lrm_core.model import LRM
from prior.captions import with_article
from steering.evaluate.statistics import (
    CONSTANTS,
    against_controls,
    auroc,
    auroc_difference,
    mean_interval,
    rate_at,
    resampling,
)
from steering.evidence import UNSTEERED, features, support
from steering.steerer import Steerer
from steering.trials import (
    Hits,
    Trials,
    Triplets,
    Unsteered,
    build,
    class_goals,
    constant_hits,
    run_steered,
    run_unsteered,
    steering_hits,
    top1,
)

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
PAIRS = ((0.5, 1.0), (1.0, 0.5), (0.0, 1.0), (1.0, 0.0), (2.0, 1.0), (1.0, 2.0))  # negative, positive
PASSES = (2, 3, 4, 5)
CONTROL_STRENGTHS = (0.25, 0.5, 0.65, 1.0)  # beside the model's own: a control gets the one that serves it best
BAR_CONTROLS = ("constant", "additive", "last_layer")


@dataclass(frozen=True)
class GoalSets:
    """Goals of every class, (m, m), by who makes them, and how familiar their words are."""

    by: Mapping[str, Tensor]
    familiarity: Tensor

    @classmethod
    def of(cls, steerer: Steerer, by_name: Steerer | None, seed: int) -> GoalSets:
        """The steerer's own prior, class names without a trained prior, mean outputs, and another class's at random."""
        own = class_goals(steerer)
        goals = {steerer.language.prior.source: own}
        if by_name is not None:
            goals["class-names"] = class_goals(by_name)
        with contextlib.suppress(ValueError):  # a model may have none
            goals["prototype"] = torch.stack([steerer.prototype_goal(n).vector for n in steerer.class_names])
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))
        other = torch.empty_like(order)
        other[order] = order.roll(1)  # a cycle through all classes: never a class's own
        goals["random"] = own[other]
        embeddings = steerer.embed([with_article(name) for name in steerer.class_names])
        return cls(goals, steerer.familiarity(embeddings))


def measure(
    steerer: Steerer,
    triplets: Sequence[Triplets],
    pixels: Float[Tensor, "n 3 s s"],
    labels: Tensor,
    *,
    by_name: Steerer | None = None,
    controls: Mapping[str, LRM] | None = None,
    sweep_scenes: int = 300,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything about the composites, for the JSON.

    Args:
        triplets: one group a kind. pixels: in 0–1. by_name: the same model with the class-name prior, to compare it.
        controls: trained opponents, see `steering.evaluate.controls`. sweep_scenes: of each kind, for the sweeps.
    """
    goals = GoalSets.of(steerer, by_name, seed)
    twins = {name: steerer.with_model(model) for name, model in (controls or {}).items()}
    kinds: dict[str, Any] = {}
    pool: list[tuple[Tensor, Tensor, Tensor]] = []
    for group in tqdm(triplets, desc="composites", disable=None):
        trials = build(group, pixels, labels)
        kinds[group.kind], trial = _measure_kind(steerer, trials, goals, twins)
        few = build(group[:sweep_scenes], pixels, labels)
        kinds[group.kind]["sweep"] = sweep(steerer, few, goals.by[steerer.language.prior.source])
        if group.kind != "single":
            pool.append(trial)
    pooled = presence(*(torch.cat([part[i] for part in pool], -1) for i in range(3)))
    return {"strength": steerer.defaults.strength, "passes": steerer.defaults.passes, "kinds": kinds, "pooled": pooled}


def _measure_kind(
    steerer: Steerer, trials: Trials, goals: GoalSets, twins: Mapping[str, Steerer]
) -> tuple[dict[str, Any], tuple[Tensor, Tensor, Tensor]]:
    weights = resampling(len(trials.present))
    unsteered = run_unsteered(steerer, trials.scenes.pixels)
    own = steerer.language.prior.source
    afters = {name: _afters(steerer, trials, unsteered, table) for name, table in goals.by.items()}
    none = (unsteered.last, unsteered.last)
    result: dict[str, Any] = {
        "scenes": len(trials.present),
        "unsteered": rates(none, trials, weights),
        "goals": {name: rates(pair, trials, weights) for name, pair in afters.items()},
    }
    result["steered"] = result["goals"][own]
    j, without = result["steered"]["J"], result["unsteered"]["J"]
    result["J_ratio"] = j / max(without, 1e-9)
    steered = constant_hits(*afters[own], trials, CONSTANTS)
    result["at_equal_absent"] = against_controls(steered, opponents(steerer, trials, unsteered, goals.by[own], twins))
    gained = [top1(output, trials.present).cpu().float() for output in (afters[own][0], unsteered.last)]
    result["gain_interval"] = mean_interval(gained[0] - gained[1], weights)
    score, logit, outcome = trial_scores(steerer, trials, unsteered, goals, afters[own])
    return {**result, **presence(score, logit, outcome)}, (score, logit, outcome)


def _afters(
    steerer: Steerer, trials: Trials, unsteered: Unsteered, goals: Tensor, strength: Strength | None = None
) -> tuple[Tensor, Tensor]:
    present, absent = (
        run_steered(steerer, unsteered, goals[classes], strength) for classes in (trials.present, trials.absent)
    )
    return present, absent


def rates(afters: tuple[Tensor, Tensor], trials: Trials, weights: Tensor) -> dict[str, Any]:
    """How often a goal is top-1 or in the top five when present and when absent, J, and both objects in the top two.

    Both in the top two is asked of scenes of two objects, of the outputs for the present goal.
    """
    present, absent = top1(afters[0], trials.present).cpu().float(), top1(afters[1], trials.absent).cpu().float()
    five = (afters[0].topk(5).indices.cpu() == trials.present[:, None]).any(1).float()
    entry: dict[str, Any] = {
        "present": float(present.mean()),
        "absent": float(absent.mean()),
        "present_interval": mean_interval(present, weights),
        "absent_interval": mean_interval(absent, weights),
        "top5": float(five.mean()),
        "J": float(present.mean() - absent.mean()),
        "J_interval": mean_interval(present - absent, weights),
    }
    if trials.scenes.labels.shape[1] == 2:
        best = afters[0].topk(2).indices.cpu().sort(1).values
        both = (best == trials.scenes.labels.sort(1).values).all(1).float()
        entry |= {"both_in_top2": float(both.mean()), "both_in_top2_interval": mean_interval(both, weights)}
    return entry


def opponents(
    steerer: Steerer, trials: Trials, unsteered: Unsteered, goals: Float[Tensor, "m m"], twins: Mapping[str, Steerer]
) -> dict[str, Hits]:
    """What knows the goal without long-range multiplicative feedback. All take the goals made for `steerer`.

    constant: nats added to the goal's unsteered logit, after the first pass or after the last, whichever is better at
    5 % absent. reweighted: the unsteered output plus multiples of the whole standardised goal. zero_shot: the text
    encoder's own image tower, if it has one. Twins by name, each at the strength that serves it best; the plain one,
    like zero_shot, with the constant.
    """
    found: dict[str, list[Hits]] = {
        "constant": [constant_hits(o, o, trials, CONSTANTS) for o in (unsteered.first, unsteered.last)]
    }
    standard = (goals - goals.mean(1, keepdim=True)) / goals.std(1, keepdim=True)
    found["reweighted"] = [_reweighted(unsteered.first, trials, standard)]
    if steerer.language.text.sees:
        logits = zero_shot(steerer, trials)
        found["zero_shot"] = [constant_hits(logits, logits, trials, CONSTANTS)]
    for name, twin in twins.items():
        seen = run_unsteered(twin, trials.scenes.pixels)
        if name == "plain":
            found[name] = [constant_hits(seen.first, seen.first, trials, CONSTANTS)]
            continue
        strengths = sorted({*CONTROL_STRENGTHS, float(_single(steerer.defaults.strength))})
        pairs = [_afters(twin, trials, seen, goals, strength) for strength in strengths]
        found[name] = [constant_hits(*pair, trials, CONSTANTS) for pair in pairs]
    return {name: max(hits, key=_present_at_five) for name, hits in found.items()}


def zero_shot(steerer: Steerer, trials: Trials, batch: int = 250) -> Float[Tensor, "b m"]:
    """Logits of the text encoder's own zero-shot classifier (Radford et al. 2021), of unit variance over classes.

    The scale does not matter for who is first; it spreads the constants as it does for the network's own logits.
    """
    similarity = similarities(steerer, trials.scenes.pixels, batch)
    return (similarity - similarity.mean()) / similarity.std(1).mean()


def similarities(steerer: Steerer, pixels: Float[Tensor, "b 3 s s"], batch: int = 250) -> Float[Tensor, "b m"]:
    """Cosines of images, pixels in 0–1, and class names, by a text encoder that has an image tower."""
    text = steerer.language.text
    names = text.encode([with_article(name) for name in steerer.class_names])
    return torch.cat([text.encode_images(part) for part in pixels.split(batch)]).cpu() @ names.T.cpu()


def _present_at_five(hits: Hits) -> float:
    present, absent = hits.rates()
    return float(rate_at(present, absent, 0.05))


def _single(strength: Strength) -> float:
    return strength if isinstance(strength, int | float) else strength[1]


def _reweighted(output: Tensor, trials: Trials, standard: Tensor) -> Hits:
    weights = [i * 0.05 for i in range(81)]
    hits = []
    for classes in (trials.present, trials.absent):
        goal = standard[classes].to(output)
        hits.append(torch.stack([top1(output + w * goal, classes).cpu().float() for w in weights], 1))
    return Hits(tuple(weights), *hits)


def trial_scores(
    steerer: Steerer, trials: Trials, unsteered: Unsteered, goals: GoalSets, afters: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of every trial, present goals first: the verdict's probability (b,), other scores (5, b), the right answer (b,).

    The scores: the goal's unsteered logit after the first and the last pass, its support before and after steering, and
    the probability by a verdict fitted on the first pass alone (the same as the support before, where there is none).
    """
    if steerer.verdict is None:
        raise ValueError("this model has no calibrated verdict; `python -m steering.calibrate` makes it")
    table = goals.by[steerer.language.prior.source]
    unaided = steerer.verdicts.get(f"{steerer.language.prior.source}{UNSTEERED}")
    scores, logits, outcomes = [], [], []
    for is_present, classes, after in zip((1, 0), (trials.present, trials.absent), afters, strict=True):
        first, places, familiarity = unsteered.first, unsteered.places, goals.familiarity[classes]
        values = features(first, after, places, table[classes], familiarity)
        scores.append(steerer.verdict.probability(values.cpu()))
        index = classes[:, None].to(after.device)
        plain = [output.gather(1, index)[:, 0] for output in (unsteered.first, unsteered.last)]
        supports = [support(output, table[classes]) for output in (unsteered.first, after)]
        rows = torch.stack([*plain, *supports]).cpu()
        alone = features(first, first, places, table[classes], familiarity).cpu()
        logits.append(torch.cat([rows, (rows[2] if unaided is None else unaided.probability(alone))[None]]))
        outcomes.append(torch.full((len(classes),), is_present))
    return torch.cat(scores), torch.cat(logits, 1), torch.cat(outcomes)


def presence(score: Float[Tensor, " b"], scores: Float[Tensor, "5 b"], outcome: Tensor) -> dict[str, Any]:
    """How well present is told from absent (AUROC), and the verdict's expected calibration error over 15 bins."""
    first, last = (auroc(row, outcome) for row in scores[:2])
    best = scores[0] if first >= last else scores[1]
    return {
        "auroc_verdict": auroc(score, outcome),
        "auroc_unsteered_logit": auroc(best, outcome),
        "auroc_unsteered_support": auroc(scores[2], outcome),
        "auroc_steered_support": auroc(scores[3], outcome),
        "auroc_unsteered_verdict": auroc(scores[4], outcome),
        "auroc_steering_interval": auroc_difference(score, scores[4], outcome),
        "auroc_gain": auroc(score, outcome) - auroc(best, outcome),
        "auroc_gain_interval": auroc_difference(score, best, outcome),
        "calibration_error": float(binary_calibration_error(score, outcome, n_bins=15)),
    }


def sweep(steerer: Steerer, trials: Trials, goals: Float[Tensor, "m m"]) -> dict[str, Any]:
    """Top-1 of present and absent goals over strengths, pairs of gains (negative, positive), and numbers of passes."""
    unsteered = run_unsteered(steerer, trials.scenes.pixels)
    hits = steering_hits(steerer, trials, unsteered, goals, STRENGTHS)
    entry: dict[str, Any] = {
        "scenes": len(trials.present),
        "strength": _rows(STRENGTHS, hits.present.mean(0).tolist(), hits.absent.mean(0).tolist()),
    }
    pairs, passes = [], []
    for pair in PAIRS:
        scale = _single(steerer.defaults.strength)
        found = _afters(steerer, trials, unsteered, goals, (pair[0] * scale, pair[1] * scale))
        pairs.append(_two(found, trials))
    for count in PASSES:
        present, absent = (
            run_steered(steerer, unsteered, goals[classes], None, count) for classes in (trials.present, trials.absent)
        )
        passes.append(_two((present, absent), trials))
    entry["pairs"] = _rows([list(pair) for pair in PAIRS], *map(list, zip(*pairs, strict=True)))
    entry["passes"] = _rows(PASSES, *map(list, zip(*passes, strict=True)))
    return entry


def _two(afters: tuple[Tensor, Tensor], trials: Trials) -> tuple[float, float]:
    present, absent = top1(afters[0], trials.present), top1(afters[1], trials.absent)
    return float(present.float().mean()), float(absent.float().mean())


def _rows(settings: Sequence[Any], present: Sequence[float], absent: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {"setting": setting, "present": p, "absent": a} for setting, p, a in zip(settings, present, absent, strict=True)
    ]
