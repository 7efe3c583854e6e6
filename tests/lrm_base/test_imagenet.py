"""The names of ImageNet's classes: `lrm_base.imagenet`."""

import importlib.util

from torchvision.models import AlexNet_Weights

from lrm_base.imagenet import imagenet_names

NAMES = tuple(AlexNet_Weights.IMAGENET1K_V1.meta["categories"])


def test_the_names_that_are_read_as_text_are_torchvisions() -> None:
    imagenet_names.cache_clear()
    assert imagenet_names() == NAMES
    assert len(NAMES) == 1000


def test_where_the_file_is_not_found_torchvision_is_asked(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    imagenet_names.cache_clear()
    assert imagenet_names() == NAMES
