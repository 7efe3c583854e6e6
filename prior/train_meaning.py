"""Train a membership prior: `accelerate launch -m prior.train_meaning --config configs/meaning_lite.yaml`.

The network is small, and the texts are embedded once, so a run takes some minutes on one CPU core. The same command
resumes an interrupted run exactly, because every text and every noise is drawn from the seed and the step.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lrm_base.card import load_weights
from lrm_base.checkpoint import agree, load_latest_checkpoint, save_checkpoint, start_accelerator
from lrm_base.config import Config, Count, TrainingSeed
from lrm_base.extras import require_packages
from lrm_base.profiles import classifier_profiles
from prior.captions import Vocabulary, with_article
from prior.class_names import SCALE
from prior.data import membership, read_held_out
from prior.meaning import MeaningPrior
from prior.meaning_data import Embedder, build_meaning_texts, read_other_nouns
from prior.text import TextEncoder


class MeaningTraining(Config):
    """Everything that decides a run.

    Attributes:
        classes: a table of classes as JSON, see `prior.class_table`.
        nouns: a `wnid<TAB>lemma, lemma` file of WordNet's nouns.
        held_out: a JSON file of words that must not be trained on; see `prior.data.read_held_out`.
        text_encoder: a folder, or a name of OpenCLIP's.
        text_pretrained: for a name, OpenCLIP's tag or a file of weights.
        prototypes: a safetensors file that `lrm_core.prototypes` wrote. Goals are mixed from its last pass.
        classifier: without prototypes, a safetensors file with one matrix (M, d), from which profiles are estimated.
            With neither, the profile of a class is that class alone.
        width: inner width of the network.
        dropout: how often an inner unit is hidden.
        text_noise: the greatest length of the noise that is added to a text, whose own length is 1.
        known_weight: weight of the network's last column in the loss, beside the sum over the classes.
        group_share, near_share, far_share, temperature, far, near: see `prior.meaning_data.build_meaning_texts`.
    """

    name: str
    classes: str
    nouns: str | None = None
    held_out: str | None = None
    text_encoder: str
    text_pretrained: str | None = None
    prototypes: str | None = None
    classifier: str | None = None
    run_folder: str
    width: Count = 768
    dropout: float = 0.2
    text_noise: float = 0.4
    known_weight: float = 5.0
    group_share: float = 0.25
    near_share: float = 0.15
    far_share: float = 0.25
    temperature: float = 0.04
    far: float = 0.55
    near: float = 0.8
    steps: Count = 2000
    batch_size: Count = 384
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    precision: Literal["no", "bf16"] = "no"
    seed: TrainingSeed = 0
    checkpoint_minutes: float = 1.0


def load_profiles(config: MeaningTraining, count: int) -> tuple[Float[Tensor, "m k"], dict[str, Any]]:
    """The mean output of each class, (M, M) in logits, and what the card says of the backbone.

    Raises:
        ValueError: both a file of prototypes and a classifier are given, or the file does not fit `count` classes.
    """
    if config.prototypes and config.classifier:
        raise ValueError("prototypes and classifier: expected at most one of them, got both")
    if config.prototypes:
        tensors, card = load_weights(config.prototypes)
        mean = tensors.get("mean")
        if mean is None or mean.ndim != 3 or mean.shape[1:] != (count, count):
            shapes = {key: tuple(value.shape) for key, value in tensors.items()}
            raise ValueError(f"{config.prototypes}: expected mean (passes, {count}, {count}), got {shapes}")
        return mean[-1], {key: card[key] for key in ("backbone", "backbone_sha256") if key in card}
    if config.classifier:
        tensors, card = load_weights(config.classifier)
        found = [value for value in tensors.values() if value.ndim == 2 and len(value) == count]
        if len(found) != 1:
            raise ValueError(f"{config.classifier}: expected one matrix of {count} rows, got {len(found)}")
        about = {"backbone": card.get("name"), "backbone_sha256": card.get("sha256")}
        return SCALE * classifier_profiles(found[0]), about
    return SCALE * torch.eye(count), {}


@torch.no_grad()
def understood(prior: MeaningPrior, vocabulary: Vocabulary, encoder: TextEncoder) -> dict[str, float]:
    """How often the class of the highest membership is one that the word means, and how known the words are.

    Returns:
        Shares of the class names, synonyms and hypernyms: `member/name`, `member/synonym`, `member/is_a`; and the mean
        of `known` over all of them.
    """
    nouns = vocabulary.nouns()
    texts = [with_article(noun) for noun, _, _ in nouns]
    embeddings = torch.cat([encoder.encode(texts[start : start + 512]) for start in range(0, len(texts), 512)])
    right = membership([labels for _, labels, _ in nouns], len(vocabulary.names)).to(embeddings)
    hits = right.gather(1, prior.members(embeddings).argmax(1, keepdim=True)).flatten()
    metrics = {}
    for kind in ("name", "synonym", "is_a"):
        rows = [row for row, (_, _, of) in enumerate(nouns) if of == kind]
        if rows:
            metrics[f"member/{kind}"] = float(hits[rows].mean())
    return {**metrics, "known": float(prior.known(embeddings).mean())}


def train(config: MeaningTraining) -> Path:
    """Run or resume a training, and return the folder that holds the finished prior.

    Raises:
        ValueError: a file is missing, was altered, or does not fit the table of classes.
    """
    run = Path(config.run_folder)
    accelerator = start_accelerator(run, config.precision, "tensorboard")
    main = accelerator.is_main_process
    torch.manual_seed(config.seed)

    vocabulary = Vocabulary.load(config.classes, read_held_out(config.held_out))
    profiles, about = load_profiles(config, len(vocabulary.names))
    encoder = TextEncoder.load(config.text_encoder, config.text_pretrained, str(accelerator.device))
    others = read_other_nouns(config.nouns, vocabulary) if config.nouns else {}
    with accelerator.main_process_first():  # the other processes then read the embeddings from the folder
        texts = build_meaning_texts(
            vocabulary,
            others,
            Embedder(encoder, run / "embeddings"),
            group_share=config.group_share,
            near_share=config.near_share,
            far_share=config.far_share,
            temperature=config.temperature,
            far=config.far,
            near=config.near,
            seed=config.seed,
        )

    prior = MeaningPrior(encoder.width, profiles, config.width, config.dropout)
    last = prior.network[-1]
    assert isinstance(last, torch.nn.Linear)
    torch.nn.init.constant_(last.bias[:-1], -5.0)  # most classes are not meant
    optimizer = torch.optim.AdamW(prior.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    prepared, optimizer = accelerator.prepare(prior, optimizer)
    prior = accelerator.unwrap_model(prepared)
    resumed = load_latest_checkpoint(accelerator, run / "checkpoints") or {"step": 0}
    step: int = resumed["step"]
    saved = time.monotonic()
    bar = tqdm(total=config.steps, initial=step, desc="meaning", disable=not main, mininterval=5)
    while step < config.steps:
        prepared.train()
        seed = (config.seed * 1_000_003 + step) * accelerator.num_processes + accelerator.process_index
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # dropout draws from the global generator
        text, target = texts.draw(config.batch_size, generator)
        length = config.text_noise * torch.rand(len(text), 1, generator=generator)
        text = text + length * torch.randn(text.shape, generator=generator) / text.shape[1] ** 0.5
        rate = config.learning_rate * min(1.0, (step + 1) / 100) * (1 + math.cos(math.pi * step / config.steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        with accelerator.autocast():
            logits = prepared(text.to(accelerator.device))
        losses = F.binary_cross_entropy_with_logits(logits.float(), target.to(logits.device), reduction="none")
        loss = (losses[:, :-1].sum(1) + config.known_weight * losses[:, -1]).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        bar.update()
        if step % 25 == 0:
            accelerator.log({"loss": loss.item(), "learning_rate": rate}, step=step)
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        due = agree(accelerator, time.monotonic() - saved > config.checkpoint_minutes * 60)
        if due or step == config.steps:
            saved = time.monotonic()
            save_checkpoint(accelerator, run / "checkpoints", step, {})
    bar.close()

    final = run / "model"
    if main:
        card = {
            "name": config.name,
            "licence": "MIT",
            **about,
            "text_encoder": encoder.name,
            "measured": understood(prior.eval(), vocabulary, encoder),
            "training": config.to_dict(),
        }
        prior.save(final / "prior.safetensors", card)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return final


def main(argv: list[str] | None = None) -> None:
    """Train the prior that a configuration describes."""
    config = MeaningTraining.from_command_line((__doc__ or "").splitlines()[0], argv)
    require_packages("accelerate")
    train(config)


if __name__ == "__main__":
    main()
