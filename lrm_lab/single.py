"""Single images: how often the right class is the best one, in every pass and with the class's own words as goal."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lrm_core.trials import top1
from lrm_lab.statistics import mean_interval, resampling
from steering.rollouts import batch_of, class_goals, inputs_of
from steering.steerer import Steerer


@torch.no_grad()
def measure(steerer: Steerer, pixels: Float[Tensor, "n 3 s s"], labels: Tensor) -> dict[str, Any]:
    """Top-1 of every pass without a goal, and of the last pass with the words of the image's own class as goal.

    Differences from the first pass have 95 % intervals over images.
    """
    network, goals = steerer.network, class_goals(steerer)
    batches: list[Tensor] = []
    batch = batch_of(network, pixels)
    for part, answer in zip(pixels.split(batch), labels.split(batch), strict=True):
        glance = network.glance(inputs_of(network, part))
        outputs = [*network.unsteered(glance), network.steer(glance, goals[answer.to(goals.device)]).output]
        batches.append(torch.stack([top1(output, answer) for output in outputs]).cpu())
    correct = torch.cat(batches, 1).float()
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
