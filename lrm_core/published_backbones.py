"""The published AlexNets with feedback and their visual prototypes, by the published names (Konkle & Alvarez 2023).

Calls, defaults and image transforms are those of the published hub entries. Unusual: the weights are pickles, so a file
is read only if its name states the start of its SHA-256 correctly. This is also true of your own files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from lrm_base.download import fetch, load_checkpoint, read_pth, verify
from lrm_base.imagenet import imagenet_names
from lrm_core.backbones import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, find_backbone
from lrm_core.weights import load_model

if TYPE_CHECKING:
    from PIL import Image

    from lrm_core.compat import LRMNet, SteerableLRM
    from lrm_core.model import LRM

_STORE = "https://s3.us-east-1.wasabisys.com/visionlab-projects/dnn_feedback_dev/logs"
_RELEASE = "https://github.com/harvard-visionlab/lrm-steering/releases/download/prototypes-v1"

WEIGHTS: dict[str, str] = {
    "alexnet_lrm1": f"{_STORE}/set14/set14_alexnet_lrm_cls6to8_9to0_2steps_stepwise/"
    "df5a9767-1046-4d0f-9f82-649c0e5c7881/"
    "set14_alexnet_lrm_cls6to8_9to0_2steps_stepwise_final_weights-40b29a3427.pth",
    "alexnet_lrm2": f"{_STORE}/set15/set15_alexnet_torchvision_imagenet1k_lrm_2back_2steps/"
    "84bdc4f4-1de0-4438-941b-43e574298694/"
    "set15_alexnet_torchvision_imagenet1k_lrm_2back_2steps_final_weights-17b4229a30.pth",
    "alexnet_lrm3": f"{_STORE}/set15/set15_alexnet_torchvision_imagenet1k_lrm_3back_2steps/"
    "28453e80-c5e5-4d76-bc81-99c5fade39ff/"
    "set15_alexnet_torchvision_imagenet1k_lrm_3back_2steps_final_weights-63ab1b3b06.pth",
}
VISION_PROTOTYPES: dict[str, str] = {
    "alexnet_lrm1": f"{_RELEASE}/visual_prototypes_alexnet_lrm1_40b29a3427-e1282174.pth",
    "alexnet_lrm2": f"{_RELEASE}/visual_prototypes_alexnet_lrm2_17b4229a30-83b9be6e.pth",
    "alexnet_lrm3": f"{_RELEASE}/visual_prototypes_alexnet_lrm3_63ab1b3b06-d59f87e7.pth",
}
STATISTICS = ("count", "sum", "sumsq", "mean", "std")

Transforms = dict[str, Callable[[Any], Any]]
Prototype = dict[str, Any]  # count: int; sum, sumsq, mean, std: Tensor


def alexnet_lrm1(
    pretrained: bool | str | Path = True, steering: bool = True, *, progress: bool | None = None
) -> tuple[LRMNet | SteerableLRM, Transforms]:
    """AlexNet with one pair of feedback connections. See `alexnet_lrm3`."""
    return _alexnet("alexnet_lrm1", pretrained, steering, progress)


def alexnet_lrm2(
    pretrained: bool | str | Path = True, steering: bool = True, *, progress: bool | None = None
) -> tuple[LRMNet | SteerableLRM, Transforms]:
    """AlexNet with two pairs of feedback connections. See `alexnet_lrm3`."""
    return _alexnet("alexnet_lrm2", pretrained, steering, progress)


def alexnet_lrm3(
    pretrained: bool | str | Path = True, steering: bool = True, *, progress: bool | None = None
) -> tuple[LRMNet | SteerableLRM, Transforms]:
    """The published AlexNet with all five feedback connections, and its image transforms.

    Args:
        pretrained: True for the published weights, a path for a file in the published format (`NAME-HEX.pth`), False
            for random weights.
        steering: True for a `SteerableLRM`, False for an `LRMNet`.
        progress: whether to show a bar during a download; None shows it only on a terminal.

    Returns:
        the model, in evaluation mode if it is pretrained, and the transforms `train_transform` and `val_transform`
        (PIL image → (3, 224, 224)), `test_transform` (the same at 256 px) and `inv_transform` (one of these tensors →
        PIL image).

    Raises:
        DownloadError: the weights cannot be downloaded or have another hash. ValueError: they do not fit this model.
    """
    return _alexnet("alexnet_lrm3", pretrained, steering, progress)


def _alexnet(
    name: str, pretrained: bool | str | Path, steering: bool, progress: bool | None
) -> tuple[LRMNet | SteerableLRM, Transforms]:
    from lrm_core.compat import PUBLISHED_CONNECTIONS, LRMNet, SteerableLRM

    front = SteerableLRM if steering else LRMNet

    def build() -> LRMNet | SteerableLRM:
        return front(find_backbone("alexnet").build(), PUBLISHED_CONNECTIONS[name], forward_passes=2, img_size=224)

    if pretrained is False:
        return build(), image_transforms()
    path = fetch(WEIGHTS[name], progress=progress) if pretrained is True else verify(pretrained)
    weights = load_checkpoint(path)  # before building, so that a bad file raises at once
    with torch.random.fork_rng(devices=[]):  # building draws initial weights; the caller's generator must not notice
        model = build()
    try:
        model.load_state_dict(weights, strict=True)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not fit {name}: {error}") from None
    return model.eval(), image_transforms()


def open_backbone(
    name_or_folder: str | Path, device: str | torch.device = "cpu"
) -> tuple[LRM, Preprocessing, dict[str, Any]]:
    """Open a published model by its name, or a model in a folder: (model in evaluation mode, preprocessing, card).

    The card has at least `name`, `output`, `sha256` (for published weights only its start) and `classes`.

    Raises:
        ValueError: `alexnet_lrm3` or `lrm_core.weights.load_model` raises it.
    """
    if str(name_or_folder) not in WEIGHTS:
        return load_model(Path(name_or_folder) / "backbone.safetensors", device)
    name = str(name_or_folder)
    front, _ = _alexnet(name, True, True, None)
    card = {
        "name": name,
        "output": "classifier.6",
        "sha256": Path(WEIGHTS[name]).stem.rpartition("-")[2],
        "address": WEIGHTS[name],
        "classes": [{"name": class_name} for class_name in imagenet_names()],
    }
    return front.lrm.eval().requires_grad_(False).to(device), Preprocessing(224), card


def load_vision_prototypes(
    name: str | Path, *, map_location: str | torch.device = "cpu", progress: bool | None = None
) -> dict[int, Prototype]:
    """The published visual prototypes of a model: statistics of its outputs for each ImageNet class.

    Args:
        name: a model's name, or a file in the published format (`NAME-HEX.pth`).
        map_location: device of the tensors.
        progress: as in `alexnet_lrm3`.

    Returns:
        a dict for each class index: `count`, and tensors `sum`, `sumsq`, `mean`, `std`. `mean` is a goal: (1000,).

    Raises:
        DownloadError: the file cannot be downloaded or has another hash. ValueError: there is no such name, or the file
            has another format.
    """
    if name in VISION_PROTOTYPES:
        path = fetch(VISION_PROTOTYPES[str(name)], progress=progress)
    elif Path(name).is_file():
        path = verify(name)
    else:
        raise ValueError(
            f"name: no visual prototypes {str(name)!r}; choices: a file, or one of {', '.join(VISION_PROTOTYPES)}"
        )
    table = read_pth(path)
    if not isinstance(table, dict) or not table or not all(map(_is_prototype, table.items())):
        raise ValueError(f"{path}: got another format, expected a dict of class index to {', '.join(STATISTICS)}")
    return {
        label: {key: value.to(map_location) if torch.is_tensor(value) else value for key, value in entry.items()}
        for label, entry in table.items()
    }


def _is_prototype(item: tuple[Any, Any]) -> bool:
    label, entry = item
    return (
        isinstance(label, int)
        and isinstance(entry, dict)
        and set(STATISTICS) <= entry.keys()
        and all(torch.is_tensor(entry[key]) for key in STATISTICS[1:])
    )


def image_transforms(size: int = 256, crop: int = 224) -> Transforms:
    """The published transforms between PIL images and tensors (3, h, w), normalised by ImageNet's mean and deviation.

    As published, `test_transform` keeps the whole square of `size` pixels, and `val_transform` its middle of `crop`
    pixels.
    """
    from torchvision import transforms as t

    tensor = [t.ToTensor(), t.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    return {
        "train_transform": t.Compose([t.Resize(size), t.RandomResizedCrop(crop), t.RandomHorizontalFlip(), *tensor]),
        "val_transform": t.Compose([t.Resize(size), t.CenterCrop(crop), *tensor]),
        "test_transform": t.Compose([t.Resize(size), t.CenterCrop(size), *tensor]),
        "inv_transform": to_picture,
    }


def to_picture(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    """Turn a normalised image into a picture. Pixels are rounded to 256 levels and clipped to them."""
    from torchvision.transforms.functional import to_pil_image

    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    levels = ((pixels.detach() * std + mean) * 255).round().clamp(0, 255)
    return to_pil_image(levels.to(torch.uint8).cpu())
