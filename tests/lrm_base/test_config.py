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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name", r"override: got 'name', expected dotted\.key=value"),
        ("=3", r"override: got '=3', expected dotted\.key=value"),
        ("inner..rate=3", r"override: got 'inner\.\.rate=3', expected dotted\.key=value"),
        (".name=3", r"override: got '\.name=3', expected dotted\.key=value"),
        ("name.first=3", r"override 'name\.first=3': name: got 'x', expected a group of keys or a list"),
        ("name.x.y=3", r"override 'name\.x\.y=3': name: got 'x', expected a group of keys or a list"),
        ("none.x=3", r"override 'none\.x=3': none: got None, expected a group of keys or a list"),
        ("parts.99.rate=1", r"override .*: parts is a list of 2 entries: got 99, expected 0 to 1"),
        ("parts.2=1", r"override .*: parts is a list of 2 entries: got 2, expected 0 to 1"),
        ("parts.-1.rate=1", r"override .*: parts is a list of 2 entries: got '-1', expected the number of an entry"),
        ("parts.²=1", r"override .*: parts is a list of 2 entries: got '²', expected the number of an entry"),
        ("parts.foo.rate=1", r"override .*: parts is a list of 2 entries: got 'foo', expected the number of an entry"),
        ("one.1=1", r"override .*: one is a list of 1 entry: got 1, expected 0 to 0"),
        ("empty.0=1", r"override .*: empty is a list of 0 entries: got 0, no entry can be overridden"),
        ("name=[1", r"override 'name=\[1': got '\[1', expected a value in YAML"),
        ("name=2026-13-45", r"override 'name=2026-13-45': got '2026-13-45', expected a value in YAML"),
        ("name=a: b: c", r"override 'name=a: b: c': got 'a: b: c', expected a value in YAML"),
    ],
)
def test_an_override_that_leads_nowhere_is_named_with_what_was_expected(tmp_path, override, message):
    path = write(tmp_path, "name: x\nnone: null\nempty: []\none: [1]\nparts: [{rate: 1}, {rate: 2}]\n")
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        Outer.load(path, [override])
    assert "\n" not in str(caught.value)


def test_an_override_of_what_there_is_not_is_an_unknown_key(tmp_path):
    with pytest.raises(ValueError, match=r"inner\.rat: unknown key; did you mean rate"):
        Outer.load(write(tmp_path, "name: x\n"), ["inner.rat=1"])


def test_a_configuration_is_frozen(tmp_path):
    config = Outer.load(write(tmp_path, "name: x\n"))
    with pytest.raises(ValueError, match="frozen"):
        config.name = "y"


@pytest.mark.parametrize("number", [".nan", ".inf"])
def test_a_number_that_is_not_finite_raises(tmp_path, number):
    with pytest.raises(ValueError, match=r"inner\.rate: input should be a finite number"):
        Outer.load(write(tmp_path, f"name: x\ninner: {{rate: {number}}}\n"))


@pytest.mark.parametrize("text", ["- a\n", "name: [\n", "name: 2026-13-45\n"])
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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=true", "seed: input should be a valid integer, got True"),
        ("seed=2.5", "seed: input should be a valid integer, got 2.5"),
        ("seed=.nan", "seed: input should be a valid integer, got nan"),
        ("seed=1.0e+38", "seed: input should be a valid integer, got 1e[+]38"),
        ("seed=-1", "seed: input should be greater than or equal to 0, got -1"),
        ("seed=12345678901234567890", "seed: input should be less than or equal to 4294967295, got 1234567890"),
        ("batch_size=0", "batch_size: input should be greater than or equal to 1, got 0"),
        ("stages.0.passes=2.0", "stages.0.passes: input should be a valid integer, got 2.0"),
        ("data.num_holdout=-1", "data.num_holdout: input should be greater than or equal to 0, got -1"),
        ("weight_decay=.nan", "weight_decay: input should be a finite number, got nan"),
    ],
)
def test_a_number_of_a_training_that_makes_no_sense_raises(override, message):
    with pytest.raises(ValueError, match=f"lrm_mini.yaml:\n  {message}"):
        BackboneTraining.load(CONFIGS / "lrm_mini.yaml", [override])


def test_the_shipped_backbone_configuration_loads_and_its_stages_follow_each_other():
    config = BackboneTraining.load(CONFIGS / "lrm_mini.yaml")
    total = sum(stage.epochs for stage in config.stages)
    assert stage_at(config.stages, 0) == (config.stages[0], 0)
    assert stage_at(config.stages, total - 1)[0] == config.stages[-1]
    with pytest.raises(ValueError, match="after the last stage"):
        stage_at(config.stages, total)
