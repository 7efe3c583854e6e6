"""Goals that are embeddings of images, brought to where the embeddings of texts lie.

In a CLIP texts and images lie apart (Liang et al. 2022, the modality gap): any image is nearer to any other image than
to the texts that name it. A goal that is an image would win against every text. So the distance between the mean text
and the mean goal is taken away.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prior.model import Prior


class AmongTexts(nn.Module):
    """A trained prior of a CLIP, whose goals can be set against texts.

    Args:
        prior: from text embeddings (b, M) to image embeddings (b, M).
        texts: (c, M), of unit length, of many different things.
    """

    source = Prior.source
    shift: Tensor

    def __init__(self, prior: Prior, texts: Float[Tensor, "c m"]) -> None:
        super().__init__()
        self.prior = prior
        self.register_buffer("shift", texts.mean(0) - F.normalize(prior.goals(texts), dim=-1).mean(0))

    @torch.no_grad()
    def goals(self, text_embed: Float[Tensor, "b m"], **options: Any) -> Float[Tensor, "b m"]:
        """One goal for each text. The options are those of `Prior.sample`."""
        return F.normalize(self.prior.goals(text_embed, **options), dim=-1) + self.shift
