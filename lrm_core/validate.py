"""Quick metrics after an epoch: top-1 of every pass, and steering by present and by absent goals.

Here the mean output of a class is its goal. The full evaluation, with words as goals, is `steer evaluate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lrm_base.checks import whole_number
from lrm_base.data import Images, ordered_batches
from lrm_core.model import Steer
from lrm_core.scenes import NUM_OBJECTS, compose, random_squares

if TYPE_CHECKING:
    from lrm_core.objective import Objective


@torch.no_grad()
def validate(objective: Objective, images: Images, passes: int, size: int, strength: float = 1.0) -> dict[str, float]:
    """Fractions in 0–1, by name.

    `top1/pass1`, …: correct answers of each pass. For each kind of scene `KIND/present` and `KIND/absent`: how often a
    present and an absent goal becomes top-1. `KIND/unsteered`: how often a present class is top-1 without a goal.

    Args:
        passes: number of passes of each roll-out.
        size: side of the images in pixels.
        strength: gain of the goals' feedback.

    Raises:
        ValueError: `passes`, `size` or `strength` is out of range.
    """
    passes, size = whole_number("passes", passes, 1), whole_number("size", size, 1)
    model, training = objective.model, objective.training
    modes = {module: module.training for module in objective.modules()}
    objective.eval()
    device = next(model.parameters()).device
    every = list(ordered_batches(images, 250))
    pixels = torch.cat([p for p, _ in every]).to(device).float() / 255
    labels = torch.cat([y for _, y in every]).to(device)
    pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    metrics: dict[str, float] = {}
    with torch.autocast(device.type, torch.bfloat16):
        correct = torch.zeros(passes)
        for part, answer in zip(pixels.split(250), labels.split(250), strict=True):
            outputs = model.rollout(objective._prepare(part), passes)
            correct += torch.stack([(o.argmax(1) == answer).sum() for o in outputs]).cpu()
        metrics |= {f"top1/pass{i + 1}": float(c / len(labels)) for i, c in enumerate(correct)}
        if objective.memory.ready and passes > 1:
            prototypes = objective.memory.prototypes()
            generator = torch.Generator().manual_seed(0)
            for kind, number in NUM_OBJECTS.items():
                picks = torch.randint(0, len(pixels), (1000, number), generator=generator)
                scenes = compose(kind, pixels[picks], labels[picks], random_squares(kind, 1000, generator))
                absent = torch.randint(0, objective.num_classes, (1000,), generator=generator).to(device)
                is_absent = (scenes.labels != absent[:, None]).all(1)
                unsteered: list[Tensor] = []
                hits: dict[str, list[Tensor]] = {"present": [], "absent": []}
                for part, inside, outside in zip(
                    scenes.pixels.split(250), scenes.labels[:, -1].split(250), absent.split(250), strict=True
                ):
                    inputs = objective._prepare(part)
                    unsteered.append(model.rollout(inputs, passes)[-1].argmax(1) == inside)
                    for name, goal in (("present", inside), ("absent", outside)):
                        steer = Steer(objective.output, prototypes[goal], strength)
                        hits[name].append(model.rollout(inputs, passes, [steer])[-1].argmax(1) == goal)
                metrics[f"{kind}/unsteered"] = float(torch.cat(unsteered).float().mean())
                metrics[f"{kind}/present"] = float(torch.cat(hits["present"]).float().mean())
                metrics[f"{kind}/absent"] = float(torch.cat(hits["absent"])[is_absent].float().mean())
    for module, mode in modes.items():
        module.training = mode
    objective.training = training
    return metrics
