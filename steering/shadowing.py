"""Notice that another module hides one of our packages, before it fails with somebody else's traceback.

Our packages have common names. The registry has another package called `prior`, and a user may have a `prior.py` beside
his script. Where such a module is found instead of ours, or was installed into the same folder, importing `steering`
fails in one line that says which file is in the way and what to do.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACKAGES = {"lrm_base": "card.py", "lrm_core": "feedback.py", "lrm_lab": "part.py", "prior": "class_names.py"}
MARK = "lrm-steering"  # stands in the __init__.py of each


class ShadowedError(ImportError):
    """One of our packages is hidden by another module of the same name. The message is one line."""


def check(package: str) -> None:
    """Raise ShadowedError if a package of ours is hidden.

    Args:
        package: the name under which `steering` was imported. A copy that `torch.hub` loaded has a private name and is
            never hidden.
    """
    if package != "steering":
        return
    for name, file in PACKAGES.items():
        if name in sys.modules and getattr(sys.modules[name], "__spec__", None) is None:
            raise ShadowedError(
                f"a module {name!r} that this program made hides the package of lrm-steering: rename it"
            )
        place = _folder(name)
        if place is None:
            raise ShadowedError(f"package {name!r} of lrm-steering is missing: install lrm-steering again")
        folder, init = place
        if folder is None:
            raise ShadowedError(f"{init} hides the package {name!r} of lrm-steering: rename that file")
        if not (folder / file).is_file():
            raise ShadowedError(
                f"{init} hides the package {name!r} of lrm-steering: rename its folder, or uninstall the package that "
                f"brought it (`pip uninstall {name}`)"
            )
        if MARK not in init.read_text(errors="replace"):
            raise ShadowedError(
                f"{init} belongs to another package called {name!r}, which was installed over ours: "
                f"`pip uninstall {name}`, then `{_install()}`"
            )


def _install() -> str:
    try:
        from lrm_base.extras import install_command
    except ImportError:  # that package is the one that was overwritten
        return f"pip install --force-reinstall --no-deps {MARK}"
    return install_command(again=True)


def _folder(name: str) -> tuple[Path | None, Path] | None:
    """The folder of a package (None for a plain module) and the file that is imported. None if nothing has the name."""
    loaded = sys.modules.get(name)
    spec = getattr(loaded, "__spec__", None) if loaded is not None else importlib.util.find_spec(name)
    if spec is None:
        return None
    locations = list(spec.submodule_search_locations or ())
    folder = Path(locations[0]) if locations else None
    origin = spec.origin if spec.origin not in (None, "namespace") else None
    return folder, Path(origin) if origin else (folder or Path(name)) / "__init__.py"
