"""The parts of a `Steerer`, as they are found and put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lrm_core.prototypes import Prototypes
from steering.evidence import Verdict
from steering.language import Language
from steering.network import Network


@dataclass(frozen=True)
class Parts:
    """The parts of a `Steerer`.

    Attributes:
        network: the network, which looks at images.
        language: a function that loads the language. It is called once, when words first need to be understood. Like
            `prototypes` it can be pickled: another process gets what was loaded, or loads the same files.
        verdicts: a fitted verdict for each way of making goals; empty for a model that was not calibrated.
        prototypes: a function that loads the mean outputs of the classes, or gives None where the model has none. It is
            called once, when they are first needed.
    """

    network: Network
    language: Callable[[], Language]
    verdicts: Mapping[str, Verdict]
    prototypes: Callable[[], Prototypes | None]
