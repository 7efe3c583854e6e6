"""Backbones by name: how to build one, how to prepare its images, and its default feedback connections.

Those of AlexNet are the connections of the published model LRM3 (Konkle & Alvarez, NeurIPS 2023).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrm_base.frame import Frame
from lrm_core.efficientnet import EfficientNetLite
from lrm_core.feedback import Connection, Feedback
from lrm_core.matched import MatchedFeedback
from lrm_core.model import Rule
from lrm_core.vit import MiniViT

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How photographs are prepared for a backbone.

    Attributes:
        size: the side of the square, or the short side, in pixels; see `lrm_base.frame`.
        mean, std: of each channel, for pixels in 0–1.
        keeps_aspect: whether a photograph keeps its aspect; otherwise it is squashed to a square.
        crops: whether the middle square is cut out instead.
        bicubic: whether photographs are resampled bicubically, otherwise bilinearly.
    """

    size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    keeps_aspect: bool = False
    crops: bool = False
    bicubic: bool = False

    @property
    def frame(self) -> Frame:
        """The shape in which photographs are seen."""
        return Frame(self.size, self.keeps_aspect, self.crops, self.bicubic)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise pixels in 0–1, (b, 3, h, w), for the backbone."""
        mean = pixels.new_tensor(self.mean)[:, None, None]
        std = pixels.new_tensor(self.std)[:, None, None]
        return (pixels - mean) / std


class Block(nn.Module):
    """A residual block of two 3×3 convolutions (He et al. 2016). Its step `add` is a pre-activation for feedback."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        self.relu2 = nn.ReLU()

    def forward(self, x: Any) -> Any:  # not Tensor: torch.fx passes a proxy when it reads the graph
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(residual + self.shortcut(x))


class AttentionPool(nn.Module):
    """A mean over positions. The weight of a position is the mean response of all templates there.

    Unusual: the weights are divided by their mean over the image; there is no softmax. So feedback to the templates
    changes the weights in proportion, and without any response all weights are equal.
    """

    def forward(self, values: Any, templates: Any) -> Any:
        """The weighted mean of values (b, c, h, w) over positions, (b, c). Templates respond with (b, k, h, w) ≥ 0."""
        weights = templates.mean(1, keepdim=True) + 1e-3
        return (values * weights).mean((2, 3)) / weights.mean((2, 3))


