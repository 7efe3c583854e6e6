r"""Write the outputs of a trained backbone for every image of a data set. The prior is trained on them.

    python -m lrm_core.outputs --model runs/lrm_mini/model --source ../shared/data/tiny_imagenet \
        --output runs/outputs.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from lrm_base.card import save_weights
from lrm_base.checks import whole_number
from lrm_base.data import DataConfig, Images, Split, load_images, only_rows, ordered_batches
from lrm_base.extras import require_packages
from lrm_core.prototypes import Prototypes
from lrm_core.published_backbones import open_backbone
from lrm_core.weights import held_out_rows


def write_outputs(
    model_path: str | Path,
    source: str,
    split: Split,
    output: str | Path,
    passes: int,
    workers: int,
    limit: int | None = None,
    only: Mapping[str, str] | None = None,
    prototypes: str | Path | None = None,
) -> None:
    """Write unsteered outputs of the last pass, `outputs` (n, M) logits, and `labels` (n,), as safetensors.

    Args:
        model_path: a model's folder, or the name of a published model.
        source, split: see `lrm_base.data`.
        output: the ….safetensors file to write.
        workers: number of loader processes.
        limit: the number of images, from the first on; None means all. The images of Tiny ImageNet are shuffled.
        only: values of columns of the data set; rows with other values are left out.
        prototypes: a file of `lrm_core.prototypes`. A class without an image gets its mean output there, since a prior
            needs one of every class that words mean.

    Raises:
        ValueError: a number is out of range, or the prototypes are of another model. Or `open_backbone`, `load_images`,
            `only_rows` or `Prototypes.load` raises it.
    """
    passes, workers = whole_number("passes", passes, 1), whole_number("workers", workers, 0)
    limit = None if limit is None else whole_number("limit", limit, 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, preprocessing, card = open_backbone(model_path, device)
    config = DataConfig(source=source, num_holdout=held_out_rows(card))
    means = None if prototypes is None else Prototypes.load(prototypes)
    if means is not None and means.card.get("backbone_sha256") != card["sha256"]:
        raise ValueError(f"prototypes: {prototypes} belongs to another model than {model_path}")
    data = only_rows(load_images(config, split), only or {})
    images = Images(data if limit is None else data.select(range(min(limit, len(data)))), preprocessing.size)
    outputs, labels = [], []
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
        for pixels, answer in tqdm(ordered_batches(images, 256, workers), desc="outputs", unit="batch"):
            inputs = preprocessing.normalise(pixels.to(device).float() / 255)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            outputs.append(model.rollout(inputs, passes)[-1].float().cpu())
            labels.append(answer)
    if means is not None:
        seen = torch.bincount(torch.cat(labels), minlength=len(means.names))
        lacking = torch.nonzero(seen == 0)[:, 0]
        outputs.append(means.mean[-1][lacking])
        labels.append(lacking)
    tensors = {"outputs": torch.cat(outputs), "labels": torch.cat(labels)}
    about = {"backbone": card["name"], "backbone_sha256": card["sha256"], "passes": passes, "split": split}
    save_weights(output, tensors, {**about, "classes": card["classes"]}, half=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder, or a published model such as alexnet_lrm3")
    parser.add_argument("--source", required=True, help="data set: folder or hub name, see lrm_base.data")
    parser.add_argument("--split", default="train", choices=["train", "holdout", "valid"])
    parser.add_argument("--output", required=True, help="….safetensors to write")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--limit", type=int, help="only the first so many images")
    parser.add_argument("--only", metavar="COLUMN=VALUE", help="only the images with this value of a column")
    parser.add_argument(
        "--prototypes", metavar="FILE", help="mean outputs (lrm_core.prototypes) for classes without an image"
    )
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args()
    require_packages("datasets")
    write_outputs(
        given.model,
        given.source,
        given.split,
        given.output,
        given.passes,
        given.workers,
        given.limit,
        dict([given.only.split("=", 1)]) if given.only else {},
        given.prototypes,
    )


if __name__ == "__main__":
    main()
