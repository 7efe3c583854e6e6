"""The steps of a training of feedback: learning rate, what each step draws, checkpoints, and exact resumption."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from tqdm import tqdm

from lrm_base.checkpoint import agree, load_latest_checkpoint, save_checkpoint


@runtime_checkable
class Settings(Protocol):
    """What a configuration says of its steps."""

    steps: Any
    learning_rate: float
    seed: Any
    checkpoint_minutes: float


def descend(
    accelerator: Any,
    optimizer: Any,
    learned: Sequence[Tensor],
    settings: Settings,
    run: Path,
    loss_of: Callable[[torch.Generator], tuple[Tensor, Mapping[str, Any]]],
) -> dict[str, float]:
    """Take all steps that are left. Returns running means of what `loss_of` logs.

    The learning rate rises for 50 steps and falls as a cosine. Each group of the optimizer has a `scale` of it.

    Args:
        learned: the parameters whose gradients are clipped.
        run: the folder of the run; checkpoints lie in it.
        loss_of: the loss of a step, and what to log of it. All that it draws comes from the generator.
    """
    step: int = (load_latest_checkpoint(accelerator, run / "checkpoints") or {"step": 0})["step"]
    saved = time.monotonic()
    shown = accelerator.is_main_process
    bar = tqdm(total=settings.steps, initial=step, desc="feedback", disable=not shown, mininterval=5)
    smooth: dict[str, float] = {}
    while step < settings.steps:
        seed = (settings.seed * 1_000_003 + step) * accelerator.num_processes + accelerator.process_index
        rising = min(1.0, (step + 1) / 50)
        rate = settings.learning_rate * rising * (1 + math.cos(math.pi * step / settings.steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        loss, log = loss_of(torch.Generator().manual_seed(seed))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        bar.update()
        for name, value in log.items():
            smooth[name] = 0.95 * smooth.get(name, float(value)) + 0.05 * float(value)
        if step % 25 == 0:
            accelerator.log({**smooth, "learning_rate": rate}, step=step)
            bar.set_postfix({name: f"{value:.4f}" for name, value in smooth.items()}, refresh=False)
        if agree(accelerator, time.monotonic() - saved > settings.checkpoint_minutes * 60) or step == settings.steps:
            saved = time.monotonic()
            save_checkpoint(accelerator, run / "checkpoints", step, {})
    bar.close()
    return smooth
