"""Arithmetic on goals: "dog - grass", "2:dog + cat", "image:photo.jpg + hat".

Unusual: goals are added as probabilities, so that the goal for "dog + cat" is as sharp for either as it was alone. What
is taken away is pushed down: it travels through the negative gain of the feedback and touches nothing but what was
named. Whether everything is there is judged term by term; see `steering.seek`. A query of unwanted terms alone ("- a
cat") looks for what is unwanted, and its probability is turned round.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steering.errors import QueryError
from steering.goals import Goal
from steering.negation import negated
from steering.words import judged

IMAGE = "image:"
_SIGN = re.compile(r"(?:^|\s+)([+\-−])(?=\s|$)")
_GLUED = re.compile(r"(?:^|\s+)([\-−])(?=[^\W\d]|\d+(?:\.\d+)?:)")  # "-a dog", "a dog -grass", "-1:a cat"
_WEIGHT = re.compile(r"(\d+(?:\.\d+)?):\s*(?=\S)")


@dataclass(frozen=True)
class Term:
    """Words or an image, and how much they count. A weight below zero marks what should not be there."""

    weight: float
    text: str
    is_image: bool = False


def parse(query: str) -> tuple[Term, ...]:
    """The terms of a query. A query without arithmetic is one term of weight 1.

    Terms are joined by + or - with spaces around them ("t-shirt" is one word). A minus may also stand directly before a
    term ("-a dog", "a dog -grass"). A term may begin with a weight (`2:dog`, `-1:dog`). A term may name an image
    (`image:FILE`). Words that say no are read as a minus: "a dog without a leash" is "a dog - a leash", and "not a cat"
    is "- a cat"; see `steering.negation`.

    If every weight is below zero, the query asks whether all of these things are absent.

    Raises:
        QueryError: the query or a term is empty, a weight is 0, or it says no twice or in a way that cannot be read.
    """
    if not query.strip():
        raise QueryError("the query is empty: expected words, such as 'a dog'")
    terms: list[Term] = []
    for sign, text in _signed(query):
        match = _WEIGHT.match(text)
        weight = float(match[1]) if match else 1.0
        words = text[match.end() :] if match else text
        is_image = words.startswith(IMAGE)
        words = words.removeprefix(IMAGE).strip()
        if not words:
            raise QueryError(f'query {query!r}: a term is empty; expected for example "dog - grass" or "2:dog + cat"')
        if not (math.isfinite(weight) and weight > 0):
            raise QueryError(f"query {query!r}: got weight {weight:g}, expected more than 0")
        said = None if is_image else negated(words)
        if said is None:
            terms.append(Term(sign * weight, words, is_image))
        elif sign < 0:
            raise QueryError(f'query {query!r}: {words!r} says no after a minus; expected one of them: "- a cat"')
        else:
            wanted, unwanted = said
            terms += [Term(weight, wanted)] if wanted else []
            terms += [Term(-weight, thing) for thing in unwanted]
    return tuple(terms)


def _signed(query: str) -> list[tuple[int, str]]:
    """The texts of a query's terms, each with the sign +1 or −1 before it."""
    pieces = _SIGN.split(query.strip())
    signs = ["+", *pieces[1::2]]
    texts = pieces[::2]
    if not texts[0].strip() and len(texts) > 1:  # "- grass + dog"
        signs, texts = signs[1:], texts[1:]
    found: list[tuple[int, str]] = []
    for sign, text in zip(signs, texts, strict=True):
        start = text.strip()
        if re.match(r"[-−]{2,}", start):
            raise QueryError(f'query {query!r}: two minus signs, expected one, as in "- a cat"')
        if IMAGE in start:  # a file's name may hold anything
            glued = [start.lstrip("-−"), *([""] if start[:1] in ("-", "−") else [])][::-1]
        else:
            glued = _GLUED.split(start)[::2]
        first = 1 if sign == "+" else -1
        if len(glued) > 1 and not glued[0].strip():  # "-a dog", "+ -1:a dog"
            if first < 0:
                raise QueryError(f'query {query!r}: two minus signs, expected one, as in "- a cat"')
            first, glued = -1, glued[1:]
        found += [(first if index == 0 else -1, piece.strip()) for index, piece in enumerate(glued)]
    return found


def said_of_terms(query: str, terms: Sequence[Term], texts: Sequence[str]) -> tuple[str, ...]:
    """What is judged where everything is unwanted, and how words that say no were read.

    Args:
        texts: what is really looked for, for each term.
    """
    if all(term.weight < 0 for term in terms):
        return (judged(texts),)
    signed = "".join(f" {'-' if term.weight < 0 else '+'} {_weighed(term)}" for term in terms).removeprefix(" + ")
    read_as_written = len(terms) == len(_signed(query))
    return () if read_as_written else (f'read as "{signed}"',)


def _weighed(term: Term) -> str:
    size = abs(term.weight)
    return ("" if size == 1 else f"{size:g}:") + (IMAGE if term.is_image else "") + term.text


def is_plain(terms: Sequence[Term]) -> bool:
    """Whether a query is words alone, without arithmetic."""
    return len(terms) == 1 and terms[0].weight == 1 and not terms[0].is_image


def combine_goals(
    terms: Sequence[tuple[float, Goal]],
    name: str,
    notes: tuple[str, ...] | None = None,
    combine: Callable[[Sequence[float], Tensor], Tensor] | None = None,
) -> Goal:
    """One goal of several, each with a weight; below zero for what should not be there.

    Args:
        notes: what is said about the whole query; what the terms say if None.
        combine: makes one vector of weights and vectors; None for `combine`, which is for classifiers.
    """
    vector = (combine or _combine)([weight for weight, _ in terms], torch.stack([goal.vector for _, goal in terms]))
    if notes is None:
        notes = tuple(dict.fromkeys(note for _, goal in terms for note in goal.notes))
    familiarity = min(goal.familiarity for _, goal in terms)
    return Goal(name, vector, "algebra", familiarity, tuple(terms), notes)


def combine(weights: Sequence[float], goals: Float[Tensor, "t m"]) -> Float[Tensor, " m"]:
    """One vector, in logits, of several. Terms of positive weight are mixed; those of negative weight are taken away.

    If every weight is negative, the terms are mixed by the size of their weights: the vector is that of the unwanted
    things, and only the probability is turned round (`steering.seek`).

    p is the mixture of the softmax of the terms of positive weight. q_i is the softmax of each term of weight −w_i. The
    result is log p − Σ w_i log(1 + M q_i), moved to the mean of the goals of positive weight. A class that an unwanted
    goal does not mean (q_i ≪ 1 / M) keeps its place.

    Raises:
        ValueError: a weight is zero.
    """
    scale = goals.new_tensor(list(weights))
    if bool((scale == 0).any()):
        raise ValueError(f"weights: got {list(weights)}, expected none that is 0")
    if bool((scale < 0).all()):
        scale = -scale
    wanted = scale > 0
    chances = goals.log_softmax(-1)
    share = (scale[wanted] / scale[wanted].sum()).log()
    mixture = (chances[wanted] + share[:, None]).logsumexp(0)
    unwanted = (1 + goals.shape[-1] * chances[~wanted].exp()).log()
    vector = mixture + (scale[~wanted, None] * unwanted).sum(0)
    return vector - vector.mean() + goals[wanted].mean()


_combine = combine
