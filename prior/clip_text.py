"""The text side of a CLIP: texts in sentences, as tokens, through a text tower.

Unusual: texts of like lengths run together. Padding is not computed where the tower is causal: it changes no number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from prior.templates import templates as sentences_of
from prior.text import run_text_tower

BATCH = 256  # texts in one pass
MANY = 512  # texts from which on a bar is shown
_ARTICLE = re.compile(r"^(an?|the)\s+(?=\S)", re.IGNORECASE)  # the sentences bring their own


@dataclass(frozen=True)
class TokenShape:
    """What a text tower takes.

    Attributes:
        length: number of tokens, start and end included.
        padding: the number that fills up shorter texts.
        is_causal: whether tokens see only those before them. Padding changes nothing then, and is not computed.
    """

    length: int
    padding: int
    is_causal: bool


class ClipText:
    """The text tower of a CLIP model with its tokenizer.

    Attributes:
        name: name of the model.
        width: M, width of the shared space.
        context_length: how many tokens fit, start and end included.
        templates: the set of sentences that each text is put into: `none`, `simple` or `imagenet`.
    """

    def __init__(
        self,
        run: nn.Module,
        tokenize: Callable[[str], list[int]],
        name: str,
        width: int,
        shape: TokenShape,
        templates: str,
    ) -> None:
        self.run, self.tokenize, self.name, self.width = run, tokenize, name, width
        self.shape, self.context_length = shape, shape.length
        self.templates = templates
        self._sentences = sentences_of(templates)

    @torch.inference_mode(False)
    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Float[Tensor, "b width"]:
        """Embeddings of unit length, in float32. With templates, the mean over the sentences, at unit length.

        Raises:
            ValueError: there is no text, a text is empty, or a text needs more tokens than fit.
        """
        if isinstance(texts, str):
            raise ValueError(f"expected a list of texts, got one text: {texts[:60]!r}")
        if not texts:
            raise ValueError("expected at least one text, got none")
        if not all(text.strip() for text in texts):
            raise ValueError("the query is empty: expected words, such as 'a dog'")
        bare = texts if self.templates == "none" else [_ARTICLE.sub("", text.strip()) for text in texts]
        rows = [self._row(sentence.replace("{}", text)) for text in bare for sentence in self._sentences]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        embedding = torch.empty(len(rows), self.width, device=next(self.run.parameters()).device)
        bar = tqdm(total=len(rows), desc="texts", disable=True if len(rows) < MANY else None, leave=False)
        for start in range(0, len(rows), BATCH):
            part = order[start : start + BATCH]  # texts of like lengths
            length = max(len(rows[index]) for index in part) if self.shape.is_causal else self.context_length
            filled = [rows[index] + [self.shape.padding] * (length - len(rows[index])) for index in part]
            embedding[part] = F.normalize(self.run(torch.tensor(filled, device=embedding.device)).float(), dim=-1)
            bar.update(len(part))
        bar.close()
        count = len(self._sentences)
        return embedding if count == 1 else F.normalize(embedding.unflatten(0, (-1, count)).mean(1), dim=-1)

    def num_tokens(self, text: str) -> int:
        """The number of tokens of a text, start and end included."""
        return len(self.tokenize(text))

    def _row(self, text: str) -> list[int]:
        row = self.tokenize(text)
        if len(row) > self.context_length:
            raise ValueError(
                f"the query is too long for text encoder {self.name}: got {len(row)} tokens, at most "
                f"{self.context_length} fit: {text[:60]!r}…"
            )
        return row


class AnyText(nn.Module):
    """The text side of an OpenCLIP model as a module."""

    def __init__(self, towers: Any) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b m"]:
        return self.towers.encode_text(ids)


class CausalText(AnyText):
    """The same with OpenCLIP's causal tower, for texts of any number of tokens."""

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b m"]:
        return run_text_tower(self.towers, ids)[0]


class HuggingFaceText(nn.Module):
    """The text side of a `transformers.CLIPModel`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_model, self.text_projection = model.text_model, model.text_projection

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b m"]:
        return self.text_projection(self.text_model(input_ids=ids).pooler_output)


@dataclass(frozen=True)
class Bpe:
    """CLIP's own tokens of a text, with start and end."""

    tokenizer: Any

    def __call__(self, text: str) -> list[int]:
        return [self.tokenizer.sot_token_id, *self.tokenizer.encode(text), self.tokenizer.eot_token_id]


@dataclass(frozen=True)
class AutoTokens:
    """The tokens of a text by a tokenizer of transformers, with what it adds itself."""

    tokenizer: Any
    clean: Callable[[str], str] = str

    def __call__(self, text: str) -> list[int]:
        return list(self.tokenizer(self.clean(text)).input_ids)
