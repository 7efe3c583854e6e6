r"""Prototypes: mean and standard deviation of a model's outputs over the images of each class, for every pass.

The mean output of a class is the kind of goal that the publication uses (Konkle & Alvarez, NeurIPS 2023).

    python -m lrm_core.prototypes --model runs/lrm_mini/model --source ../shared/data/tiny_imagenet \
        --output runs/prototypes.safetensors

Unusual: moments are merged batch by batch in float64 (Chan, Golub & LeVeque 1979), so the data is read only once. A sum
of squares, as in the published files, loses every digit of the deviation if the mean is large.
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
from lrm_base.checks import whole_number
from lrm_base.profiles import estimated_outputs
from lrm_core.backbones import Preprocessing
from lrm_core.model import LRM

Transform = Callable[[Any], Tensor]
WORTH = 2.0  # images; so many photographs of a class tell as much as the estimate from its name in the classifier


@dataclass(frozen=True, eq=False)
class Prototypes:
    """The mean output of a model over the images of each class, and its deviation.

    Attributes:
        names: names of the M classes, in the order of their labels.
        count: (M,), number of images of each class.
        mean, std: (passes, M, D), in logits; 0 for a class without images, unless the card says that such classes
            were estimated. The deviation divides by the count, as in
            the published files.
        card: facts about the model and the data.
    """

    names: tuple[str, ...]
    count: Int[Tensor, " m"]
    mean: Float[Tensor, "passes m d"]
    std: Float[Tensor, "passes m d"]
    card: dict[str, Any] = field(default_factory=dict)

    def goal(self, name_or_index: str | int, which_pass: int = -1) -> Float[Tensor, " d"]:
        """The mean output of a class: a goal, in logits.

        Args:
            name_or_index: a class's name, in upper or lower case, or its label.
            which_pass: counted from 0, or from the end: -1 is the last.

        Raises:
            ValueError: there is no such class or pass, several classes have the name, or the class has no image.
        """
        which_pass = whole_number("which_pass", which_pass, -len(self.mean), len(self.mean) - 1)
        label = self._find(name_or_index)
        if self.count[label] == 0 and "estimated" not in self.card:
            raise ValueError(f"class {label}, {self.names[label]!r}, has no prototype: the data had no image of it")
        return self.mean[which_pass, label].clone()

    def _find(self, wanted: str | int) -> int:
        if not isinstance(wanted, str):
            return whole_number("name_or_index", wanted, 0, len(self.names) - 1)
        exact = [label for label, name in enumerate(self.names) if name == wanted]
        labels = exact or [label for label, name in enumerate(self.names) if _plain(name) == _plain(wanted)]
        if len(labels) > 1:
            numbers = " and ".join(map(str, labels))
            raise ValueError(f"name_or_index: {wanted!r} names classes {numbers}, expected one of these numbers")
        if labels:
            return labels[0]
        if wanted.isdecimal():
            return self._find(int(wanted))
        by_plain = {_plain(name): name for name in self.names}
        near = difflib.get_close_matches(_plain(wanted), by_plain, n=5, cutoff=0.6)
        some = [by_plain[name] for name in near] or list(self.names[:5])
        raise ValueError(f"name_or_index: no class {wanted!r} among {len(self.names)}; choices: {', '.join(some)}, …")

    def save(self, path: str | Path, *, half: bool = False) -> None:
        """Write a ….safetensors file and its card. `half` stores the numbers in half precision."""
        tensors = {"count": self.count, "mean": self.mean, "std": self.std}
        card = {key: value for key, value in self.card.items() if key != "sha256"}
        save_weights(path, tensors, {**card, "kind": "prototypes", "classes": list(self.names)}, half=half)

    @classmethod
    def load(cls, path: str | Path) -> Prototypes:
        """Read a file that `save` wrote.

        Raises:
            ValueError: the file or its card is missing, was altered, or does not hold prototypes.
        """
        tensors, card = load_weights(path)
        names = card.get("classes")
        shapes = {key: tuple(value.shape) for key, value in tensors.items()}
        if card.get("kind") != "prototypes" or not isinstance(names, list) or shapes.keys() != {"count", "mean", "std"}:
            raise ValueError(
                f"{path} does not hold prototypes: got a card of kind {card.get('kind')!r} and tensors {shapes}, "
                "expected 'prototypes' with count, mean and std"
            )
        mean = shapes["mean"]
        if shapes["count"] != (len(names),) or shapes["std"] != mean or len(mean) != 3 or mean[1] != len(names):
            raise ValueError(
                f"{path}: got tensors {shapes}, expected those of the {len(names)} classes that its card names"
            )
        return cls(tuple(names), tensors["count"], tensors["mean"], tensors["std"], card)


class Moments:
    """Count, mean and sum of squared deviations of each class and pass, in float64. They are updated batch by batch."""

    def __init__(self, passes: int, num_classes: int, width: int) -> None:
        passes, num_classes = whole_number("passes", passes, 1), whole_number("num_classes", num_classes, 1)
        width = whole_number("width", width, 1)
        self.count = torch.zeros(num_classes, dtype=torch.int64)
        self.mean = torch.zeros(passes, num_classes, width, dtype=torch.float64)
        self.squares = torch.zeros(passes, num_classes, width, dtype=torch.float64)

    def add(self, outputs: Float[Tensor, "passes b d"], labels: Int[Tensor, " b"]) -> None:
        """Merge the moments of a batch into the moments so far. They are computed around the batch's own means."""
        values = outputs.double()
        classes, rows, new = labels.unique(return_inverse=True, return_counts=True)
        empty = values.new_zeros(len(values), len(classes), values.shape[2])
        mean = empty.index_add(1, rows, values) / new[:, None]
        squares = empty.index_add(1, rows, (values - mean[:, rows]) ** 2)
        old = self.count[classes]
        total = old + new
        shift = mean - self.mean[:, classes]
        self.mean[:, classes] += shift * (new / total.double())[:, None]
        self.squares[:, classes] += squares + shift**2 * (old * new / total.double())[:, None]
        self.count[classes] = total

    def std(self) -> Float[Tensor, "passes m d"]:
        """The deviation around the mean of each class; 0 for a class without images."""
        return (self.squares / self.count.clamp(min=1)[:, None]).sqrt()


