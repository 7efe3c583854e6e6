"""The composite-image challenge: does looking for something find it, and only it?

Each scene is looked at for a goal that is there and for one that is not. (The challenge of Konkle & Alvarez 2023 had
blends; here are more kinds of scene.) Controls know the goal too, but lack long-range multiplicative feedback; see
`composite_controls`. Steering is worth its cost where it finds more present goals at the same rate of absent ones.

Unusual: a constant, in nats, is added to the goal's logit, for steering and for controls. It is swept. Otherwise a
network would win by saying yes more often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error
from tqdm import tqdm

from lrm_core.model import LRM
from lrm_core.trials import Trials, Triplets, build, near_misses, top1
from lrm_lab.composite_controls import positive_gain, run_controls
from lrm_lab.goals import GoalSets, chances, features_of, supports_of, verdict_of
from lrm_lab.statistics import CONSTANTS, against_controls, auroc, auroc_difference, mean_interval, resampling
from lrm_lab.trials import constant_top_one, run_both, steering_top_one
from steering.cutoff import Presumed
from steering.evidence import TWIN, UNSTEERED, Seen
from steering.network import Network
from steering.rollouts import Unsteered, run_steered, run_unsteered
from steering.steerer import Steerer

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
PAIRS = ((0.5, 1.0), (1.0, 0.5), (0.0, 1.0), (1.0, 0.0), (2.0, 1.0), (1.0, 2.0))  # negative, positive
PASSES = (2, 3, 4, 5)


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
    """Measure everything about the composites. Returns plain values for JSON.

    Args:
        triplets: one group for each kind of scene.
        pixels: labelled images, in 0–1.
        by_name: the same model, whose prior is `class-names`, to compare its goals.
        controls: trained controls; see `lrm_lab.controls`.
        sweep_scenes: number of scenes of each kind for the sweeps.

    Raises:
        ValueError: the model has no calibrated verdict.
    """
    goals = GoalSets.of(steerer, by_name, seed)
    trained = {name: steerer.network.with_model(model) for name, model in (controls or {}).items()}
    kinds: dict[str, Any] = {}
    pool: list[tuple[Tensor, ...]] = []
    generator = torch.Generator().manual_seed(seed)
    for group in tqdm(triplets, desc="composites", disable=None):
        trials = build(group, pixels, labels)
        kinds[group.kind], scored = _measure_kind(steerer, trials, goals, trained, generator)
        few = build(group[:sweep_scenes], pixels, labels)
        kinds[group.kind]["sweep"] = sweep(steerer.network, few, goals.by[steerer.language.prior.source])
        if group.kind != "single":
            pool.append(scored)
    pooled = detection(*(torch.cat([scored[i] for scored in pool], -1) for i in range(4)))
    defaults = steerer.network.defaults
    measured = {"strength": defaults.strength, "passes": defaults.passes, "kinds": kinds, "pooled": pooled}
    has_unsteered = f"{steerer.language.prior.source}{UNSTEERED}" in steerer.verdicts
    lacks = {"unsteered_verdict": has_unsteered, "fitted": not isinstance(steerer.verdict, Presumed)}
    return {**measured, **{name: there for name, there in lacks.items() if not there}}


def _measure_kind(
    steerer: Steerer,
    trials: Trials,
    goals: GoalSets,
    trained: Mapping[str, Network],
    generator: torch.Generator,
) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
    weights = resampling(len(trials.present))
    unsteered = run_unsteered(steerer.network, trials.scenes.pixels)
    own = steerer.language.prior.source
    afters: dict[str, tuple[Tensor, Tensor]] = {}
    looks: tuple[Seen, Seen] | None = None
    for name, table in goals.by.items():
        pair = run_both(steerer.network, trials, unsteered, table)
        looks = pair if name == own else looks  # all that a pass saw is much to keep
        afters[name] = (pair[0].output, pair[1].output)
    assert looks is not None
    none = (unsteered.last, unsteered.last)
    result: dict[str, Any] = {
        "scenes": len(trials.present),
        "unsteered": rates(none, trials, weights),
        "goals": {name: rates(pair, trials, weights) for name, pair in afters.items()},
    }
    result["steered"] = result["goals"][own]
    j, without = result["steered"]["J"], result["unsteered"]["J"]
    result["J_ratio"] = j / max(without, 1e-9)
    steered = constant_top_one(*afters[own], trials, CONSTANTS)
    controls = run_controls(steerer, trials, unsteered, goals.by[own], trained)
    result["at_equal_absent"] = against_controls(steered, controls)
    gained = [top1(output, trials.present).cpu().float() for output in (afters[own][0], unsteered.last)]
    result["gain_interval"] = mean_interval(gained[0] - gained[1], weights)
    missed = near_misses(unsteered.first, trials.scenes.labels, generator).cpu()
    near = chances(steerer, unsteered, goals.by[own][missed], goals.familiarity[missed])
    scored = (*trial_scores(steerer, trials, unsteered, goals, looks, trained.get("twin")), near)
    return {**result, **detection(*scored)}, scored


def rates(afters: tuple[Tensor, Tensor], trials: Trials, weights: Tensor) -> dict[str, Any]:
    """How often a goal is top-1 or in the top five, when it is present and when it is absent, and J, their difference.

    Scenes of two objects also tell how often both are the two best, in the outputs for the present goal.
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


