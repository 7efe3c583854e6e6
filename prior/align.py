"""Train the image tower of a text encoder: `accelerate launch -m prior.align --config configs/text_mini.yaml`.

The text tower is already trained and stays frozen. A tiny vision transformer learns to answer an image with the
embedding of a text that names it. This is locked-image tuning (LiT, Zhai et al. 2022) with the text locked instead.
Unusual: an image is compared with captions of all classes, not with those of its batch. The captions are drawn anew for
every batch from names, synonyms and templates.
"""

from __future__ import annotations

import math
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from lrm_base.checkpoint import agree, load_latest_checkpoint, save_checkpoint, start_accelerator
from lrm_base.data import Images, augment, load_images, ordered_batches, training_batches
from lrm_base.extras import require_packages
from prior.captions import Vocabulary, fill, templates_for
from prior.text import TextEncoder, open_folder
from prior.text_model import TextConfig, save_text_model

if TYPE_CHECKING:
    from accelerate import Accelerator

TEMPLATES_TO_MEASURE = ("{name}", "a photo of {a}", "the {name}")


class ImageAligner(nn.Module):
    """An OpenCLIP model's image tower and its loss against caption embeddings.

    Args:
        visual: the image tower.
        mean, std: of each channel of the pixels that it expects, for pixels in 0–1.
        scale: factor of the cosines before the softmax. It is learned, and this is its start.
    """

    def __init__(self, visual: nn.Module, mean: list[float], std: list[float], scale: float = 20.0) -> None:
        super().__init__()
        self.visual = visual
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.register_buffer("mean", rearrange(torch.tensor(mean), "c -> c 1 1"), persistent=False)
        self.register_buffer("std", rearrange(torch.tensor(std), "c -> c 1 1"), persistent=False)

    def embed(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n"]:
        """Embeddings of unit length. Pixels are in 0–1."""
        mean: Any = self.mean
        std: Any = self.std
        return F.normalize(self.visual((pixels - mean) / std).float(), dim=-1)

    def forward(self, pixels: Float[Tensor, "b 3 h w"], captions: Float[Tensor, "c n"], labels: Tensor) -> Tensor:
        """Cross-entropy over the captions, one for each class. `labels`: (b,), the classes of the images."""
        return F.cross_entropy(self.log_scale.exp() * self.embed(pixels) @ captions.T, labels, label_smoothing=0.05)


def caption_bank(encoder: TextEncoder, vocabulary: Vocabulary) -> list[Float[Tensor, "k n"]]:
    """For each class, the unit-length embeddings of its name and synonyms in every template."""
    bank = []
    for name, synonyms in zip(vocabulary.names, vocabulary.synonyms, strict=True):
        texts = [fill(template, noun) for noun in (name, *synonyms) for template in templates_for(noun)]
        bank.append(encoder.encode(texts))
    return bank


def class_embeddings(encoder: TextEncoder, names: tuple[str, ...]) -> Float[Tensor, "c n"]:
    """The mean embedding of each class name in a few templates, of unit length, as in CLIP's zero-shot classifier."""
    parts = [encoder.encode([fill(template, name) for name in names]) for template in TEMPLATES_TO_MEASURE]
    return F.normalize(torch.stack(parts).mean(0), dim=-1)


@torch.no_grad()
def zero_shot(aligner: ImageAligner, images: Images, classes: Float[Tensor, "c n"]) -> dict[str, float]:
    """How often an image's class is the nearest class embedding (top 1), or among the nearest five (top 5)."""
    aligner.eval()
    first = fifth = count = 0
    for pixels, labels in ordered_batches(images, 256):
        scaled = pixels.to(classes.device).float() / 255
        best = (aligner.embed(scaled) @ classes.T).topk(5, dim=1).indices.cpu()
        first += int((best[:, 0] == labels).sum())
        fifth += int((best == labels[:, None]).any(1).sum())
        count += len(labels)
    aligner.train()
    return {"zero_shot/top1": first / count, "zero_shot/top5": fifth / count}


def align(config: TextConfig) -> Path:
    """Run or resume the alignment of the model in `run_folder/model`, and write it back with its image tower.

    Returns:
        The model folder.

    Raises:
        ValueError: the configuration has no `align` part, or a file is missing or was altered.
    """
    if config.align is None:
        raise ValueError("expected a configuration with an `align` part, got none")
    settings, run = config.align, Path(config.run_folder)
    accelerator = start_accelerator(run, config.precision, "align")
    main = accelerator.is_main_process
    torch.manual_seed(config.seed)

    model, card = open_folder(run / "model", accelerator.device)
    if settings.patch_dropout > 0:
        from open_clip.transformer import PatchDropout

        model.visual.patch_dropout = PatchDropout(settings.patch_dropout)  # no weights; off outside training
    encoder = TextEncoder.load(run / "model", device=accelerator.device)
    vocabulary = Vocabulary.load(config.classes)
    bank, classes = caption_bank(encoder, vocabulary), class_embeddings(encoder, vocabulary.names)
    aligner = ImageAligner(
        model.visual.requires_grad_(True), card["preprocessing"]["mean"], card["preprocessing"]["std"]
    )
    optimizer: Any = torch.optim.AdamW(
        [
            {"params": [p for p in aligner.parameters() if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in aligner.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )
    prepared, optimizer = accelerator.prepare(aligner, optimizer)

    size = config.vision.image_size
    images = Images(load_images(settings.data, "train"), size, in_memory=settings.data.in_memory)
    valid = load_images(settings.data, "valid")
    valid = Images(valid.select(range(min(settings.num_validation, len(valid)))), size)
    progress = load_latest_checkpoint(accelerator, run / "align") or {"epoch": 0, "batch": 0, "step": 0}
    step: int = progress["step"]
    saved = time.monotonic()
    measured: dict[str, float] = {}

    for epoch in range(progress["epoch"], settings.epochs):
        loader = accelerator.prepare(training_batches(images, settings.batch_size, config.seed, epoch))
        skip = progress["batch"] if epoch == progress["epoch"] else 0
        total = len(loader) * settings.epochs
        total = total if settings.max_steps is None else min(total, settings.max_steps)
        batches = accelerator.skip_first_batches(loader, skip) if skip else loader
        bar = tqdm(batches, desc=f"align {epoch}", initial=skip, total=len(loader), disable=not main, mininterval=5)
        for batch, (pixels, labels) in enumerate(bar, start=skip):
            if step >= total:
                break
            warmup = min(1.0, (step + 1) / max(1, total // 10))
            rate = settings.learning_rate * warmup * (1 + math.cos(math.pi * step / total)) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
            seed = (config.seed * 1_000_003 + step) * accelerator.num_processes + accelerator.process_index
            loss = _step(prepared, accelerator, pixels, labels, bank, size, seed)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % 25 == 0:
                accelerator.log({"align/loss": loss.item(), "align/learning_rate": rate}, step=step)
                bar.set_postfix({"loss": f"{loss.item():.3f}"}, refresh=False)
            if agree(accelerator, time.monotonic() - saved > config.checkpoint_minutes * 60):
                saved = time.monotonic()
                save_checkpoint(accelerator, run / "align", step, {"epoch": epoch, "batch": batch + 1})
        if main:
            measured = zero_shot(aligner, valid, classes)
            accelerator.log(measured, step=step)
            tqdm.write(f"align {epoch} · " + " · ".join(f"{name} {value:.4f}" for name, value in measured.items()))
        save_checkpoint(accelerator, run / "align", step, {"epoch": epoch + 1, "batch": 0})
        if settings.max_steps is not None and step >= settings.max_steps:
            break

    if main:
        measured = measured or zero_shot(aligner, valid, classes)
        with torch.no_grad():
            model.logit_scale.copy_(aligner.log_scale)
        save_text_model(run / "model", model, config, card["measured"] | measured)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    accelerator.free_memory()
    return run / "model"


def _step(
    prepared: nn.Module,
    accelerator: Accelerator,
    pixels: UInt8[Tensor, "b 3 h w"],
    labels: Tensor,
    bank: list[Tensor],
    size: int,
    seed: int,
) -> Tensor:
    """The loss of one batch. Its crops and captions depend on the seed alone."""
    chooser = random.Random(seed)
    captions = torch.stack([texts[chooser.randrange(len(texts))] for texts in bank])
    inputs = augment(pixels, size, torch.Generator().manual_seed(seed), min_scale=0.5)
    with accelerator.autocast():
        return prepared(inputs, captions, labels)


def main(argv: list[str] | None = None) -> None:
    """Align the image tower of the model that a configuration describes."""
    config = TextConfig.from_command_line(__doc__.splitlines()[0], argv)
    require_packages("accelerate", "datasets")
    align(config)


if __name__ == "__main__":
    main()
