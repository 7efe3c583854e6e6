"""The report on the composite challenge: what steering gains, what controls do, and sweeps of strength and passes."""

from __future__ import annotations

from typing import Any

from lrm_lab import plots
from lrm_lab.composite_controls import CONTROL_NAMES, STRENGTHS
from lrm_lab.trials import COMPOSITES
from lrm_lab.writing import Row, Section, against_zero, bounds, markdown_table, percent, signed, table_row

BARS = {"blend": 5, "side": 5, "inset": 10, "grid": 10}  # points above the best control at 5 % absent
BAR_CONTROLS = ("constant", "additive", "last_layer")
SCORES = {
    "auroc_verdict": "verdict",
    "auroc_unsteered_verdict": "verdict without steering",
    "auroc_twin_verdict": "verdict by the twin without goals",
    "auroc_steered_support": "support after",
    "auroc_unsteered_support": "support before",
}


def sections(measured: dict[str, Any]) -> list[Section]:
    """What steering gains, what controls do, and the sweeps."""
    kinds = measured["kinds"]
    return [
        (gains(measured), {}),
        (controls(measured), {"steered against controls": plots.against(kinds, CONTROL_NAMES)}),
        (sweeps(measured), {"strength": plots.trade_off(kinds)}),
    ]


def strongest(
    kind: dict[str, Any], level: str, names: tuple[str, ...] = BAR_CONTROLS
) -> tuple[str, dict[str, Any], float]:
    """The best control among those that are named and were measured: its name, its entry, and the steered rate."""
    entry = kind["at_equal_absent"][level]
    name = max((n for n in names if n in entry["controls"]), key=lambda n: entry["controls"][n]["rate"])
    return CONTROL_NAMES[name], entry["controls"][name], entry["steered"]


def gains(measured: dict[str, Any]) -> str:
    """Does steering help when the goal is there, and stay quiet when it is not?"""
    kinds, pooled = measured["kinds"], measured["pooled"]
    helped = [kind for kind, entry in kinds.items() if entry["gain_interval"][0] > 0]
    unaided = "The same kind of verdict, fitted without steering,"
    if not measured.get("unsteered_verdict", True):
        unaided = "The support before steering"  # it stands in for such a verdict
    fitted = ", as in the examples that the verdict was fitted on" if measured.get("fitted", True) else ""
    loudest = max(kinds, key=lambda k: kinds[k]["steered"]["absent"])
    most = percent(kinds[loudest]["steered"]["absent"])
    lines = [
        "## Does steering help when the goal is there, and stay quiet when it is not?",
        "",
        f"A goal that is in the scene becomes top-1 more often than without steering in {len(helped)} of {len(kinds)} "
        f"kinds of scene ({', '.join(helped) or 'none'}). A goal that is not there becomes top-1 in at most {most} of "
        f"the scenes of a kind ({loudest}). The verdict tells present goals from absent ones with an AUROC of "
        f"{pooled['auroc_verdict']:.3f}. The goal's unsteered logit reaches {pooled['auroc_unsteered_logit']:.3f} "
        f"({pooled['auroc_gain']:+.3f}, {bounds(pooled['auroc_gain_interval'], 1, 3)}). {unaided} "
        f"reaches {pooled['auroc_unsteered_verdict']:.3f}. The verdict's expected calibration "
        f"error is {pooled['calibration_error']:.3f}. Where every other absent goal is a near miss{fitted}, it is "
        f"{pooled['calibration_error_near']:.3f}.",
        "",
        f"Strength {measured['strength']}, {measured['passes']} passes. Brackets are 95 % bootstrap intervals over "
        "scenes. J is the rate of present goals minus the rate of absent ones.",
        "",
    ]
    rows = []
    for kind, entry in kinds.items():
        for name, rates in {"no goal": entry["unsteered"], **entry["goals"]}.items():
            rows.append(
                (
                    kind,
                    name,
                    f"{percent(rates['present'])} {bounds(rates['present_interval'])}",
                    percent(rates["top5"]),
                    f"{percent(rates['absent'])} {bounds(rates['absent_interval'])}",
                    f"{100 * rates['J']:.1f} {bounds(rates['J_interval'])}",
                    percent(rates["both_in_top2"]) if "both_in_top2" in rates else "",
                )
            )
    head = ("scene", "goal by", "present: top-1", "present: top-5", "absent: top-1", "J", "both in top 2")
    lines += [markdown_table(head, rows), ""]
    scores = []
    shown = {key: name for key, name in SCORES.items() if key in pooled}
    for kind, entry in {**kinds, "composites, pooled": pooled}.items():
        areas = [f"{entry[key]:.3f}" for key in (*shown, "auroc_unsteered_logit")]
        errors = [f"{entry[key]:.3f}" for key in ("calibration_error", "calibration_error_near")]
        scores.append((kind, *areas, f"{entry['auroc_near']:.3f}", *errors))
    names = ("present or absent, AUROC", *shown.values(), "unsteered logit", "verdict against near misses")
    names += ("calibration error", "… with near misses")
    return "\n".join([*lines, markdown_table(names, scores)])


