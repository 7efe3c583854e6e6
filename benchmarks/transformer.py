r"""Measure what looking for a goal adds in composites, for trained models of any backbone, side by side.

    python benchmarks/transformer.py --data ../shared/data/tiny_imagenet convnet=tests/models/lrm_mini \
        multiply=runs/vit_goals/model add=runs/vit_additive/model

Every model sees the same scenes, of pictures that none was trained on, at its own size. A goal is the mean output of a
class. The figure is how well the log-odds of the goal's class tell present from absent (area under the ROC curve).
Absent goals are drawn at random; in the column of near misses they are classes that the model's own first pass takes
for likeliest of all that is not there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from lrm_base.data import DataConfig, Images, load_images
from lrm_core import LRM, Steer
from lrm_core.backbones import Preprocessing
from lrm_core.trials import Trials, make_trials, near_misses
from lrm_core.weights import load_model

KINDS = ("blend", "side", "inset", "grid")
COLUMNS = (*KINDS, "pooled", "near misses")
PASSES = ("first pass", "second, no goal", "second, goal")
BATCH, RESAMPLES = 100, 300


def images_of(source: str, split: Any, count: int) -> tuple[Tensor, Tensor]:
    """The first so many pictures, pixels (n, 3, 64, 64) in 0–1, and their classes (n,)."""
    data = load_images(DataConfig(source=source, num_holdout=0), split)
    held = Images(data.select(range(min(count, len(data)))), 64, in_memory=True)
    assert held.pixels is not None
    return held.pixels.float() / 255, torch.tensor(held.labels)


class Seer:
    """A model that looks at scenes at its own size."""

    def __init__(self, folder: str) -> None:
        model, preprocessing, card = load_model(Path(folder) / "backbone.safetensors")
        self.model: LRM = model.eval()
        self.preprocessing: Preprocessing = preprocessing
        self.output: str = card["output"]

    def images(self, pixels: Tensor) -> Tensor:
        """Pixels in 0–1 as the backbone takes them."""
        size = self.preprocessing.size
        return self.preprocessing.normalise(F.interpolate(pixels, (size, size), mode="bilinear", antialias=True))

    def first(self, pixels: Tensor) -> Tensor:
        """Outputs of the first pass."""
        return torch.cat([self.model(self.images(part))[0].float() for part in pixels.split(BATCH)])

    def passes(self, pixels: Tensor, goals: Tensor) -> list[Tensor]:
        """Outputs of the first pass, of a second one without a goal, and of one with it."""
        found = []
        for part, goal in zip(pixels.split(BATCH), goals.split(BATCH), strict=True):
            stem = self.model.stem(self.images(part))
            first, state = self.model.step(stem)
            free, _ = self.model.step(stem, state)
            steered, _ = self.model.step(stem, state, [Steer(self.output, goal)])
            found.append([first.float(), free.float(), steered.float()])
        return [torch.cat(outputs) for outputs in zip(*found, strict=True)]


def class_means(outputs: Tensor, labels: Tensor) -> Tensor:
    """The mean output for each class, (m, m). Raises ValueError if a class has no picture."""
    classes = outputs.shape[1]
    counts = torch.bincount(labels, minlength=classes)
    if not counts.all():
        raise ValueError(f"pictures: got none of class {int(counts.argmin())}, expected one of each; raise --pictures")
    return torch.zeros(classes, classes).index_add(0, labels, outputs) / counts[:, None]


def log_odds(outputs: Tensor, classes: Tensor) -> Tensor:
    """Log-odds of a class for each output, in nats."""
    chosen = outputs.log_softmax(1).gather(1, classes[:, None])[:, 0]
    return chosen - torch.log1p(-chosen.exp().clamp(max=1 - 1e-7))


def look(seer: Seer, means: Tensor, trials: Trials, seed: int) -> dict[str, Tensor]:
    """Log-odds (3, b) in each pass: of goals that are present, of absent ones at random, and of near misses."""
    pixels, generator = trials.scenes.pixels, torch.Generator().manual_seed(seed)
    near = near_misses(seer.first(pixels), trials.scenes.labels, generator)
    asked = [(seer.passes(pixels, means[classes]), classes) for classes in (trials.present, trials.absent, near)]
    return {
        name: torch.stack([log_odds(outputs[index], classes) for outputs, classes in asked])
        for index, name in enumerate(PASSES)
    }


def area(present: Tensor, absent: Tensor) -> float:
    """Area under the ROC curve."""
    return float(roc_auc_score([1] * len(present) + [0] * len(absent), torch.cat([present, absent])))


def gain(found: dict[str, Tensor], seed: int) -> dict[str, float]:
    """What the goal adds to the first pass, with a 95 % bootstrap interval over scenes. Absent goals are random."""
    before, after = (found[name][:2] for name in (PASSES[0], PASSES[2]))
    count, generator = before.shape[1], torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(RESAMPLES):
        rows = torch.randint(0, count, (count,), generator=generator)
        drawn.append(area(*after[:, rows]) - area(*before[:, rows]))
    low, high = torch.tensor(drawn).quantile(torch.tensor([0.025, 0.975])).tolist()
    return {"value": area(*after) - area(*before), "low": low, "high": high}


@torch.inference_mode()
def measure(folder: str, source: str, pictures: int, scenes: int, seed: int) -> dict[str, Any]:
    """All figures of one model."""
    seer = Seer(folder)
    pixels, labels = images_of(source, "train", pictures)
    means = class_means(seer.first(pixels), labels)
    pixels, labels = images_of(source, "valid", 10_000)
    single = slice(0, 1000)
    top1 = {
        name: float((outputs.argmax(1) == labels[single]).float().mean())
        for name, outputs in zip(PASSES[:2], seer.passes(pixels[single], means[labels[single]]), strict=False)
    }
    looks = {
        kind: look(seer, means, make_trials(kind, pixels, labels, len(means), scenes, seed), seed) for kind in KINDS
    }
    pooled = {name: torch.cat([looks[kind][name] for kind in KINDS], 1) for name in PASSES}
    areas = {
        kind: {name: area(*found[name][:2]) for name in PASSES} for kind, found in (*looks.items(), ("pooled", pooled))
    }
    areas["near misses"] = {name: area(*pooled[name][[0, 2]]) for name in PASSES}
    return {"top1": top1, "auroc": areas, "gain": gain(pooled, seed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER", help="model folders that lrm_core.train wrote")
    parser.add_argument("--data", default="../shared/data/tiny_imagenet", help="labelled images of the models' classes")
    parser.add_argument("--pictures", type=int, default=8000, help="training pictures for the goals")
    parser.add_argument("--scenes", type=int, default=500, help="scenes of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")
    given = parser.parse_args()
    wrong = [text for text in given.models if not text.partition("=")[2]]
    if wrong:
        parser.error(f"models: got {wrong[0]!r}, expected NAME=FOLDER")
    print("| model | top-1, first / second pass | pass | " + " | ".join(COLUMNS) + " | the goal adds |")
    print("| --- " * (len(COLUMNS) + 4) + "|")
    found = {}
    for text in given.models:
        name, _, folder = text.partition("=")
        found[name] = row = measure(folder, given.data, given.pictures, given.scenes, given.seed)
        top1 = " / ".join(f"{100 * value:.1f} %" for value in row["top1"].values())
        for index, kind_of_pass in enumerate(PASSES):
            first = f"| {name} | {top1} |" if not index else "| | |"
            areas = " | ".join(f"{row['auroc'][kind][kind_of_pass]:.3f}" for kind in COLUMNS)
            added = "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row["gain"]) if index == 2 else ""
            print(f"{first} {kind_of_pass} | {areas} | {added} |", flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
