"""The command that installs an extra is right for how this copy was installed."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from lrm_base import extras

ROOT = Path(__file__).resolve().parent.parent.parent
PIP = [sys.executable, "-m", "pip", "install"]


class Installed:
    """A distribution that pip installed from somewhere."""

    def __init__(self, facts: dict | None) -> None:
        self.facts = facts

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.facts is None else json.dumps(self.facts)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Makes this copy one among installed packages, from a place that its distribution tells; pip is there."""

    def make(facts: dict | None) -> None:
        monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "lrm_base" / "extras.py"))
        monkeypatch.setattr("importlib.metadata.distribution", lambda name: Installed(facts))
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        monkeypatch.setattr(sys, "prefix", str(tmp_path))

    return make


def test_a_checkout_installs_itself():
    command = shlex.split(extras.install_command("ray"))
    assert command[-2:] == ["-e", f"{ROOT}[ray]"]
    assert shlex.split(extras.install_command())[-1] == str(ROOT)


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        ({"url": "file:///home/me/lrm%20steering", "dir_info": {}}, "/home/me/lrm steering[ray]"),
        ({"url": "file:///home/me/lrm.whl", "archive_info": {}}, "/home/me/lrm.whl[ray]"),
        (
            {"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "lrm-steering[ray] @ git+https://example.org/x.git@abc",
        ),
        ({"url": "https://example.org/x.whl"}, "lrm-steering[ray] @ https://example.org/x.whl"),
        (None, "lrm-steering[ray]"),
    ],
)
def test_pip_installs_from_the_same_place(installed, facts: dict | None, wanted: str):
    installed(facts)
    assert shlex.split(extras.install_command("ray")) == [*PIP, wanted]


def test_an_environment_without_pip_is_served_by_uv(installed, monkeypatch: pytest.MonkeyPatch):
    installed(None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    expected = ["uv", "pip", "install", "--python", sys.executable, "lrm-steering[ray]"]
    assert shlex.split(extras.install_command("ray")) == expected


def test_pipx_injects_what_the_extra_asks_for(installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    installed({"url": "file:///home/me/lrm"})
    (tmp_path / "pipx_metadata.json").touch()
    needs = ["torch>=2.6", "ray[data]>=2.40; extra == 'ray'", "scipy>=1; extra == 'evaluate'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: needs)
    assert shlex.split(extras.install_command("ray")) == ["pipx", "inject", "lrm-steering", "ray[data]>=2.40"]
    assert shlex.split(extras.install_command(again=True)) == ["pipx", "install", "--force", "/home/me/lrm"]


def test_a_tool_of_uv_is_installed_again_with_the_extra(installed, tmp_path: Path):
    installed({"url": "file:///home/me/lrm"})
    (tmp_path / "uv-receipt.toml").touch()
    assert shlex.split(extras.install_command("ray")) == ["uv", "tool", "install", "--force", "/home/me/lrm[ray]"]


def test_the_extras_are_those_of_the_project():
    text = (ROOT / "pyproject.toml").read_text()
    for extra in ("train", "evaluate", "ray"):
        assert f"\n{extra} = [" in text


def test_again_replaces_the_files_alone(installed):
    installed(None)
    command = shlex.split(extras.install_command(again=True))
    assert command == [*PIP, "--force-reinstall", "--no-deps", "lrm-steering"]
