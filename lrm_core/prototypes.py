r"""Prototypes: mean and standard deviation of a model's outputs over the images of each class, for every pass.

A class's mean output is the publication's own kind of goal (Konkle & Alvarez, NeurIPS 2023).

    python -m lrm_core.prototypes --model runs/lrm_mini/model --source ../shared/data/tiny_imagenet \
        --output runs/prototypes.safetensors

Unusual: one pass over the data with merged moments in float64 (Chan, Golub & LeVeque 1979). A sum of squares, as in the
published files, loses every digit of the deviation where the mean is large.
"""

from __future__ import annotations

import argparse
import difflib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from lrm_base.card import load_weights, save_weights
from lrm_core.backbones import Preprocessing
from lrm_core.model import LRM

Transform = Callable[[Any], Tensor]


@dataclass(frozen=True, eq=False)
class Prototypes:
    """What a model says, on average, about the images of each class.

    Attributes:
        names: of the M classes, in the order of their labels.
        count: (M,), images of each class. mean, std: (passes, M, D), in logits; rows of a class without images are 0.
            The deviation is that of the images themselves (divided by the count), as in the published files.
        card: what is known about model and data.
    """

    names: tuple[str, ...]
    count: Int[Tensor, " m"]
    mean: Float[Tensor, "passes m d"]
    std: Float[Tensor, "passes m d"]
    card: dict[str, Any] = field(default_factory=dict)

    def goal(self, name_or_index: str | int, which_pass: int = -1) -> Float[Tensor, " d"]:
        """The mean output of a class, a goal in logits.

        Args:
            name_or_index: a class's name, without regard to case, or its label.
            which_pass: counted from 0, or from the end: -1 is the last.

        Raises:
            ValueError: there is no such class or pass, the name stands for several classes, or the class has no image.
        """
        passes = len(self.mean)
        if not -passes <= which_pass < passes:
            raise ValueError(f"which_pass: got {which_pass}, choices: 0 to {passes - 1}, or -1 for the last")
        label = self._find(name_or_index)
        if self.count[label] == 0:
            raise ValueError(f"class {label}, {self.names[label]!r}, has no prototype: the data held no image of it")
        return self.mean[which_pass, label].clone()

    def _find(self, wanted: str | int) -> int:
        if isinstance(wanted, int):
            if not 0 <= wanted < len(self.names):
                raise ValueError(f"no class {wanted}; choices: 0 to {len(self.names) - 1}")
            return wanted
        exact = [label for label, name in enumerate(self.names) if name == wanted]
        found = exact or [label for label, name in enumerate(self.names) if _plain(name) == _plain(wanted)]
        if len(found) > 1:
            raise ValueError(f"{wanted!r} names classes {' and '.join(map(str, found))}: give the number")
        if found:
            return found[0]
        if wanted.isdecimal():
            return self._find(int(wanted))
        by_plain = {_plain(name): name for name in self.names}
        near = difflib.get_close_matches(_plain(wanted), by_plain, n=5, cutoff=0.5)
        some = [by_plain[name] for name in near] or list(self.names[:5])
        raise ValueError(f"no class {wanted!r} among {len(self.names)}; choices: {', '.join(some)}, …")

    def save(self, path: str | Path) -> None:
        """Write ….safetensors and its card."""
        tensors = {"count": self.count, "mean": self.mean, "std": self.std}
        save_weights(path, tensors, {**self.card, "kind": "prototypes", "classes": list(self.names)})

    @classmethod
    def load(cls, path: str | Path) -> Prototypes:
        """Read what `save` wrote.

        Raises:
            ValueError: files are missing, altered or not those of prototypes.
        """
        tensors, card = load_weights(path)
        names = card.get("classes")
        shapes = {key: tuple(value.shape) for key, value in tensors.items()}
        if card.get("kind") != "prototypes" or not isinstance(names, list) or shapes.keys() != {"count", "mean", "std"}:
            raise ValueError(
                f"{path} does not hold prototypes: its card says {card.get('kind')!r}, its tensors are {shapes}"
            )
        mean = shapes["mean"]
        if shapes["count"] != (len(names),) or shapes["std"] != mean or len(mean) != 3 or mean[1] != len(names):
            raise ValueError(f"{path}: its card names {len(names)} classes, its tensors are {shapes}")
        return cls(tuple(names), tensors["count"], tensors["mean"], tensors["std"], card)