def controls(measured: dict[str, Any]) -> str:
    """Could something simpler than steering do the same?"""
    kinds = measured["kinds"]
    told = []
    for kind in (kind for kind in COMPOSITES if kind in kinds):
        name, best, steered = strongest(kinds[kind], "5%", tuple(CONTROL_NAMES))
        verb = against_zero(best["interval"], "finds more than", "loses to", "is level with")
        told.append(
            f"- {kind}: steering {verb} the best control, {name} ({percent(best['rate'])} → {percent(steered)}, "
            f"{signed(best['difference'], best['interval'])})."
        )
    lines = [
        "## Could something simpler do the same?",
        "",
        "Each control knows the goal, but lacks long-range multiplicative feedback. Steering and the controls all get "
        "the same help: a constant on the goal's logit. (One control gets multiples of the whole goal instead.) The "
        "constant is tuned until absent goals become top-1 equally often. Then it counts how many present goals do. "
        "At 5 % absent goals:",
        "",
        *told,
        "",
        "Trained controls take the same goals. Each gets the strength that serves it best on these very scenes, of "
        f"{', '.join(map(str, STRENGTHS))} and the default.",
        "",
    ]
    for level in ("5%", "10%"):
        entries = {kind: entry["at_equal_absent"][level] for kind, entry in kinds.items()}
        names = [name for name in CONTROL_NAMES if any(name in entry["controls"] for entry in entries.values())]
        rows = [
            (kind, percent(entry["steered"]), *(_against(entry["controls"].get(name)) for name in names))
            for kind, entry in entries.items()
        ]
        head = (f"at {level} absent", "steered", *(f"{CONTROL_NAMES[name]} (difference)" for name in names))
        lines += [markdown_table(head, rows), ""]
    return "\n".join(lines).rstrip()


def _against(control: dict[str, Any] | None) -> str:
    if control is None:
        return "–"
    return f"{percent(control['rate'])} ({signed(control['difference'], control['interval'])})"


def sweeps(measured: dict[str, Any]) -> str:
    """Strength, gains and passes."""
    kinds = measured["kinds"]
    first = next(iter(kinds.values()))["sweep"]
    chosen = " The defaults were not chosen here, but on training images that the backbone was not trained on "
    chosen = f"{chosen}(`python -m steering.calibrate`)." if measured.get("fitted", True) else ""
    lines = [
        "## Strength, gains and passes",
        "",
        f"Top-1 of a present goal / of an absent goal, in percent, for {first['scenes']} scenes of each kind. A pair "
        f"scales the feedback of negative and of positive activations.{chosen}",
        "",
    ]
    for name, title in (("strength", "strength"), ("pairs", "negative, positive"), ("passes", "passes")):
        settings = [row["setting"] for row in first[name]]
        rows = [
            (kind, *(f"{100 * row['present']:.0f} / {100 * row['absent']:.0f}" for row in entry["sweep"][name]))
            for kind, entry in kinds.items()
        ]
        shown = [", ".join(map(str, s)) if isinstance(s, list) else str(s) for s in settings]
        lines += [markdown_table((title, *shown), rows), ""]
    return "\n".join(lines).rstrip()


def rows(measured: dict[str, Any]) -> list[Row]:
    """J, present and absent rates, differences from the best control, and how well the verdict tells them apart."""
    kinds = measured["kinds"]
    return [*_rates(kinds), *_above_controls(kinds), *_verdict(measured["pooled"]), *_above_twin(measured)]


