"""Train the feedback of a CLIP's image tower: `python -m steering.train_feedback --config configs/clip_feedback.yaml`.

The tower stays as it is. Of the feedback, only the projections learn; they start at the votes (`lrm_core.joint`).
Scenes are composed of labelled or captioned pictures. What lies before the feedback is computed once for each scene and
kept in the run folder. The same command resumes an interrupted run exactly.

Each step looks at every scene twice: for something that is there, and for something that is not. Some of the latter are
near misses: what the first pass takes for likeliest. The loss is the cross-entropy of "it is there", read from the
support of the goal after the look: its log-odds among the bank of common things, as a look reads it.

Unusual: the gain stays 0, so that passes without a goal are those of the bare tower. Looks are trained at the strength
that an untrained tower looks with; `steer calibrate` chooses one anew.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lrm_base.checkpoint import start_accelerator
from lrm_base.config import Config, Count, TrainingSeed
from lrm_base.extras import require_packages
from lrm_core.descent import descend
from lrm_core.frozen import Waist
from lrm_core.joint import OUTPUT, set_votes
from lrm_core.joint_feedback import FEEDBACK, projections, save_feedback
from lrm_core.model import LRM, State, Steer, Stem
from lrm_core.pictures import PictureConfig, Pictures, kept_scenes
from lrm_core.train_feedback import choose
from steering.catalogue import calibration_folder
from steering.feedback_trials import Held, auroc, hold_out, read_pictures
from steering.joint import NEVER, JointNetwork
from steering.labelled import read_labelled
from steering.open_words import DEFAULTS, STRENGTH, VERDICTS
from steering.pairs import joint_parts
from steering.steerer import Steerer

HEAD = (0.2, 1.0)  # where the head starts: the support of what is there is below zero in most scenes
HEAD_RATE = 1.0  # its learning rate, as a multiple of that of the projections


class ClipFeedbackTraining(Config):
    """All settings of a run.

    Attributes:
        model: a CLIP, such as `clip:NAME:TAG`; see `prior.clip.open_clip_model`.
        source: pictures and what they show; see `steering.labelled.read_labelled`.
        images: at most so many pictures, drawn at random.
        test_share: share of the pictures that is held out, to measure what was learned.
        trials: number of held-out scenes of each kind.
        kinds: weight of each kind of scene.
        scenes: how many scenes to compose and keep.
        near: share of the absent goals that are near misses.
        learning_rate: of each projection, in parts of how large its weights are at the start.
        pull: weight of the demand that the projections stay where they started, as the square of their relative change.
        output: folder that gets `feedback.safetensors`; None means the one in which `steer` looks for it.
    """

    model: str
    source: str
    images: Count = 2000
    test_share: float = 0.2
    trials: Count = 100
    kinds: dict[str, float] = {"single": 0.15, "blend": 0.25, "side": 0.15, "inset": 0.25, "grid": 0.2}
    scenes: Count = 2000
    near: float = 0.5
    pull: float = 0.02
    steps: Count = 400
    batch_size: Count = 32
    learning_rate: float = 0.03
    seed: TrainingSeed = 0
    run_folder: str
    output: str | None = None
    checkpoint_minutes: float = 3.0


class Photographs(Pictures):
    """Pictures that were read already: pixels (n, 3, s, s) uint8, and labels (n,)."""

    def __init__(self, config: PictureConfig, pixels: Tensor, labels: Tensor) -> None:
        super().__init__([config], [])
        self.sets = [(pixels, labels)]


class Images(Waist):
    """What is kept of images whose tower runs whole, by hooks: the images."""

    def keep(self, images: Float[Tensor, "b 3 h w"]) -> Tensor:
        """The images themselves."""
        return images

    def stem(self, kept: Tensor) -> Stem:
        """The stem of the images."""
        return self.model.stem(kept)


class Seeking(nn.Module):
    """The tower with its feedback, and the head that reads presence from supports. Projections and head learn.

    Args:
        texts: (t, M), of unit length: what can be in a scene, and what is looked for.
        frequencies: (t,), how often each is in scenes.
    """

    texts: Tensor
    alike: Tensor
    rivals: Tensor
    bank: Tensor
    frequencies: Tensor

    def __init__(self, network: JointNetwork, texts: Float[Tensor, "t m"], frequencies: Float[Tensor, " t"]) -> None:
        super().__init__()
        self.model, self.scale = network.model, network.scale
        self.head = nn.Parameter(torch.tensor(HEAD))
        bank = network.bank
        among = dataclasses.replace(bank, embeddings=texts)
        self.register_buffer("texts", texts, persistent=False)
        self.register_buffer("alike", among.alike(texts), persistent=False)  # (t, t), what means the same
        self.register_buffer("rivals", ~bank.alike(texts), persistent=False)  # (t, c), what each is set against
        self.register_buffer("bank", bank.embeddings, persistent=False)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.start = {key: weight.detach().clone() for key, weight in projections(network.model).items()}

    def forward(
        self, stem: Stem, labels: Int[Tensor, "b k"], near: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, values to log) for scenes whose objects have these labels; −1 stands for no object."""
        with torch.no_grad():
            first, state = self.model.step(stem)
        there = self.alike[labels.clamp(min=0)] & (labels >= 0)[:, :, None]
        same = there.any(1)  # (b, t), what may not be absent
        likeness = self.scale * F.normalize(first, dim=-1) @ self.texts.T
        present, absent = choose(likeness.masked_fill(same, NEVER), labels, near, self.frequencies, generator)
        wanted = torch.cat([present, absent])
        after, _ = self.model.step(_twice(stem), _doubled(state), [Steer(OUTPUT, self.texts[wanted], STRENGTH)])
        support = self.support(after, wanted)
        score = support * self.head[0] + self.head[1]
        target = torch.cat([torch.ones(len(present)), torch.zeros(len(absent))]).to(score)
        counts = torch.cat([torch.ones_like(present).bool(), ~same.gather(1, absent[:, None])[:, 0]])
        looking = F.binary_cross_entropy_with_logits(score[counts], target[counts])
        right = ((score > 0) == (target > 0))[counts].float().mean()
        return looking, {"looking": looking.detach(), "right": right}

    def support(self, embedding: Float[Tensor, "b m"], wanted: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Log-odds, in nats, of a text among the bank, without what means the same; see `JointNetwork.support`."""
        seen = self.scale * F.normalize(embedding, dim=-1)
        others = (seen @ self.bank.T).masked_fill(~self.rivals[wanted], NEVER)
        return (seen * self.texts[wanted]).sum(-1) - others.logsumexp(-1)

    def moved(self) -> Tensor:
        """The mean over the destinations of how far a projection is from its start, squared, relative to its length."""
        now = projections(self.model)
        return torch.stack(
            [(now[key] - start.to(now[key])).square().sum() / start.square().sum() for key, start in self.start.items()]
        ).mean()


def _twice(stem: Stem) -> Stem:
    """The stem of the same images, once more after them."""
    count = max(len(value) for value in stem.values.values() if isinstance(value, Tensor) and value.ndim)
    return Stem(
        {
            place: torch.cat([value, value])
            if isinstance(value, Tensor) and value.ndim and len(value) == count
            else value
            for place, value in stem.values.items()
        }
    )


def _doubled(state: State) -> State:
    return State({name: torch.cat([value, value]) for name, value in state.activations.items()}, state.num_passes)


def waist_of(model: LRM, size: int) -> Waist:
    """What is kept of images of `size` × `size` pixels."""
    try:
        return Waist.of(model, size, size)
    except ValueError:  # the tower runs by hooks, or several values of its stem are needed
        return Images(model, "images", (3, size, size))


def train(config: ClipFeedbackTraining) -> Path:
    """Run or resume a training. Returns the file that was written.

    A verdict and a strength that were fitted to other feedback are removed from the folder of that file.

    Raises:
        ValueError: the model is no CLIP, or the pictures are too few or of too few things.
    """
    run = Path(config.run_folder)
    labelled = read_labelled(config.source)
    accelerator = start_accelerator(run, "no", "tensorboard")
    main, device = accelerator.is_main_process, accelerator.device
    torch.manual_seed(config.seed)
    steerer = Steerer.load(config.model, device=str(device))
    network, text = joint_parts(steerer)
    model = network.model
    set_votes(model, network.anatomy, network.bank.embeddings)  # what was trained before does not count
    pixels, labelled = read_pictures(network, text, labelled, config.images, config.seed)
    labels = torch.tensor(labelled.labels)
    is_held = hold_out(labels, config.test_share, config.seed)
    texts = text.encode(labelled.texts).to(device)
    size = network.preprocessing.size
    pictures = PictureConfig(source=labelled.source, size=size, limit=config.images)
    waist = waist_of(model, size)
    with accelerator.main_process_first():
        folder = run / f"scenes-{str(network.card['sha256'])[:16]}-{config.test_share:g}"
        kept = kept_scenes(
            folder,
            Photographs(pictures, pixels[~is_held], labels[~is_held]),
            config.kinds,
            size,
            config.scenes,
            config.seed,
            waist,
            network.preprocessing.normalise,
        )
    held = Held(network, texts, pixels[is_held], labels[is_held], config.trials, config.near, config.seed)
    before, untrained = held.supports(0.0), held.supports(STRENGTH)

    seeking = Seeking(network, texts, kept.frequencies(len(texts)).to(device)).to(device)
    learned = [weight.requires_grad_() for weight in projections(model).values()]
    groups = [{"params": [weight], "scale": float(weight.detach().square().mean().sqrt())} for weight in learned]
    groups.append({"params": [seeking.head], "scale": HEAD_RATE})
    optimizer: Any = torch.optim.Adam(groups, lr=config.learning_rate)
    prepared, optimizer = accelerator.prepare(seeking, optimizer)

    def loss_of(generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        values, shown = kept.draw(config.batch_size, generator)
        loss, log = prepared(waist.stem(values.to(device)), shown.to(device), config.near, generator)
        return loss + config.pull * seeking.moved(), log

    descend(accelerator, optimizer, [*learned, seeking.head], config, run, loss_of)
    output = Path(config.output) if config.output else calibration_folder(network.card["sha256"])
    if main:
        measured = {"first pass": before, "untrained votes": untrained, "trained": held.supports(STRENGTH)}
        card = {
            "model": network.card["name"],
            "backbone_sha256": network.card["sha256"],
            "strength": STRENGTH,
            "date": datetime.date.today().isoformat(),
            "data": {"source": labelled.source, "images": len(labels), "held_out": int(is_held.sum())},
            "measured": {name: auroc(supports, held.answers) for name, supports in measured.items()},
            "training": config.to_dict(),
        }
        save_feedback(output, model, card)
        for name in (VERDICTS, DEFAULTS):
            (output / name).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return output / FEEDBACK


def main(argv: list[str] | None = None) -> None:
    """Train the feedback that a configuration describes."""
    config = ClipFeedbackTraining.from_command_line(__doc__.splitlines()[0], argv)
    require_packages("accelerate", "tensorboard")
    try:
        path = train(config)
    except ValueError as error:
        print(f"steering.train_feedback: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for name, value in json.loads(path.with_suffix(".json").read_text())["measured"].items():
        print(f"AUROC of present and absent in held-out scenes, {name}: {value:.3f}")
    print(f"kept in {path}. Fit the verdict anew: steer calibrate FOLDER --model {config.model}")


if __name__ == "__main__":
    main()
