"""Where the outputs of each pass lie: whether classes lie further apart in a later pass, and looking for a goal.

Unusual: all passes are shown in one plane, that of the first pass's two principal components; what is measured is of
the whole outputs. The classes are those looked for, and others that the seed draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from prior.captions import with_article
from steering.evaluate.statistics import interval, resampling
from steering.evaluate.words import against_zero, markdown_table, signed
from steering.look import short
from steering.picture import INK, MUTED
from steering.steerer import Steerer
from steering.trials import run_steered, run_unsteered

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe & Ito 2008
MARKERS = "os^DvPX*"


def measure(
    steerer: Steerer,
    pixels: Float[Tensor, "n 3 s s"],
    labels: Int[Tensor, " n"],
    goals_for: Sequence[str | int],
    *,
    num_classes: int = 6,
    per_class: int = 50,
    seed: int = 0,
) -> dict[str, Any]:
    """Outputs of single images in the first pass, the last without a goal, and the last looking for each goal.

    Projected to the two principal components of the first pass, the same for all; spread and separation are measured
    on the whole outputs. Goals are queries, or classes looked for by their words; their (best) classes are shown, and
    others that the seed draws.

    Returns: `classes` (index, name, images), `labels` (of each point, a place in `classes`), `explained` (share of
    the variance by component), `panels` (name, goal, target, xy; ratio of between- to within-class variance, its
    difference from the first pass with a paired interval; silhouette; leave-one-out nearest neighbour; auroc of the
    target's logit without and with the goal), `images`, `seed`, `strength`, `passes`.

    Raises:
        ValueError: an unknown class, or fewer than two classes of two images each.
    """
    from sklearn.decomposition import PCA

    vectors, queries = _goals(steerer, goals_for)
    targets = [int(vector.argmax()) for vector in vectors]
    for position, wanted in enumerate(goals_for):
        if isinstance(wanted, int):
            targets[position] = wanted  # what is asked for, even if its words are understood as something else
    generator = torch.Generator().manual_seed(seed)
    classes = _draw_classes(labels, targets, num_classes, generator)
    picks = [torch.nonzero(labels == label)[:, 0] for label in classes]
    picks = [own[torch.randperm(len(own), generator=generator)[:per_class]] for own in picks]
    places = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor([len(own) for own in picks]))
    unsteered = run_unsteered(steerer, pixels[torch.cat(picks)])
    runs: list[tuple[str, str | None, int | None, Tensor]] = [
        ("first pass", None, None, unsteered.first),
        ("last pass, no goal", None, None, unsteered.last),
    ]
    for words, vector, target in zip(queries, vectors, targets, strict=True):
        output = run_steered(steerer, unsteered, vector.expand(len(places), -1))
        runs.append((f"looking for {words}", words, target, output))
    outputs = [run[-1].double().cpu() for run in runs]
    plane = PCA(2, svd_solver="full").fit(outputs[0].numpy())
    weights = [resampling(len(own), seed + number) for number, own in enumerate(picks)]
    ratios = [_ratio(output, picks, weights) for output in outputs]
    panels: list[dict[str, Any]] = []
    for (name, query, aim, _), output, ratio in zip(runs, outputs, ratios, strict=True):
        panel: dict[str, Any] = {
            "name": name,
            "goal": query,
            "target": aim,
            "xy": [[round(v, 3) for v in point] for point in plane.transform(output.numpy()).tolist()],
            "ratio": float(ratio[0]),
            "difference": float(ratio[0] - ratios[0][0]),
            "interval": interval((ratio - ratios[0])[1:]),
            **_separation(output, places),
        }
        if aim in classes:
            own = (places == classes.index(aim)).numpy()
            stages = {"first": outputs[0], "last": outputs[1], "steered": output}
            panel["auroc"] = {stage: _auroc(own, seen, aim) for stage, seen in stages.items()}
        panels.append(panel)
    return {
        "classes": [
            {"index": label, "name": steerer.class_names[label], "images": len(own)}
            for label, own in zip(classes, picks, strict=True)
        ],
        "labels": places.tolist(),
        "explained": plane.explained_variance_ratio_.tolist(),
        "panels": panels,
        "images": len(places),
        "seed": seed,
        "strength": steerer.defaults.strength,
        "passes": steerer.defaults.passes,
    }


def _goals(steerer: Steerer, goals_for: Sequence[str | int]) -> tuple[list[Tensor], list[str]]:
    """Goal vectors and the words that they were made of."""
    count = len(steerer.class_names)
    wrong = [wanted for wanted in goals_for if isinstance(wanted, int) and not 0 <= wanted < count]
    if wrong:
        raise ValueError(f"no class {wrong[0]}; choices: 0 to {count - 1}, or a query in words")
    queries = [with_article(steerer.class_names[w]) if isinstance(w, int) else w for w in goals_for]
    return (list(steerer.goals(queries)) if queries else []), queries


def _draw_classes(labels: Tensor, targets: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    """The targets that there are images of, then classes at random, `count` in all (or all the targets)."""
    found, numbers = labels.unique(return_counts=True)
    usable = found[numbers >= 2].tolist()
    chosen = [label for label in dict.fromkeys(targets) if label in usable]
    others = [label for label in usable if label not in chosen]
    order = torch.randperm(len(others), generator=generator).tolist()
    chosen += [others[i] for i in order[: max(count - len(chosen), 0)]]
    if len(chosen) < 2:
        raise ValueError(f"geometry: expected two images each of at least two classes, got {len(chosen)} such classes")
    return chosen


def _ratio(
    outputs: Float[Tensor, "n m"], groups: Sequence[Tensor], weights: Sequence[Float[Tensor, "r _"]]
) -> Float[Tensor, " r+1"]:
    """Between- over within-class variance, traces, every class alike: as it is, then for resampled images."""
    means, within = [], []
    for own, weight in zip(outputs.split([len(group) for group in groups]), weights, strict=True):
        plain = torch.full((1, len(own)), 1 / len(own), dtype=own.dtype)
        mixed = torch.cat([plain, weight.to(own.dtype)])
        centre = own.mean(0)  # near the means: no digits are lost in the difference of squares
        mean = mixed @ (own - centre)
        within.append(mixed @ (own - centre).square().sum(1) - mean.square().sum(1))
        means.append(mean + centre)
    centres = torch.stack(means)  # (k, r + 1, m)
    between = (centres - centres.mean(0)).square().sum(-1).mean(0)
    return between / torch.stack(within).mean(0).clamp(min=1e-12)


def _separation(outputs: Float[Tensor, "n m"], places: Int[Tensor, " n"]) -> dict[str, float]:
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=1).fit(outputs.numpy()).kneighbors(return_distance=False)[:, 0]
    return {
        "silhouette": float(silhouette_score(outputs.numpy(), places.numpy())),
        "nearest_neighbour": float((places[torch.from_numpy(nearest)] == places).double().mean()),
    }


def _auroc(own: Any, outputs: Float[Tensor, "n m"], target: int) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(own, outputs[:, target].numpy()))


def section(results: dict[str, Any]) -> str:
    """Markdown of a `measure`: whether the classes lie further apart than in the first pass, panel by panel."""
    first, *later = results["panels"]
    told = [
        f"{panel['name']} {panel['ratio']:.2f} ("
        f"{against_zero(panel['interval'], 'further apart', 'closer together', 'no clear difference')}: "
        f"{signed(panel['difference'], panel['interval'], 1, 2)})"
        for panel in later
    ]
    shares = " + ".join(f"{share:.0%}" for share in results["explained"])
    lines = [
        "## Geometry of the passes",
        "",
        f"Outputs of {results['images']} single images of {len(results['classes'])} classes "
        f"({', '.join(entry['name'] for entry in results['classes'])}), seed {results['seed']}. Variance between "
        f"classes over variance within them, first pass {first['ratio']:.2f}; {'; '.join(told)}. Brackets: paired 95 % "
        f"bootstrap intervals over images. The plane is that of the first pass's two principal components ({shares} of "
        "its variance); the figures are of the whole outputs. AUROC: how well the logit of the goal's class tells its "
        "images from the others, in the last pass without the goal and with it.",
        "",
    ]
    rows = []
    for panel in results["panels"]:
        auroc = panel.get("auroc")
        cells = [f"{auroc['last']:.3f}", f"{auroc['steered']:.3f}"] if auroc else ["–", "–"]
        values = [f"{panel['ratio']:.2f}", f"{panel['silhouette']:+.3f}", f"{panel['nearest_neighbour']:.1%}"]
        rows.append((panel["name"].replace("|", "/"), *values, *cells))
    head = ("outputs of", "between / within", "silhouette", "nearest neighbour", "AUROC without", "with the goal")
    return "\n".join([*lines, markdown_table(head, rows, rule="---:")]) + "\n"


def figures(results: dict[str, Any]) -> dict[str, Figure]:
    """`geometry`: a panel for each entry of `panels`, all in one plane at one scale; the class looked for is filled."""
    panels, classes, labels = results["panels"], results["classes"], torch.tensor(results["labels"])
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.0 * columns + 0.3, 3.1 * rows + 0.9), facecolor="white", layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten().tolist()
    for ax in grid[len(panels) :]:
        ax.set_axis_off()
    for ax, panel in zip(grid, panels, strict=False):
        xy = torch.tensor(panel["xy"])
        for number, entry in enumerate(classes):
            own, colour = xy[labels == number], COLOURS[number % len(COLOURS)]
            solid = panel["target"] in (None, entry["index"])
            ax.scatter(
                *own.T.numpy(),
                s=16,
                marker=MARKERS[number % len(MARKERS)],
                facecolors=colour if solid else "none",
                edgecolors=colour,
                linewidths=0.7,
                alpha=0.75,
                label=entry["name"] if ax is grid[0] else None,
            )
        title = f"{short(panel['name'], 36)}\nbetween / within {panel['ratio']:.2f}"
        ax.set_title(title, size=9, color=INK, parse_math=False)
        ax.tick_params(labelsize=7, colors=MUTED)
        ax.spines[["top", "right"]].set_visible(False)
    shares = [f"component {i} ({share:.0%})" for i, share in enumerate(results["explained"], start=1)]
    for number, ax in enumerate(grid[: len(panels)]):
        ax.set_xlabel(shares[0], size=8, color=MUTED)
        ax.set_ylabel(shares[1] if number % columns == 0 else "", size=8, color=MUTED)
    figure.legend(loc="outside lower center", ncols=min(len(classes), 6), fontsize=8, frameon=False)
    figure.set_label(
        "Outputs of single images, in the plane of the first pass's two principal components. Where something is "
        "looked for, the images that show it are filled."
    )
    return {"geometry": figure}
