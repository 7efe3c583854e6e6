"""Goals for a CLIP from a user's own list of names, one a line: `NameListPrior`.

As in `prior.class_names`, a softmax over the standardised cosines says how much a query means each name. Here the goal
is the mixture of the embeddings of the names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prior.class_names import TEMPERATURE, TEMPLATES, ClassNamesPrior, embed_names
from prior.clip_text import ClipText

_ARTICLE = re.compile(r"^(an?|the)\s+(?=\S)", re.IGNORECASE)  # the sentences bring their own


class NameListPrior(ClassNamesPrior):
    """A prior made of names in the space of a CLIP. It is used like `prior.model.Prior`.

    Args:
        embeddings: (c, m), embeddings of the names, of unit length.

    Raises:
        ValueError: there are fewer than two names.
    """

    def __init__(self, embeddings: Float[Tensor, "c m"]) -> None:
        nn.Module.__init__(self)
        if len(embeddings) < 2:
            raise ValueError(f"class names: expected at least two, got {len(embeddings)}")
        self.temperature = TEMPERATURE
        self.register_buffer("embeddings", embeddings)

    @property
    def profiles(self) -> Tensor:  # type: ignore[override]  # of a name: its embedding
        """(c, m), the goal of each name."""
        return self.embeddings

    @torch.no_grad()
    def sample(self, text_embed: Float[Tensor, "b m"], **options: Any) -> Float[Tensor, "b s m"]:
        """Goals of unit length. Options as in `ClassNamesPrior.sample`."""
        return F.normalize(super().sample(text_embed, **options), dim=-1)


def without_article(name: str) -> str:
    """A name as it is put into sentences: `dog` for `a dog`."""
    return _ARTICLE.sub("", " ".join(name.split()))


def read_names(path: str | Path) -> tuple[str, ...]:
    """The names of a file, one a line, each once and without its article. Empty lines are left out.

    Raises:
        ValueError: the file is missing or holds no text, or fewer than two names.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ValueError(f"prior: {path} cannot be read: {reason}; expected a text file of names, one a line") from None
    names = dict.fromkeys(without_article(line) for line in lines if line.strip())
    if len(names) < 2:
        count = "one name" if names else "no name"
        raise ValueError(f"prior: got {count} in {path}, expected at least two names, one a line")
    return tuple(names)


def by_name_list(path: str | Path, text: ClipText) -> NameListPrior:
    """The prior of the names in a file.

    Raises:
        ValueError: as `read_names`; or a name is too long for the text encoder.
    """
    sentences = TEMPLATES if text.templates == "none" else ("{name}",)  # otherwise the encoder brings sentences
    return NameListPrior(embed_names(text.encode, read_names(path), sentences))
