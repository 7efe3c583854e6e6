"""Train a backbone with feedback: `accelerate launch -m lrm_core.train --config configs/lrm_mini.yaml`.

The stages run one after the other: first seeing at growing resolution, then seeing and looking over several passes. The
same command resumes an interrupted run exactly, because all random numbers come from the seed and the step.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lrm_base.checkpoint import agree, load_latest_checkpoint, save_checkpoint, start_accelerator
from lrm_base.config import Config, Count, TrainingSeed
from lrm_base.data import DataConfig, Images, augment, load_images, training_batches
from lrm_base.extras import require_packages
from lrm_base.imagenet import imagenet_names
from lrm_core.backbones import BackboneEntry, Preprocessing
from lrm_core.feedback import Connection, Feedback, start_at_classifier
from lrm_core.matched import start_codes
from lrm_core.model import LRM, Rule
from lrm_core.objective import GoalConfig, Objective
from lrm_core.validate import validate
from lrm_core.weights import build, save_model, start_from


class StageConfig(Config):
    """One stage of training.

    Attributes:
        size: side of the images in pixels.
        valid_size: the side in validation; None means `size`.
        sizes: if given, each step draws its side from them, so that the network sees objects small and large.
        passes: number of passes; the loss is averaged over them.
        learning_rate: its value at the start and at the end.
        schedule: half a cosine between the two, or a straight line as published ("cyclic", with a warmup).
        warmup: part of the stage, 0–1, in which the learning rate first rises from zero.
        min_scale: smallest area of a crop, as part of the image.
        freeze_norm: whether to keep the running statistics of batch normalisation, so that all passes share them. Its
            affine parameters still learn.
        freeze_backbone: whether the backbone stays as it is. Then only the feedback and the modules in `learn` learn.
        learn: names of modules of the backbone that learn although it is frozen.
        goals: the goal-directed part; None trains seeing only.
    """

    epochs: Count
    size: Count
    valid_size: Count | None = None
    sizes: tuple[Count, ...] = ()
    passes: Count = 1
    learning_rate: tuple[float, float]
    schedule: Literal["cosine", "linear"] = "cosine"
    warmup: float = 0.0
    min_scale: float = 0.35
    freeze_norm: bool = False
    freeze_backbone: bool = False
    learn: tuple[str, ...] = ()
    goals: GoalConfig | None = None


class ConnectionConfig(Config):
    """A feedback connection, between two named steps of the backbone; see `Connection`."""

    source: str
    destination: str
    anywhere: bool = False
    channels: tuple[int, int] | Literal["values"] | None = None
    source_layout: str | None = None
    destination_layout: str | None = None


class BackboneTraining(Config):
    """All settings of a run.

    Attributes:
        init_from: a trained model (`backbone.safetensors` with its card) to start from. Paths that it does not have
            start new, and paths that are not among `connections` are left out.
        connections: None means the default connections of the backbone.
        classes: a JSON file with the table of classes, or `imagenet` for the 1,000 names of torchvision; None means the
            data set's own names.
        rule: see `LRM`; `add` makes a control. None means that of the backbone's entry in the registry.
        feedback_rate: learning rate of the feedback paths, as a multiple of the backbone's.
        template_scale: see `start_at_classifier`.
        checkpoint_minutes: time between two checkpoints.
        num_validation: number of validation images.
        max_steps: the run ends after so many steps; None runs all stages.
    """

    name: str
    backbone: str
    init_from: str | None = None
    connections: list[ConnectionConfig] | None = None
    data: DataConfig
    classes: str | None = None
    stages: list[StageConfig]
    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = 5e-4
    rule: Rule | None = None
    feedback_rate: float = 1.0
    template_scale: float = 6.0
    batch_size: Count = 128
    label_smoothing: float = 0.1
    precision: Literal["no", "bf16"] = "bf16"
    seed: TrainingSeed = 0
    run_folder: str
    checkpoint_minutes: float = 4.0
    num_validation: Count = 2000
    max_steps: Count | None = None


def class_table(path: str | None, data: Any) -> list[dict[str, Any]]:
    """One entry for each class: `name`, and `synonyms` and `is_a` if the file has them."""
    if path == "imagenet":
        return [{"name": name} for name in imagenet_names()]
    if path is not None:
        return json.loads(Path(path).read_text())
    return [{"name": name} for name in data.features["label"].names]


def hypernym_groups(classes: list[dict[str, Any]]) -> Tensor:
    """The classes of each hypernym that has 2 to 40 of them, as 0/1: (groups, classes)."""
    names = sorted({word for entry in classes for word in entry.get("is_a", [])})
    rows = [[float(name in entry.get("is_a", [])) for entry in classes] for name in names]
    return torch.tensor([row for row in rows if 2 <= sum(row) <= 40]).reshape(-1, len(classes))


def stage_at(stages: list[StageConfig], epoch: int) -> tuple[StageConfig, int]:
    """(the stage of an epoch, number of epochs before that stage). Raises ValueError after the last stage."""
    before = 0
    for stage in stages:
        if epoch < before + stage.epochs:
            return stage, before
        before += stage.epochs
    raise ValueError(f"epoch: got {epoch}, expected less than {before}: it lies after the last stage")


def first_looking_epoch(stages: list[StageConfig], templates: str | None) -> int | None:
    """The first epoch of a stage that has goals or names the templates to learn; None if there is no such stage."""
    before = 0
    for stage in stages:
        if stage.goals is not None or templates in stage.learn:
            return before
        before += stage.epochs
    return None


def learning_rate_at(stage: StageConfig, fraction: float) -> float:
    """The learning rate at a fraction of the stage, 0–1, by its schedule and warmup.

    A straight line starts to fall at the end of the warmup. A cosine starts to fall at once, but hardly at first.
    """
    start, end = stage.learning_rate
    rise = min(1.0, fraction / stage.warmup) if stage.warmup else 1.0
    if stage.schedule == "linear":
        fallen = (fraction - stage.warmup) / (1 - stage.warmup) if fraction > stage.warmup else 0.0
        return rise * (start + (end - start) * fallen)
    return rise * (end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2)


def validation_images(data: Any, count: int) -> Any:
    """The first `count` rows of a data set, or evenly spaced ones if it lists class by class (an ImageFolder)."""
    count = min(count, len(data))
    labels = data["label"][:]
    step = len(data) // count if all(a <= b for a, b in itertools.pairwise(labels)) else 1
    return data.select(range(0, count * step, step))


def begin_looking(model: LRM, entry: BackboneEntry, template_scale: float) -> None:
    """Set untrained feedback and templates from the classifier. `first_looking_epoch` tells when to do it."""

    def path(destination: str | None) -> Feedback | None:
        found = dict(model.paths.items()).get(Connection(entry.output, destination or "").key)
        return found if isinstance(found, Feedback) else None

    classifier = model.backbone.get_submodule(entry.output)
    if isinstance(classifier, nn.Linear):
        start_codes(classifier, [model.paths[c.key] for c in model.connections if c.source == entry.output])
        templates = None if entry.templates is None else model.backbone.get_submodule(entry.templates)
        assert templates is None or isinstance(templates, nn.Conv2d)
        start_at_classifier(classifier, path(entry.features), templates, path(entry.templates), template_scale)


def choose_what_learns(model: LRM, stage: StageConfig) -> None:
    """Freeze the backbone or parts of it. Raises ValueError if the stage names a module that does not exist."""
    modules = dict(model.backbone.named_modules())
    unknown = [name for name in stage.learn if name not in modules]
    if unknown:
        raise ValueError(f"learn: no module {unknown[0]!r}; choices: {', '.join(name for name in modules if name)}")
    model.backbone.requires_grad_(not stage.freeze_backbone)
    for name in stage.learn:
        modules[name].requires_grad_()


def freeze_norms(model: nn.Module) -> None:
    """Make batch normalisation use its running statistics and no longer change them."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def train(config: BackboneTraining) -> Path:
    """Run or resume a training. Returns the folder of the finished model."""
    run = Path(config.run_folder)
    from accelerate.utils import DistributedDataParallelKwargs

    accelerator = start_accelerator(
        run,
        config.precision,
        "tensorboard",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    main = accelerator.is_main_process
    torch.manual_seed(config.seed)

    data = load_images(config.data, "train")
    classes = class_table(config.classes, data)
    connections = None if config.connections is None else [Connection(**c.to_dict()) for c in config.connections]
    model, entry = build(config.backbone, len(classes), connections, config.rule)
    assert isinstance(model, LRM)
    started_from = None if config.init_from is None else start_from(model, classes, config.init_from)
    model.to(memory_format=torch.channels_last)
    objective = Objective(
        model, entry.preprocessing, entry.output, len(classes), hypernym_groups(classes), config.label_smoothing
    )
    feedback = list(model.paths.parameters())
    backbone = list(model.backbone.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in backbone if p.ndim > 1], "weight_decay": config.weight_decay, "scale": 1.0},
        {"params": [p for p in backbone if p.ndim <= 1], "weight_decay": 0.0, "scale": 1.0},
        {"params": feedback, "weight_decay": 0.0, "scale": config.feedback_rate},
    ]
    optimizer: torch.optim.Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    prepared, optimizer = accelerator.prepare(objective, optimizer)

    images = Images(data, config.data.size, in_memory=config.data.in_memory)
    held = Images(validation_images(load_images(config.data, "valid"), config.num_validation), config.data.size)
    resumed = load_latest_checkpoint(accelerator, run / "checkpoints")
    progress = resumed or {"epoch": 0, "batch": 0, "step": 0}
    for group, scale in zip(optimizer.param_groups, (1.0, 1.0, config.feedback_rate), strict=True):
        group["scale"] = scale  # a checkpoint restores the scale of the run that wrote it
    step: int = progress["step"]
    saved = time.monotonic()

    for epoch in range(progress["epoch"], sum(stage.epochs for stage in config.stages)):
        stage, first_epoch = stage_at(config.stages, epoch)
        prepared.train()
        if stage.freeze_norm:
            freeze_norms(prepared)
        choose_what_learns(model, stage)
        begins = progress["batch"] == 0 or epoch > progress["epoch"]
        if begins and epoch == first_looking_epoch(config.stages, entry.templates):
            begin_looking(model, entry, config.template_scale)
        loader = accelerator.prepare(
            training_batches(images, config.batch_size, config.seed, epoch, config.data.workers)
        )
        skip = progress["batch"] if epoch == progress["epoch"] else 0
        batches = accelerator.skip_first_batches(loader, skip) if skip else loader
        bar = tqdm(batches, desc=f"epoch {epoch}", initial=skip, total=len(loader), disable=not main, mininterval=5)
        batch = skip - 1
        for batch, (pixels, labels) in enumerate(bar, start=skip):
            generator = torch.Generator().manual_seed(
                (config.seed * 1_000_003 + step) * accelerator.num_processes + accelerator.process_index
            )
            rate = learning_rate_at(stage, (epoch - first_epoch + batch / len(loader)) / stage.epochs)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            size = stage.size
            if stage.sizes:  # drawn from the step alone, so that parallel processes draw the same size
                alike = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
                size = stage.sizes[int(torch.randint(0, len(stage.sizes), (), generator=alike))]
            inputs = augment(pixels, size, generator, min_scale=stage.min_scale)
            with accelerator.autocast():
                loss, log = prepared(inputs, labels, stage.passes, stage.goals, generator)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(prepared.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % 25 == 0:
                values = {name: float(value) for name, value in log.items()}
                accelerator.log({**values, "learning_rate": rate}, step=step)
                bar.set_postfix({name.split("/")[-1]: f"{value:.3f}" for name, value in values.items()}, refresh=False)
            if agree(accelerator, time.monotonic() - saved > config.checkpoint_minutes * 60):
                saved = time.monotonic()
                save_checkpoint(accelerator, run / "checkpoints", step, {"epoch": epoch, "batch": batch + 1})
            if config.max_steps is not None and step >= config.max_steps:
                break
        if main:
            metrics = validate(objective, held, stage.passes, stage.valid_size or stage.size)
            accelerator.log({f"valid/{name}": value for name, value in metrics.items()}, step=step)
            _report(run, {"epoch": epoch, "step": step, "size": stage.size, **metrics})
        complete = batch + 1 == len(loader)  # max_steps may end a run within an epoch
        progress_now = {"epoch": epoch + 1, "batch": 0} if complete else {"epoch": epoch, "batch": batch + 1}
        save_checkpoint(accelerator, run / "checkpoints", step, progress_now)
        if config.max_steps is not None and step >= config.max_steps:
            break

    final = run / "model"
    if main:
        last = config.stages[-1]
        size = last.valid_size or last.size
        metrics = validate(objective, held, last.passes, size)
        save_model(
            final / "backbone.safetensors",
            model,
            name=config.name,
            backbone=config.backbone,
            preprocessing=Preprocessing(size, entry.preprocessing.mean, entry.preprocessing.std),
            output=entry.output,
            classes=classes,
            training=config.to_dict() | {"started_from": started_from},
            measured={f"valid_{config.num_validation}/{name}": value for name, value in metrics.items()},
        )
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return final


def _report(run: Path, metrics: dict[str, Any]) -> None:
    """Print a line of metrics and append it to the run's file."""
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in metrics.items()}
    tqdm.write(" · ".join(f"{name} {value}" for name, value in rounded.items()))
    with open(run / "metrics.jsonl", "a") as stream:
        stream.write(json.dumps(rounded) + "\n")


def refuse_clip(backbone: str) -> None:
    """End a command that was given a CLIP: one line that names the command for it, and exit code 2.

    Raises:
        SystemExit: with code 2; the backbone is the name of a CLIP.
    """
    if backbone.startswith("clip:"):
        told = f"backbone: got {backbone}, expected no CLIP; the feedback of a CLIP is trained by python -m "
        print(f"{told}steering.train_feedback --config configs/clip_feedback.yaml model={backbone}", file=sys.stderr)
        raise SystemExit(2)


def main(argv: list[str] | None = None) -> None:
    """Train the backbone that a configuration describes."""
    config = BackboneTraining.from_command_line(__doc__.splitlines()[0], argv)
    refuse_clip(config.backbone)
    require_packages("accelerate", "datasets", "tensorboard")
    train(config)


if __name__ == "__main__":
    main()
