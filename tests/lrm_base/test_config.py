"""Configurations: what is wrong is named, all of it, with its place."""

from pathlib import Path

import pytest

from lrm_base.config import Config
from lrm_core.train import BackboneTraining, stage_at

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class Inner(Config):
    rate: float = 0.1


class Outer(Config):
    name: str
    parts: list[Inner] = []
    inner: Inner | None = None


def write(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text)
    return path


def test_every_wrong_key_is_named_with_its_place_and_the_nearest_known_one(tmp_path):
    path = write(tmp_path, "nmae: x\nparts: [{rat: 1}]\ninner: {rate: fast}\n")
    with pytest.raises(ValueError, match="nmae: unknown key; did you mean name") as caught:
        Outer.load(path)
    assert "parts.0.rat: unknown key; did you mean rate" in str(caught.value)
    assert "inner.rate" in str(caught.value)
    assert "name: field required" in str(caught.value)


def test_an_override_reaches_into_lists_and_groups(tmp_path):
    path = write(tmp_path, "name: x\nparts: [{rate: 1}]\n")
    config = Outer.load(path, ["parts.0.rate=3", "inner.rate=0.5", "name=y"])
    assert (config.parts[0].rate, config.inner.rate, config.name) == (3, 0.5, "y")


@pytest.mark.parametrize("override", ["name", "=3", "name.first=3"])
def test_a_malformed_override_raises(tmp_path, override):
    with pytest.raises(ValueError, match="override"):
        Outer.load(write(tmp_path, "name: x\n"), [override])


def test_a_configuration_is_frozen(tmp_path):
    config = Outer.load(write(tmp_path, "name: x\n"))
    with pytest.raises(ValueError, match="frozen"):
        config.name = "y"


@pytest.mark.parametrize("text", ["- a\n", "name: [\n"])
def test_a_file_that_is_no_mapping_raises(tmp_path, text):
    with pytest.raises(ValueError, match=r"c\.yaml"):
        Outer.load(write(tmp_path, text))


def test_a_missing_file_raises(tmp_path):
    with pytest.raises(ValueError, match="not found"):
        Outer.load(tmp_path / "no.yaml")


def test_a_wrong_command_line_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as caught:
        Outer.from_command_line("Test.", ["--config", "nowhere.yaml"])
    assert caught.value.code == 2
    assert "not found" in capsys.readouterr().err


def test_the_shipped_backbone_configuration_loads_and_its_stages_follow_each_other():
    config = BackboneTraining.load(CONFIGS / "lrm_mini.yaml")
    total = sum(stage.epochs for stage in config.stages)
    assert stage_at(config.stages, 0) == (config.stages[0], 0)
    assert stage_at(config.stages, total - 1)[0] == config.stages[-1]
    with pytest.raises(ValueError, match="after the last stage"):
        stage_at(config.stages, total)
