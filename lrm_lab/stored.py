"""Results as a file: JSON, with a header that tells what decided the numbers, and then the parts.

Results of another model, of other images, or of another seed or size are never mixed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lrm_base.card import write_atomically
from lrm_lab.parts import PARTS

HEADER = (
    *("model", "backbone_sha256", "prior", "seed", "quick", "source", "scenes", "images", "triplets"),
    *("strength", "passes", "parts_sha256", "verdict", "controls_sha256"),
)


def read_results(path: str | Path) -> dict[str, Any]:
    """Results as `steer evaluate` wrote them. Raises ValueError if the file holds something else."""
    try:
        results = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected results of `steer evaluate` as JSON: {error}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if not isinstance(results, dict) or not {"model", "backbone_sha256"} <= results.keys():
        raise ValueError(f"{path}: expected results of `steer evaluate`, got JSON without the model's name and hash")
    return results


def read_parts(path: str | Path, header: dict[str, Any], controls: dict[str, Any]) -> dict[str, Any]:
    """What a file holds, without the parts that were measured against other controls.

    Args:
        header, controls: what decides the numbers now; see `Bench.header` and `Bench.controls_header`.

    Raises:
        ValueError: the file holds no results, or they were measured on another model or in another way.
    """
    if not Path(path).is_file():
        return {}
    before = read_results(path)
    differ = [key for key, value in header.items() if key in before and before[key] != value]
    if differ:
        told = "; ".join(f"{key}: {before.get(key)!r}, now {header[key]!r}" for key in differ)
        raise ValueError(f"{path} holds results that were measured otherwise ({told}): remove it, or give another file")
    against = [part.name for part in PARTS if part.has_controls and part.name in before]
    if all(before.get(key) == value for key, value in controls.items()):
        against = []
    elif against:
        print(f"{path}: the controls changed, so these parts no longer count: {', '.join(against)}", file=sys.stderr)
    return {key: before[key] for key in _order() if key in before and key not in against}


def write_results(path: str | Path, results: dict[str, Any]) -> None:
    """Write results as a whole or not at all: the header first, then the parts in their order."""
    ordered = {key: results[key] for key in _order() if key in results}
    write_atomically(Path(path), (json.dumps(ordered, indent=1) + "\n").encode())


def _order() -> tuple[str, ...]:
    return (*HEADER, *(part.name for part in PARTS))
