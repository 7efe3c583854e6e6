"""A goal: what to look for, as a vector in the network's output space.

Words become a goal through a prior. A goal needs no words, though. The mean output of a class (a prototype) is a goal,
and so is the output for another image. Each of these ways has a verdict of its own.

Unusual: a `Goal` cannot be changed from outside. `vector` is a fresh copy each time, so that nobody can alter the looks
of somebody else who uses the same goal.
"""

from __future__ import annotations

from typing import Any, NoReturn

from jaxtyping import Float
from torch import Tensor


class Goal:
    """A goal for one network. It cannot be changed after it was made. A goal equals only itself.

    Attributes:
        name: what the user wrote: words, a class, a file.
        vector: (M,) logits of the network; a copy each time.
        source: how the goal was made. By words: `diffusion`, `class-names` or `published`, which names the prior.
            Without words: `prototype` or `image`. By arithmetic: `algebra`.
        familiarity: cosine of the words with the nearest words that the network knows. It is 1 for goals without words.
        terms: the goals that this one was combined from, each with its weight. A weight below zero marks what should
            not be there. Empty for a goal that was not combined.
        notes: what the network does not look at in the query, such as a colour; one sentence each.
        unfamiliar: why no answer can be given, if the query, or one of `terms`, is not among the words that the network
            can judge. Empty otherwise. The verdict on an unfamiliar goal is `unknown`.
        nearest: up to three known things that `unfamiliar` names, the nearest first. Empty for a familiar goal, and
            where nothing is near, as for a foreign script.
    """

    __slots__ = ("_vector", "familiarity", "name", "nearest", "notes", "source", "terms", "unfamiliar")

    _vector: Tensor

    name: str
    source: str
    familiarity: float
    terms: tuple[tuple[float, Goal], ...]
    notes: tuple[str, ...]
    unfamiliar: str
    nearest: tuple[str, ...]

    def __init__(
        self,
        name: str,
        vector: Float[Tensor, " m"],
        source: str,
        familiarity: float = 1.0,
        terms: tuple[tuple[float, Goal], ...] = (),
        notes: tuple[str, ...] = (),
        unfamiliar: str = "",
        nearest: tuple[str, ...] = (),
    ) -> None:
        """Keep a copy of `vector`, (M,). A goal that is not said to be unfamiliar is so for its first unfamiliar term.

        Raises:
            ValueError: `vector` is not a vector of finite floating-point numbers.
        """
        if not isinstance(vector, Tensor) or vector.ndim != 1 or not vector.is_floating_point():
            shape = f" of shape {tuple(vector.shape)} and {vector.dtype}" if isinstance(vector, Tensor) else ""
            raise ValueError(f"vector: got {type(vector).__name__}{shape}, expected a tensor (M,) of floats")
        if not bool(vector.isfinite().all()):
            raise ValueError(f"vector: got NaN or infinity among {len(vector)} numbers, expected finite ones")
        strange = None if unfamiliar else next((term for _, term in terms if term.unfamiliar), None)
        if strange is not None:
            unfamiliar, nearest = strange.unfamiliar, strange.nearest
        values = {"name": name, "source": source, "familiarity": familiarity, "terms": tuple(terms)}
        more = {"notes": tuple(notes), "unfamiliar": unfamiliar, "nearest": tuple(nearest)}
        for key, value in {**values, **more, "_vector": vector.detach().clone()}.items():
            object.__setattr__(self, key, value)

    @property
    def vector(self) -> Float[Tensor, " m"]:
        """The goal in logits of the network, (M,); a copy."""
        vector: Tensor = self._vector
        return vector.clone()

    @property
    def is_complement(self) -> bool:
        """Whether everything in the query is unwanted: "- a cat", "a photo without a cat".

        The vector of such a goal is that of the unwanted things, so that the network looks for these. The probability
        is that none of them is there.
        """
        return bool(self.terms) and all(weight < 0 for weight, _ in self.terms)

    def __setattr__(self, key: str, value: Any) -> NoReturn:
        raise AttributeError(f"a Goal cannot be changed, got {key} = …; make a new Goal instead")

    def __delattr__(self, key: str) -> NoReturn:
        raise AttributeError(f"a Goal cannot be changed, got del {key}; make a new Goal instead")

    def __reduce__(self) -> tuple[Any, ...]:
        return Goal, (
            self.name,
            self._vector,
            self.source,
            self.familiarity,
            self.terms,
            self.notes,
            self.unfamiliar,
            self.nearest,
        )

    def __repr__(self) -> str:
        return f"Goal({self.name!r}, {len(self._vector)} logits, source={self.source!r})"
