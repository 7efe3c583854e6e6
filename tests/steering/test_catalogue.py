"""Which model there is when none is named: $STEER_MODEL, or the embedded default."""

from pathlib import Path

import pytest

from lrm_base.imagenet import imagenet_names
from steering import Steerer
from steering.catalogue import (
    DEFAULT_MODEL,
    MODEL_VARIABLE,
    MODELS,
    class_names,
    default_model,
    find_model,
    model_names,
)


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_the_default_is_an_embedded_model(value: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(MODEL_VARIABLE)
    if value is not None:
        monkeypatch.setenv(MODEL_VARIABLE, value)
    assert default_model() == DEFAULT_MODEL
    assert DEFAULT_MODEL in model_names()
    assert find_model() == MODELS / DEFAULT_MODEL


def test_the_variable_names_a_folder(toy: Steerer, toy_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(MODEL_VARIABLE, str(toy_folder))
    assert default_model() == str(toy_folder)
    assert find_model() == toy_folder
    assert class_names() == toy.class_names
    assert Steerer.load(device="cpu").network.card == toy.network.card


def test_the_variable_names_a_published_model(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(MODEL_VARIABLE, "alexnet_lrm1")
    assert class_names() == imagenet_names()


def test_what_is_named_comes_before_the_variable(toy_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(MODEL_VARIABLE, "nobody")
    assert find_model(toy_folder) == toy_folder
    with pytest.raises(ValueError, match=r"^model: got 'nowhere', expected a folder"):
        find_model("nowhere")


@pytest.mark.parametrize("ask", [find_model, class_names, Steerer.load])
def test_a_variable_that_names_no_model_is_named(ask, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(MODEL_VARIABLE, "nobody")
    with pytest.raises(ValueError, match=r"^\$STEER_MODEL: got 'nobody', expected a folder"):
        ask()