class Moments:
    """Count, mean and summed squared deviation of each class, for each pass, in float64, updated batch by batch."""

    def __init__(self, passes: int, num_classes: int, width: int) -> None:
        self.count = torch.zeros(num_classes, dtype=torch.int64)
        self.mean = torch.zeros(passes, num_classes, width, dtype=torch.float64)
        self.squares = torch.zeros(passes, num_classes, width, dtype=torch.float64)

    def add(self, outputs: Float[Tensor, "passes b d"], labels: Int[Tensor, " b"]) -> None:
        """Merge the moments of a batch, computed around its own means, into those so far."""
        values = outputs.double()
        classes, place, new = labels.unique(return_inverse=True, return_counts=True)
        empty = values.new_zeros(len(values), len(classes), values.shape[2])
        mean = empty.index_add(1, place, values) / new[:, None]
        squares = empty.index_add(1, place, (values - mean[:, place]) ** 2)
        old = self.count[classes]
        total = old + new
        shift = mean - self.mean[:, classes]
        self.mean[:, classes] += shift * (new / total.double())[:, None]
        self.squares[:, classes] += squares + shift**2 * (old * new / total.double())[:, None]
        self.count[classes] = total

    def std(self) -> Float[Tensor, "passes m d"]:
        """The deviation around each class's mean; 0 where there is no image."""
        return (self.squares / self.count.clamp(min=1)[:, None]).sqrt()


