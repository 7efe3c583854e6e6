"""Checkpoints of a training, on top of `accelerate`'s own `save_state`. A run resumes exactly where it stopped.

Unusual: a checkpoint folder gets its final name only when it is complete. If the process is killed at any moment, the
checkpoint before it is still intact. The newest two are kept.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator

KEEP = 2


def start_accelerator(run: str | Path, precision: str, name: str, **options: Any) -> Accelerator:
    """Make the accelerator of a training in folder `run`; TensorBoard tracks it under `name`."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # else each CPU process believes that it is the only one
        mixed_precision=precision,
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(run), logging_dir=str(Path(run) / "logs")),
        **options,
    )
    accelerator.init_trackers(name)
    return accelerator


def agree(accelerator: Accelerator, own: bool) -> bool:
    """The main process's answer, in every process. Processes that answered for themselves could differ and deadlock."""
    import torch

    said = torch.tensor(float(own)).to(accelerator.device)
    return bool(accelerator.gather(said).flatten()[0])


def save_checkpoint(accelerator: Accelerator, folder: str | Path, step: int, progress: dict[str, Any]) -> Path:
    """Write `folder/step-XXXXXXXX`: everything that accelerate prepared or registered, and `progress` as JSON.

    Every process calls this. `progress` tells the loop where it was (epoch, batch, …).
    """
    folder = Path(folder)
    final = folder / f"step-{step:08d}"
    partial = folder / f".partial-{step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / "progress.json").write_text(json.dumps({"step": step, **progress}))
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        for old in _complete(folder)[:-KEEP]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def load_latest_checkpoint(accelerator: Accelerator, folder: str | Path) -> dict[str, Any] | None:
    """Restore the newest complete checkpoint into what accelerate prepared.

    Returns:
        the `progress` of that checkpoint; None if there is no checkpoint.
    """
    accelerator.wait_for_everyone()
    complete = _complete(Path(folder))
    if not complete:
        return None
    accelerator.load_state(str(complete[-1]))
    return json.loads((complete[-1] / "progress.json").read_text())


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if (path / "progress.json").is_file())
