"""The report on where steering acts and on which connections carry it."""

from __future__ import annotations

from typing import Any

from lrm_lab import plots
from lrm_lab.writing import Row, Section, bounds, markdown_table, percent, table_row


def sections(where: dict[str, Any]) -> list[Section]:
    """Which connections carry steering, and where does it act?"""
    return [
        (connections(where), {"taken away": plots.ablations(where["ablation"]["without"])}),
        (places(where), {"pointing game": plots.pointing(where["pointing"])}),
    ]


def connections(where: dict[str, Any]) -> str:
    """Which connections carry steering?"""
    entries = where["ablation"]["without"]
    base = entries["none"]
    drops = {n: base["present_at_5%"] - e["present_at_5%"] for n, e in entries.items() if n != "none"}
    text = "Each connection was taken away from the network in turn "
    text += f"({where['ablation']['scenes']} composites of each kind, means over kinds)."
    if drops:
        most = max(drops, key=drops.__getitem__)
        text += " Present goals at 5 % absent ones suffer most without "
        text += f"{most}: {-100 * drops[most]:+.1f} points."
    rows = [
        (name, f"{100 * e['J']:.1f}", percent(e["present_at_5%"]), f"{e['auroc_support']:.3f}")
        for name, e in entries.items()
    ]
    table = markdown_table(("without", "J", "present at 5 % absent", "AUROC of the support"), rows)
    return "\n".join(["## Which connections carry it?", "", text, "", table])


def places(where: dict[str, Any]) -> str:
    """Where does steering act?"""
    pointing = where["pointing"]
    shares = ", ".join(f"{percent(entry['steered'])} ({kind})" for kind, entry in pointing.items())
    better = [k for k, e in pointing.items() if e["difference_interval"][0] > 0]
    worse = [k for k, e in pointing.items() if e["difference_interval"][1] < 0]
    lines = [
        "## Where does it act?",
        "",
        f"The heatmap of the steered pass has its peak in the named object in {shares} of the scenes. It is better "
        f"than the map of the unsteered pass alone in {', '.join(better) or 'none'}, and worse in "
        f"{', '.join(worse) or 'none'}. For the other kinds the interval of the difference holds 0.",
        "",
    ]
    rows = [
        (
            kind,
            f"{percent(e['steered'])} {bounds(e['steered_interval'])}",
            f"{percent(e['unsteered_cam'])} {bounds(e['unsteered_cam_interval'])}",
            percent(e["area"]),
        )
        for kind, e in pointing.items()
    ]
    lines += [markdown_table(("peak in the object", "steered", "unsteered map", "object's area"), rows), ""]
    by_size = [
        (f"{e['side'][0]:.2f}–{e['side'][1]:.2f}", percent(e["steered"]), percent(e["unsteered_cam"]))
        for e in pointing.get("inset", {}).get("by_size", [])
    ]
    if by_size:
        lines += [markdown_table(("inset's side, of the canvas", "steered", "unsteered map"), by_size), ""]
    changes = where["changes"]
    names = list(next(iter(changes.values())))
    added = [
        (kind, *(f"{e[n]['relative']:.2f}" + (f", {e[n]['inside']:.2f} ×" if "inside" in e[n] else "") for n in names))
        for kind, e in changes.items()
    ]
    lines += [
        "The next table shows what feedback adds in the last steered pass. The first number is its mean size, in units "
        "of the destination's activation. The second number tells how many times larger it is inside the named "
        "object's box than outside (median).",
        "",
        markdown_table(("scene", *names), added),
    ]
    return "\n".join(lines)


def rows(where: dict[str, Any]) -> list[Row]:
    """How often the heatmap's peak lies in the named object."""
    told = []
    for kind in ("side", "inset"):
        entry = where["pointing"][kind]
        figure = f"{percent(entry['steered'])} / {percent(entry['unsteered_cam'])}"
        what = f"{kind}: heatmap's peak in the named object, steered / unsteered map"
        told.append(table_row(what, figure, "≥ 75 %", entry["steered"] >= 0.75))
    return told