class MiniNet(nn.Module):
    """A small residual convnet that trains on a CPU: 3.1 M parameters, 0.25 G multiply-adds at 96 px.

    `attend` compares every position with one template for each class, and `value` is pooled where the templates
    respond. Both are pre-activations, so a goal can choose both where to look and what to look for. This is Guided
    Search (Wolfe 1994) as feedback. New templates are zero, and then the pooling is a plain average.

    Resolutions for a 96 px image: conv2 and layer1 24×24, layer2 12×12, layer3, attend and value 6×6; `pool` (c,),
    `fc` (num_classes,).
    """

    def __init__(self, num_classes: int = 200, widths: tuple[int, int, int, int, int] = (32, 64, 96, 192, 384)) -> None:
        super().__init__()
        first, second, *deep = widths
        self.conv1 = nn.Conv2d(3, first, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(first, second, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.relu2 = nn.ReLU()
        self.layer1 = Block(second, deep[0], 1)
        self.layer2 = Block(deep[0], deep[1], 2)
        self.layer3 = Block(deep[1], deep[2], 2)
        self.attend = nn.Conv2d(deep[2], num_classes, 1)
        self.templates = nn.ReLU()
        self.value = nn.Conv2d(deep[2], deep[2], 1, bias=False)
        self.values = nn.ReLU()
        self.pool = AttentionPool()
        self.fc = nn.Linear(deep[2], num_classes)
        with torch.no_grad():
            self.attend.weight.zero_()
            self.attend.bias.zero_()  # type: ignore[union-attr]
            self.value.weight.copy_(torch.eye(deep[2])[:, :, None, None])

    def forward(self, x: Any) -> Any:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        templates = self.templates(self.attend(x))
        return self.fc(self.pool(self.values(self.value(x)), templates))


@dataclass(frozen=True)
class BackboneEntry:
    """How to build a backbone, and its default feedback connections.

    Attributes:
        output: the classifier, which is steered.
        features: the pre-activation whose rectified mean the classifier reads; None if there is none.
        templates: the 1×1 convolution that compares positions with classes; None if there is none. See
            `lrm_core.feedback.start_at_classifier`.
        feedback, rule: the kind of its feedback paths, and how they act; see `lrm_core.model.LRM`.
        weights: name of its published weights in a data package (`lrm_core.efficientnet.PUBLISHED`), if it has any. A
            model then stores only what was trained beside them.
    """

    build: Callable[..., nn.Module]
    connections: tuple[Connection, ...]
    output: str
    preprocessing: Preprocessing
    features: str | None = None
    templates: str | None = None
    feedback: Callable[[tuple[int, ...], tuple[int, ...]], nn.Module] = Feedback
    rule: Rule = "rectify"
    weights: str | None = None


def _connections(*pairs: tuple[str, str]) -> tuple[Connection, ...]:
    return tuple(Connection(source, destination) for source, destination in pairs)


def _torchvision(name: str, **always: Any) -> Callable[..., nn.Module]:
    def build(num_classes: int = 1000, **arguments: Any) -> nn.Module:
        from torchvision import models

        return models.get_model(name, weights=None, num_classes=num_classes, **always, **arguments)

    return build


# Networks of torchvision: names, the classifier, and connections. The classifier goes to the last stages, the last
# stage to an early one. A stage's name stands for the last pre-activation inside it.
_TORCHVISION = (
    ("resnet18 resnet34", "fc", "fc>layer4.0.bn1 fc>layer3.0.bn1 layer4>layer2.0.bn1 layer3>bn1"),
    (
        "resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d wide_resnet50_2 "
        "wide_resnet101_2",
        "fc",
        "fc>layer4.0.bn2 fc>layer3.0.bn2 layer4>layer2.0.bn2 layer3>bn1",
    ),
    (
        "vgg11",
        "classifier.6",
        "classifier.6>features.18 classifier.6>features.16 classifier.1>features.8 features>features.3",
    ),
    (
        "vgg13",
        "classifier.6",
        "classifier.6>features.22 classifier.6>features.20 classifier.1>features.12 features>features.7",
    ),
    (
        "vgg16",
        "classifier.6",
        "classifier.6>features.28 classifier.6>features.26 classifier.1>features.17 features>features.7",
    ),
    (
        "vgg19",
        "classifier.6",
        "classifier.6>features.34 classifier.6>features.32 classifier.1>features.21 features>features.7",
    ),
    (
        "densenet121 densenet161 densenet169 densenet201",
        "classifier",
        "classifier>features.norm5 classifier>features.transition3 features.norm5>features.norm0",
    ),
    ("mobilenet_v2", "classifier.1", "classifier.1>features.18 classifier.1>features.14 features>features.7"),
    ("mobilenet_v3_small", "classifier.3", "classifier.3>features.12 classifier.3>features.9 features>features.4"),
    ("mobilenet_v3_large", "classifier.3", "classifier.3>features.16 classifier.3>features.13 features>features.7"),
    (
        "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3",
        "classifier.1",
        "classifier.1>layers.15 classifier.1>layers.12 layers>layers.10",
    ),
    (
        "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 "
        "efficientnet_b6 efficientnet_b7 efficientnet_v2_m efficientnet_v2_l",
        "classifier.1",
        "classifier.1>features.8 classifier.1>features.6 features>features.3",
    ),
    ("efficientnet_v2_s", "classifier.1", "classifier.1>features.7 classifier.1>features.5 features>features.3"),
    (
        "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf "
        "regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf",
        "fc",
        "fc>trunk_output.block4 fc>trunk_output.block3 trunk_output>trunk_output.block2",
    ),
    (
        "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
        "fc",
        "fc>conv5 fc>stage4 conv5>stage2",
    ),
    ("squeezenet1_0", "flatten", "flatten>features.12 flatten>features.7 features>features.5"),
    ("squeezenet1_1", "flatten", "flatten>features.12 flatten>features.7 features>features.4"),
    ("googlenet", "fc", "fc>inception5b fc>inception4e inception5b>conv3"),
    ("inception_v3", "fc", "fc>Mixed_7c fc>Mixed_6e Mixed_7c>Conv2d_4a_3x3"),
    (
        "convnext_tiny convnext_small convnext_base convnext_large",
        "classifier.2",
        "classifier.2>features.7 classifier.2>features.5 features>features.3",
    ),
    (
        "swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b",
        "head",
        "head>features.7 head>features.5 permute>features.3",
    ),
    (
        "vit_b_16 vit_b_32",
        "heads.head",
        "heads.head>encoder.layers.encoder_layer_11 heads.head>encoder.layers.encoder_layer_8 "
        "encoder>encoder.layers.encoder_layer_5",
    ),
)
_WITHOUT_AUXILIARIES = {"aux_logits": False, "init_weights": False}  # classifiers that only train; slow random weights


def _torchvisions() -> Iterator[tuple[str, BackboneEntry]]:
    for names, output, pairs in _TORCHVISION:
        connections = tuple(Connection(*pair.split(">")) for pair in pairs.split())
        for name in names.split():
            always = _WITHOUT_AUXILIARIES if name in ("googlenet", "inception_v3") else {}
            preprocessing = Preprocessing(299 if name == "inception_v3" else 224)
            yield name, BackboneEntry(_torchvision(name, **always), connections, output, preprocessing)


BACKBONES: dict[str, BackboneEntry] = {
    "mini": BackboneEntry(
        MiniNet,
        _connections(
            ("fc", "attend"),  # where to look
            ("fc", "value"),  # what to look for
            ("fc", "layer3.bn1"),
            ("fc", "layer2.add"),
            ("values", "attend"),
            ("values", "value"),  # look again where the goal was found
            ("values", "layer2.add"),
        ),
        "fc",
        Preprocessing(96),
        features="value",
        templates="attend",
    ),
    "mini_vit": BackboneEntry(
        MiniViT,
        _connections(
            *((source, f"blocks.{block}.expand") for source, block in (("fc", 5), ("fc", 4), ("fc", 3), ("norm", 2)))
        ),
        "fc",
        Preprocessing(64),
        feedback=MatchedFeedback,
    ),
    "alexnet": BackboneEntry(
        _torchvision("alexnet"),
        _connections(
            ("classifier.6", "features.8"),
            ("classifier.6", "features.10"),
            ("features.9", "features.0"),
            ("features.12", "features.3"),
            ("classifier.2", "features.6"),
        ),
        "classifier.6",
        Preprocessing(224),
        rule="multiply",  # as published
    ),
    "efficientnet_lite0": BackboneEntry(
        EfficientNetLite,
        _connections(  # late, so that what comes before runs once for all goals and passes
            ("fc", "bn"),
            ("fc", "blocks.15.bn0"),
            ("fc", "blocks.12.bn0"),
            ("fc", "blocks.10.bn0"),
            ("fc", "blocks.8.bn0"),
            ("act", "blocks.12.bn0"),
            ("act", "blocks.8.bn0"),
        ),
        "fc",
        Preprocessing(320, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), keeps_aspect=True),
        features="bn",
        feedback=MatchedFeedback,
        weights="efficientnet_lite0",
    ),
    **dict(_torchvisions()),
}


def find_backbone(name: str) -> BackboneEntry:
    """The entry of that name. Raises ValueError with the nearest names, or with all, if there is none."""
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choices: {', '.join(BACKBONES)}"
        raise ValueError(f"backbone: no backbone {name!r}; {hint}")
    return BACKBONES[name]
