"""Entry points for `torch.hub`: `torch.hub.load(repository, "alexnet_lrm3")`, `torch.hub.load(repository, "steerer")`.

The published names and calls (Konkle & Alvarez 2023) and this project's own `steerer`. As published, `LRMNet`,
`SteerableLRM`, `compute_prototypes`, `load_vision_prototypes` and `load_clip_prototypes` give the class or the function
itself when called without arguments; with arguments they call it.

Unusual: our packages have names as common as `prior`, and torch.hub puts this folder first on `sys.path` while it
loads. A module of the user's own with such a name must neither be taken for ours nor ever be hidden by ours. So our
packages are imported under a private name, `_lrm_steering_…`, one for each checkout. Their modules write
`from prior.text import …` all the same: each is given an `__import__` of its own, which Python's import statement looks
up in a module's builtins, and which reads our names as the private ones, in late imports too. While an entry works,
this folder is off `sys.path`. The price: such a class is another than the same class of an installed `lrm_core`, and a
process that is started afresh (workers of a `DataLoader` where they are spawned) cannot unpickle it.

Nothing is imported before an entry point is called, and nothing but entry points is public, because `torch.hub.list`
shows every callable of this file.
"""

import builtins as _builtins
import contextlib as _contextlib
import hashlib as _hashlib
import importlib as _importlib
import importlib.machinery as _machinery
import sys as _sys
import types as _types
from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from collections.abc import Callable as _Callable
    from collections.abc import Iterator as _Iterator
    from collections.abc import Mapping as _Mapping
    from collections.abc import Sequence as _Sequence
    from typing import Any as _Any

    from steering import Steerer as _Steerer

dependencies = [
    "PIL",
    "filelock",
    "jaxtyping",
    "matplotlib",
    "numpy",
    "open_clip",
    "safetensors",
    "skimage",
    "torch",
    "torchvision",
    "tqdm",
]

_ROOT = _Path(__file__).resolve().parent
_OURS = frozenset({"lrm_base", "lrm_core", "prior", "steering"})
_PRIVATE = f"_lrm_steering_{_hashlib.sha256(str(_ROOT).encode()).hexdigest()[:12]}"


def _import(
    name: str,
    globals: "_Mapping[str, _Any] | None" = None,
    locals: "_Mapping[str, _Any] | None" = None,
    fromlist: "_Sequence[str] | None" = (),
    level: int = 0,
) -> _types.ModuleType:
    """`__import__` as our modules see it: our packages are those of this checkout, whatever else has their names."""
    top = name.partition(".")[0]
    if level or top not in _OURS:
        return _builtins.__import__(name, globals, locals, fromlist or (), level)
    module = _builtins.__import__(f"{_PRIVATE}.{name}", globals, locals, fromlist or (), 0)
    return module if fromlist else _sys.modules[f"{_PRIVATE}.{top}"]


class _Loader(_machinery.SourceFileLoader):
    """Runs a module of ours with `_import` in place of `__import__`."""

    def exec_module(self, module: _types.ModuleType) -> None:
        module.__dict__["__builtins__"] = {**vars(_builtins), "__import__": _import}
        super().exec_module(module)


class _Finder:
    """Finds modules under the private name, and no others."""

    @staticmethod
    def find_spec(
        name: str, path: "_Sequence[str] | None" = None, target: "_types.ModuleType | None" = None
    ) -> "_machinery.ModuleSpec | None":
        if not name.startswith(f"{_PRIVATE}."):
            return None
        spec = _machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, _machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


@_contextlib.contextmanager
def _off_the_path() -> "_Iterator[None]":
    """Takes this folder, which torch.hub put first on `sys.path`, off it, and puts it back for torch.hub to remove."""
    first = _sys.path[0] if _sys.path else None
    if first is None or _Path(first).resolve() != _ROOT:
        yield
        return
    _sys.path.pop(0)
    try:
        yield
    finally:
        _sys.path.insert(0, first)


def _ours(module: str) -> "_Any":
    """A module of this checkout, under its private name; the same one at every call."""
    if _PRIVATE not in _sys.modules:
        package = _types.ModuleType(_PRIVATE, "This checkout of lrm-steering, as torch.hub loaded it.")
        package.__path__ = [str(_ROOT)]
        _sys.modules[_PRIVATE] = package
        _sys.meta_path.insert(0, _Finder)
    return _importlib.import_module(f"{_PRIVATE}.{module}")


