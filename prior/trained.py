"""Open a trained prior of any kind from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lrm_base.card import load_card
from prior.meaning import MeaningPrior
from prior.model import Prior

KINDS: dict[str, type[MeaningPrior] | type[Prior]] = {kind.source: kind for kind in (MeaningPrior, Prior)}
"""The kinds of trained priors, by the name that a `Goal` has as its source. A model's best comes first."""


def open_prior(path: str | Path, device: str | torch.device = "cpu") -> tuple[MeaningPrior | Prior, dict[str, Any]]:
    """A trained prior in evaluation mode, and its card.

    Raises:
        ValueError: a file is missing, was altered, or does not hold a prior.
    """
    kind = load_card(path).get("kind")
    return KINDS.get(str(kind), Prior).load(path, device)