def square(preprocessing: Preprocessing) -> Transform:
    """The transform of this project's models, from a PIL image to (3, size, size).

    It squashes the whole frame to a square and normalises it as the preprocessing says.
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
    estimate: Float[Tensor, "m d"] | None = None,
) -> Prototypes:
    """Mean and deviation of a model's outputs for each class and each pass. The data is read once.

    Args:
        model: an `LRM`, or one of the published fronts `LRMNet` and `SteerableLRM`. It runs in evaluation mode;
            afterwards it has its own mode again.
        dataset: a torchvision data set, a Hugging Face one with columns `image` and `label`, streamed or not, or
            anything that gives (image, label, …).
        passes: forward passes; None means a front's own number, and 2 for an `LRM`.
        transform: from a PIL image to the model's input, (3, h, w); see `square`. Without it the data set must give
            normalised tensors.
        device: the device to run on; None means the model's own. The model is moved back afterwards.
        output: a ….safetensors file for the result.
        names: names of the classes; None means those of the data set, or numbers if it has none.
        about: facts for the card.
        estimate: the classifier, (m, d), from which classes with few images or none are estimated
            (`lrm_base.profiles`). Images of other labels (−1) are then left out. None estimates nothing.

    Raises:
        ValueError: an image is no tensor, a label has no class, an output is not finite, there is no image, or
            `passes`, `batch_size` or `num_workers` is out of range.
    """
    batch_size, num_workers = whole_number("batch_size", batch_size, 1), whole_number("num_workers", num_workers, 0)
    lrm, passes = _find_lrm(model, passes)
    home = next(model.parameters()).device
    run_on = home if device is None else torch.device(device)
    modes = {module: module.training for module in model.modules()}
    names = _class_names(dataset) if names is None else tuple(names)
    loader: Iterable[tuple[Tensor, Tensor]] = DataLoader(
        dataset, batch_size, num_workers=num_workers, collate_fn=partial(_collate, transform)
    )
    moments: Moments | None = None
    try:
        model.eval().to(run_on)
        for images, labels in tqdm(loader, desc="prototypes", unit="batch", disable=None if progress else True):
            outputs = torch.stack([o.float().cpu() for o in lrm.rollout(images.to(run_on), passes)])  # (passes, b, d)
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
        raise ValueError("dataset: got no image, expected at least one")
    mean = moments.mean.float()
    if estimate is not None:
        weight = estimate.float().cpu()
        mean = torch.stack([estimated_outputs(one, moments.count, weight, WORTH) for one in mean])
    missing = [name for name, count in zip(names, moments.count.tolist(), strict=True) if count == 0]
    if missing and estimate is None:
        warnings.warn(
            f"{len(missing)} of {len(names)} classes have no image and therefore no prototype: "
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
    if estimate is not None:
        card["estimated"] = (
            f"{len(missing)} classes without images, by the classifier, which counts as {WORTH:g} images"
        )
    prototypes = Prototypes(names, moments.count, mean, moments.std().float(), card)
    if output is not None:
        prototypes.save(output)
    return prototypes


def _find_lrm(model: nn.Module, passes: int | None) -> tuple[LRM, int]:
    """The model inside a front, or the model itself, and its number of passes."""
    lrm = getattr(model, "lrm", model)
    if not isinstance(lrm, LRM):
        raise ValueError(f"model: got {type(model).__name__}, expected an LRM, an LRMNet or a SteerableLRM")
    passes = getattr(model, "forward_passes", 2) if passes is None else passes
    return lrm, whole_number("passes", passes, 1)


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    """The class names of a data set, or of the whole set that it is a subset of; None if there are none."""
    while dataset is not None:
        features = getattr(dataset, "features", None)
        names = getattr(features["label"] if features and "label" in features else dataset, "names", None)
        names = names or getattr(dataset, "classes", None)
        if names:
            return tuple(name if isinstance(name, str) else name[0] for name in names)  # torchvision's ImageNet: tuples
        dataset = getattr(dataset, "dataset", None)
    return None


def _collate(transform: Transform | None, items: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """A batch of images and labels from items of a data set."""
    images, labels = [], []
    for item in items:
        if isinstance(item, Mapping):
            if not {"image", "label"} <= item.keys():
                raise ValueError(f"dataset: got the columns {', '.join(map(str, item))}, expected image and label")
            image, label = item["image"], item["label"]
        else:
            image, label = item[0], item[1]
        if transform is not None:
            image = transform(image.convert("RGB") if hasattr(image, "convert") else image)
        if not isinstance(image, Tensor) or not image.is_floating_point():
            got = f"a tensor of {image.dtype}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
            raise ValueError(
                f"dataset: got {got} for an image, expected a normalised tensor of floats; give a transform, "
                "such as lrm_core.prototypes.square(preprocessing)"
            )
        images.append(image)
        labels.append(whole_number("label", label, 0))
    return torch.stack(images), torch.tensor(labels)


def _check(outputs: Tensor, labels: Tensor, num_classes: int) -> None:
    if labels.max() >= num_classes:
        raise ValueError(
            f"dataset: got labels from {int(labels.min())} to {int(labels.max())}, expected 0 to {num_classes - 1}; "
            "give the names of all classes if the data set has none"
        )
    if not outputs.isfinite().all():
        raise ValueError(
            "model: got outputs that are not finite, expected finite ones; are the images normalised as it expects?"
        )


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def main(argv: Sequence[str] | None = None) -> None:
    from lrm_base.data import DataConfig, load_images, only_rows
    from lrm_base.extras import require_packages
    from lrm_core.published_backbones import WEIGHTS, image_transforms, open_backbone
    from lrm_core.weights import held_out_rows

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder, or a published model such as alexnet_lrm3")
    parser.add_argument("--source", required=True, help="data set: folder or hub name, see lrm_base.data")
    parser.add_argument("--split", default="train", choices=["train", "holdout", "valid"])
    parser.add_argument("--output", required=True, help="….safetensors to write")
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--limit", type=int, help="only the first so many images")
    parser.add_argument("--only", metavar="COLUMN=VALUE", help="only the images with this value of a column")
    parser.add_argument(
        "--estimate", action="store_true", help="estimate classes with few images or none from the classifier"
    )
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args(argv)
    require_packages("datasets")
    try:
        model, preprocessing, card = open_backbone(given.model)
        is_published = given.model in WEIGHTS  # these see the middle of the frame; ours see the whole frame squashed
        transform = image_transforms()["val_transform"] if is_published else square(preprocessing)
        data = load_images(DataConfig(source=given.source, num_holdout=held_out_rows(card)), given.split)
        data = only_rows(data, dict([given.only.split("=", 1)]) if given.only else {})
        classifier: Any = model.backbone.get_submodule(card["output"]) if given.estimate else None
        if given.estimate:
            data = data.select([row for row, label in enumerate(data["label"]) if label >= 0])
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
            estimate=classifier.weight.detach() if given.estimate else None,
        )
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
