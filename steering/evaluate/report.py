"""The README's table and the texts of RESULTS.md, written from the stored numbers and never by hand.

A sentence says what the numbers say: its wording is chosen by comparing them, with their intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steering.evaluate import brain, encoding, gallery_report, geometry, plots, robustness_report, search
from steering.evaluate.composites import BAR_CONTROLS
from steering.evaluate.composites_report import composites, controls, strongest, sweeps
from steering.evaluate.gallery import COMPOSITES
from steering.evaluate.where_report import connections, places
from steering.evaluate.words import CONTROL_NAMES, against_zero, markdown_table, percent, signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pictures = Mapping[str, "dict[str, Figure]"]
BEGIN, END = "<!-- results: written by `steer evaluate --readme` -->", "<!-- end of results -->"
BARS = {"blend": 5, "side": 5, "inset": 10, "grid": 10}  # points above the best control at 5 % absent
MEASURED_BY = {
    "words": "composites --source DATA --photos PHOTOS",
    **dict.fromkeys(("single", "composites", "where"), "composites --source DATA"),
    "search": "search --source DATA",
    **dict.fromkeys(("geometry", "gallery"), "gallery --source DATA"),
    "robustness": "robustness --source DATA",
    "brain": "brain --brain BRAIN92",
    "encoding": "brain --responses NPZ",
}


def table(results: dict[str, Any]) -> str:
    """Markdown: what, the figure, the bar that it was held to, and whether it was missed.

    Raises:
        ValueError: a part that it needs was not measured.
    """
    missing = [name for name in ("single", "words", "composites", "where") if name not in results]
    if missing:
        raise ValueError(f"the table needs {', '.join(missing)}, not measured here; use `steer evaluate all`")
    single, words = results["single"], results["words"]
    kinds, pooled = results["composites"]["kinds"], results["composites"]["pooled"]
    rows: list[tuple[str, str, str]] = []

    def add(what: str, figure: str, bar: str, met: bool) -> None:
        rows.append((what, figure, bar if met else f"{bar}, **missed**"))

    last, own_words = single["last_pass"], single["own_words"]
    add("top-1 of the last pass without a goal", percent(last), "≥ 40 %", last >= 0.4)
    what = "top-1 of single images, goal: their own class's words"
    add(what, percent(own_words), "above the last row", own_words > last)
    for kind in ("blend", "side"):
        j, without = kinds[kind]["steered"]["J"], kinds[kind]["unsteered"]["J"]
        figure = f"{100 * j:.1f} / {100 * without:.1f} = {kinds[kind]['J_ratio']:.2f} ×"
        add(f"{kind}: J steered / unsteered", figure, "≥ 2.0 ×", kinds[kind]["J_ratio"] >= 2)
    for kind in (*COMPOSITES, "single"):
        entry, most = kinds[kind]["steered"], 3 if kind == "single" else 10
        figure = f"{percent(entry['present'])} / {percent(entry['absent'])}"
        met = 100 * entry["absent"] <= most
        add(f"{kind}: goal is top-1, present / absent", figure, f"absent ≤ {most} %", met)
    for kind, bar in BARS.items():
        name, best, steered = strongest(kinds[kind], "5%")
        absent = [n for n in BAR_CONTROLS if n not in kinds[kind]["at_equal_absent"]["5%"]["controls"]]
        figure = f"{signed(best['difference'], best['interval'])} ({percent(best['rate'])} → {percent(steered)})"
        what = f"{kind}: present top-1 at 5 % absent, steered − best control ({name})"
        if absent:
            what += f"; not measured: {', '.join(CONTROL_NAMES[n] for n in absent)}"
        add(what, figure, f"≥ +{bar}", not absent and 100 * best["difference"] >= bar - 1e-9)
    gain = pooled["auroc_verdict"] - pooled["auroc_unsteered_logit"]
    figure = f"{pooled['auroc_verdict']:.3f} / {pooled['auroc_unsteered_logit']:.3f}"
    add("presence on composites, AUROC: verdict / unsteered logit", figure, "≥ + 0.05", gain >= 0.05 - 1e-9)
    alone = pooled["auroc_verdict"] - pooled["auroc_unsteered_verdict"]
    figure = f"{pooled['auroc_unsteered_verdict']:.3f} ({signed(alone, pooled['auroc_steering_interval'], 1, 3)})"
    add("… by the same verdict fitted without steering (what steering adds)", figure, "> 0", alone > 0)
    error = pooled["calibration_error"]
    add("presence on composites, expected calibration error", f"{error:.3f}", "≤ 0.05", error <= 0.05)
    for kind in ("side", "inset"):
        entry = results["where"]["pointing"][kind]
        figure = f"{percent(entry['steered'])} / {percent(entry['unsteered_cam'])}"
        what = f"{kind}: heatmap's peak in the named object, steered / unsteered map"
        add(what, figure, "≥ 75 %", entry["steered"] >= 0.75)
    if "search" in results:
        rows += search.rows(results["search"])
    held = f"{words['top1']:.0%} / {words['top5']:.0%}"
    what = f"{words['words']} held-out words: goal's best class right / in five"
    add(what, held, "≥ 70 % / ≥ 90 %", words["top1"] >= 0.7 and words["top5"] >= 0.9)
    if "photographs" in results:
        photos = results["photographs"]
        figure = f"{percent(photos['balanced_accuracy'])} (right name {percent(photos['right_name_present'])}, "
        figure += f"other name {percent(photos['other_name_absent'])})"
        what = f"{photos['photographs']} photographs: balanced accuracy"
        add(what, figure, "≥ 75 %", photos["balanced_accuracy"] >= 0.75)
    return markdown_table(("what", "measured", "bar"), rows)


def parts(results: dict[str, Any], pictures: Pictures | None = None) -> list[tuple[str, dict[str, Figure]]]:
    """Every section that stands on what `results` holds, in order: its text with the command for it, and its pictures.

    pictures: of the section whose pictures need the images, `gallery`.
    """
    pictures = pictures or {}
    found: list[tuple[str, dict[str, Figure]]] = []
    for name, sections in _sections(results, pictures).items():
        command = f"steer evaluate {MEASURED_BY[name]}{' --quick' if results.get('quick') else ''}"
        found += [(f"{text.rstrip()}\n\nMeasured by `{command}`.", drawn) for text, drawn in sections]
    return found


def _sections(results: dict[str, Any], pictures: Pictures) -> dict[str, list[tuple[str, dict[str, Figure]]]]:
    found: dict[str, list[tuple[str, dict[str, Figure]]]] = {}
    if "single" in results:
        found["single"] = [(seeing(results["single"]), {})]
    asked = [name for name in ("words", "photographs") if name in results]
    if asked:
        found["words"] = [(understanding(results), {})]
    if "composites" in results:
        measured = results["composites"]
        found["composites"] = [
            (composites(measured), {}),
            (controls(measured), {"steered against controls": plots.against(measured["kinds"])}),
            (sweeps(measured), {"strength": plots.trade_off(measured["kinds"])}),
        ]
    if "where" in results:
        where = results["where"]
        found["where"] = [
            (connections(where), {"taken away": plots.ablations(where["ablation"]["without"])}),
            (places(where), {"pointing game": plots.pointing(where["pointing"])}),
        ]
    if "search" in results:
        found["search"] = [(search.section(results["search"]), {})]
    if "geometry" in results:
        found["geometry"] = [(geometry.section(results["geometry"]), geometry.figures(results["geometry"]))]
    if "gallery" in results:
        found["gallery"] = [(gallery_report.section(results["gallery"]), pictures.get("gallery", {}))]
    for name, module in (("robustness", robustness_report), ("brain", brain), ("encoding", encoding)):
        if name in results:
            found[name] = [(module.section(results[name]), module.figures(results[name]))]
    return found


def seeing(single: dict[str, Any]) -> str:
    """Is a later pass better than the first?"""
    passes = ", ".join(percent(value) for value in single["passes"])
    lines = ["## Is a later pass better than the first?", ""]
    text = f"On {single['images']} single images, without a goal, top-1 of the passes is {passes}. "
    for index, found in enumerate(single["gain_intervals"], start=2):
        gain = single["passes"][index - 1] - single["passes"][0]
        verb = against_zero(found, "is better than", "is worse than", "is level with")
        text += f"Pass {index} {verb} pass 1 ({signed(gain, found)} points). "
    own = single["own_words"] - single["last_pass"]
    text += f"With the words of the image's own class as goal it is {percent(single['own_words'])} ({100 * own:+.1f})."
    return "\n".join([*lines, text])


def understanding(results: dict[str, Any]) -> str:
    """What do words mean to it, and does it know what is in a photograph?"""
    lines = ["## What do words mean to it?", ""]
    if "words" in results:
        words = results["words"]
        lines += [
            f"Of {words['words']} words that were kept out of all training pairs, the goal's best class is right for "
            f"{words['top1']:.0%}, one of its five best for {words['top5']:.0%}.",
            "",
        ]
        wrong = [(word, ", ".join(best)) for word, best in words["wrong"].items()]
        lines += [markdown_table(("word that it got wrong", "understood as"), wrong), ""] if wrong else []
    if "photographs" in results:
        photos = results["photographs"]
        lines.append(
            f"Of {photos['photographs']} full-size photographs, asked for what they show and for another class drawn "
            f"at random, it says rightly present for {percent(photos['right_name_present'])} and absent for "
            f"{percent(photos['other_name_absent'])} (a probability of one half decides); {photos['unsure']} of "
            f"{2 * photos['photographs']} verdicts are “unsure”."
        )
    return "\n".join(lines).rstrip()


def around(path: str | Path) -> tuple[str, str]:
    """What stands before and after the markers of a Markdown file. Raises ValueError if they are not there."""
    before, begin, rest = Path(path).read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: expected the markers {BEGIN!r} and {END!r}")
    return before, after


def rewrite(path: str | Path, results: dict[str, Any]) -> None:
    """Replace what stands between the markers of a Markdown file. Raises ValueError if they are not there."""
    before, after = around(path)
    Path(path).write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}")
