"""Train a prior, from start to finish: `accelerate launch -m prior.train --config configs/prior_mini.yaml`.

It leads from texts to what a classifier says of images, or with `pairs` to a CLIP's own embeddings of images.

dalle2-pytorch's `DiffusionPrior` trains our network to predict x₀, the clean vector (Ramesh et al. 2022). The same
command resumes an interrupted run exactly, because every pair and every noise is drawn from the seed and the step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from lrm_base.card import load_weights
from lrm_base.checkpoint import agree, load_latest_checkpoint, save_checkpoint, start_accelerator
from lrm_base.checks import finite_number
from lrm_base.config import Config, TrainingSeed
from lrm_base.extras import require_packages
from lrm_base.imagenet import imagenet_names
from prior.captions import Vocabulary, fill
from prior.data import Pairs, Texts, build_texts, membership, read_held_out, read_nouns
from prior.model import Prior
from prior.network import PriorNetwork
from prior.pairs import Captioned, CaptionPairs, about, measured
from prior.text import TextEncoder


class PriorTraining(Config):
    """Everything that decides a run.

    Attributes:
        pairs: for a CLIP, a safetensors file that `steering.pairs` wrote. Nothing else tells then what is learned: it
            stands in the place of `outputs`, `text_encoder`, `classes` and what belongs to them.
        test_share: share of these pairs that is held out; see `prior.pairs.Captioned.held_out`.
        outputs: for a classifier, a safetensors file that `lrm_core.outputs` wrote.
        text_encoder: a folder, or a name of OpenCLIP's.
        text_pretrained: for a name, OpenCLIP's tag or a file of weights.
        classes: a table of classes as JSON, or `imagenet` for the 1,000 names that torchvision carries.
        nouns: a `wnid<TAB>lemma, lemma` file of further nouns.
        held_out: a JSON file of words that must not be trained on; see `prior.data.read_held_out`.
        timesteps: number of time steps of the diffusion.
        text_drop: how often a text is hidden.
        text_noise: length of the noise that is added to a text, whose own length is 1.
        images_per_goal: how many outputs are averaged into one target.
        group_share, noun_share, temperature, nearest, synonym_handicap: see `prior.data.build_texts`.
    """

    name: str
    pairs: str | None = None
    test_share: float = 0.1
    outputs: str | None = None
    text_encoder: str | None = None
    text_pretrained: str | None = None
    classes: str | None = None
    nouns: str | None = None
    held_out: str | None = None
    run_folder: str
    width: int = 384
    depth: int = 4
    timesteps: int = 1000
    text_drop: float = 0.1
    images_per_goal: int = 4
    group_share: float = 0.2
    noun_share: float = 0.2
    temperature: float = 0.025
    nearest: float = 0.68
    synonym_handicap: float = 0.05
    epochs: int = 8
    steps_per_epoch: int = 400
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    text_noise: float = 0.0
    precision: Literal["no", "bf16"] = "no"
    seed: TrainingSeed = 0
    checkpoint_minutes: float = 4.0


def load_vocabulary(classes: str, held_out: Iterable[str] = ()) -> Vocabulary:
    """The vocabulary of a table of classes, or of ImageNet's 1,000 names for `imagenet`.

    Raises:
        ValueError: as `Vocabulary.load`.
    """
    if classes == "imagenet":
        return Vocabulary([{"name": name} for name in imagenet_names()], held_out)
    return Vocabulary.load(classes, held_out)


def load_texts(config: PriorTraining, encoder: TextEncoder) -> tuple[Vocabulary, Texts]:
    """The vocabulary without the held-out words, and a `prior.data.Texts` of all embedded texts."""
    assert config.classes is not None
    vocabulary = load_vocabulary(config.classes, read_held_out(config.held_out))
    nouns = read_nouns(config.nouns, vocabulary) if config.nouns else []

    def encode(texts: Sequence[str]) -> torch.Tensor:
        parts = [texts[i : i + 512] for i in range(0, len(texts), 512)]
        bar = tqdm(parts, desc="embedding texts", unit="batch", disable=len(parts) < 20)
        return torch.cat([encoder.encode(part).float().cpu() for part in bar])

    texts = build_texts(
        vocabulary,
        encode,
        nouns,
        group_share=config.group_share,
        noun_share=config.noun_share,
        temperature=config.temperature,
        nearest=config.nearest,
        synonym_handicap=config.synonym_handicap,
    )
    return vocabulary, texts


@torch.no_grad()
def understood(prior: Prior, vocabulary: Vocabulary, encoder: TextEncoder) -> dict[str, float]:
    """How often a goal's highest logit is that of a class which the word means.

    Returns:
        Shares of the class names, synonyms and hypernyms: `goal/name`, `goal/synonym`, `goal/is_a`.
    """
    metrics = {}
    for kind in ("name", "synonym", "is_a"):
        nouns = [(noun, labels) for noun, labels, k in vocabulary.nouns() if k == kind]
        if nouns:
            embeddings = encoder.encode([fill("{a}", noun) for noun, _ in nouns]).to(prior.mean)
            best = prior.goals(embeddings, num_samples=8).argmax(1).cpu()
            right = membership([labels for _, labels in nouns], len(vocabulary.names))
            metrics[f"goal/{kind}"] = float(right.gather(1, best[:, None]).mean())
    return metrics


@dataclass(frozen=True)
class Material:
    """What a prior learns from.

    Attributes:
        text_width: N, width of the text embeddings.
        mean, std: (M,), of what is predicted.
        draw: (count, generator, images for each) → text embeddings (b, N) and standardised targets (b, M).
        measure: what a prior of these can do, by name.
        about: what the card says of the backbone and the text encoder.
    """

    text_width: int
    mean: Tensor
    std: Tensor
    draw: Callable[[int, torch.Generator, int], tuple[Tensor, Tensor]]
    measure: Callable[[Prior], dict[str, float]]
    about: dict[str, Any]


def open_material(config: PriorTraining, device: str) -> Material:
    """What a configuration names.

    Raises:
        ValueError: keys for a CLIP and for a classifier are mixed, or one is missing; the table of classes does not fit
            the outputs; or a file is missing or was altered.
    """
    of_classifier = ("outputs", "text_encoder", "classes")
    every = (*of_classifier, "text_pretrained", "nouns", "held_out")
    given = [key for key in every if getattr(config, key) is not None]
    if config.pairs is not None:
        if given:
            raise ValueError(f"{given[0]}: got {getattr(config, given[0])!r} beside pairs, expected one of the two")
        return _of_pairs(config.pairs, config.test_share, config.seed)
    lacking = [key for key in of_classifier if key not in given]
    if lacking:
        raise ValueError(f"{lacking[0]}: got none, expected outputs, text_encoder and classes, or pairs for a CLIP")
    return _of_classes(config, device)


def _of_pairs(path: str, test_share: float, seed: int) -> Material:
    found, card = Captioned.load(path)
    trained_on, held_out = found.held_out(finite_number("test_share", test_share, 0, 0.9), seed)
    mean, std = trained_on.images.mean(0), trained_on.images.std(0).clamp(min=1e-5)
    pairs = CaptionPairs(replace(trained_on, images=(trained_on.images - mean) / std))

    def measure(prior: Prior) -> dict[str, float]:
        return measured(prior, trained_on, held_out)

    return Material(found.texts.shape[1], mean, std, pairs.draw, measure, about(trained_on, card))


def _of_classes(config: PriorTraining, device: str) -> Material:
    assert config.outputs is not None
    assert config.text_encoder is not None
    tensors, card = load_weights(config.outputs)
    outputs, labels = tensors["outputs"], tensors["labels"]
    mean, std = outputs.mean(0), outputs.std(0).clamp(min=1e-3)
    encoder = TextEncoder.load(config.text_encoder, config.text_pretrained, device)
    vocabulary, texts = load_texts(config, encoder)
    if len(vocabulary.names) != outputs.shape[1]:
        raise ValueError(
            f"{config.classes} has {len(vocabulary.names)} classes, but {config.outputs} holds outputs of "
            f"{outputs.shape[1]}; expected the same number"
        )
    pairs = Pairs(texts, (outputs - mean) / std, labels)

    def measure(prior: Prior) -> dict[str, float]:
        return understood(prior, vocabulary, encoder)

    told = {key: card[key] for key in ("backbone", "backbone_sha256", "passes")} | {"text_encoder": encoder.name}
    return Material(texts.embeddings.shape[1], mean, std, pairs.draw, measure, told)


def train(config: PriorTraining) -> Path:
    """Run or resume a training, and return the folder that holds the finished prior.

    Raises:
        ValueError: as `open_material`.
    """
    from dalle2_pytorch import DiffusionPrior

    run = Path(config.run_folder)
    accelerator = start_accelerator(run, config.precision, "tensorboard")
    main = accelerator.is_main_process
    torch.manual_seed(config.seed)

    material = open_material(config, str(accelerator.device))
    mean, std = material.mean, material.std

    network = PriorNetwork(material.text_width, len(mean), config.width, config.depth)
    diffusion = DiffusionPrior(
        network,
        image_embed_dim=len(mean),
        timesteps=config.timesteps,
        text_cond_drop_prob=config.text_drop,
        image_cond_drop_prob=0.0,
        condition_on_text_encodings=False,
        image_embed_scale=1.0,
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    prepared, optimizer = accelerator.prepare(diffusion, optimizer)
    resumed = load_latest_checkpoint(accelerator, run / "checkpoints") or {"step": 0}
    step: int = resumed["step"]
    total = config.epochs * config.steps_per_epoch
    saved = time.monotonic()
    prior = Prior(network, mean, std, config.timesteps).to(accelerator.device)
    bar = tqdm(total=total, initial=step, desc="prior", disable=not main, mininterval=5)
    while step < total:
        prepared.train()
        seed = (config.seed * 1_000_003 + step) * accelerator.num_processes + accelerator.process_index
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # dalle2-pytorch draws its times and noise from the global generator
        text, target = material.draw(config.batch_size, generator, config.images_per_goal)
        if config.text_noise:
            noise = torch.randn(text.shape, generator=generator) / text.shape[1] ** 0.5
            text = torch.nn.functional.normalize(text + config.text_noise * noise, dim=1)
        warm = min(1.0, (step + 1) / 100)
        rate = config.learning_rate * warm * (1 + math.cos(math.pi * step / total)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        with accelerator.autocast():
            # A clone, because dalle2-pytorch scales the tensor in place.
            loss = prepared(text_embed=text.to(accelerator.device), image_embed=target.clone().to(accelerator.device))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        bar.update()
        if step % 25 == 0:
            accelerator.log({"loss": loss.item(), "learning_rate": rate}, step=step)
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if step % config.steps_per_epoch == 0:
            if main:
                metrics = material.measure(prior.eval())
                accelerator.log(metrics, step=step)
                shown = {"loss": loss.item(), **metrics}
                tqdm.write(" · ".join([f"step {step}", *(f"{name} {value:.4f}" for name, value in shown.items())]))
            due = True
        else:
            due = agree(accelerator, time.monotonic() - saved > config.checkpoint_minutes * 60)
        if due:
            saved = time.monotonic()
            save_checkpoint(accelerator, run / "checkpoints", step, {})
    bar.close()

    final = run / "model"
    if main:
        card = {
            "name": config.name,
            "paper": "Ramesh et al., Hierarchical Text-Conditional Image Generation with CLIP Latents, 2022 (prior)",
            "licence": "MIT",
            **material.about,
            "statistics": "mean and std of the backbone's outputs are stored with the weights",
            "measured": material.measure(prior.eval()),
            "training": config.to_dict(),
        }
        prior.save(final / "prior.safetensors", card)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return final


def main(argv: list[str] | None = None) -> None:
    """Train the prior that a configuration describes."""
    config = PriorTraining.from_command_line(__doc__.splitlines()[0], argv)
    require_packages("accelerate", "dalle2_pytorch")
    train(config)


if __name__ == "__main__":
    main()
