"""Arithmetic on goals: "dog - grass", "2:dog + cat", "image:photo.jpg + hat".

Unusual: what is added counts in probabilities, so that the goal for "dog + cat" is as sharp for either as it was alone;
what is taken away is pushed down, so that it travels through the negative gain of the feedback, and touches nothing
but what was named. Whether all of it is there is judged term by term: see `Steerer.seek`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from steering.errors import QueryError

IMAGE = "image:"
_SIGN = re.compile(r"(?:^|\s+)([+-])(?=\s|$)")
_WEIGHT = re.compile(r"(\d+(?:\.\d+)?):\s*(?=\S)")


@dataclass(frozen=True)
class Term:
    """Words or an image, and how much they count: below zero for what should not be there."""

    weight: float
    text: str
    is_image: bool = False


def parse(query: str) -> tuple[Term, ...]:
    """The terms of a query; one of weight 1 where it has no arithmetic.

    Terms are joined by + or - with spaces around them ("t-shirt" is one word), may begin with a weight (`2:dog`), and
    name an image by `image:FILE`.

    Raises:
        QueryError: a term is empty, a weight is not a positive number, or every term is taken away.
    """
    pieces = _SIGN.split(query.strip())
    signs = ["+", *pieces[1::2]]
    texts = [piece.strip() for piece in pieces[::2]]
    if not texts[0] and len(texts) > 1:  # "- grass + dog"
        signs, texts = signs[1:], texts[1:]
    terms = []
    for sign, text in zip(signs, texts, strict=True):
        found = _WEIGHT.match(text)
        weight = float(found[1]) if found else 1.0
        words = text[found.end() :] if found else text
        is_image = words.startswith(IMAGE)
        words = words.removeprefix(IMAGE).strip()
        if not words:
            raise QueryError(f'query {query!r}: a term is empty; expected for example "dog - grass" or "2:dog + cat"')
        if not (math.isfinite(weight) and weight > 0):
            raise QueryError(f"query {query!r}: weight {weight:g}, expected more than 0")
        terms.append(Term(-weight if sign == "-" else weight, words, is_image))
    if all(term.weight < 0 for term in terms):
        raise QueryError(
            f'query {query!r}: everything is taken away; expected something to look for, as in "dog - grass"'
        )
    return tuple(terms)


def is_plain(terms: Sequence[Term]) -> bool:
    """Whether a query is words alone, without arithmetic."""
    return len(terms) == 1 and terms[0].weight == 1 and not terms[0].is_image


def combine(weights: Sequence[float], goals: Float[Tensor, "t m"]) -> Float[Tensor, " m"]:
    """One goal, in logits, of several. Terms of positive weight are mixed, those of negative weight taken away.

    With p the mixture of the softmax of what is wanted and q_i the softmax of each term of weight −w_i, the
    result is log p − Σ w_i log(1 + M q_i), moved to the mean of the goals that are wanted: a class that an unwanted
    goal does not mean (q_i ≪ 1 / M) keeps its place.

    Raises:
        ValueError: no weight is positive.
    """
    scale = goals.new_tensor(list(weights))
    wanted = scale > 0
    if not bool(wanted.any()):
        raise ValueError("expected at least one positive weight")
    chances = goals.log_softmax(-1)
    share = (scale[wanted] / scale[wanted].sum()).log()
    mixture = (chances[wanted] + share[:, None]).logsumexp(0)
    unwanted = (1 + goals.shape[-1] * chances[~wanted].exp()).log()
    vector = mixture + (scale[~wanted, None] * unwanted).sum(0)
    return vector - vector.mean() + goals[wanted].mean()
