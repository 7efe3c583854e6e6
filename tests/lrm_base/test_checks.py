"""Numbers from outside: what is right comes back as a plain number, what is wrong is named."""

import numpy as np
import pytest
import torch

from lrm_base.checks import MOST_SEED, finite_number, seed, strength, whole_number

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_a_whole_number_of_any_integer_type_comes_back_as_an_int(value):
    number = whole_number("passes", value, 1, 3)
    assert type(number) is int
    assert number == 3


@pytest.mark.parametrize("value", [True, np.True_, 2.0, np.float64(2), "2", None, NAN, INF, [2], 0, 4, -(10**30)])
def test_what_is_no_whole_number_of_the_range_raises(value):
    with pytest.raises(ValueError, match=r"^passes: got .*, expected a whole number from 1 to 3$") as caught:
        whole_number("passes", value, 1, 3)
    assert f"got {value!r}," in str(caught.value)


def test_a_range_may_have_no_end():
    assert whole_number("top", 10**30, 1) == 10**30
    with pytest.raises(ValueError, match=r"^top: got 0, expected a whole number of at least 1$"):
        whole_number("top", 0, 1)


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1), torch.tensor(1.0)])
def test_a_finite_number_of_any_type_comes_back_as_a_float(value):
    number = finite_number("mix", value, 0, 1)
    assert type(number) is float
    assert number == 1


@pytest.mark.parametrize("value", [True, "0.5", None, NAN, INF, -INF, 1.5, -0.1, [0.5, 0.5], 10**400, 1j])
def test_what_is_no_finite_number_of_the_range_raises(value):
    with pytest.raises(ValueError, match=r"^mix: got .*, expected a finite number, at least 0 and at most 1$"):
        finite_number("mix", value, 0, 1)


def test_the_message_names_only_the_limits_that_there_are():
    with pytest.raises(ValueError, match=r"^x: got nan, expected a finite number$"):
        finite_number("x", NAN)
    with pytest.raises(ValueError, match=r"^x: got -1, expected a finite number, at least 0$"):
        finite_number("x", -1, 0)
    with pytest.raises(ValueError, match=r"^x: got 2, expected a finite number, at most 1.5$"):
        finite_number("x", 2, most=1.5)
    assert finite_number("x", -1e300) == -1e300


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2, 2.0),
        (-1000, -1000.0),
        (np.float32(0.5), 0.5),
        (torch.tensor(0.5), 0.5),
        ((0, 1), (0.0, 1.0)),
        ([1, 2], (1.0, 2.0)),
        (torch.tensor([0.5, 3.0]), (0.5, 3.0)),
        (np.array([0.5, 3.0]), (0.5, 3.0)),
    ],
)
def test_a_strength_is_one_number_or_a_pair(value, expected):
    assert strength(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        NAN, INF, 1e38, 1001, True, "much", None, (), (1.0,), (1.0, 2.0, 3.0), (1.0, NAN), (0.0, -1001.0), [[1.0, 2.0]],
        torch.zeros(3), torch.zeros(2, 2), {"negative": 1},
    ],
)  # fmt: skip
def test_any_other_strength_raises(value):
    with pytest.raises(ValueError, match=r"^strength: got [\s\S]*, expected a number or a pair \(negative, positive\)"):
        strength(value)


def test_a_seed_is_what_the_generators_of_torch_take():
    for value in (0, MOST_SEED):
        torch.Generator().manual_seed(seed(value))
    for value in (-1, MOST_SEED + 1, 0.0, True):
        with pytest.raises(ValueError, match=r"^seed: got .*, expected a whole number from 0 to 9223372036854775807$"):
            seed(value)
