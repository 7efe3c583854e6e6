"""A part of the laboratory: how it is measured, and how its numbers are reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lrm_lab.bench import Bench
from lrm_lab.commands import Asked
from lrm_lab.writing import Row, Section


def _no_rows(measured: dict[str, Any]) -> list[Row]:
    return []


def _lacks_nothing(bench: Bench) -> str:
    return ""


@dataclass(frozen=True)
class Part:
    """One question that is put to a model.

    Attributes:
        name: its key in the results.
        command: `steer evaluate COMMAND` measures this part, and perhaps others.
        arguments: the arguments that its command needs. They are shown under the section.
        measure: function that measures it. It returns plain values for JSON.
        sections: function from these values to its texts for RESULTS.md and the page, each with its figures.
        rows: function from these values to its rows of the README's table.
        needs: the field of `Asked` without which the part is left out.
        lacks: function that tells, in a sentence, what the model lacks for this part; an empty string if nothing. The
            part is then left out.
        needs_classes: why it is measured on classifiers alone, and never on a CLIP; an empty string if it is not.
        needs_verdict: whether it can be measured only where goals by words have a calibrated verdict. A CLIP has at
            least a presumed one.
        has_controls: whether its numbers depend on the trained controls.
        draws: whether it draws pictures while it is measured.
    """

    name: str
    command: str
    arguments: str
    measure: Callable[[Bench], dict[str, Any]]
    sections: Callable[[dict[str, Any]], list[Section]]
    rows: Callable[[dict[str, Any]], list[Row]] = _no_rows
    needs: str | None = None
    lacks: Callable[[Bench], str] = _lacks_nothing
    needs_classes: str = ""
    needs_verdict: bool = False
    has_controls: bool = False
    draws: bool = False

    @property
    def sees_images(self) -> bool:
        """Whether it is measured on the labelled images."""
        return "--source" in self.arguments

    @property
    def is_in_table(self) -> bool:
        """Whether the README's table has rows of this part."""
        return self.rows is not _no_rows

    @property
    def is_for_all(self) -> bool:
        """Whether it can be measured on every model, with what every request gives."""
        return self.needs is None and self.lacks is _lacks_nothing

    def left_out(self, bench: Bench) -> str:
        """Why it is not measured on a model, in a sentence; an empty string if it is."""
        return self.needs_classes if bench.network.is_open and self.needs_classes else self.lacks(bench)

    def is_possible(self, asked: Asked) -> bool:
        """Whether what it needs was given."""
        return self.needs is None or bool(getattr(asked, self.needs))
