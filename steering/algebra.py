"""Arithmetic on goals: "dog - grass", "2:dog + cat", "image:photo.jpg + hat".

Unusual: goals are added as probabilities, so that the goal for "dog + cat" is as sharp for either as it was alone. What
is taken away is pushed down: it travels through the negative gain of the feedback and touches nothing but what was
named. Whether everything is there is judged term by term; see `steering.seek`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steering.errors import QueryError
from steering.goals import Goal

IMAGE = "image:"
_SIGN = re.compile(r"(?:^|\s+)([+-])(?=\s|$)")
_WEIGHT = re.compile(r"(\d+(?:\.\d+)?):\s*(?=\S)")


@dataclass(frozen=True)
class Term:
    """Words or an image, and how much they count. A weight below zero marks what should not be there."""

    weight: float
    text: str
    is_image: bool = False


def parse(query: str) -> tuple[Term, ...]:
    """The terms of a query. A query without arithmetic is one term of weight 1.

    Terms are joined by + or - with spaces around them ("t-shirt" is one word). A term may begin with a weight
    (`2:dog`). A term may name an image (`image:FILE`).

    Raises:
        QueryError: the query or a term is empty, a weight is not a positive number, or every term is taken away.
    """
    if not query.strip():
        raise QueryError("the query is empty: expected words, such as 'a dog'")
    pieces = _SIGN.split(query.strip())
    signs = ["+", *pieces[1::2]]
    texts = [piece.strip() for piece in pieces[::2]]
    if not texts[0] and len(texts) > 1:  # "- grass + dog"
        signs, texts = signs[1:], texts[1:]
    terms = []
    for sign, text in zip(signs, texts, strict=True):
        match = _WEIGHT.match(text)
        weight = float(match[1]) if match else 1.0
        words = text[match.end() :] if match else text
        is_image = words.startswith(IMAGE)
        words = words.removeprefix(IMAGE).strip()
        if not words:
            raise QueryError(f'query {query!r}: a term is empty; expected for example "dog - grass" or "2:dog + cat"')
        if not (math.isfinite(weight) and weight > 0):
            raise QueryError(f"query {query!r}: got weight {weight:g}, expected more than 0")
        terms.append(Term(-weight if sign == "-" else weight, words, is_image))
    if all(term.weight < 0 for term in terms):
        raise QueryError(
            f'query {query!r}: every term is taken away; expected something to look for, as in "dog - grass"'
        )
    return tuple(terms)


def is_plain(terms: Sequence[Term]) -> bool:
    """Whether a query is words alone, without arithmetic."""
    return len(terms) == 1 and terms[0].weight == 1 and not terms[0].is_image


def combine_goals(terms: Sequence[tuple[float, Goal]], name: str) -> Goal:
    """One goal of several, each with a weight; below zero for what should not be there. See `combine`.

    Raises:
        ValueError: no weight is positive.
    """
    vector = combine([weight for weight, _ in terms], torch.stack([goal.vector for _, goal in terms]))
    return Goal(name, vector, "algebra", min(goal.familiarity for _, goal in terms), tuple(terms))


def combine(weights: Sequence[float], goals: Float[Tensor, "t m"]) -> Float[Tensor, " m"]:
    """One vector, in logits, of several. Terms of positive weight are mixed; those of negative weight are taken away.

    p is the mixture of the softmax of the terms of positive weight. q_i is the softmax of each term of weight −w_i. The
    result is log p − Σ w_i log(1 + M q_i), moved to the mean of the goals of positive weight. A class that an unwanted
    goal does not mean (q_i ≪ 1 / M) keeps its place.

    Raises:
        ValueError: no weight is positive.
    """
    scale = goals.new_tensor(list(weights))
    wanted = scale > 0
    if not bool(wanted.any()):
        raise ValueError(f"weights: got {list(weights)}, expected at least one above 0")
    chances = goals.log_softmax(-1)
    share = (scale[wanted] / scale[wanted].sum()).log()
    mixture = (chances[wanted] + share[:, None]).logsumexp(0)
    unwanted = (1 + goals.shape[-1] * chances[~wanted].exp()).log()
    vector = mixture + (scale[~wanted, None] * unwanted).sum(0)
    return vector - vector.mean() + goals[wanted].mean()
