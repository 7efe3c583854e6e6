"""Vision: a backbone with long-range multiplicative feedback (Konkle & Alvarez, NeurIPS 2023).

A package of lrm-steering; `steering.shadowing` looks for this name.
"""

from lrm_core.compat import LRMNet, SteerableLRM
from lrm_core.feedback import Connection, Feedback, PublishedFeedback
from lrm_core.model import LRM, State, Steer, Stem

__all__ = [
    "LRM",
    "Connection",
    "Feedback",
    "LRMNet",
    "PublishedFeedback",
    "State",
    "Steer",
    "SteerableLRM",
    "Stem",
]
