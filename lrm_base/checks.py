"""Checks of numbers that callers pass in. Each error says what was got and what was expected."""

from __future__ import annotations

import math
import operator
from typing import Any

MOST_STRENGTH = 1000.0
MOST_PASSES = 100  # over an image
MOST_SEED = 2**63 - 1  # the largest seed that a torch generator takes
MOST_TRAINING_SEED = 2**32 - 1  # a training multiplies its seed before a generator takes it


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """The value as an int. Integers of numpy and torch count; floats and booleans do not.

    Args:
        name: the argument's name, for the message.
        least, most: the range, both included; None means no upper limit.

    Raises:
        ValueError: the value is not a whole number of that range.
    """
    try:
        number = None if _is_bool(value) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}: got {value!r}, expected a whole number {span}")
    return number


def finite_number(name: str, value: Any, least: int | float | None = None, most: int | float | None = None) -> float:
    """The value as a float. Numbers of numpy and torch count; booleans, text, NaN and infinities do not.

    Args:
        name: the argument's name, for the message.
        least, most: the range, both included; None means no limit.

    Raises:
        ValueError: the value is not a finite number of that range.
    """
    try:
        is_number = not _is_bool(value) and not isinstance(value, str) and getattr(value, "ndim", 0) == 0
        number = float(value) if is_number else math.nan
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (least is not None and number < least) or (most is not None and number > most):
        limits = [f"at least {least:g}"] if least is not None else []
        limits += [f"at most {most:g}"] if most is not None else []
        raise ValueError(
            f"{name}: got {value!r}, expected a finite number{', ' if limits else ''}{' and '.join(limits)}"
        )
    return number


def strength(value: Any) -> float | tuple[float, float]:
    """The strength of a goal as one number or as a pair (negative, positive).

    A pair may come as a tuple, a list, an array or a tensor.

    Raises:
        ValueError: it is neither one number nor a pair, or a number is not finite or is above 1000 in size.
    """
    pair = isinstance(value, tuple | list) or getattr(value, "ndim", 0) == 1
    numbers = list(value) if pair else [value]
    try:
        if pair and len(numbers) != 2:
            raise ValueError
        checked = [finite_number("strength", number, -MOST_STRENGTH, MOST_STRENGTH) for number in numbers]
    except ValueError:
        raise ValueError(
            f"strength: got {value!r}, expected a number or a pair (negative, positive), none above "
            f"{MOST_STRENGTH:g} in size"
        ) from None
    return (checked[0], checked[1]) if pair else checked[0]


def seed(value: Any) -> int:
    """The seed of a torch generator. Raises ValueError unless it is a whole number from 0 to 2**63 − 1."""
    return whole_number("seed", value, 0, MOST_SEED)


def _is_bool(value: Any) -> bool:
    """Whether the value is a boolean of Python, numpy or torch."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
