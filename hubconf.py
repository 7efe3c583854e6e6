"""Entry points for `torch.hub`: `torch.hub.load(repository, "steerer")`.

Unusual: nothing is imported here before an entry point is called, and nothing but entry points is public, because
`torch.hub.list` shows every callable of this file.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from steering import Steerer as _Steerer

dependencies = [
    "PIL",
    "jaxtyping",
    "matplotlib",
    "numpy",
    "open_clip",
    "safetensors",
    "skimage",
    "torch",
    "torchvision",
]


def steerer(model: str = "lrm_mini", device: str | None = None) -> "_Steerer":
    """A `steering.Steerer`: `steerer.look("photo.jpg", "a dog")` looks at a photo for what you name.

    Args:
        model: an embedded model's name, or a model's folder. device: `cpu`, `cuda`, …; the GPU if there is one if None.

    Raises:
        ValueError: there is no such model or device, or the model's files were altered.
    """
    from steering import Steerer

    return Steerer.load(model, device=device)
