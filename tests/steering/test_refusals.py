"""What is of the wrong kind is refused in one clear line.

Run in a process of its own, where the type checks of the tests do not come first.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CODE = """
import json, sys
import numpy as np, torch
from steering import Steerer
toy = Steerer.load(sys.argv[1], device="cpu")
goal = toy.goal("a cat")
calls = {
    "a goal's vector": lambda: toy.look("sample:cat", goal.vector),
    "no query": lambda: toy.look("sample:cat", None),
    "a number": lambda: toy.goal(3),
    "a list": lambda: toy.goal(["a cat"]),
    "a list among queries": lambda: toy.goals([["a cat"]]),
    "one query for many": lambda: toy.look_many("sample:cat", "a cat"),
    "one goal for many": lambda: toy.goals(goal),
    "a torch image": lambda: toy.look(torch.zeros(3, 8, 8), "a cat"),
    "no image": lambda: toy.look(None, "a cat"),
    "a list of images": lambda: toy.look(["sample:cat"], "a cat"),
    "three strengths": lambda: toy.look("sample:cat", "a cat", strength=(1.0, 2.0, 3.0)),
    "strength in words": lambda: toy.look("sample:cat", "a cat", strength="big"),
    "half a pass": lambda: toy.look("sample:cat", "a cat", passes=2.5),
    "a true pass": lambda: toy.look("sample:cat", "a cat", passes=True),
    "half a pass for a goal": lambda: toy.image_goal("sample:cat", passes=1.5),
    "a number for numbers": lambda: Steerer.load(sys.argv[1], device="cpu", dtype=16),
    "half a seed": lambda: toy.goal("a cat", seed=0.5),
    "half a row": lambda: toy.look("sample:cat", "a cat").text(top=1.5),
}
told = {}
for name, call in calls.items():
    try:
        told[name] = ["accepted", str(call())[:50]]
    except Exception as error:
        told[name] = [type(error).__name__, str(error)]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(toy_folder: Path) -> dict[str, list[str]]:
    command = [sys.executable, "-c", CODE, str(toy_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "a goal's vector",
            "QueryError",
            "query: got Tensor of shape (6,) (a goal's vector is not a goal: give the Goal",
        ),
        ("no query", "QueryError", "query: got NoneType None, expected words such as 'a dog', or a Goal"),
        ("a number", "QueryError", "query: got int 3, expected words"),
        ("a list", "QueryError", "query: got list ['a cat'], expected words"),
        ("a list among queries", "QueryError", "query: got list ['a cat'], expected words"),
        ("one query for many", "QueryError", "queries: got str 'a cat', expected a list of at least one query"),
        (
            "one goal for many",
            "QueryError",
            "queries: got Goal Goal('a cat', 6 logits, source='diffusion'), expected a list",
        ),
        ("a torch image", "ImageError", "image: got Tensor of shape (3, 8, 8), expected a file's name, a PIL image"),
        ("no image", "ImageError", "image: got NoneType, expected a file's name"),
        ("a list of images", "ImageError", "image: got list, expected a file's name"),
        ("three strengths", "ValueError", "strength: got (1.0, 2.0, 3.0), expected"),
        ("strength in words", "ValueError", "strength: got 'big', expected"),
        ("half a pass", "ValueError", "passes: got 2.5, expected a whole number from 2"),
        ("a true pass", "ValueError", "passes: got True, expected a whole number from 2"),
        ("half a pass for a goal", "ValueError", "passes: got 1.5, expected a whole number from 1"),
        ("a number for numbers", "ValueError", "dtype: got '16', expected one of float32, bfloat16, float16"),
        ("half a seed", "ValueError", "seed: got 0.5, expected a whole number from 0"),
        ("half a row", "ValueError", "top: got 1.5, expected a whole number of at least 1"),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused_in_one_line(told, name: str, kind: str, message: str):
    got, text = told[name]
    assert got == kind
    assert text.startswith(message)
    assert "\n" not in text
