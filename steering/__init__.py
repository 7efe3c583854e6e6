"""Steer vision with language: `from steering import Steerer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steering.errors import ImageError, QueryError
    from steering.look import Look
    from steering.steerer import Steerer

__all__ = ["ImageError", "Look", "QueryError", "Steerer"]

_HOMES = {"ImageError": "errors", "QueryError": "errors", "Look": "look", "Steerer": "steerer"}


def __getattr__(name: str) -> Any:
    """Import late: `steer --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'steering' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
