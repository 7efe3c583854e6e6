"""Representational similarity with the brain: 92 object photographs in human and monkey inferior temporal cortex (IT).

For every layer, pass and goal the dissimilarity matrix (RDM; Kriegeskorte et al. 2008) is compared with the RDMs of
four people, of their mean and of the mean monkey; see `rdm` for the comparison and its intervals.

Unusual: steering is the experiment. A goal such as "a face" is compared not only with the unsteered pass but with a
control goal, since any goal changes an RDM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from steering.errors import QueryError
from steering.evaluate.activations import layer_names, pass_features
from steering.evaluate.brain92 import load_brain92
from steering.evaluate.plots import layer_bars
from steering.evaluate.rdm import METHOD, category_contrast, correlation_rdm, dual_bootstrap
from steering.evaluate.statistics import percentiles
from steering.evaluate.words import change, correlation, direction, markdown_table
from steering.steerer import Steerer

CONTRASTS = {"face": "faces against the rest", "animal": "animate against inanimate"}
DATA = {"people": "four people", "mean_human": "mean human", "mean_monkey": "mean monkey"}
PIXELS = "pixels"  # the baseline: the image as the model takes it


@dataclass(frozen=True)
class _Condition:
    """What an RDM is of: a layer in a pass, unsteered or with a goal."""

    layer: str
    number: int
    goal: str | None

    def row(self) -> dict[str, Any]:
        return {"layer": self.layer, "pass": self.number, "goal": self.goal}


def _model_rdms(steerer: Steerer, images: np.ndarray, goals: Mapping[str, Tensor]) -> dict[_Condition, np.ndarray]:
    """Condensed RDMs of the pixels, and of every layer in every pass, without a goal and with each."""
    from PIL import Image

    pixels = torch.cat([steerer.pixels(Image.fromarray(image)) for image in images])
    rdms = {_Condition(PIXELS, 1, None): correlation_rdm(pixels.flatten(1).cpu().numpy())}
    layers = layer_names(steerer)
    for goal, vector in tqdm([(None, None), *goals.items()], desc="activations", disable=None):
        for index, features in enumerate(pass_features(steerer, pixels, layers, goal=vector)):
            if goal is None or index > 0:  # the first pass is never steered
                for layer, values in features.items():
                    rdms[_Condition(layer, index + 1, goal)] = correlation_rdm(values)
    return rdms


def measure(
    steerer: Steerer,
    folder: str | Path,
    *,
    queries: Sequence[str] = ("a face", "an animal"),
    control: str = "a bottle",
    num_bootstrap: int = 1000,
    seed: int = 0,
    quick: bool = False,
) -> dict[str, Any]:
    """Layers × passes × goals against human and monkey IT; see the module for the methods.

    Args:
        folder: `brain92`, see `load_brain92`.
        queries: goals in words; `control`, one that none of the contrasts is about.
        quick: 50 bootstrap samples at most.

    Returns:
        JSON-able: `similarity`, one row for each layer, pass and goal; `pass_differences`, from pass 1; `contrasts` and
        `goal_differences`, a goal against the same pass without it (`against` "unsteered") and with the control goal;
        `noise_ceiling` of the four people; `goals`, what each was understood as; `layers`, `passes`, … Intervals are
        95 %: for people by the dual bootstrap, else over images.

    Raises:
        ValueError: as `load_brain92`; too few samples. QueryError: no query, or one that `Steerer.goal` refuses.
    """
    if isinstance(queries, str) or not queries or control in queries:
        raise QueryError(f"expected a list of queries and another one as control, got {queries!r} and {control!r}")
    samples = min(num_bootstrap, 50) if quick else num_bootstrap
    if samples < 20:
        raise ValueError(f"num_bootstrap: got {samples}, expected at least 20")
    from rsatoolbox.inference import boot_noise_ceiling
    from rsatoolbox.rdm import RDMs, compare
    from scipy.spatial.distance import squareform

    data = load_brain92(folder)
    goals = {query: steerer.goal(query, seed=seed) for query in (*queries, control)}
    rdms = _model_rdms(steerer, data.images, goals)
    conditions = list(rdms)
    condensed = np.stack([squareform(person, checks=False) for person in data.people.mean(1)])
    sessions = [float(compare(RDMs(person[:1]), RDMs(person[1:]), method=METHOD)[0, 0]) for person in data.people]
    generator = np.random.default_rng(seed)
    people, count = len(data.people), len(data.images)
    image_draws = generator.integers(0, count, (samples, count))
    bootstrap = dual_bootstrap(
        np.stack(list(rdms.values())),
        condensed,
        np.stack([data.mean_human, data.mean_monkey]),
        generator.integers(0, people, (samples, people)),
        image_draws,
    )
    index = {condition: number for number, condition in enumerate(conditions)}
    weights = np.stack([np.bincount(draw, minlength=count) for draw in image_draws]).astype(float)
    squares = np.stack([squareform(rdm) for rdm in rdms.values()])
    contrasts = {
        name: category_contrast(squares, data.flags[name], np.concatenate([np.ones((1, count)), weights]))
        for name in CONTRASTS
    }
    lower, upper = boot_noise_ceiling(RDMs(condensed), method=METHOD)
    similarity, passes, against, values = [], [], [], []
    for condition, number in index.items():
        entry = {name: bootstrap.value(number, i) for i, name in enumerate(DATA)}
        similarity.append(condition.row() | entry)
        values.append(condition.row() | {name: _spread(contrasts[name][:, number], "value") for name in CONTRASTS})
        if condition.goal is None and condition.number > 1:
            first = index[_Condition(condition.layer, 1, None)]
            entry = {name: bootstrap.difference(first, number, i) for i, name in enumerate(DATA)}
            passes.append(condition.row() | entry)
        if condition.goal in queries:
            for name, other in (("unsteered", None), ("control", control)):
                base = index[_Condition(condition.layer, condition.number, other)]
                entry = {name: bootstrap.difference(base, number, i) for i, name in enumerate(DATA)}
                entry |= {
                    flag: _spread(samples_[:, number] - samples_[:, base], "difference")
                    for flag, samples_ in contrasts.items()
                }
                against.append(condition.row() | {"against": name} | entry)
    return {
        "model": steerer.card["name"],
        "images": count,
        "people": people,
        "passes": steerer.defaults.passes,
        "strength": steerer.defaults.strength,
        "seed": seed,
        "num_bootstrap": samples,
        "comparison": METHOD,
        "layers": list(layer_names(steerer)),
        "queries": list(queries),
        "control": control,
        "goals": {query: _understood(steerer, query, goal) for query, goal in goals.items()},
        "noise_ceiling": {"lower": float(lower), "upper": float(upper)},
        "session_reliability": dict(zip(data.names, sessions, strict=True)),
        "similarity": similarity,
        "pass_differences": passes,
        "contrasts": values,
        "goal_differences": against,
    }


def _spread(samples: Float[np.ndarray, " b"], name: str) -> dict[str, Any]:
    """The first is of all images, the rest are bootstrap samples."""
    return {name: float(samples[0]), "interval": percentiles(samples[1:])}


def _understood(steerer: Steerer, query: str, goal: Tensor) -> dict[str, Any]:
    best = goal.topk(min(5, len(goal)))
    names = [steerer.class_names[i] for i in best.indices.tolist()]
    return {
        "top": [[name, value] for name, value in zip(names, best.values.tolist(), strict=True)],
        "familiarity": float(steerer.familiarity(steerer.embed([query]))[0]),
        "norm": float(goal.norm()),
    }


def section(results: dict[str, Any]) -> str:
    """The Markdown section of what `measure` returned."""
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
        f"{results['images']} photographs, fMRI of human IT in {results['people']} people, and mean human and "
        f"monkey IT (Kriegeskorte et al. 2008); {results['comparison']} between dissimilarity matrices. Without a goal "
        f"the layer most like people's IT is {best['layer']} in pass {best['pass']}, {_similarity(best['people'])}. "
        f"That {reaches} the noise ceiling, {ceiling['lower']:.3f} to "
        f"{ceiling['upper']:.3f}, and was chosen on the same images; pixels give {_similarity(pixels['people'])}. "
        f"A person's two sessions agree by {sum(sessions) / len(sessions):.3f}, the mean over people.",
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
        lines.append(f"- {query!r}, {role}, was understood as {top} (familiarity {goal['familiarity']:.2f}).")
    lines += [
        "",
        "The network knows only its own classes: what a goal stands for is this list, not the word. The contrast is "
        "the mean dissimilarity between a category and the rest minus the mean within either. Differences from "
        "the control goal are what the words add; differences from the unsteered pass are what any goal may do.",
        "",
    ]
    for query in results["queries"]:
        for other in ("control", "unsteered"):
            rows = [r for r in results["goal_differences"] if r["goal"] == query and r["against"] == other]
            versus = f"{results['control']!r}" if other == "control" else "no goal"
            for name, what in (*CONTRASTS.items(), ("people", "match to four people")):
                lines.append(f"- {direction([row[name] for row in rows], f'{query!r} against {versus}, {what}')}")
    last = results["passes"]
    lines += ["", f"Pass {last}, goal minus control goal (the contrast without a goal in parentheses):", ""]
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
        f"Brackets: 95 %; for people by the dual bootstrap over people and images (Student's t, "
        f"{results['people'] - 1} degrees of freedom), else over images; {results['num_bootstrap']} samples, "
        "uncorrected for their number. The mean human RDM is the mean of the four people.",
    ]
    return "\n".join(lines) + "\n"


def _similarity(entry: Mapping[str, Any]) -> str:
    return correlation(entry["value"], entry["interval"])


def figures(results: dict[str, Any]) -> dict[str, Figure]:
    """`similarity`: layer × pass with the noise ceiling; `steering`: what goals do to the category contrasts."""
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