def square(preprocessing: Preprocessing) -> Transform:
    """The transform of this project's models: the whole frame squashed to a square, normalised as a model's card says.

    Its result turns a PIL image into (3, size, size).
    """
    from torchvision.transforms import v2

    side = (preprocessing.size, preprocessing.size)
    steps = [v2.PILToTensor(), v2.Resize(side, antialias=True), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([*steps, v2.Normalize(preprocessing.mean, preprocessing.std)])


@torch.no_grad()
def compute_prototypes(
    model: nn.Module,
    dataset: Any,
    *,
    passes: int | None = None,
    batch_size: int = 250,
    transform: Transform | None = None,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
    output: str | Path | None = None,
    names: Sequence[str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Prototypes:
    """Mean and deviation of a model's outputs for each class, each pass on its own, in one pass over the data.

    Args:
        model: an `LRM`, or one of the published fronts `LRMNet` and `SteerableLRM`. It runs in evaluation mode and is
            left as it was.
        dataset: a torchvision data set, a Hugging Face one with columns `image` and `label`, streamed or not, or
            anything that gives (image, label, …).
        passes: forward passes; None: what a front was made for, 2 for an `LRM`.
        transform: from a PIL image to what the model expects, (3, h, w), see `square`. Without it the data set must
            give normalised tensors.
        device: where to run; None: where the model is. The model is moved back afterwards.
        output: a ….safetensors to save the result to. names: of the classes; None: those of the data set, or numbers
            where it has none. about: goes into the card.

    Raises:
        ValueError: images are no tensors, labels are of no class, outputs are not finite, or there is no image.
    """
    lrm, passes = _find_lrm(model, passes)
    home = next(model.parameters()).device
    place = home if device is None else torch.device(device)
    modes = {module: module.training for module in model.modules()}
    names = _class_names(dataset) if names is None else tuple(names)
    loader: Iterable[tuple[Tensor, Tensor]] = DataLoader(
        dataset, batch_size, num_workers=num_workers, collate_fn=partial(_collate, transform)
    )
    moments: Moments | None = None
    try:
        model.eval().to(place)
        for images, labels in tqdm(loader, desc="prototypes", unit="batch", disable=None if progress else True):
            outputs = torch.stack([o.float().cpu() for o in lrm.rollout(images.to(place), passes)])  # (passes, b, d)
            if moments is None:
                names = names or tuple(map(str, range(outputs.shape[2])))
                moments = Moments(passes, len(names), outputs.shape[2])
            _check(outputs, labels, len(moments.count))
            moments.add(outputs, labels)
    finally:
        model.to(home)
        for module, mode in modes.items():
            module.training = mode
    if moments is None or names is None:
        raise ValueError("the data set is empty: expected at least one image")
    missing = [name for name, count in zip(names, moments.count.tolist(), strict=True) if count == 0]
    if missing:
        warnings.warn(
            f"{len(missing)} of {len(names)} classes have no image, and so no prototype: "
            f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}",
            stacklevel=2,
        )
    card = {
        "name": "prototypes",
        **(about or {}),
        "passes": passes,
        "num_images": int(moments.count.sum()),
        "statistics": "mean and standard deviation (divided by the count) of the outputs of each pass, in logits",
    }
    prototypes = Prototypes(names, moments.count, moments.mean.float(), moments.std().float(), card)
    if output is not None:
        prototypes.save(output)
    return prototypes


def _find_lrm(model: nn.Module, passes: int | None) -> tuple[LRM, int]:
    """The model within a front, or the model itself, and over how many passes to run it."""
    lrm = getattr(model, "lrm", model)
    if not isinstance(lrm, LRM):
        raise ValueError(f"expected an LRM, an LRMNet or a SteerableLRM, got {type(model).__name__}")
    passes = getattr(model, "forward_passes", 2) if passes is None else passes
    if passes < 1:
        raise ValueError(f"passes: got {passes}, expected at least 1")
    return lrm, passes


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    """What a data set calls its classes, if it tells; that of a subset is asked of the whole."""
    while dataset is not None:
        features = getattr(dataset, "features", None)
        found = getattr(features["label"] if features and "label" in features else dataset, "names", None)
        found = found or getattr(dataset, "classes", None)
        if found:
            return tuple(name if isinstance(name, str) else name[0] for name in found)  # torchvision's ImageNet: tuples
        dataset = getattr(dataset, "dataset", None)
    return None


def _collate(transform: Transform | None, items: Sequence[Any]) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for item in items:
        if isinstance(item, Mapping):
            if not {"image", "label"} <= item.keys():
                raise ValueError(f"expected columns image and label, got {', '.join(item)}")
            image, label = item["image"], item["label"]
        else:
            image, label = item[0], item[1]
        if transform is not None:
            image = transform(image.convert("RGB") if hasattr(image, "convert") else image)
        if not isinstance(image, Tensor) or not image.is_floating_point():
            got = f"a tensor of {image.dtype}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
            raise ValueError(
                f"expected images as normalised tensors of floats, got {got}: give a transform, "
                "such as lrm_core.prototypes.square(preprocessing)"
            )
        images.append(image)
        labels.append(int(label))
    return torch.stack(images), torch.tensor(labels)


def _check(outputs: Tensor, labels: Tensor, num_classes: int) -> None:
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"expected labels from 0 to {num_classes - 1}, got {int(labels.min())} to {int(labels.max())}; "
            "names gives the classes where the data set does not"
        )
    if not outputs.isfinite().all():
        raise ValueError("the model's outputs are not all finite: are the images normalised as it expects?")


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def main(argv: Sequence[str] | None = None) -> None:
    from lrm_base.data import DataConfig, load_images
    from lrm_core.published import WEIGHTS, image_transforms, open_backbone
    from lrm_core.weights import held_out_rows

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder, or a published model such as alexnet_lrm3")
    parser.add_argument("--source", required=True, help="data set: folder or hub name, see lrm_base.data")
    parser.add_argument("--split", default="train", choices=["train", "holdout", "valid"])
    parser.add_argument("--output", required=True, help="….safetensors to write")
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--limit", type=int, help="only the first so many images")
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args(argv)
    try:
        model, preprocessing, card = open_backbone(given.model)
        is_published = given.model in WEIGHTS  # these see the middle of the frame, ours see it squashed
        transform = image_transforms()["val_transform"] if is_published else square(preprocessing)
        data = load_images(DataConfig(source=given.source, num_holdout=held_out_rows(card)), given.split)
        compute_prototypes(
            model,
            data if given.limit is None else data.select(range(min(given.limit, len(data)))),
            passes=given.passes,
            batch_size=given.batch_size,
            transform=transform,
            num_workers=given.workers,
            device="cuda" if torch.cuda.is_available() else None,
            output=given.output,
            names=[entry["name"] for entry in card["classes"]],
            about={"backbone": card["name"], "backbone_sha256": card["sha256"], "split": given.split},
        )
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
