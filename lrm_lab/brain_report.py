"""The report on the similarity with the brain, with its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from lrm_lab.brain import CONTRASTS, DATA, PIXELS
from lrm_lab.plots import layer_bars
from lrm_lab.writing import Section, change, correlation, direction, markdown_table


def sections(results: dict[str, Any]) -> list[Section]:
    """How similar are the network's RDMs to those of the brain, and what do goals do to them?"""
    return [(section(results), figures(results))]


def section(results: dict[str, Any]) -> str:
    """Similarity by layer and pass, and steering as an experiment."""
    ceiling = results["noise_ceiling"]
    unsteered = [row for row in results["similarity"] if row["goal"] is None and row["layer"] != PIXELS]
    pixels = next(row for row in results["similarity"] if row["layer"] == PIXELS)
    best = max(unsteered, key=lambda row: row["people"]["value"])
    value = best["people"]["value"]
    reaches = "reaches" if value >= ceiling["lower"] else "stays below"
    sessions = results["session_reliability"].values()
    lines = [
        "## Similarity with the brain",
        "",
        f"{results['images']} photographs were shown to the network. The dissimilarities between their activations are "
        f"compared, by {results['comparison']}, with those of fMRI responses in the IT of {results['people']} people, "
        "and with those of mean human and mean monkey IT (Kriegeskorte et al. 2008).",
        "",
        f"Without a goal, the layer that is most like people's IT is {best['layer']} in pass {best['pass']}, with "
        f"{_similarity(best['people'])}. This {reaches} the noise ceiling, {ceiling['lower']:.3f} to "
        f"{ceiling['upper']:.3f}. The layer was chosen on the same images, which flatters it. Pixels reach "
        f"{_similarity(pixels['people'])}. The two sessions of a person agree by {sum(sessions) / len(sessions):.3f}, "
        "as the mean over people.",
    ]
    for name in ("people", "mean_monkey"):
        entries = [row[name] for row in results["pass_differences"]]
        lines += ["", direction(entries, f"From pass 1 to a later one, {DATA[name]}")]
    table = []
    changes = {(row["layer"], row["pass"]): row["people"] for row in results["pass_differences"]}
    for row in [pixels, *unsteered]:
        later = changes.get((row["layer"], row["pass"]))
        cells = (row["layer"], str(row["pass"]), *(_similarity(row[name]) for name in DATA))
        table.append((*cells, change(later) if later else "–"))
    head: tuple[str, ...] = ("layer", "pass", *DATA.values(), "change from pass 1, people")
    lines += ["", markdown_table(head, table), "", "### Steering as an experiment", ""]
    for query, goal in results["goals"].items():
        role = "the control goal" if query == results["control"] else "a goal"
        top = ", ".join(name for name, _ in goal["top"])
        lines.append(f"- {query!r} is {role}. It was understood as {top} (familiarity {goal['familiarity']:.2f}).")
    lines += [
        "",
        "The network knows only its own classes. So a goal stands for what is in this list, not for the word. A "
        "contrast is the mean dissimilarity between a category and the rest, minus the mean dissimilarity within "
        "either. Differences from the control goal are what the words add. Differences from the unsteered pass are "
        "what any goal may do.",
        "",
    ]
    for query in results["queries"]:
        for other in ("control", "unsteered"):
            rows = [r for r in results["goal_differences"] if r["goal"] == query and r["against"] == other]
            versus = f"{results['control']!r}" if other == "control" else "no goal"
            for name, what in (*CONTRASTS.items(), ("people", "match to four people")):
                lines.append(f"- {direction([row[name] for row in rows], f'{query!r} against {versus}, {what}')}")
    last = results["passes"]
    lines += [
        "",
        f"The next table shows pass {last}: goal minus control goal, and in parentheses the contrast without a goal.",
        "",
    ]
    plain = {(row["layer"], row["pass"]): row for row in results["contrasts"] if row["goal"] is None}
    table = []
    for row in results["goal_differences"]:
        if row["pass"] == last and row["against"] == "control":
            base = plain[row["layer"], last]
            contrasts = (f"{change(row[name])} ({base[name]['value']:.3f})" for name in CONTRASTS)
            matches = (change(row[name]) for name in ("people", "mean_monkey"))
            table.append((row["layer"], row["goal"], *contrasts, *matches))
    head = ("layer", "goal", *CONTRASTS.values(), "people", "mean monkey")
    lines += [
        markdown_table(head, table),
        "",
        f"Brackets are 95 % intervals. For people they come from the dual bootstrap over people and images (Student's "
        f"t, {results['people'] - 1} degrees of freedom), otherwise from a bootstrap over images. There are "
        f"{results['num_bootstrap']} samples. The intervals are not corrected for their number. The mean human RDM is "
        "the mean of the four people.",
    ]
    return "\n".join(lines) + "\n"


def _similarity(entry: Mapping[str, Any]) -> str:
    return correlation(entry["value"], entry["interval"])


def figures(results: dict[str, Any]) -> dict[str, Figure]:
    """`similarity` of layers and passes with the noise ceiling, and `steering`: what goals do to the contrasts."""
    return {"similarity": _draw_similarity(results), "steering": _draw_steering(results)}


def _draw_similarity(results: dict[str, Any]) -> Figure:
    rows = [row for row in results["similarity"] if row["goal"] is None]
    figure = Figure(figsize=(max(8.0, 1.4 * len(results["layers"])), 3.8), layout="constrained")
    for place, name in enumerate(("people", "mean_monkey")):
        axes = figure.add_subplot(1, 2, place + 1)
        bars = [(row["layer"], row["pass"], row[name]["value"], row[name]["interval"]) for row in rows]
        layer_bars(axes, bars)
        if name == "people":
            ceiling = results["noise_ceiling"]
            axes.axhspan(ceiling["lower"], ceiling["upper"], color="#e5e5ea", zorder=0, label="noise ceiling")
        axes.set_title(f"{DATA[name]}, IT", fontsize=10)
        axes.set_ylabel(f"{results['comparison']} of RDMs")
        axes.legend(frameon=False, fontsize=8)
    return figure


def _draw_steering(results: dict[str, Any]) -> Figure:
    layers, last = results["layers"], results["passes"]
    figure = Figure(figsize=(4.2 * len(CONTRASTS), 0.35 * len(layers) + 1.8), layout="constrained")
    colours = ("#d1495b", "#6d8ea0", "#8a6a12", "#1f7a4d")
    for place, (name, what) in enumerate(CONTRASTS.items()):
        axes = figure.add_subplot(1, len(CONTRASTS), place + 1)
        for number, query in enumerate(results["queries"]):
            rows = [
                row
                for row in results["goal_differences"]
                if row["goal"] == query and row["pass"] == last and row["against"] == "control"
            ]
            heights = [layers.index(row["layer"]) + 0.2 * (number - (len(results["queries"]) - 1) / 2) for row in rows]
            colour = colours[number % len(colours)]
            axes.hlines(heights, *zip(*(row[name]["interval"] for row in rows), strict=True), color=colour, lw=1.2)
            axes.plot([row[name]["difference"] for row in rows], heights, "o", color=colour, ms=4, label=repr(query))
        axes.axvline(0, color="#1c1c1e", lw=0.8)
        axes.set_yticks(range(len(layers)), layers if place == 0 else [""] * len(layers))
        axes.set_title(what, fontsize=10)
        axes.set_xlabel(f"contrast, goal − {results['control']!r}, pass {last}", fontsize=9)
        axes.locator_params(axis="x", nbins=5)
        if place == 0:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
