"""The composite challenge in words: what steering finds, against what opponents, at which strengths and passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steering.evaluate.composites import BAR_CONTROLS, CONTROL_STRENGTHS
from steering.evaluate.gallery import COMPOSITES
from steering.evaluate.words import CONTROL_NAMES, against_zero, bounds, markdown_table, percent, signed

SCORES = {
    "auroc_verdict": "verdict",
    "auroc_unsteered_verdict": "verdict without steering",
    "auroc_steered_support": "support after",
    "auroc_unsteered_support": "support before",
}


def strongest(
    kind: dict[str, Any], level: str, names: tuple[str, ...] = BAR_CONTROLS
) -> tuple[str, dict[str, Any], float]:
    """The best control among those named that were measured: its name, its entry, and the steered rate."""
    entry = kind["at_equal_absent"][level]
    name = max((n for n in names if n in entry["controls"]), key=lambda n: entry["controls"][n]["rate"])
    return CONTROL_NAMES[name], entry["controls"][name], entry["steered"]


def composites(measured: dict[str, Any]) -> str:
    """Does steering help when the goal is there, and stay quiet when it is not?"""
    kinds = measured["kinds"]
    lines = ["## Does steering help when the goal is there, and stay quiet when it is not?", ""]
    helped = [kind for kind, entry in kinds.items() if entry["gain_interval"][0] > 0]
    loud = max(kinds, key=lambda k: kinds[k]["steered"]["absent"])
    pooled = measured["pooled"]
    worst = percent(kinds[loud]["steered"]["absent"])
    gain = f"{pooled['auroc_gain']:+.3f}, {bounds(pooled['auroc_gain_interval'], 1, 3)}"
    lines += [
        f"With the goal in the scene it becomes top-1 more often than without steering in {len(helped)} of "
        f"{len(kinds)} kinds of scene ({', '.join(helped) or 'none'}). A goal that is not there becomes top-1 in at "
        f"most {worst} ({loud}). The verdict tells present from absent with an AUROC of {pooled['auroc_verdict']:.3f}; "
        f"the goal's unsteered logit reaches {pooled['auroc_unsteered_logit']:.3f} ({gain}), and the same kind of "
        f"verdict fitted without steering {pooled['auroc_unsteered_verdict']:.3f}. "
        f"The verdict's expected calibration error is {pooled['calibration_error']:.3f}. "
        f"Strength {measured['strength']}, {measured['passes']} passes; brackets are 95 % bootstrap intervals over "
        "scenes; J is present minus absent.",
        "",
    ]
    rows = []
    for kind, entry in kinds.items():
        for name, found in {"unsteered": entry["unsteered"], **entry["goals"]}.items():
            both = f"{percent(found['both_in_top2'])}" if "both_in_top2" in found else ""
            rows.append(
                (
                    kind,
                    "no goal" if name == "unsteered" else name,
                    f"{percent(found['present'])} {bounds(found['present_interval'])}",
                    percent(found["top5"]),
                    f"{percent(found['absent'])} {bounds(found['absent_interval'])}",
                    f"{100 * found['J']:.1f} {bounds(found['J_interval'])}",
                    both,
                )
            )
    head: Sequence[str] = (
        "scene",
        "goal by",
        "present: top-1",
        "present: top-5",
        "absent: top-1",
        "J",
        "both in top 2",
    )
    lines += [markdown_table(head, rows), ""]
    scores = [
        (
            kind,
            *(f"{entry[key]:.3f}" for key in SCORES),
            f"{entry['auroc_unsteered_logit']:.3f}",
            f"{entry['calibration_error']:.3f}",
        )
        for kind, entry in {**kinds, "composites, pooled": pooled}.items()
    ]
    head = ("presence, AUROC", *SCORES.values(), "unsteered logit", "calibration error")
    return "\n".join([*lines, markdown_table(head, scores)])


def controls(measured: dict[str, Any]) -> str:
    """Is it more than a constant?"""
    kinds = measured["kinds"]
    lines = ["## Could something simpler do the same?", ""]
    sentences = []
    for kind in (kind for kind in COMPOSITES if kind in kinds):
        name, best, steered = strongest(kinds[kind], "5%", tuple(CONTROL_NAMES))
        verb = against_zero(best["interval"], "finds more than", "loses to", "is level with")
        sentences.append(
            f"{kind}: steering {verb} the best of them, {name} ({percent(best['rate'])} → {percent(steered)}, "
            f"{signed(best['difference'], best['interval'])})"
        )
    lines += [
        "Each opponent knows the goal and lacks long-range multiplicative feedback. All get the same help, a constant "
        "on the goal's logit (one gets multiples of the whole goal instead), tuned so that absent goals become top-1 "
        f"equally often; then what counts is how many present ones do. At 5 % absent, {'; '.join(sentences)}. Trained "
        f"opponents take the same goals, and of strengths {', '.join(map(str, CONTROL_STRENGTHS))} and the default "
        "the one that serves them best on these very scenes.",
        "",
    ]
    for level in ("5%", "10%"):
        measured_at = {kind: entry["at_equal_absent"][level] for kind, entry in kinds.items()}
        found = [n for n in CONTROL_NAMES if any(n in at["controls"] for at in measured_at.values())]
        rows = [
            (kind, percent(at["steered"]), *(_against(at["controls"].get(name)) for name in found))
            for kind, at in measured_at.items()
        ]
        head = (f"at {level} absent", "steered", *(f"{CONTROL_NAMES[n]} (difference)" for n in found))
        lines += [markdown_table(head, rows), ""]
    return "\n".join(lines).rstrip()


def _against(control: dict[str, Any] | None) -> str:
    if control is None:
        return "–"
    return f"{percent(control['rate'])} ({signed(control['difference'], control['interval'])})"


def sweeps(measured: dict[str, Any]) -> str:
    """Strength, gains and passes."""
    kinds = measured["kinds"]
    lines = ["## Strength, gains and passes", ""]
    scenes = next(iter(kinds.values()))["sweep"]["scenes"]
    lines += [
        f"Top-1 of a present / an absent goal, {scenes} scenes a kind. A pair scales the feedback of negative and of "
        "positive activations. The defaults were chosen on training images that the backbone was not trained on "
        "(`python -m steering.calibrate`), not here.",
        "",
    ]
    for name, title in (("strength", "strength"), ("pairs", "negative, positive"), ("passes", "passes")):
        settings = [row["setting"] for row in next(iter(kinds.values()))["sweep"][name]]
        rows = [
            (kind, *(f"{100 * row['present']:.0f} / {100 * row['absent']:.0f}" for row in entry["sweep"][name]))
            for kind, entry in kinds.items()
        ]
        shown = [", ".join(map(str, s)) if isinstance(s, list) else str(s) for s in settings]
        lines += [markdown_table((title, *shown), rows), ""]
    return "\n".join(lines).rstrip()
