"""Optional packages, and the command that installs them for the copy of this project that runs.

Unusual: the command depends on how the copy was installed. A checkout, a file of a wheel, an address, pipx and
`uv tool` each need another one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NAME = "lrm-steering"


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
        told = f"training needs {', '.join(missing)}, not installed here: {install_command('train')}"
        print(told, file=sys.stderr)
        raise SystemExit(2)


def install_command(extra: str = "", *, again: bool = False) -> str:
    """A command for a shell that installs an extra of this project, for the copy that runs.

    Args:
        extra: name of a set of optional packages, such as `train`. Without one the command installs the project.
        again: whether to replace the files of the project and nothing else.
    """
    source, editable = _source()
    if source.startswith(("git+", "http:", "https:")):
        wanted = f"{NAME}{f'[{extra}]' if extra else ''} @ {source}"
    else:
        wanted = f"{source}[{extra}]" if extra else source
    prefix = Path(sys.prefix)
    if (prefix / "uv-receipt.toml").is_file():
        return _spelled(["uv", "tool", "install", *(["--reinstall"] if again else []), "--force", wanted])
    if (prefix / "pipx_metadata.json").is_file():
        needs = [] if again else _requirements(extra)
        return _spelled(["pipx", "inject", NAME, *needs] if needs else ["pipx", "install", "--force", wanted])
    marks = [*(["--force-reinstall", "--no-deps"] if again else []), *(["-e"] if editable else [])]
    if importlib.util.find_spec("pip") is None:  # as in an environment that uv made
        return _spelled(["uv", "pip", "install", "--python", sys.executable, *marks, wanted])
    return _spelled([sys.executable or "python", "-m", "pip", "install", *marks, wanted])


def _source() -> tuple[str, bool]:
    """Where this copy came from: a folder, a file, an address or a name; and whether it runs from that folder."""
    here = Path(__file__).resolve().parent.parent
    if (here / "pyproject.toml").is_file():
        return str(here), True
    import importlib.metadata  # late: no command needs it to start
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        facts = json.loads(importlib.metadata.distribution(NAME).read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return NAME, False
    url = str(facts.get("url", ""))
    if url.startswith("file:"):
        return url2pathname(urlsplit(url).path), False
    if "vcs_info" in facts:
        commit = facts["vcs_info"].get("commit_id")
        return f"{facts['vcs_info'].get('vcs', 'git')}+{url}{f'@{commit}' if commit else ''}", False
    return url or NAME, False


def _requirements(extra: str) -> list[str]:
    """What an extra asks for, as requirements."""
    import importlib.metadata

    try:
        every = importlib.metadata.requires(NAME) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    split = [tuple(part.strip() for part in requirement.partition(";")[::2]) for requirement in every]
    marks = (f"extra == '{extra}'", f'extra == "{extra}"')
    return [need for need, marker in split if extra and marker in marks]


def _spelled(words: Sequence[str]) -> str:
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
