"""Steer vision with language: `from steering import Steerer`.

Names are imported when they are first used, so that `steer --help` does not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steering import shadowing

if TYPE_CHECKING:
    from steering.errors import GalleryError, ImageError, QueryError, UnavailableError
    from steering.evidence import Seen, Verdict
    from steering.goals import Goal
    from steering.language import Language
    from steering.look import Look
    from steering.network import Defaults, Glance, Network
    from steering.search.gallery import Gallery
    from steering.search.hits import Hit, Hits
    from steering.search.report import Report
    from steering.steerer import Steerer

__version__ = "0.1.0"
__all__ = [
    "Defaults",
    "Gallery",
    "GalleryError",
    "Glance",
    "Goal",
    "Hit",
    "Hits",
    "ImageError",
    "Language",
    "Look",
    "Network",
    "QueryError",
    "Report",
    "Seen",
    "Steerer",
    "UnavailableError",
    "Verdict",
]

_MODULES = {
    **dict.fromkeys(("GalleryError", "ImageError", "QueryError", "UnavailableError"), "errors"),
    **dict.fromkeys(("Defaults", "Glance", "Network"), "network"),
    **dict.fromkeys(("Hit", "Hits"), "search.hits"),
    **dict.fromkeys(("Seen", "Verdict"), "evidence"),
    "Gallery": "search.gallery",
    "Goal": "goals",
    "Language": "language",
    "Look": "look",
    "Report": "search.report",
    "Steerer": "steerer",
}

shadowing.check(__name__)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'steering' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
