"""Steer vision with language: `from steering import Steerer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steering.errors import GalleryError, ImageError, QueryError
    from steering.look import Look
    from steering.search.gallery import Gallery, Hit
    from steering.steerer import Steerer

__all__ = ["Gallery", "GalleryError", "Hit", "ImageError", "Look", "QueryError", "Steerer"]

_HOMES = {
    **dict.fromkeys(("GalleryError", "ImageError", "QueryError"), "errors"),
    **dict.fromkeys(("Gallery", "Hit"), "search.gallery"),
    "Look": "look",
    "Steerer": "steerer",
}


def __getattr__(name: str) -> Any:
    """Import late: `steer --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'steering' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
