"""Packages that only training needs. They come with the optional extra `train`."""

from __future__ import annotations

import importlib.util
import sys

INSTALL = "pip install 'lrm-steering[train]'"


def missing_packages(*packages: str) -> list[str]:
    """The top-level packages among these that are not installed, in the same order. Nothing is imported."""
    return [package for package in packages if importlib.util.find_spec(package) is None]


def require_packages(*packages: str) -> None:
    """End a training command whose packages are not installed: one line on stderr, and exit code 2.

    Raises:
        SystemExit: with code 2; a package is missing. The line names the packages and how to install them.
    """
    missing = missing_packages(*packages)
    if missing:
        print(f"training needs {', '.join(missing)}, not installed here: {INSTALL}", file=sys.stderr)
        raise SystemExit(2)