def trial_scores(
    steerer: Steerer,
    trials: Trials,
    unsteered: Unsteered,
    goals: GoalSets,
    looks: tuple[Seen, Seen],
    twin: Network | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of every trial, present goals first.

    Returns:
        The verdict's probability (b,), other scores (s, b), and the right answer (b,). The others are the goal's logit
        after the first and after the last unsteered pass, its support before and after steering, and the probability
        by a verdict that was fitted on the first pass alone. Where there is no such verdict, the support before
        steering stands in for it. The sixth is the probability by the twin, if there is one with a verdict.
    """
    verdict, network = verdict_of(steerer), steerer.network
    table = goals.by[steerer.language.prior.source]
    unaided = steerer.verdicts.get(f"{steerer.language.prior.source}{UNSTEERED}")
    by_twin = steerer.verdicts.get(f"{steerer.language.prior.source}{TWIN}")
    by_itself = None if twin is None or by_twin is None else run_unsteered(twin, trials.scenes.pixels)
    probabilities, scores, outcomes = [], [], []
    for is_present, classes, after in zip((1, 0), (trials.present, trials.absent), looks, strict=True):
        first, familiarity = unsteered.seen, goals.familiarity[classes]
        values = features_of(network, first, after, table[classes], familiarity)
        probabilities.append(verdict.probability(values.cpu()))
        index = classes[:, None].to(after.output.device)
        plain = [output.gather(1, index)[:, 0] for output in (unsteered.first, unsteered.last)]
        supports = [supports_of(network, seen, table[classes]) for seen in (first, after)]
        rows = torch.stack([*plain, *supports]).cpu()
        found = [*rows, rows[2]]
        if unaided is not None:
            found[4] = unaided.probability(features_of(network, first, first, table[classes], familiarity).cpu())
        if twin is not None and by_twin is not None and by_itself is not None:
            its = run_steered(twin, by_itself, table[classes])
            values = features_of(network, first, its, table[classes], familiarity)
            found.append(by_twin.probability(values.cpu()))
        scores.append(torch.stack(found))
        outcomes.append(torch.full((len(classes),), is_present))
    return torch.cat(probabilities), torch.cat(scores, 1), torch.cat(outcomes)


def detection(
    probability: Float[Tensor, " b"], scores: Float[Tensor, "s b"], outcome: Tensor, near: Float[Tensor, " n"]
) -> dict[str, Any]:
    """How well present goals are told from absent ones (AUROC), and the verdict's calibration error over 15 bins.

    Absent goals are those of the trials, drawn at random. `near` tells the AUROC against near misses, and the
    calibration error where every other absent goal is one: the odds that verdicts are fitted for.

    Args:
        probability, scores, outcome: as `trial_scores` returns them.
        near: the verdict's probability of a near miss in each scene.
    """
    is_present = outcome == 1
    random = probability[~is_present]
    every_other = torch.where(torch.arange(len(near)) % 2 == 1, near, random)
    mixed, there = torch.cat([probability[is_present], every_other]), outcome[is_present]
    kinds_of_answer = torch.cat([there, torch.zeros_like(outcome[~is_present])])
    against = torch.cat([probability[is_present], near])
    first, last = (auroc(row, outcome) for row in scores[:2])
    best = scores[0] if first >= last else scores[1]
    twin = {}
    if len(scores) > 5:
        twin = {
            "auroc_twin_verdict": auroc(scores[5], outcome),
            "auroc_twin_interval": auroc_difference(probability, scores[5], outcome),
        }
    return {
        "auroc_verdict": auroc(probability, outcome),
        "auroc_unsteered_logit": auroc(best, outcome),
        "auroc_unsteered_support": auroc(scores[2], outcome),
        "auroc_steered_support": auroc(scores[3], outcome),
        "auroc_unsteered_verdict": auroc(scores[4], outcome),
        "auroc_steering_interval": auroc_difference(probability, scores[4], outcome),
        "auroc_gain": auroc(probability, outcome) - auroc(best, outcome),
        "auroc_gain_interval": auroc_difference(probability, best, outcome),
        "auroc_near": auroc(against, torch.cat([there, torch.zeros(len(near)).to(outcome)])),
        "calibration_error": float(binary_calibration_error(probability, outcome, n_bins=15)),
        "calibration_error_near": float(binary_calibration_error(mixed, kinds_of_answer, n_bins=15)),
        **twin,
    }


def sweep(network: Network, trials: Trials, goals: Float[Tensor, "c m"]) -> dict[str, Any]:
    """Top-1 of present and absent goals over strengths, over pairs of gains (negative, positive), and over passes.

    The votes of a CLIP have a scale of their own, so that its strengths are multiples of the default.
    """
    unsteered = run_unsteered(network, trials.scenes.pixels)
    scale = positive_gain(network.defaults.strength)
    strengths = tuple(round(scale * s, 4) for s in STRENGTHS) if network.is_open else STRENGTHS
    over_strengths = steering_top_one(network, trials, unsteered, goals, strengths)
    pairs, passes = [], []
    for negative, positive in PAIRS:
        looks = run_both(network, trials, unsteered, goals, (negative * scale, positive * scale))
        pairs.append(_shares(looks, trials))
    for count in PASSES:
        passes.append(_shares(run_both(network, trials, unsteered, goals, passes=count), trials))
    present, absent = over_strengths.present.mean(0).tolist(), over_strengths.absent.mean(0).tolist()
    return {
        "scenes": len(trials.present),
        "strength": _rows(strengths, present, absent),
        "pairs": _rows([list(pair) for pair in PAIRS], *map(list, zip(*pairs, strict=True))),
        "passes": _rows(PASSES, *map(list, zip(*passes, strict=True))),
    }


def _shares(looks: tuple[Seen, Seen], trials: Trials) -> tuple[float, float]:
    """How often the goal is top-1 when present and when absent."""
    present, absent = top1(looks[0].output, trials.present), top1(looks[1].output, trials.absent)
    return float(present.float().mean()), float(absent.float().mean())


def _rows(settings: Sequence[Any], present: Sequence[float], absent: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {"setting": setting, "present": p, "absent": a} for setting, p, a in zip(settings, present, absent, strict=True)
    ]
