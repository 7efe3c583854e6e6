"""Where relevance ends in a search by open words: a probability for each hit, also before anything was calibrated.

No threshold on the cosine serves all queries: one query's irrelevant images begin where another's relevant ones end. So
an image's evidence is set against two things: what the same image has for a bank of common things (its log-odds), and
what the query has with images at large (its standing). A verdict of `steer calibrate` reads both, steered and by
places.

Unusual: until then, the constants below stand in its place, and both must speak for the image. They are guesses for
towers that were trained with a softmax over many pairs, and every answer says that it is not calibrated. They read the
first pass alone: on a small tower that was not calibrated, steering raised what is absent, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prior.identity import IdentityPrior
from prior.model import Prior
from steering.evidence import FEATURES, Verdict
from steering.joint import JointNetwork

if TYPE_CHECKING:
    from steering.steerer import Steerer

EVEN, SLOPE = -2.5, 0.8  # log-odds against the bank, in nats, at which the probability is one half; and its slope
STANDING, STEEPNESS = 1.0, 2.0  # the same for the standing among images at large, in standard deviations
LEAST = 0.5  # probability from which on an image is relevant
FEWEST = 50  # images that tell what is usual
SAMPLE = 1000  # images that are drawn from a gallery to tell it
NOTE = "where relevance ends is a guess that is not calibrated for this model: `steer calibrate FOLDER` fits it"


@dataclass(frozen=True)
class Presumed(Verdict):
    """A verdict that nobody fitted.

    Attributes:
        knows_images: whether the standing among images at large is known.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    knows_images: bool = False

    def probability(self, values: Float[Tensor, "*b f"]) -> Float[Tensor, " *b"]:
        """A guess that lies low; see `Verdict.probability`."""

        def feature(name: str) -> Tensor:
            return values[..., FEATURES.index(name)]

        odds = SLOPE * (feature("support before") - EVEN)
        if self.knows_images:
            odds = torch.minimum(odds, STEEPNESS * (feature("standing") - STANDING))
        return torch.sigmoid(odds)


def for_search(steerer: Steerer, images: np.ndarray) -> Steerer:
    """The steerer with which a gallery is searched: of open words, one that has a verdict, if only a presumed one.

    Args:
        images: (n, M), of unit length: some of the gallery's embeddings.
    """
    network = steerer.network
    if not isinstance(network, JointNetwork) or is_calibrated(steerer):
        return steerer
    knows = len(images) >= FEWEST
    if knows:
        network = network.with_images(torch.from_numpy(images))
    presumed = Presumed(knows_images=knows)
    verdicts: Mapping[str, Verdict] = {IdentityPrior.source: presumed, Prior.source: presumed}
    return steerer.with_network(network, verdicts)


def is_calibrated(steerer: Steerer) -> bool:
    """Whether a verdict was fitted for the goals that words become."""
    return steerer.verdict is not None
