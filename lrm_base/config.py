"""Frozen, typed configurations: a YAML file becomes one immutable object.

Unusual: one error names every unknown, missing or mistyped key, and suggests a known key that is close. Single values
can be overridden by dotted keys, such as `optim.lr=0.1`.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrm_base.checks import MOST_TRAINING_SEED

C = TypeVar("C", bound="Config")  # not typing.Self: the tests' shape checks cannot resolve it on methods

Count = Annotated[int, Field(strict=True, ge=1)]
"""A whole number of at least 1; neither 2.0 nor True is one."""
Whole = Annotated[int, Field(strict=True, ge=0)]
"""A whole number of at least 0."""
TrainingSeed = Annotated[int, Field(strict=True, ge=0, le=MOST_TRAINING_SEED)]
"""The seed of a training, from 0 to 2**32 − 1."""


class Config(BaseModel):
    """Base of every configuration. It is frozen, and it refuses unknown keys and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def load(cls: type[C], path: str | Path, overrides: Iterable[str] = ()) -> C:
        """Read a YAML file, apply the overrides, and validate.

        Args:
            overrides: texts `dotted.key=value`. The value is YAML. A number in the key is the entry of a list,
                counted from 0.

        Raises:
            ValueError: the file is missing or is not a mapping; an override is malformed or leads nowhere; or keys are
                unknown, missing or wrong, and then the error names all of them.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"configuration not found: {path}")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, or bytes not in UTF-8
            raise ValueError(f"{path} is not YAML: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path}: expected a mapping of keys to values, got {type(values).__name__}")
        for override in overrides:
            _override(values, override)
        return cls.parse(values, where=str(path))

    @classmethod
    def parse(cls: type[C], values: dict[str, Any], where: str = "configuration") -> C:
        """Validate a plain dict. Raises ValueError that names every wrong key; `where` begins the message."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError("\n  ".join([f"{where}:", *(_explain(cls, item) for item in error.errors())])) from None

    @classmethod
    def from_command_line(cls: type[C], description: str, argv: Sequence[str] | None = None) -> C:
        """Read `--config FILE [key.sub=value …]`. Anything wrong is a usage error (exit code 2)."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--config", required=True, help="a YAML file, see configs/")
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="override values, e.g. optim.lr=0.1")
        arguments = parser.parse_args(argv)
        try:
            return cls.load(arguments.config, arguments.overrides)
        except ValueError as error:
            parser.error(str(error))

    def to_dict(self) -> dict[str, Any]:
        """The values as plain types that JSON can hold."""
        return self.model_dump(mode="json")


def _override(values: dict[str, Any], override: str) -> None:
    """Set one value in place. Raises ValueError that names the override if it is malformed or leads nowhere."""
    key, equals, text = override.partition("=")
    *parents, last = key.split(".")
    if not equals or not all((*parents, last)):
        raise ValueError(f"override: got {override!r}, expected dotted.key=value")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        reason = " ".join(str(error).split())
        raise ValueError(f"override {override!r}: got {text!r}, expected a value in YAML ({reason})") from None
    node: Any = values
    for depth, parent in enumerate(parents):
        place = _place(node, parents[:depth], parent, override)
        node = node[place] if isinstance(node, list) else node.setdefault(place, {})
    node[_place(node, parents, last, override)] = value


def _place(node: Any, path: Sequence[str], part: str, override: str) -> Any:
    """The key or the index that one part of an override means in the group or the list at `path`."""
    where = f"override {override!r}: {'.'.join(path)}"
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise ValueError(f"{where}: got {node!r}, expected a group of keys or a list, since it has to hold {part!r}")
    entries = f"{len(node)} {'entry' if len(node) == 1 else 'entries'}"
    if not (part.isascii() and part.isdecimal()):
        raise ValueError(f"{where} is a list of {entries}: got {part!r}, expected the number of an entry, from 0 on")
    if int(part) >= len(node):
        choices = f"expected 0 to {len(node) - 1}" if node else "no entry can be overridden"
        raise ValueError(f"{where} is a list of {entries}: got {part}, {choices}")
    return int(part)


def _explain(schema: type[BaseModel], item: Any) -> str:
    location = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        return f"{location}: {item['msg'].lower()}, got {item['input']!r}"
    known = sorted(_fields_at(schema, item["loc"][:-1]))
    near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choices: {', '.join(known)}"
    return f"{location}: unknown key; {hint}"


def _fields_at(schema: Any, location: Sequence[Any]) -> set[str]:
    """Names of the fields of the model that lies at a location, through tuples and optionals."""
    candidates = [schema]
    for part in location:
        inner: list[Any] = []
        for candidate in candidates:
            if isinstance(part, str) and part in getattr(candidate, "model_fields", {}):
                inner += _models_in(candidate.model_fields[part].annotation)
            elif isinstance(part, int):
                inner.append(candidate)
        candidates = inner
    return {name for candidate in candidates for name in getattr(candidate, "model_fields", {})}


def _models_in(annotation: Any) -> list[Any]:
    """The models that a type annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models_in(inner)]
