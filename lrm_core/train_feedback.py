"""Train feedback beside a frozen backbone: `python -m lrm_core.train_feedback --config configs/feedback_lite.yaml`.

Scenes are composed of labelled pictures. What lies before the feedback is computed once for each scene and kept in the
run folder (`lrm_core.frozen`), so that a step costs only the steps that feedback reaches. Without `scenes` every step
composes new scenes, as a GPU can. The same command resumes an interrupted run exactly.

Each step looks at every scene three times: for something that is there, for something that is not (half of these are
what the first pass takes for likeliest, the near misses), and without a goal. The loss is the cross-entropy of "it is
there", read from the support of the goal before and after. Looks for what is absent, and looks without a goal, are also
asked what is there. In a picture of one thing, a look without a goal, and a look for that thing, are to see what the
first pass sees.

Unusual: some classes have a hundred times as many pictures as others. So that feedback does not learn which classes are
common, absent goals are drawn as often as the things in scenes, and the question what is there is asked of outputs to
which the log of each class's frequency was added (logit adjustment, Menon et al. 2021).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lrm_base.checkpoint import start_accelerator
from lrm_base.config import Config, Count, TrainingSeed
from lrm_base.extras import require_packages
from lrm_base.profiles import classifier_profiles
from lrm_core.descent import descend
from lrm_core.frozen import Waist
from lrm_core.matched import MatchedFeedback
from lrm_core.model import LRM, Steer, Stem
from lrm_core.pictures import PictureConfig, Pictures, kept_scenes
from lrm_core.train import begin_looking, refuse_clip
from lrm_core.trials import near_misses
from lrm_core.weights import build, load_published, save_model, start_from

HEAD = (0.2, 0.2, 1.5)  # where the head starts: the support of what is there is below zero in most scenes
HEAD_RATE = 10.0  # its learning rate, as a multiple of the feedback's


class FeedbackTraining(Config):
    """All settings of a run.

    Attributes:
        classes: the table of the model's classes, a JSON file.
        pictures: what scenes are composed of; see `lrm_core.pictures`.
        kinds: weight of each kind of scene.
        size: side of a scene in pixels.
        scenes: how many scenes to compose and keep; None composes new ones in every step.
        scenes_folder: where they are kept, so that several runs may share them.
        init_from: a trained model whose feedback it starts from.
        goals: whether looks have goals. Without, every look has the same constant in place of its goal, and the paths
            from the classifier end with codes of zero: whatever the goal, such a model does the same. It is the twin
            that learned the same scenes, which a model that looks for something must surpass.
        near: share of the absent goals that are near misses.
        noise: standard deviation, in logits, of what is added to a goal.
        naming: weight of the question what is there.
        keeping: weight of the demand that a look at a picture of one thing sees what the first pass sees, without a
            goal and with that thing as goal.
    """

    name: str
    backbone: str = "efficientnet_lite0"
    classes: str
    pictures: list[PictureConfig]
    kinds: dict[str, float] = {"single": 0.15, "blend": 0.25, "side": 0.15, "inset": 0.25, "grid": 0.2}
    size: Count = 256
    scenes: Count | None = None
    scenes_folder: str = "runs/scenes"
    init_from: str | None = None
    goals: bool = True
    near: float = 0.5
    noise: float = 0.5
    naming: float = 0.1
    keeping: float = 0.3
    steps: Count
    batch_size: Count = 32
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    seed: TrainingSeed = 0
    run_folder: str
    checkpoint_minutes: float = 3.0


class Looking(nn.Module):
    """The model, and the head that reads presence from supports, as one module. Only feedback and head learn.

    The goals are profiles of the classifier (`lrm_base.profiles`), so no class needs a photograph. Outputs for
    photographs, means of them and goals from words serve as goals later.
    """

    profiles: Tensor
    frequencies: Tensor

    def __init__(
        self, model: LRM, output: str, profiles: Float[Tensor, "m m"], frequencies: Float[Tensor, " m"]
    ) -> None:
        super().__init__()
        self.model, self.output = model, output
        self.head = nn.Parameter(torch.tensor(HEAD))
        self.register_buffer("profiles", profiles, persistent=False)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(
        self, stem: Stem, labels: Int[Tensor, "b k"], config: FeedbackTraining, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, values to log) for scenes whose objects have these labels; −1 stands for no object."""
        with torch.no_grad():
            first, state = self.model.step(stem)
        present, absent = choose(first, labels, config.near, self.frequencies, generator)
        classes = torch.cat([present, absent])
        if config.goals:
            goals = self.profiles[classes]
            goals = goals + config.noise * torch.randn(goals.shape, generator=generator).to(goals)
            twice = Stem({node: torch.cat([value, value]) for node, value in stem.values.items()})
            steer = Steer(self.output, goals)
            state_twice = type(state)({k: torch.cat([v, v]) for k, v in state.activations.items()}, state.num_passes)
            after, _ = self.model.step(twice, state_twice, [steer])
            free, _ = self.model.step(stem, state)
        else:
            free, _ = self.model.step(stem, state, [Steer(self.output, torch.zeros_like(first))])
            after = torch.cat([free, free])
        before = torch.cat([first, first])
        supports = torch.stack([support_of(after, classes), support_of(before, classes)], 1)
        score = supports @ self.head[:2] + self.head[2]
        target = torch.cat([torch.ones(len(present)), torch.zeros(len(absent))]).to(score)
        looking = F.binary_cross_entropy_with_logits(score, target)
        common = self.frequencies.log()
        naming = named(free + common, labels)
        if config.goals:
            naming = (naming + named(after[len(present) :] + common, labels)) / 2
        single = (labels >= 0).sum(1) == 1
        keeping = kept_answers(free, first, single)
        if config.goals:
            keeping = (keeping + kept_answers(after[: len(present)], first, single)) / 2
        right = ((score > 0) == (target > 0)).float().mean()
        return looking + config.naming * naming + config.keeping * keeping, {
            "looking": looking.detach(),
            "naming": naming.detach(),
            "keeping": keeping.detach(),
            "right": right,
        }