def _rates(kinds: dict[str, Any]) -> list[Row]:
    rows = []
    for kind in ("blend", "side"):
        j, without, ratio = kinds[kind]["steered"]["J"], kinds[kind]["unsteered"]["J"], kinds[kind]["J_ratio"]
        figure = f"{100 * j:.1f} / {100 * without:.1f} = {ratio:.2f} ×"
        rows.append(table_row(f"{kind}: J steered / unsteered", figure, "≥ 2.0 ×", ratio >= 2))
    for kind in (*COMPOSITES, "single"):
        entry, most = kinds[kind]["steered"], 3 if kind == "single" else 10
        figure = f"{percent(entry['present'])} / {percent(entry['absent'])}"
        what = f"{kind}: goal is top-1, present / absent"
        rows.append(table_row(what, figure, f"absent ≤ {most} %", 100 * entry["absent"] <= most))
    return rows


def _above_controls(kinds: dict[str, Any]) -> list[Row]:
    rows = []
    for kind, bar in BARS.items():
        name, best, steered = strongest(kinds[kind], "5%")
        missing = [n for n in BAR_CONTROLS if n not in kinds[kind]["at_equal_absent"]["5%"]["controls"]]
        figure = f"{signed(best['difference'], best['interval'])} ({percent(best['rate'])} → {percent(steered)})"
        what = f"{kind}: present top-1 at 5 % absent, steered − best control ({name})"
        if missing:
            what += f"; not measured: {', '.join(CONTROL_NAMES[n] for n in missing)}"
        rows.append(table_row(what, figure, f"≥ +{bar}", not missing and 100 * best["difference"] >= bar - 1e-9))
    return rows


def _verdict(pooled: dict[str, Any]) -> list[Row]:
    verdict, unsteered = pooled["auroc_verdict"], pooled["auroc_unsteered_logit"]
    added, error = verdict - pooled["auroc_unsteered_verdict"], pooled["calibration_error"]
    near = pooled["calibration_error_near"]
    alone = f"{pooled['auroc_unsteered_verdict']:.3f} ({signed(added, pooled['auroc_steering_interval'], 1, 3)})"
    return [
        table_row(
            "present or absent on composites, AUROC: verdict / unsteered logit",
            f"{verdict:.3f} / {unsteered:.3f}",
            "≥ + 0.05",
            verdict - unsteered >= 0.05 - 1e-9,
        ),
        table_row("… by the same verdict fitted without steering (what steering adds)", alone, "> 0", added > 0),
        table_row(
            "present or absent on composites, expected calibration error", f"{error:.3f}", "≤ 0.05", error <= 0.05
        ),
        table_row("… where every other absent goal is a near miss", f"{near:.3f}", "≤ 0.05", near <= 0.05),
    ]


def _above_twin(measured: dict[str, Any]) -> list[Row]:
    """What the goal adds to a second pass that learned the same scenes without one."""
    rows = []
    for name, entry, bar in (
        ("composites", measured["pooled"], 0.01),
        ("blends", measured["kinds"]["blend"], 0.02),
    ):
        if "auroc_twin_verdict" not in entry:
            continue
        added, interval = entry["auroc_verdict"] - entry["auroc_twin_verdict"], entry["auroc_twin_interval"]
        figure = f"{entry['auroc_twin_verdict']:.3f} ({signed(added, interval, 1, 3)})"
        what = f"… {name}, by a twin that learned the same scenes without goals (what the goal adds)"
        rows.append(table_row(what, figure, f"≥ +{bar}", added >= bar - 1e-9 and interval[0] > 0))
    gains = {
        kind: entry["auroc_verdict"] - entry["auroc_twin_verdict"]
        for kind, entry in measured["kinds"].items()
        if kind != "single" and "auroc_twin_verdict" in entry
    }
    if gains:
        least = min(gains, key=lambda kind: gains[kind])
        interval = measured["kinds"][least]["auroc_twin_interval"]
        figure = f"{least} {signed(gains[least], interval, 1, 3)}"
        rows.append(table_row("… the kind with the least of it", figure, "≥ −0.003", gains[least] >= -0.003))
    return rows
