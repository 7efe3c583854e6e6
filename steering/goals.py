"""What to look for, understood: a goal vector, and how it was come by.

Words become goals by a prior. A goal needs no words, though: a class's mean output (a prototype) is one, and so is what
the network said of another image. Verdicts are calibrated for each way by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Goal:
    """A goal for one backbone.

    Attributes:
        name: what the user wrote: words, a class, a file.
        vector: (M,) logits of the backbone.
        source: `diffusion`, `class-names` or `published` for words, by the prior; `prototype`; `image`; `algebra`.
        familiarity: cosine of the words with the nearest that the backbone knows; 1 where there are no words.
        terms: what the goal was combined of, with weights; those below zero should not be there. Empty if it is one.
    """

    name: str
    vector: Tensor
    source: str
    familiarity: float = 1.0
    terms: tuple[tuple[float, Goal], ...] = ()