def support_of(output: Float[Tensor, "b m"], classes: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Log-odds, in nats, of one class against all others."""
    own = output.gather(1, classes[:, None])
    return own[:, 0] - output.scatter(1, classes[:, None], -torch.inf).logsumexp(1)


def named(output: Float[Tensor, "b m"], labels: Int[Tensor, "b k"]) -> Tensor:
    """Mean surprise, in nats, at the objects of the scenes: minus the log of the probability of any of them."""
    there = output.gather(1, labels.clamp(min=0)).masked_fill(labels < 0, -torch.inf)
    return (output.logsumexp(1) - there.logsumexp(1)).mean()


def kept_answers(after: Float[Tensor, "b m"], first: Float[Tensor, "b m"], single: Bool[Tensor, " b"]) -> Tensor:
    """Mean divergence, in nats, of a later pass's answer from the first pass's, over the scenes that show one thing."""
    divergence = F.kl_div(after.log_softmax(1), first.log_softmax(1), reduction="none", log_target=True).sum(1)
    return (divergence * single).sum() / single.sum().clamp(min=1)


def choose(
    first: Float[Tensor, "b m"],
    labels: Int[Tensor, "b k"],
    near: float,
    frequencies: Float[Tensor, " m"],
    generator: torch.Generator,
) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
    """A class that is in each scene, and one that is not. A share `near` of the absent ones are near misses.

    Both are drawn by the classes' frequencies, so that a class says nothing about whether it is there.
    """
    count = len(first)
    chance = torch.rand(labels.shape, generator=generator).to(first).masked_fill(labels < 0, -1)
    present = labels.gather(1, chance.argmax(1, keepdim=True))[:, 0]
    nearest = near_misses(first, labels, generator, frequencies)
    absent = F.pad(frequencies.repeat(count, 1), (0, 1)).scatter(1, labels % (len(frequencies) + 1), 0.0)[:, :-1]
    anything = torch.multinomial(absent.cpu(), 1, generator=generator)[:, 0].to(nearest)
    is_near = (torch.rand(count, generator=generator) < near).to(first.device)
    return present, torch.where(is_near, nearest, anything)


def train(config: FeedbackTraining) -> Path:
    """Run or resume a training. Returns the folder of the finished model."""
    run = Path(config.run_folder)
    accelerator = start_accelerator(run, "no", "tensorboard")
    main = accelerator.is_main_process
    torch.manual_seed(config.seed)
    classes = json.loads(Path(config.classes).read_text())
    model, entry = build(config.backbone, len(classes))
    load_published(model, entry)
    started = None if config.init_from is None else start_from(model, classes, config.init_from)
    begin_looking(model, entry, 0.0)
    model.eval().to(accelerator.device).to(memory_format=torch.channels_last)
    model.backbone.requires_grad_(False)
    classifier = model.backbone.get_submodule(entry.output)
    assert isinstance(classifier, nn.Linear)
    waist = Waist.of(model, config.size, config.size)
    pictures = Pictures(config.pictures, classes)
    normalise = entry.preprocessing.normalise
    with accelerator.main_process_first():
        folder = Path(config.scenes_folder)
        kept = kept_scenes(folder, pictures, config.kinds, config.size, config.scenes, config.seed, waist, normalise)
    profiles = classifier_profiles(classifier.weight.detach())
    looking = Looking(model, entry.output, profiles, kept.frequencies(len(classes))).to(accelerator.device)
    for path in model.paths.values():  # the norm only brings activations to a common scale
        path.norm.requires_grad_(False)
        path.gain.requires_grad_(False)
    paths = [parameter for parameter in model.paths.parameters() if parameter.requires_grad]
    learned = [*paths, looking.head]
    groups = [
        {"params": paths, "weight_decay": config.weight_decay, "scale": 1.0},
        {"params": [looking.head], "weight_decay": 0.0, "scale": HEAD_RATE},
    ]
    optimizer: Any = torch.optim.AdamW(groups, lr=config.learning_rate)
    prepared, optimizer = accelerator.prepare(looking, optimizer)

    def loss_of(generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        values, labels = kept.draw(config.batch_size, generator)
        stem = waist.stem(values.to(accelerator.device).contiguous(memory_format=torch.channels_last))
        return prepared(stem, labels.to(accelerator.device), config, generator)

    smooth = descend(accelerator, optimizer, learned, config, run, loss_of)
    final = run / "model"
    if not config.goals:
        for connection in model.connections:
            path = model.paths[connection.key]
            if connection.source == entry.output and isinstance(path, MatchedFeedback):
                torch.nn.init.zeros_(path.code.weight)
    if main:
        save_model(
            final / "backbone.safetensors",
            model,
            name=config.name,
            backbone=config.backbone,
            preprocessing=entry.preprocessing,
            output=entry.output,
            classes=classes,
            training=config.to_dict() | {"started_from": started},
            measured=smooth,
            keeps_published=True,
        )
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return final


def main(argv: list[str] | None = None) -> None:
    """Train the feedback that a configuration describes."""
    config = FeedbackTraining.from_command_line(__doc__.splitlines()[0], argv)
    refuse_clip(config.backbone)
    require_packages("accelerate", "datasets")
    train(config)


if __name__ == "__main__":
    main()
