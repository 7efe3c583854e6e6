"""A module that hides one of our packages is named in one line, with the remedy."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Our packages as an installation lays them, without the weights."""
    for package in ("lrm_base", "lrm_core", "lrm_lab", "prior", "steering"):
        ignore = shutil.ignore_patterns("models", "weights", "*.pyc")
        shutil.copytree(ROOT / package, tmp_path / "site" / package, ignore=ignore)
    shutil.copyfile(ROOT / "steer_cli.py", tmp_path / "site" / "steer_cli.py")
    return tmp_path / "site"


def run(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-S", "-c", code]  # without what is installed here
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=path[0], env=environment)


def test_nothing_is_said_where_nothing_is_hidden(copy: Path):
    done = run("import steering; print(steering.__version__)", copy)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("package", [False, True])
def test_a_module_of_the_users_own_is_named(copy: Path, tmp_path: Path, package: bool):
    mine = tmp_path / "mine"
    where = mine / "prior" / "__init__.py" if package else mine / "prior.py"
    where.parent.mkdir(parents=True)
    where.write_text("raise RuntimeError('a foreign traceback')\n")
    done = run("import steering", mine, copy)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith(f"steering.shadowing.ShadowedError: {where} hides the package 'prior' of lrm-steering")
    assert "a foreign traceback" not in done.stderr
    done = run("import sys, steer_cli; sys.exit(steer_cli.main(['--version']))", mine, copy)
    assert done.returncode == 2
    assert done.stderr.startswith(f"steer: {where} hides the package 'prior'")
    assert done.stderr.count("\n") == 1


def test_another_package_installed_over_ours_is_told_with_the_remedy(copy: Path):
    (copy / "prior" / "__init__.py").write_text("from nowhere import anything\n")
    done = run("import sys, steer_cli; sys.exit(steer_cli.main(['--version']))", copy)
    assert done.returncode == 2
    assert "belongs to another package called 'prior'" in done.stderr
    assert "pip uninstall prior" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_module_that_a_program_made_is_told(copy: Path):
    done = run("import sys, types; sys.modules['prior'] = types.ModuleType('prior'); import steering", copy)
    assert "a module 'prior' that this program made hides" in done.stderr.splitlines()[-1]


def test_a_missing_package_is_told(copy: Path):
    shutil.rmtree(copy / "lrm_base")
    done = run("import steering", copy)
    assert "package 'lrm_base' of lrm-steering is missing" in done.stderr.splitlines()[-1]
