"""Numbers that come from outside are checked by every prior: what was got, and what is expected.

The tests' own checks of types would refuse a number of another type first, so a process without them makes the calls.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOO_LARGE = 10**19  # a seed of 20 digits
BAD = {
    "num_samples": ([0, -1, 2.5, True, "3"], "a whole number of at least 1"),
    "steps": ([0, -1, 2.5, float("nan"), "3"], "a whole number (from 1 to 20|of at least 1)"),
    "guidance": ([float("nan"), float("inf"), -1.0, "2"], "a finite number, at least 0"),
    "seed": ([-1, 2.5, float("nan"), TOO_LARGE], "a whole number from 0 to 9223372036854775807"),
}
CASES = [(name, value, expected) for name, (values, expected) in BAD.items() for value in values]

PROGRAM = """
import json, sys
import torch
from prior.class_names import ClassNamesPrior
from prior.model import Prior
from prior.network import PriorNetwork
from prior.published_model import PublishedPrior

text = torch.nn.functional.normalize(torch.randn(1, 6), dim=1)
priors = {
    "diffusion": Prior(PriorNetwork(6, 4, 8, 1), torch.zeros(4), torch.ones(4), 20),
    "published": PublishedPrior(6, 8, 20, depth=1, heads=2, head_width=4, token_encodings=False),
    "class-names": ClassNamesPrior(torch.nn.functional.normalize(torch.randn(3, 6), dim=1), torch.eye(3)),
}
said = {}
for kind, prior in priors.items():
    for name, value in json.loads(sys.argv[1]):
        for method in (prior.sample, prior.goals):
            try:
                method(text, **{name: value})
                said[f"{kind} {name} {value!r}"] = "accepted"
            except Exception as error:
                said.setdefault(f"{kind} {name} {value!r}", f"{type(error).__name__} {error}")
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    given = json.dumps([(name, value) for name, value, _ in CASES])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, given], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["diffusion", "published", "class-names"])
@pytest.mark.parametrize(("name", "value", "expected"), CASES)
def test_a_number_that_makes_no_sense_is_refused_by_name(
    said: dict[str, str], kind: str, name: str, value: object, expected: str
) -> None:
    message = said[f"{kind} {name} {value!r}"]
    assert re.fullmatch(rf"ValueError {name}: got {re.escape(repr(value))}, expected {expected}", message), message
