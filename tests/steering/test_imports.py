"""The budget of imports: which packages a look may import beside those of torch, and how a command starts."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from steering.commands.starting import quick_start

ROOT = Path(__file__).resolve().parents[2]
OURS = {"lrm_base", "lrm_core", "prior", "steer_cli", "steering"}
MAY_LOAD = OURS | {
    "PIL",  # reads the image
    "einops",  # names of axes
    "jaxtyping",  # shapes in signatures
    "regex",  # splits a query into words as CLIP does
    "safetensors",  # weights
}
NEVER = ("torch._dynamo", "torch._inductor", "sympy")  # each takes about half a second
PROGRAM = """
import sys, json
import torch
before = set(sys.modules)
import steer_cli
code = steer_cli.main(sys.argv[1:])
new = set(sys.modules) - before
print(json.dumps({"code": code, "new": sorted(new)}), file=sys.stderr)
"""


def modules_of(*arguments: str) -> tuple[int, set[str]]:
    """The exit code of a command, and all modules that it imported after torch."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stderr.splitlines()[-1])
    return told["code"], set(told["new"])


def packages(modules: set[str]) -> set[str]:
    """Their packages, without those of Python and without torch and numpy, which `import torch` imports."""
    found = {name.partition(".")[0] for name in modules if not name.startswith("_cython_")}  # a part of numpy
    return found - sys.stdlib_module_names - {"torch", "numpy"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--json", "sample:cat"],
        ["sample:cat|coffee"],
        ["--query", "- a red cup + two cats behind a tree", "sample:coffee"],
        ["--prototype", "tabby", "sample:cat"],
    ],
)
def test_a_look_imports_what_the_budget_names(shipped_default: Path, arguments: list[str]) -> None:
    code, new = modules_of("--query", "a dog", *arguments)
    assert code == 0
    assert packages(new) == MAY_LOAD
    assert not [name for name in new if name.startswith(NEVER)]


def test_words_that_are_not_known_import_no_more(shipped_default: Path) -> None:
    code, new = modules_of("--query", "a cofee", "sample:cat")
    assert code == 3
    assert packages(new) == MAY_LOAD


def test_letters_beyond_ascii_need_one_package_more(shipped_default: Path) -> None:
    _, new = modules_of("--query", "a naïve café", "sample:cat")
    assert packages(new) - MAY_LOAD <= {"ftfy", "wcwidth"}
    assert "ftfy" in new


def test_a_picture_alone_needs_matplotlib(shipped_default: Path, tmp_path: Path) -> None:
    _, new = modules_of("--query", "a dog", "sample:cat", "--output", str(tmp_path))
    assert "matplotlib" in packages(new)
    assert not packages(new) & {"open_clip", "torchvision", "pydantic", "scipy", "pandas", "tqdm", "lance", "pyarrow"}


STARTED = """
import gc, os, sys
from steering.commands.starting import quick_start
with quick_start():
    assert not gc.isenabled()
    import torch
assert gc.isenabled()
assert gc.get_freeze_count() > 100_000, gc.get_freeze_count()
print(os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.parametrize(("own", "expected"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_a_command_hides_imports_from_the_collector_and_its_threads_sleep(own: dict[str, str], expected: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"} | own
    done = subprocess.run(
        [sys.executable, "-c", STARTED], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{expected}\n"


def test_a_process_that_has_torch_keeps_its_collector() -> None:
    import torch  # noqa: F401

    before = gc.get_freeze_count()
    with quick_start():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_the_collector_is_on_again_after_an_error() -> None:
    program = (
        "import gc; from steering.commands.starting import quick_start\n"
        "try:\n    with quick_start():\n        raise ValueError\n"
        "except ValueError:\n    assert gc.isenabled()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
