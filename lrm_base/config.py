"""Frozen, typed configurations: YAML in, one immutable object out.

Unusual: every unknown, missing or mistyped key is named at once (pydantic's `extra="forbid"`), with the nearest known
key where one is near, and single values can be overridden from the command line by dotted names: `optim.lr=0.1`.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

C = TypeVar("C", bound="Config")  # not typing.Self: the tests' shape checks cannot resolve it on methods


class Config(BaseModel):
    """Base of every configuration: frozen, and a stranger to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def load(cls: type[C], path: str | Path, overrides: Iterable[str] = ()) -> C:
        """Read a YAML file, apply `dotted.key=value` overrides (values are YAML), validate.

        Raises:
            ValueError: the file is missing or is not a mapping, or keys are unknown, missing or wrong; all are named.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"configuration not found: {path}")
        try:
            values = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path}: expected a mapping of keys to values, got {type(values).__name__}")
        for override in overrides:
            _override(values, override)
        return cls.parse(values, where=str(path))

    @classmethod
    def parse(cls: type[C], values: dict[str, Any], where: str = "configuration") -> C:
        """Validate a plain dict. Raises ValueError that names every wrong key."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError("\n  ".join([f"{where}:", *(_explain(cls, item) for item in error.errors())])) from None

    @classmethod
    def from_command_line(cls: type[C], description: str, argv: Sequence[str] | None = None) -> C:
        """`--config FILE [key.sub=value …]`, with usage errors (exit code 2) for what is wrong."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--config", required=True, help="a YAML file, see configs/")
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="override values, e.g. optim.lr=0.1")
        arguments = parser.parse_args(argv)
        try:
            return cls.load(arguments.config, arguments.overrides)
        except ValueError as error:
            parser.error(str(error))

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return self.model_dump(mode="json")


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r}: expected key=value")
    *parents, last = key.split(".")
    node: Any = values
    for parent in parents:
        node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
    if isinstance(node, list):
        node[int(last)] = yaml.safe_load(text)
    elif isinstance(node, dict):
        node[last] = yaml.safe_load(text)
    else:
        raise ValueError(f"override {override!r}: {'.'.join(parents)} is not a group of keys")


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
        found: list[Any] = []
        for candidate in candidates:
            if isinstance(part, str) and part in getattr(candidate, "model_fields", {}):
                found += _models_in(candidate.model_fields[part].annotation)
            elif isinstance(part, int):
                found.append(candidate)
        candidates = found
    return {name for candidate in candidates for name in getattr(candidate, "model_fields", {})}


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models_in(inner)]
