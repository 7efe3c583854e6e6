"""Where steering acts and what carries it, in words."""

from __future__ import annotations

from typing import Any

from steering.evaluate.words import bounds, markdown_table, percent


def connections(where: dict[str, Any]) -> str:
    """Which connections carry it?"""
    entries = where["ablation"]["without"]
    base = entries["none"]
    drops = {n: base["present_at_5%"] - e["present_at_5%"] for n, e in entries.items() if n != "none"}
    lines = ["## Which connections carry it?", ""]
    text = "Each connection was taken away from the trained network "
    text += f"({where['ablation']['scenes']} composites a kind, means)."
    if drops:
        most = max(drops, key=drops.__getitem__)
        text += f" What costs most present goals at 5 % absent is {most}: {-100 * drops[most]:+.1f} points."
    rows = [
        (name, f"{100 * e['J']:.1f}", percent(e["present_at_5%"]), f"{e['auroc_support']:.3f}")
        for name, e in entries.items()
    ]
    head = ("without", "J", "present at 5 % absent", "AUROC of the support")
    return "\n".join([*lines, text, "", markdown_table(head, rows)])


def places(where: dict[str, Any]) -> str:
    """Where does it act?"""
    pointing = where["pointing"]
    lines = ["## Where does it act?", ""]
    text = "The peak of the steered pass's heatmap lies in the named object in "
    text += ", ".join(f"{percent(entry['steered'])} ({kind})" for kind, entry in pointing.items())
    better = [k for k, e in pointing.items() if e["difference_interval"][0] > 0]
    worse = [k for k, e in pointing.items() if e["difference_interval"][1] < 0]
    text += " of the scenes. Against the class-activation map of the unsteered pass it is better in "
    text += f"{', '.join(better) or 'none'}, and worse in {', '.join(worse) or 'none'}; elsewhere the interval holds 0."
    rows = [
        (
            kind,
            f"{percent(e['steered'])} {bounds(e['steered_interval'])}",
            f"{percent(e['unsteered_cam'])} {bounds(e['unsteered_cam_interval'])}",
            percent(e["area"]),
        )
        for kind, e in pointing.items()
    ]
    lines += [text, "", markdown_table(("peak in the object", "steered", "unsteered map", "object's area"), rows), ""]
    sizes = pointing.get("inset", {}).get("by_size", [])
    if sizes:
        by_size = [
            (
                f"{e['side'][0]:.2f}–{e['side'][1]:.2f}",
                percent(e["steered"]),
                percent(e["unsteered_cam"]),
            )
            for e in sizes
        ]
        lines += [markdown_table(("inset's side, of the canvas", "steered", "unsteered map"), by_size), ""]
    changes = where["changes"]
    names = list(next(iter(changes.values())))
    added = [
        (kind, *(f"{e[n]['relative']:.2f}" + (f", {e[n]['inside']:.2f} ×" if "inside" in e[n] else "") for n in names))
        for kind, e in changes.items()
    ]
    lines += [
        "What feedback adds in the last steered pass: its mean size in units of the destination's activation, and how "
        "many times larger it is inside the named object's box than outside (median).",
        "",
        markdown_table(("scene", *names), added),
    ]
    return "\n".join(lines)
