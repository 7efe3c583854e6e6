"""From one look to many: how likely is it that this image shows the goal, given how many were looked at?

A verdict is calibrated where half of the goals are there. Of a thousand images that do not show a zebra, some look as
if they did; whoever picks the best of them finds a zebra everywhere. How frequent the goal is in the gallery is
therefore estimated from the looks themselves, and the odds of each are corrected by it: the EM of Saerens, Latinne &
Decaestecker (2002) for a changed prior, with a Beta prior so that few looks move it little.
"""

from __future__ import annotations

import numpy as np

PSEUDO = 0.5  # looks with and without the goal that are assumed beforehand, each
SURE = 1e-6


def frequency(probabilities: np.ndarray, total: int, steps: int = 500) -> float:
    """The share of images that show the goal, in 0–1.

    Args:
        probabilities: (b,) of the images that were looked at, each calibrated for even odds. total: images in all;
            those that were not looked at, less near than any that was, count as not showing it.
    """
    odds = _odds(probabilities)
    share = 0.5
    for _ in range(steps):
        prior = share / (1 - share)
        before, share = share, float((odds * prior / (1 + odds * prior)).sum() + PSEUDO) / (total + 2 * PSEUDO)
        if abs(share - before) < 1e-9:
            break
    return share


def corrected(probabilities: np.ndarray, share: float) -> np.ndarray:
    """The probabilities (b,), calibrated for even odds, for goals of which a `share` is there."""
    odds = _odds(probabilities) * share / (1 - share)
    return odds / (1 + odds)


def _odds(probabilities: np.ndarray) -> np.ndarray:
    clipped = np.clip(probabilities.astype(np.float64), SURE, 1 - SURE)
    return clipped / (1 - clipped)
