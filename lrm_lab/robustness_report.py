"""The report on robustness, with its figure and checks against masked gradients (Athalye, Carlini & Wagner 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from lrm_lab.attacks import PLAIN
from lrm_lab.plots import PASS_COLOURS, offset
from lrm_lab.writing import Section, markdown_table, signed

TOLERANCE = 0.05  # of accuracy, in the checks against masked gradients


def sections(results: dict[str, Any]) -> list[Section]:
    """Is a later pass more robust?"""
    return [(section(results), figures(results))]


def section(results: dict[str, Any]) -> str:
    """Is a later pass more robust, and could masked gradients explain it?"""
    names = list(results["clean"])
    reference = results["more_steps"]["epsilon"]
    budget = results["autoattack_budget"]
    attacked, corrupted = results["intervals"]["pgd20"][reference], results["intervals"]["corruptions"]
    told = [
        f"- {_pair(pair)}: {_points(attacked[pair])} under PGD-20 at ε = {reference}/255{_among_both(attacked[pair])}, "
        f"and {_points(corrupted[pair])} under corruptions."
        for pair in results["intervals"]["clean"]
    ]
    lines = [
        "## Is a later pass more robust?",
        "",
        f"Top-1 of {results['images']} single images was measured without a goal. The images were attacked in an L∞ "
        "ball of ε, in 255ths of the pixels' range. An attack follows the gradients of all passes up to the one that "
        "it attacks. The images were also corrupted. These are the differences in points, with paired 95 % bootstrap "
        "intervals over images:",
        "",
        *(told or ["- There is one pass alone."]),
        "",
    ]
    rows = [("undisturbed", results["clean"])]
    rows += [(f"FGSM, ε = {e}/255", right) for e, right in results["fgsm"].items()]
    rows += [(f"PGD-20, ε = {e}/255", right) for e, right in results["pgd20"].items()]
    for epsilon, right in results["autoattack"].items():
        rows += [
            (f"AutoAttack, ε = {epsilon}/255 ({budget['images']} images)", right),
            (f"PGD-20, ε = {epsilon}/255 (the same images as AutoAttack)", budget["pgd20_same_images"][epsilon]),
        ]
    rows += [(f"corruptions, mean of {len(results['corruptions'])}", results["corrupted"])]
    lines += [
        _accuracies("images", names, rows),
        "",
        "### Checks against masked gradients",
        "",
        *(f"- {text}" for text in _checks(results)),
        f"- AutoAttack here is APGD on cross-entropy and on the logits' difference ratio with {budget['steps']} steps, "
        f"DeepFool in place of FAB, and Square with {budget['queries']} queries.",
        "",
        _accuracies(
            f"images made for ↓, answered by → (ε = {reference}/255, {results['more_steps']['images']} images)",
            names,
            [(_named(name), right) for name, right in results["transfer"].items()],
        ),
        "",
    ]
    severities = list(next(iter(results["corruptions"].values())))
    means = [(name, _means(by_severity, names)) for name, by_severity in results["corruptions"].items()]
    lines.append(_accuracies(f"corruption (mean of severities {', '.join(severities)})", names, means))
    return "\n".join(lines) + "\n"


def _accuracies(what: str, names: Sequence[str], rows: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """A table of accuracies, a column for each target."""
    cells = [(name, *(f"{right[target]:.1%}" for target in names)) for name, right in rows]
    return markdown_table((what, *map(_named, names)), cells)


def _means(by_severity: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> dict[str, float]:
    """For each target, the mean over the severities of a corruption."""
    return {name: sum(right[name] for right in by_severity.values()) / len(by_severity) for name in names}


def _checks(results: dict[str, Any]) -> list[str]:
    """What each check says: a sign of masked gradients, or none."""
    names, large, more = list(results["clean"]), results["large"], results["more_steps"]
    reference = more["epsilon"]
    right = [name for name in names if large["pgd20"][name] > TOLERANCE]
    told = [
        f"A large ball (ε = {large['epsilon']}/255) "
        + (
            f"leaves {', '.join(map(_named, right))} above {TOLERANCE:.0%}, which is a sign of masked gradients."
            if right
            else "fools every target."
        )
    ]
    lost = {name: results["transfer"][name][name] - more["pgd"][name] for name in names}
    worst = max(lost, key=lost.__getitem__)
    told.append(
        f"With {more['steps']} steps instead of 20 at ε = {reference}/255, accuracy falls by at most "
        f"{100 * lost[worst]:.1f} points ({_named(worst)}), "
        + ("so 20 steps were too few." if lost[worst] > TOLERANCE else "so 20 steps are enough.")
    )
    gaps = {
        (source, name): results["transfer"][name][name] - accuracies[name]
        for source, accuracies in results["transfer"].items()
        for name in names
        if source != name
    }
    if gaps:
        source, name = max(gaps, key=gaps.__getitem__)
        told.append(
            f"Images that were made for another target are at most {100 * gaps[source, name]:.1f} points worse than a "
            f"target's own ({_named(name)}, on those of {_named(source)}), "
            + (
                "so its gradients are masked."
                if gaps[source, name] > TOLERANCE
                else "so no target hides its gradients."
            )
        )
    weaker = [
        name
        for epsilon in results["fgsm"]
        for name in names
        if results["pgd20"][epsilon][name] > results["fgsm"][epsilon][name] + TOLERANCE
    ]
    told.append(
        f"One step is stronger than twenty for {', '.join(map(_named, dict.fromkeys(weaker)))}, which is a sign of "
        "masked gradients."
        if weaker
        else "Twenty steps are nowhere weaker than one."
    )
    return told


def _named(name: str) -> str:
    return "plain twin" if name == PLAIN else name.replace("pass", "pass ")


def _pair(pair: str) -> str:
    return " − ".join(_named(name) for name in pair.split(" - "))


def _points(entry: Mapping[str, Any]) -> str:
    return signed(entry["difference"], entry["interval"])


def _among_both(entry: Mapping[str, Any]) -> str:
    """The same difference among the images that both know undisturbed: it tells robustness apart from seeing better."""
    both = entry["among_both"]
    return f" ({_points(both)} among the {both['images']} images that both know undisturbed)" if both else ""


def figures(results: dict[str, Any]) -> dict[str, Figure]:
    """`robustness`: accuracy over ε under PGD-20, and the mean accuracy under each corruption."""
    names = list(results["clean"])
    figure = Figure(figsize=(9.5, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    radii = [0.0, *(float(epsilon) for epsilon in results["pgd20"])]
    corruptions = list(results["corruptions"])
    for index, name in enumerate(names):
        colour = PASS_COLOURS[index % len(PASS_COLOURS)] if name != PLAIN else "#1c1c1e"
        style = ":" if name == PLAIN else "-"
        values = [results["clean"][name], *(row[name] for row in results["pgd20"].values())]
        left.plot(radii, [100 * v for v in values], style, marker="o", ms=4, color=colour, label=_named(name))
        places = [offset(place, index, len(names)) for place in range(len(corruptions))]
        heights = [100 * _means(by_severity, names)[name] for by_severity in results["corruptions"].values()]
        right.bar(places, heights, 0.8 / len(names), color=colour)
    left.set_xlabel("ε, in 255ths of the pixels' range")
    left.set_ylabel("top-1, %")
    left.set_title("PGD-20", loc="left", fontsize=10)
    left.set_ylim(bottom=0)
    left.legend(frameon=False, fontsize=8)
    right.set_xticks(range(len(corruptions)), corruptions, rotation=45, ha="right", fontsize=8)
    right.set_title("corruptions", loc="left", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return {"robustness": figure}
