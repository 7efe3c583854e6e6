"""The public surface: what is exported, what a Steerer has, what the package says of itself."""

import importlib
import inspect
import typing
from pathlib import Path

import pytest

import steering

ROOT = Path(__file__).resolve().parent.parent.parent
SHOWN = [steering.Steerer, steering.Gallery, steering.Network, steering.Look]


def test_everything_exported_is_listed_and_importable():
    assert set(steering.__all__) <= set(dir(steering))
    for name in steering.__all__:
        assert getattr(steering, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        steering.Nothing  # noqa: B018


def test_what_stands_in_a_public_signature_is_exported():
    exported = {getattr(steering, name) for name in steering.__all__}
    for owner in SHOWN:
        for name, member in inspect.getmembers(owner):
            if name.startswith("_") or not callable(member):
                continue
            module = importlib.import_module(owner.__module__)
            try:
                hints = typing.get_type_hints(member, vars(module) | vars(steering))
            except NameError:  # a name for type checking alone, such as PIL's Image
                continue
            for hint in hints.values():
                for part in (hint, *typing.get_args(hint)):
                    if inspect.isclass(part) and part.__module__.startswith("steering."):
                        assert part in exported, f"{owner.__name__}.{name} speaks of {part}"


def test_a_steerer_understands_and_looks_and_nothing_else():
    public = [name for name in dir(steering.Steerer) if not name.startswith("_")]
    assert len(public) <= 14, public


def test_the_package_is_typed_and_has_a_version():
    for package in ("lrm_base", "lrm_core", "lrm_lab", "prior", "steering"):
        assert (ROOT / package / "py.typed").is_file()
    assert steering.__version__.count(".") == 2
