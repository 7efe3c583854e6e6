"""Entry points for `torch.hub`: `torch.hub.load(repository, "alexnet_lrm3")`, `torch.hub.load(repository, "steerer")`.

The published entry points keep their names and their calls (Konkle & Alvarez 2023). `steerer` is this project's own.
As published, `LRMNet`, `SteerableLRM`, `compute_prototypes`, `load_vision_prototypes` and `load_clip_prototypes` give
the class or the function itself when called without arguments. With arguments they call it.

Unusual: our packages have common names such as `prior`, and torch.hub puts this folder first on `sys.path` while it
loads. The user may have modules of the same names. We must not take the user's module for ours, and ours must not hide
the user's. So our packages are imported under a private name, `_lrm_steering_…`, which differs between checkouts. Their
modules still write `from prior.text import …`. This works because each module gets its own `__import__`, which Python's
import statement looks up in the module's builtins. It turns our names into the private ones, in late imports too. While
an entry point runs, this folder is off `sys.path`. There is a price: a class loaded here is not the class of an
installed `lrm_core`. And a process that starts afresh, such as a spawned worker of a `DataLoader`, cannot unpickle it.

Nothing is imported before an entry point is called. All names except the entry points start with an underscore, because
`torch.hub.list` shows every callable of this file.
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
    "einops",
    "filelock",
    "jaxtyping",
    "matplotlib",
    "numpy",
    "open_clip",
    "regex",
    "safetensors",
    "torch",
    "torchvision",
    "tqdm",
]

_ROOT = _Path(__file__).resolve().parent
_OURS = frozenset({"lrm_base", "lrm_core", "lrm_lab", "prior", "steering"})
_PRIVATE = f"_lrm_steering_{_hashlib.sha256(str(_ROOT).encode()).hexdigest()[:12]}"


def _import(
    name: str,
    globals: "_Mapping[str, _Any] | None" = None,
    locals: "_Mapping[str, _Any] | None" = None,
    fromlist: "_Sequence[str] | None" = (),
    level: int = 0,
) -> _types.ModuleType:
    """The `__import__` of our modules: a name of ours means the package of this checkout, under its private name."""
    top = name.partition(".")[0]
    if level or top not in _OURS:
        return _builtins.__import__(name, globals, locals, fromlist or (), level)
    module = _builtins.__import__(f"{_PRIVATE}.{name}", globals, locals, fromlist or (), 0)
    return module if fromlist else _sys.modules[f"{_PRIVATE}.{top}"]


class _Loader(_machinery.SourceFileLoader):
    """Runs a module of ours with `_import` as its `__import__`."""

    def exec_module(self, module: _types.ModuleType) -> None:
        module.__dict__["__builtins__"] = {**vars(_builtins), "__import__": _import}
        super().exec_module(module)


class _Finder:
    """Finds the modules under the private name and no others."""

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
    """Takes this folder off `sys.path`, where torch.hub put it, and puts it back at the end for torch.hub to remove."""
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
    """A module of this checkout under its private name. Every call gives the same module."""
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
    """The class or function itself if there are no arguments, as published; otherwise what it returns for them."""
    if arguments or options:
        return _call(module, name, *arguments, **options)
    with _off_the_path():
        return getattr(_ours(module), name)


def steerer(
    model: str | None = None, device: str | None = None, prior: str | None = None, text: str | None = None
) -> "_Steerer":
    """A `steering.Steerer`: `steerer.look("photo.jpg", "a dog")` looks in a photo for what you name.

    Args:
        model: the name of an embedded model, the folder of a model, or the name of a published model; if None,
            $STEER_MODEL, or else the embedded model.
        device: `cpu`, `cuda` or another device of torch; if None, the GPU where there is one, and else the CPU.
        prior, text: as in `Steerer.load`.

    Raises:
        ValueError: there is no such model or device, or a file of the model was altered.
    """
    with _off_the_path():
        return _ours("steering.steerer").Steerer.load(model, device=device, prior=prior, text=text)


def alexnet_lrm1(
    pretrained: bool | str = True, steering: bool = True, progress: bool | None = None
) -> "tuple[_Any, dict[str, _Callable]]":
    """AlexNet with one pair of feedback connections: (model, transforms). See `alexnet_lrm3`."""
    return _call("lrm_core.published_backbones", "alexnet_lrm1", pretrained, steering, progress=progress)


def alexnet_lrm2(
    pretrained: bool | str = True, steering: bool = True, progress: bool | None = None
) -> "tuple[_Any, dict[str, _Callable]]":
    """AlexNet with two pairs of feedback connections: (model, transforms). See `alexnet_lrm3`."""
    return _call("lrm_core.published_backbones", "alexnet_lrm2", pretrained, steering, progress=progress)


def alexnet_lrm3(
    pretrained: bool | str = True, steering: bool = True, progress: bool | None = None
) -> "tuple[_Any, dict[str, _Callable]]":
    """The published AlexNet with five feedback connections: (model, transforms).

    Args:
        pretrained: True for the published weights, False for random ones, or a file in the published format
            (`NAME-HEX.pth`).
        steering: True for a `SteerableLRM`, False for an `LRMNet`.
        progress: whether to show a bar while the weights are downloaded; if None, only on a terminal.

    Returns:
        The model, and a dict of `train_transform`, `val_transform`, `test_transform` and `inv_transform`.

    Raises:
        ValueError: the weights cannot be downloaded, have another hash, or do not fit. The message says what to do.
    """
    return _call("lrm_core.published_backbones", "alexnet_lrm3", pretrained, steering, progress=progress)


def LRMNet(*arguments: "_Any", **options: "_Any") -> "_Any":
    """The class `lrm_core.LRMNet`. With arguments: a model, any convnet with feedback connections."""
    return _give_or_call("lrm_core.compat", "LRMNet", arguments, options)


def SteerableLRM(*arguments: "_Any", **options: "_Any") -> "_Any":
    """The class `lrm_core.SteerableLRM`. With arguments: a model, an `LRMNet` that takes `steering_signals`."""
    return _give_or_call("lrm_core.compat", "SteerableLRM", arguments, options)


def compute_prototypes(*arguments: "_Any", **options: "_Any") -> "_Any":
    """The function `lrm_core.prototypes.compute_prototypes`. With arguments (model, dataset, …): the prototypes."""
    return _give_or_call("lrm_core.prototypes", "compute_prototypes", arguments, options)


def load_vision_prototypes(*arguments: "_Any", **options: "_Any") -> "_Any":
    """The function `lrm_core.published_backbones.load_vision_prototypes`. With a model's name: its prototypes."""
    return _give_or_call("lrm_core.published_backbones", "load_vision_prototypes", arguments, options)


def load_clip_prototypes(*arguments: "_Any", **options: "_Any") -> "_Any":
    """The function `prior.published_prior.load_clip_prototypes`. With a model's name: its prototypes from CLIP."""
    return _give_or_call("prior.published_prior", "load_clip_prototypes", arguments, options)
