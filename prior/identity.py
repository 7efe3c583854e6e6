"""The prior that changes nothing: in a space that images and texts share, the text embedding itself is the goal."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class IdentityPrior(nn.Module):
    """Goals are the text embeddings. It is used like `prior.model.Prior`, for CLIP's image towers.

    Args:
        width: M, width of the shared space.
    """

    source = "identity"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dim = self.text_width = width

    def goals(self, embeddings: Float[Tensor, "b m"], **options: Any) -> Float[Tensor, "b m"]:
        """The embeddings. `options` of sampling priors are taken and not used."""
        return embeddings
