"""The README's table of measured results, written from the stored numbers and never by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BEGIN, END = "<!-- results: written by `steer evaluate --readme` -->", "<!-- end of results -->"
COMPOSITES = ("blend", "side", "inset", "grid")


def table(results: dict[str, Any]) -> str:
    """Markdown: what, the figure, the bar it was held to."""
    single, scenes, words = results["single"], results["scenes"], results["words"]
    rows = [
        ("top-1 of the last pass without a goal, 200 classes", _percent(single["last_pass"]), "≥ 40 % (CPU)"),
        ("top-1 of single images, goal: their own class's words", _percent(single["own_words"]), "above the last row"),
    ]
    for kind in ("blend", "side"):
        rows.append((f"{kind}: J steered / unsteered", _ratio(scenes[kind]), "≥ 2.0 ×"))
    for kind in COMPOSITES:
        rows.append((f"{kind}: goal is top-1, present / absent", _rates(scenes[kind]["steered"]), "absent ≤ 10 %"))
    rows.append(("single: goal is top-1, present / absent", _rates(scenes["single"]["steered"]), "absent ≤ 3 %"))
    for kind in COMPOSITES:
        for level, entry in scenes[kind]["control"].items():
            bar = "> 0" if kind in ("inset", "grid") else "≥ 0"
            rows.append((f"{kind}: present top-1, steered − control at {level} absent", _difference(entry), bar))
    pooled = scenes["pooled"]
    auroc = f"{pooled['auroc_verdict']:.3f} / {pooled['auroc_unsteered_logit']:.3f}"
    rows.append(("presence on composites, AUROC: verdict / unsteered logit", auroc, "verdict ≥ logit"))
    rows.append(("presence on composites, expected calibration error", f"{pooled['calibration_error']:.3f}", "≤ 0.05"))
    held = f"{words['top1']:.0%} / {words['top5']:.0%}"
    rows.append((f"{words['words']} held-out words: goal's best class right / in five", held, "≥ 70 % / ≥ 90 %"))
    if "photographs" in results:
        photos = results["photographs"]
        figure = f"{_percent(photos['balanced_accuracy'])} (right name {_percent(photos['right_name_present'])}, "
        figure += f"other name {_percent(photos['other_name_absent'])})"
        rows.append((f"{photos['photographs']} photographs: balanced accuracy", figure, "≥ 75 %"))
    lines = ["| what | measured | bar |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


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


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _rates(entry: dict[str, float]) -> str:
    return f"{_percent(entry['present'])} / {_percent(entry['absent'])}"


def _ratio(entry: dict[str, Any]) -> str:
    return f"{100 * entry['J_steered']:.1f} / {100 * entry['J_unsteered']:.1f} = {entry['J_ratio']:.2f} ×"


def _difference(entry: dict[str, Any]) -> str:
    low, high = entry["interval"]
    return (
        f"{100 * entry['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] "
        f"({100 * entry['control']:.1f} → {100 * entry['steered']:.1f})"
    )
