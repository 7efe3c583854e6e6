"""From looks to the gallery: does anything in it show the goal, how much of it does, and what does that say of a hit?

A verdict is calibrated for even odds. So its odds are the likelihood ratio L of an image: how much likelier it is to
look so if it shows the goal than if it does not. Each look speaks for a number of images, its weight w. That is more
than one where images are the same to the eye, and where a look was drawn at random from a stratum
(`steering.search.candidates`). So images that nobody looked at count as those count that were drawn for them, and never
as absent.

- Whether anything shows it: the mean of L over the gallery, Σ w L / Σ w, is the Bayes factor of "one image shows it"
  against "none does". Where no image shows it, its expectation is 1, and so by Markov's inequality it exceeds x in no
  more than 1 of x galleries. Where one image shows it, it falls below x in no more than a share x of galleries.
  Something shows it, too, if every image was looked at, and so many seem to show it that look-alikes cannot explain it.
- How much of the gallery shows it: the EM of Saerens, Latinne & Decaestecker (2002) for a changed prior. Its interval
  comes from the Bayesian bootstrap (Rubin 1981).

Unusual: how frequent the goal is lowers the odds of a hit as far as it must, but raises them only so far as the image's
own evidence goes. Otherwise a black picture among cats would be a cat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from steering.evidence import Answer

PSEUDO = 0.5  # the Beta prior: so many looks with the goal, and as many without it, are assumed beforehand
LEAST, MOST = 0.01, 1 - 1e-6  # no look is trusted beyond these: a thing may look like nothing
CAUTION = 0.5  # nats; photographs show more look-alikes than the composites on which verdicts are fitted
SPREAD = 0.75  # nats; how far that differs between goals. Chosen with `benchmarks/search_odds.py`, as are the next two
PRESENT_FROM = 8.0  # Bayes factor from which on the gallery shows the goal; see `present_from`
ABSENT_UP_TO = 0.02  # Bayes factor up to which it does not
ALIKE_SHARE, ALIKE_IMAGES = 0.04, 2.0  # more than this share and so many images are no look-alikes
RESAMPLES, TAIL = 200, 0.025  # bootstrap; the interval holds 95 %
RELEVANT = 0.8  # probability from which on a single look says that open words are relevant
SUPPOSED = 0.982, 0.018  # probabilities of the looks that are assumed beforehand in a stratum


@dataclass(frozen=True)
class Prevalence:
    """How much of a gallery shows a goal.

    Attributes:
        share: estimated share of the images that show it, 0–1.
        low, high: 95 % interval of the share. `low` is 0 unless the answer is `present`.
        factor: Bayes factor of "one image shows it" against "none does".
        answer: whether any image shows it.
    """

    share: float
    low: float
    high: float
    factor: float
    answer: Answer

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {key: float(f"{getattr(self, key):.4g}") for key in ("share", "low", "high", "factor")}
        return {**values, "answer": self.answer}


def prevalence(alone: np.ndarray, weights: np.ndarray, strata: np.ndarray, *, seed: int = 0) -> Prevalence:
    """Estimate how much of a gallery shows the goal.

    Args:
        alone: (b,), probability of each look, calibrated for even odds.
        weights: (b,), how many images each look speaks for.
        strata: (b,), 0 for looks at the nearest images, else the number of the stratum from which a look was drawn.
            Strata with higher numbers lie further down in the first stage's ranking.
        seed: number that fixes the bootstrap.
    """
    factor = float((weights * np.exp(_log_odds(alone))).sum() / weights.sum())
    share, images = float(_share(alone, weights[None], CAUTION)[0]), float(weights.sum())
    much = not strata.any() and share >= ALIKE_SHARE + ALIKE_IMAGES / images
    present = factor >= present_from(images) or much
    answer: Answer = "present" if present else "absent" if factor <= ABSENT_UP_TO else "unsure"
    looks, several = _resampled(alone, weights, strata, np.random.default_rng(seed))
    low = np.quantile(_share(looks, several, CAUTION + SPREAD), TAIL) if answer == "present" else 0.0
    high = np.quantile(_share(looks, several, CAUTION - SPREAD), 1 - TAIL)
    high = 1.0 if high > 1 - 1 / images else float(high)
    return Prevalence(share, min(float(low), share), max(high, share), factor, answer)


def relevance(alone: np.ndarray, weights: np.ndarray) -> Prevalence:
    """How much of a gallery is relevant to open words, by the probabilities of single looks.

    These have been set against images at large already (`steering.cutoff`), so nothing is corrected. The answer is that
    of the likeliest image: `present` from the threshold of a verdict on, `absent` up to one half.

    Args:
        alone, weights: as in `prevalence`.
    """
    total = float(weights.sum())
    low, share, high = (float(weights[alone >= least].sum()) / total for least in (RELEVANT, 0.5, 1 - RELEVANT))
    best = float(alone.max())
    answer: Answer = "present" if best >= RELEVANT else "unsure" if best >= 0.5 else "absent"
    return Prevalence(share, low, high, float((weights * np.exp(_log_odds(alone))).sum() / total), answer)


def present_from(images: float) -> float:
    """The Bayes factor from which on a gallery shows the goal. It falls with the size, since the mean gets steadier."""
    return min(PRESENT_FROM, 3 + 50 / float(images) ** 0.5)


def corrected(alone: np.ndarray, seen: Prevalence) -> np.ndarray:
    """Probabilities (b,) that are calibrated for even odds, corrected for how much of the gallery shows the goal.

    The log-odds of an image are lowered without a limit. They are raised to at most twice what they are, and not at all
    if they are below 0.
    """
    log_odds = _log_odds(alone)
    shift = float(np.log(seen.share / (1 - seen.share)))
    cautious = log_odds - CAUTION + shift
    return _probability(np.minimum(cautious, np.maximum(2 * log_odds, log_odds)))


def _share(alone: np.ndarray, weights: np.ndarray, caution: float, steps: int = 200) -> np.ndarray:
    """The share of images that show the goal, for each of r sets of weights (r, b); (r,)."""
    ratio, total = np.exp(_log_odds(alone) - caution), weights.sum(1)
    share = np.full(len(weights), 0.5)
    for _ in range(steps):
        odds = ratio * (share / (1 - share))[:, None]
        before, share = share, ((weights * odds / (1 + odds)).sum(1) + PSEUDO) / (total + 2 * PSEUDO)
        if (np.abs(share - before) < 1e-5 * share).all():
            break
    return share


def _resampled(
    alone: np.ndarray, weights: np.ndarray, strata: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Looks, and sets of weights for them: each stratum is resampled by itself.

    A stratum that was drawn from gets two looks more, one that shows the goal and one that does not. Their weights are
    those of a Beta posterior after as many looks as were made in this stratum and above, since the first stage ranks:
    a stratum shows the goal at most as often as those above it.
    """
    looks, several = [], []
    for number in np.unique(strata):
        here = strata == number
        mean = weights[here].mean()
        gamma = rng.gamma(weights[here] / mean, size=(RESAMPLES, int(here.sum())))
        parts = gamma / np.maximum(gamma.sum(1, keepdims=True), 1e-300)
        looks.append(alone[here])
        if number > 0 and mean > 1:
            made = int((strata <= number).sum())
            extra = rng.beta(PSEUDO, made, size=(RESAMPLES, 2)) / 2
            parts = np.concatenate([parts * (1 - extra.sum(1, keepdims=True)), extra], 1)
            looks.append(np.array(SUPPOSED))
        several.append(parts * weights[here].sum())
    return np.concatenate(looks), np.concatenate(several, 1)


def _log_odds(alone: np.ndarray) -> np.ndarray:
    clipped = np.clip(alone.astype(np.float64), LEAST, MOST)
    return np.log(clipped / (1 - clipped))


def _probability(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-log_odds))
