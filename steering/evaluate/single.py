"""Single images, words and photographs: how well the network sees, and what words mean to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lrm_base.data import Split
from prior.captions import with_article
from steering.evaluate.statistics import mean_interval, resampling
from steering.steerer import Steerer
from steering.trials import class_goals, fit, top1


@torch.no_grad()
def measure_single(steerer: Steerer, pixels: Float[Tensor, "n 3 s s"], labels: Tensor) -> dict[str, Any]:
    """Top-1 of single images: every pass without a goal, and the last with the own class's words as goal.

    Differences from the first pass come with intervals, images resampled.
    """
    goals = class_goals(steerer)
    hits: list[Tensor] = []
    for part, answer in zip(pixels.split(250), labels.split(250), strict=True):
        part = fit(part.to(steerer.device), steerer.preprocessing.size)
        glance = steerer.glance(steerer.preprocessing.normalise(part))
        outputs, state = [glance.output], glance.state
        for _ in range(steerer.defaults.passes - 1):
            output, state = steerer.model.step(glance.stem, state)
            outputs.append(output)
        outputs.append(steerer.steer(glance, goals[answer.to(goals.device)]))
        hits.append(torch.stack([top1(output, answer) for output in outputs]).cpu())
    correct = torch.cat(hits, 1).float()
    weights = resampling(len(labels))
    passes = correct[:-1].mean(1).tolist()
    return {
        "images": len(labels),
        "passes": passes,
        "gain_intervals": [mean_interval(row - correct[0], weights) for row in correct[1:-1]],
        "first_pass": passes[0],
        "last_pass": passes[-1],
        "own_words": float(correct[-1].mean()),
    }


def measure_words(steerer: Steerer, path: str | Path | None = None) -> dict[str, Any]:
    """Words that were held out of all training pairs: whether the goal's best class, or one of its five, is right."""
    path = Path(__file__).parent / "heldout_words.json" if path is None else Path(path)
    right = json.loads(path.read_text())
    goals = steerer.goals([with_article(word) for word in right])
    wrong, top5 = {}, 0
    for (word, names), goal in zip(right.items(), goals, strict=True):
        best = [steerer.class_names[i] for i in goal.topk(5).indices.tolist()]
        top5 += any(name in names for name in best)
        if best[0] not in names:
            wrong[word] = best
    count = len(right)
    return {"words": count, "top1": 1 - len(wrong) / count, "top5": top5 / count, "wrong": wrong}


def measure_photos(steerer: Steerer, folder: str | Path, seed: int = 0) -> dict[str, Any]:
    """Full-size photographs, one name that is right and one of another class: balanced accuracy of present or absent.

    A probability of one half or more counts as present.
    """
    table = json.loads((Path(folder) / "photos.json").read_text())
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[bool]] = {"right": [], "other": []}
    unsure = 0
    for entry in tqdm(table, desc="photographs", disable=None):
        other = int(torch.randint(0, len(steerer.class_names) - 1, (1,), generator=generator))
        other += other >= entry["label"]
        queries = [with_article(steerer.class_names[i]) for i in (entry["label"], other)]
        right, wrong = steerer.look_many(str(Path(folder) / entry["file"]), queries)
        if right.probability is None or wrong.probability is None:
            name = steerer.card["name"]
            raise ValueError(f"{name} has no calibrated verdict; `python -m steering.calibrate` makes it")
        found["right"].append(right.probability >= 0.5)
        found["other"].append(wrong.probability < 0.5)
        unsure += (right.verdict == "unsure") + (wrong.verdict == "unsure")
    rates = {name: sum(values) / len(values) for name, values in found.items()}
    return {
        "photographs": len(table),
        "right_name_present": rates["right"],
        "other_name_absent": rates["other"],
        "balanced_accuracy": (rates["right"] + rates["other"]) / 2,
        "unsure": unsure,
    }


def image_tensors(
    source: str, split: Split, size: int, num_holdout: int = 0, classes: Sequence[dict[str, Any]] | None = None
) -> tuple[Float[Tensor, "n 3 s s"], Tensor]:
    """All images of a split, pixels in 0–1, and labels.

    Args:
        classes: a model's table of classes; labels become its rows, by name or WordNet id where the data set tells any.

    Raises:
        ValueError: the data set has a class that the model does not know.
    """
    from lrm_base.data import DataConfig, Images, load_images

    config = DataConfig(source=source, num_holdout=num_holdout)
    data = load_images(config, split)
    rows = None if classes is None else class_rows(data, classes)
    images = Images(data, size, in_memory=True)
    assert images.pixels is not None
    labels = torch.tensor(images.labels)
    return images.pixels.float() / 255, labels if rows is None else torch.tensor(rows)[labels]


def class_rows(data: Any, classes: Sequence[dict[str, Any]]) -> list[int]:
    """For each label of a data set the row in a model's table of classes. Raises like `image_tensors`."""
    names = getattr(data.features["label"], "names", None)
    if names is None:
        labels = data["label"][:]
        lowest, highest = min(labels), max(labels)
        if lowest < 0 or highest >= len(classes):
            raise ValueError(f"labels run from {lowest} to {highest}, but the model knows {len(classes)} classes")
        return list(range(len(classes)))
    known = {entry[key]: row for row, entry in enumerate(classes) for key in ("wnid", "name") if key in entry}
    strange = [name for name in names if name not in known]
    if strange:
        raise ValueError(
            f"{len(strange)} of {len(names)} classes of the data set are not the model's: {', '.join(strange[:5])}; "
            "expected its names (`steer --list-classes`) or their WordNet ids"
        )
    return [known[name] for name in names]
