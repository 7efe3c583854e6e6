"""How often a search lies: "nothing" where something shows the goal, "present" where no hit does, before and after.

    python benchmarks/search_odds.py --source DATA --cache looks.npz --plot odds.png
    python benchmarks/search_odds.py --source DATA --cache looks.npz --half chosen-on

Galleries of 100, 1,000 and 10,000 images are drawn from a labelled data set (its validation split), so that no image,
one, 1 %, 10 %, 90 % or all of them show the goal. Every image is looked at once for every goal (a cache keeps that;
40 goals and 10,000 images take about 20 minutes on one core). A search then looks at the 128 nearest and at what is
drawn beside them. If the data set has too few images of a class, images come several times.

"before" is how this program judged until version 0.2: images that nobody looked at counted as absent.

- false nothing: the answer is "nothing shows it", but an image does.
- false present: the answer is "present", but none of the ten best hits shows it.

The constants of `steering.search.odds` were chosen on every other goal. The others, which served no choice, are
reported unless `--half chosen-on` is given.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steering.search.candidates import Candidate, draw
from steering.search.odds import Prevalence, corrected, prevalence

SIZES = (100, 1000, 10_000)
SHARES = ("0", "one", "1 %", "10 %", "90 %", "100 %")
LOOKS, PAGE = 128, 10


@dataclass(frozen=True)
class Table:
    """Everything that searches can ask: labels (n,), the goals' classes (g,), scores and looks alone (g, n)."""

    labels: np.ndarray
    goals: np.ndarray
    scores: np.ndarray
    alone: np.ndarray


@dataclass(frozen=True)
class Search:
    """One search: what is answered after and before, and whether the best hits are right."""

    after: Prevalence
    said_before: str
    page: np.ndarray
    page_before: np.ndarray
    chances: np.ndarray
    alone: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="labelled images, as in `steer evaluate --source`; not needed with a cache")
    parser.add_argument("--cache", type=Path, help="file (.npz) that keeps the looks")
    parser.add_argument("--model", help="see `steer --help`")
    parser.add_argument("--goals", type=int, default=40, help="classes that are searched for (default 40)")
    parser.add_argument("--repeats", type=int, default=5, help="galleries for each goal (default 5)")
    parser.add_argument("--half", choices=("report", "chosen-on"), default="report")
    parser.add_argument("--plot", type=Path, help="draw the rates into this picture")
    given = parser.parse_args()
    if given.cache and given.cache.is_file():
        with np.load(given.cache) as kept:
            table = Table(**{name: kept[name] for name in ("labels", "goals", "scores", "alone")})
    elif given.source:
        table = look_at_everything(given.source, given.model, given.goals)
        if given.cache:
            np.savez(given.cache, **table.__dict__)
    else:
        parser.error("expected --source DATA, or --cache with a file that is there")
    rows = list(range(1, len(table.goals), 2) if given.half == "report" else range(0, len(table.goals), 2))
    rng = np.random.default_rng(0)
    rates: dict[int, list[tuple[float, ...]]] = {}
    print("false nothing / false present, and present rightly; how much shows it: estimate (interval holds the truth)")
    for size in SIZES:
        rates[size] = []
        for share in SHARES:
            count = {"0": 0, "one": 1}.get(share) if "%" not in share else round(size * float(share.split()[0]) / 100)
            found = [search(table, row, size, count or 0, rng) for row in rows for _ in range(given.repeats)]
            rates[size].append(tell(size, share, (count or 0) / size, found))
    if given.plot:
        plot(rates, given.plot)


def search(table: Table, row: int, size: int, count: int, rng: np.random.Generator) -> Search:
    """Search a gallery of `size` images, of which `count` show the goal of a row."""
    shows = table.labels == table.goals[row]
    images = np.concatenate(
        [_pick(np.flatnonzero(shows), count, rng), _pick(np.flatnonzero(~shows), size - count, rng)]
    )
    images = images[np.argsort(-(table.scores[row][images] + rng.normal(0, 1e-7, size)))]
    alone, truth = table.alone[row][images].astype(float), shows[images]
    near = min(LOOKS, size)
    drawn = draw([Candidate({"place": place}) for place in range(near, size)], [], 0, LOOKS, rng) if near < size else []
    looked = np.array([*range(near), *(candidate.row["place"] for candidate in drawn)])
    weights = np.array([1.0] * near + [candidate.weight for candidate in drawn])
    strata = np.array([0] * near + [candidate.stratum for candidate in drawn])
    after = prevalence(alone[looked], weights, strata)
    best = looked[np.argsort(-alone[looked])][:PAGE]
    before = np.argsort(-alone[:near])[:PAGE]
    chance = as_before(alone[:near], size)[before[0]]
    said = "present" if chance >= 0.8 else "nothing" if chance <= 0.3 else "unsure"
    return Search(after, said, truth[best], truth[before], corrected(alone[best], after), alone[best])


