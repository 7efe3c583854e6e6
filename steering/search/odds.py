"""From one look to many: how likely is it that an image shows the goal, given how many images were looked at?

A verdict is calibrated on images of which half show the goal. Among a thousand images without a zebra, some look as if
they showed one. Whoever picks the best of them finds a zebra everywhere. So the looks themselves are used to estimate
how frequent the goal is in the gallery, and the odds of each look are corrected by it. This is the EM of Saerens,
Latinne & Decaestecker (2002) for a changed prior. A Beta prior keeps a few looks from moving it much.
"""

from __future__ import annotations

import numpy as np

PSEUDO = 0.5  # the Beta prior: so many looks with the goal, and as many without it, are assumed beforehand
SURE = 1e-6


def frequency(probabilities: np.ndarray, total: int, steps: int = 500) -> float:
    """The share of images that show the goal, in 0–1.

    Args:
        probabilities: (b,), one for each image that was looked at, calibrated for even odds.
        total: number of images in all. Those that were not looked at count as not showing the goal, since the first
            stage ranks them below all others.
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
    """Probabilities (b,) that are calibrated for even odds, corrected for a goal that a `share` of the images shows."""
    odds = _odds(probabilities) * share / (1 - share)
    return odds / (1 + odds)


def _odds(probabilities: np.ndarray) -> np.ndarray:
    clipped = np.clip(probabilities.astype(np.float64), SURE, 1 - SURE)
    return clipped / (1 - clipped)
