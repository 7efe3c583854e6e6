"""Full-size photographs: does the verdict know what is in them?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lrm_lab.goals import verdict_of
from prior.captions import with_article
from steering.steerer import Steerer


def measure(steerer: Steerer, folder: str | Path, seed: int = 0) -> dict[str, Any]:
    """Balanced accuracy of present or absent. Each photograph is asked for its own class and for another one.

    A probability of one half or more counts as present. The answer `unknown` has none, and counts as wrong. The seed
    draws the other classes.

    Args:
        folder: photographs, and photos.json with the `file` and the `label` of each.

    Raises:
        ValueError: the model has no calibrated verdict. OSError: photos.json cannot be read.
    """
    verdict_of(steerer)
    table = json.loads((Path(folder) / "photos.json").read_text())
    generator = torch.Generator().manual_seed(seed)
    own_is_present: list[bool] = []
    other_is_absent: list[bool] = []
    unsure = 0
    for entry in tqdm(table, desc="photographs", disable=None):
        other = int(torch.randint(0, len(steerer.class_names) - 1, (1,), generator=generator))
        other += other >= entry["label"]
        queries = [with_article(steerer.class_names[i]) for i in (entry["label"], other)]
        right, wrong = steerer.look_many(str(Path(folder) / entry["file"]), queries)
        own_is_present.append(right.probability is not None and right.probability >= 0.5)
        other_is_absent.append(wrong.probability is not None and wrong.probability < 0.5)
        unsure += (right.verdict == "unsure") + (wrong.verdict == "unsure")
    present, absent = (sum(values) / len(values) for values in (own_is_present, other_is_absent))
    return {
        "photographs": len(table),
        "right_name_present": present,
        "other_name_absent": absent,
        "balanced_accuracy": (present + absent) / 2,
        "unsure": unsure,
    }