def _pick(members: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(members, count, replace=count > len(members))


def as_before(alone: np.ndarray, total: int) -> np.ndarray:
    """Corrected probabilities as they were: the EM over the nearest images, all others taken for absent."""
    clipped = np.clip(alone, 1e-6, 1 - 1e-6)
    odds, share = clipped / (1 - clipped), 0.5
    for _ in range(500):
        prior = share / (1 - share)
        last, share = share, float((odds * prior / (1 + odds * prior)).sum() + 0.5) / (total + 1)
        if abs(share - last) < 1e-9:
            break
    odds = odds * share / (1 - share)
    return odds / (1 + odds)


def tell(size: int, share: str, truth: float, found: list[Search]) -> tuple[float, ...]:
    """Print a line, and return the rates: false nothing and false present, before and after."""

    def rate(answers: Iterator[bool]) -> float:
        return float(np.mean(list(answers)))

    shown = truth > 0
    nothing_before = rate(shown and one.said_before == "nothing" for one in found)
    nothing = rate(shown and one.after.answer == "absent" for one in found)
    present_before = rate(one.said_before == "present" and not one.page_before.any() for one in found)
    present = rate(one.after.answer == "present" and not one.page.any() for one in found)
    right_before = rate(one.said_before == "present" and bool(one.page_before.any()) for one in found)
    right = rate(one.after.answer == "present" and bool(one.page.any()) for one in found)
    inside = rate(one.after.low <= truth <= one.after.high for one in found)
    said = [one for one in found if one.after.answer == "present"]
    expected = sum(float(one.chances[one.alone >= 0.8].sum()) for one in said)
    really = sum(int(one.page[one.alone >= 0.8].sum()) for one in said)
    print(
        f"{size:>6,} images, {share:>5} show it: "
        f"before {nothing_before:6.1%} / {present_before:6.1%} ({right_before:6.1%}), "
        f"after {nothing:6.1%} / {present:6.1%} ({right:6.1%}); "
        f"{np.median([one.after.share for one in found]):8.3%} ({inside:4.0%}); "
        f"hits expected right {expected:5.0f}, right {really:5.0f}"
    )
    return nothing_before, nothing, present_before, present


def look_at_everything(source: str, model: str | None, count: int) -> Table:
    """Look at every image of the validation split for `count` classes, by their names."""
    import torch
    from tqdm import tqdm

    from lrm_base.data import image_tensors
    from prior.captions import with_article
    from steering import Steerer
    from steering.search.hits import direction
    from steering.seek import seek

    steerer = Steerer.load(model)
    network = steerer.network
    pixels, labels = image_tensors(source, "valid", network.preprocessing.size, classes=network.card["classes"])
    asked = np.linspace(0, len(steerer.class_names), count, endpoint=False).astype(int)
    goals = steerer.goals([with_article(steerer.class_names[label]) for label in asked])
    towards = np.stack([direction(network, goal) for goal in goals])
    scores, alone = [], []
    for part in tqdm(pixels.split(64), unit="batch"):
        glance = network.glance(network.preprocessing.normalise(part.to(network.device)))
        evidence = np.sqrt(glance.places.cpu().numpy())
        scores.append(towards @ (evidence / np.linalg.norm(evidence, axis=1, keepdims=True)).T)
        chances = [seek(network, steerer.verdicts, glance, goal).probability for goal in goals]
        alone.append(torch.stack([chance.cpu() for chance in chances if chance is not None]).numpy())
    return Table(labels.numpy(), asked, np.concatenate(scores, 1), np.concatenate(alone, 1))


def plot(rates: dict[int, list[tuple[float, ...]]], path: Path) -> None:
    """Draw the rates against the share of images that show the goal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    bars = {"false nothing": 0.02, "false present": 0.05}
    for axes, (kind, bar), first in zip(figure.subplots(1, 2, sharey=True), bars.items(), (0, 2), strict=True):
        for colour, (size, values) in zip(("C0", "C1", "C2"), rates.items(), strict=True):
            before, after = ([entry[first + k] for entry in values] for k in (0, 1))
            axes.plot(SHARES, before, ":o", color=colour, ms=3, label=f"{size:,} images, before")
            axes.plot(SHARES, after, "-o", color=colour, ms=4, label=f"{size:,} images, after")
        axes.axhline(bar, color="0.6", lw=1)
        axes.set(title=kind, xlabel="images that show the goal", ylim=(-0.02, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    figure.axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    print(path)


if __name__ == "__main__":
    main()