def _call(module: str, name: str, *arguments: "_Any", **options: "_Any") -> "_Any":
    with _off_the_path():
        return getattr(_ours(module), name)(*arguments, **options)


def _give_or_call(module: str, name: str, arguments: "tuple[_Any, ...]", options: "dict[str, _Any]") -> "_Any":
    """The class or function itself, as published, or what it gives for arguments."""
    if arguments or options:
        return _call(module, name, *arguments, **options)
    with _off_the_path():
        return getattr(_ours(module), name)


def steerer(
    model: str = "lrm_mini", device: str | None = None, prior: str | None = None, text: str | None = None
) -> "_Steerer":
    """A `steering.Steerer`: `steerer.look("photo.jpg", "a dog")` looks at a photo for what you name.

    Args:
        model: an embedded model's name, a model's folder, or a published model. device: `cpu`, `cuda`, …; the GPU if
            there is one if None. prior, text: see `Steerer.load`.

    Raises:
        ValueError: there is no such model or device, or the model's files were altered.
    """
    with _off_the_path():
        return _ours("steering.steerer").Steerer.load(model, device=device, prior=prior, text=text)


def alexnet_lrm1(
    pretrained: bool | str = True, steering: bool = True, progress: bool | None = None
) -> "tuple[_Any, dict[str, _Callable]]":
    """AlexNet with one pair of feedback connections: (model, transforms). See `alexnet_lrm3`."""
    return _call("lrm_core.published", "alexnet_lrm1", pretrained, steering, progress=progress)


def alexnet_lrm2(
    pretrained: bool | str = True, steering: bool = True, progress: bool | None = None
) -> "tuple[_Any, dict[str, _Callable]]":
    """AlexNet with two pairs of feedback connections: (model, transforms). See `alexnet_lrm3`."""
    return _call("lrm_core.published", "alexnet_lrm2", pretrained, steering, progress=progress)


def alexnet_lrm3(
    pretrained: bool | str = True, steering: bool = True, progress: bool | None = None
) -> "tuple[_Any, dict[str, _Callable]]":
    """The published AlexNet with five feedback connections: (model, transforms).

    Args:
        pretrained: with the published weights, with those of a file in the published format (`NAME-HEX.pth`), or, if
            False, with random ones. steering: a `SteerableLRM`; an `LRMNet` if False.
        progress: a bar while the weights are fetched: always, never, or only on a terminal if None.

    Returns:
        the model, and a dict of `train_transform`, `val_transform`, `test_transform`, `inv_transform`.

    Raises:
        ValueError: the weights cannot be had, have another hash, or do not fit. The message says what to do.
    """
    return _call("lrm_core.published", "alexnet_lrm3", pretrained, steering, progress=progress)


def LRMNet(*arguments: "_Any", **options: "_Any") -> "_Any":
    """The class `lrm_core.LRMNet`, or, with its arguments, a model: any convnet with feedback connections."""
    return _give_or_call("lrm_core.compat", "LRMNet", arguments, options)


def SteerableLRM(*arguments: "_Any", **options: "_Any") -> "_Any":
    """The class `lrm_core.SteerableLRM`, or, with its arguments, a model: an `LRMNet` that takes `steering_signals`."""
    return _give_or_call("lrm_core.compat", "SteerableLRM", arguments, options)


def compute_prototypes(*arguments: "_Any", **options: "_Any") -> "_Any":
    """The function `lrm_core.prototypes.compute_prototypes`, or, with (model, dataset, …), its prototypes."""
    return _give_or_call("lrm_core.prototypes", "compute_prototypes", arguments, options)


def load_vision_prototypes(*arguments: "_Any", **options: "_Any") -> "_Any":
    """The function `lrm_core.published.load_vision_prototypes`, or, with a model's name, its visual prototypes."""
    return _give_or_call("lrm_core.published", "load_vision_prototypes", arguments, options)


def load_clip_prototypes(*arguments: "_Any", **options: "_Any") -> "_Any":
    """The function `prior.published.load_clip_prototypes`, or, with a model's name, its prototypes made by CLIP."""
    return _give_or_call("prior.published", "load_clip_prototypes", arguments, options)
