"""Arguments of the wrong kind are refused with one clear ValueError.

The calls run in a process of their own, because the type checks of the tests would refuse them first.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import json
import numpy as np, torch
from torch import nn
from lrm_core import LRM, Connection, LRMNet, Steer, SteerableLRM
from lrm_core.backbones import MiniNet
from lrm_core.feedback import Feedback, PublishedFeedback
from lrm_core.goal_memory import GoalMemory
from lrm_core.packing import Layout
from lrm_core.places import class_evidence, pooled_map
from lrm_core.prototypes import Moments, Prototypes, compute_prototypes
from lrm_core.scenes import compose, random_scenes, random_squares
from lrm_core.trials import make_trials
from lrm_core.weights import build

paths = [Connection("fc", "value"), Connection("values", "layer2.add")]
net = MiniNet(5, widths=(4, 4, 4, 4, 8))
model = LRM(net, paths, 64).eval()
front = SteerableLRM(net, [dict(source="fc", destination="value")], img_size=64).eval()
images, labels = torch.rand(4, 3, 64, 64), torch.arange(4)
goals = torch.randn(4, 5)
stem = model.stem(images)
state = model.step(stem)[1]
rng = torch.Generator()
table = Prototypes(("a", "b"), torch.ones(2, dtype=torch.long), torch.zeros(2, 2, 5), torch.zeros(2, 2, 5))
signal = lambda **more: dict(dict(source="fc", activation=goals, strength=1.0), **more)
one_path = lambda **more: LRM(net, paths[:1], **dict(dict(image_size=64), **more))
nan = float("nan")
calls = {
    "strength nan": lambda: model.rollout(images, 2, [Steer("fc", goals, nan)]),
    "strength inf": lambda: model.rollout(images, 2, [Steer("fc", goals, (0.0, float("inf")))]),
    "strength 1e38": lambda: model.rollout(images, 2, [Steer("fc", goals, 1e38)]),
    "three strengths": lambda: model.rollout(images, 2, [Steer("fc", goals, (1.0, 2.0, 3.0))]),
    "strength in words": lambda: model.rollout(images, 2, [Steer("fc", goals, "big")]),
    "strength of a path": lambda: Feedback((5,), (8,))(goals, images, nan),
    "strength of a published path": lambda: PublishedFeedback((5,), (8,))(goals, goals, (1, 2, 3)),
    "mix nan": lambda: model.rollout(images, 2, [Steer("fc", goals, 1.0, nan)]),
    "goal of a list": lambda: model.rollout(images, 2, [Steer("fc", [1.0] * 5)]),
    "goal of numpy": lambda: model.rollout(images, 2, [Steer("fc", goals.numpy())]),
    "passes 2.5": lambda: model.rollout(images, 2.5),
    "passes True": lambda: model.rollout(images, True),
    "passes nan": lambda: model.rollout(images, nan),
    "image_size 0": lambda: one_path(image_size=0),
    "image_size 64.0": lambda: one_path(image_size=64.0),
    "image_size too small": lambda: LRM(nn.Sequential(nn.Conv2d(3, 4, 9), nn.ReLU(), nn.Flatten(), nn.Linear(4, 5)),
                                        [Connection("3", "0")], 4),
    "rule": lambda: one_path(rule="mult"),
    "layout size": lambda: Layout.of(model, 64.5, 64.5),
    "forward_passes True": lambda: SteerableLRM(net, [dict(source="fc", destination="value")], True),
    "forward_passes 1.5": lambda: front(images, forward_passes=1.5),
    "img_size 1.5": lambda: LRMNet(net, [dict(source="fc", destination="value")], img_size=1.5),
    "alpha nan": lambda: front(images, steering_signals=signal(alpha=nan)),
    "alpha in words": lambda: front(images, steering_signals=signal(alpha="half")),
    "signal strength nan": lambda: front(images, steering_signals=signal(strength=torch.tensor([1.0, nan]))),
    "signal strength 1e38": lambda: front(images, steering_signals=signal(strength=1e38)),
    "prototype passes 1.5": lambda: compute_prototypes(model, [(images[0], 0)], passes=1.5),
    "batch_size 0": lambda: compute_prototypes(model, [(images[0], 0)], batch_size=0),
    "num_workers -1": lambda: compute_prototypes(model, [(images[0], 0)], num_workers=-1),
    "class True": lambda: table.goal(True),
    "class 0.5": lambda: table.goal(0.5),
    "which_pass 0.5": lambda: table.goal(0, 0.5),
    "moments": lambda: Moments(0, 5, 5),
    "memory depth": lambda: GoalMemory(5, 0),
    "memory classes": lambda: GoalMemory(True),
    "scenes count": lambda: random_scenes("blend", 1.5, images, labels, rng),
    "scenes kind": lambda: random_scenes("mosaic", 2, images, labels, rng),
    "squares kind": lambda: random_squares("mosaic", 2, rng),
    "squares outside": lambda: compose("inset", images.view(2, 2, 3, 64, 64), labels.view(2, 2),
                                       torch.tensor([[0.5, 0.5, 1.5, 1.5]] * 2)),
    "squares of another number": lambda: compose("inset", images.view(2, 2, 3, 64, 64), labels.view(2, 2),
                                                 torch.rand(1, 4)),
    "trials count": lambda: make_trials("blend", images, labels, 5, 2.5, 0),
    "trials seed": lambda: make_trials("blend", images, labels, 5, 2, 0.5),
    "trials kind": lambda: make_trials("mosaic", images, labels, 5, 2, 0),
    "num_classes": lambda: build("mini", 2.5),
    "output": lambda: pooled_map(model, "head"),
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
def told() -> dict[str, list[str]]:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("strength nan", "strength: got nan, expected a number or a pair (negative, positive)"),
        ("strength inf", "strength: got (0.0, inf), expected"),
        ("strength 1e38", "strength: got 1e+38, expected"),
        ("three strengths", "strength: got (1.0, 2.0, 3.0), expected"),
        ("strength in words", "strength: got 'big', expected"),
        ("strength of a path", "strength: got nan, expected"),
        ("strength of a published path", "strength: got (1, 2, 3), expected"),
        ("mix nan", "mix: got nan, expected a finite number"),
        ("goal of a list", "goal for 'fc': got list, expected a tensor"),
        ("goal of numpy", "goal for 'fc': got ndarray, expected a tensor"),
        ("passes 2.5", "passes: got 2.5, expected a whole number of at least 1"),
        ("passes True", "passes: got True, expected"),
        ("passes nan", "passes: got nan, expected"),
        ("image_size 0", "image_size: got 0, expected a whole number of at least 1"),
        ("image_size 64.0", "image_size: got 64.0, expected"),
        ("image_size too small", "image_size: got 4, expected the side of an image that the backbone takes"),
        ("rule", "rule: got 'mult'; choices: multiply, rectify, add"),
        ("layout size", "height: got 64.5, expected"),
        ("forward_passes True", "forward_passes: got True, expected a whole number of at least 1"),
        ("forward_passes 1.5", "forward_passes: got 1.5, expected"),
        ("img_size 1.5", "img_size: got 1.5, expected"),
        ("alpha nan", "alpha: got nan, expected a finite number"),
        ("alpha in words", "alpha: got 'half', expected"),
        ("signal strength nan", "strength: got tensor([1., nan]), expected"),
        ("signal strength 1e38", "strength: got 1e+38, expected"),
        ("prototype passes 1.5", "passes: got 1.5, expected a whole number of at least 1"),
        ("batch_size 0", "batch_size: got 0, expected a whole number of at least 1"),
        ("num_workers -1", "num_workers: got -1, expected a whole number of at least 0"),
        ("class True", "name_or_index: got True, expected a whole number from 0 to 1"),
        ("class 0.5", "name_or_index: got 0.5, expected"),
        ("which_pass 0.5", "which_pass: got 0.5, expected a whole number from -2 to 1"),
        ("moments", "passes: got 0, expected a whole number of at least 1"),
        ("memory depth", "depth: got 0, expected a whole number of at least 1"),
        ("memory classes", "num_classes: got True, expected"),
        ("scenes count", "count: got 1.5, expected a whole number of at least 1"),
        ("scenes kind", "kind: no kind of scene 'mosaic'; choices: single, blend"),
        ("squares kind", "kind: no kind of scene 'mosaic'; choices: single, blend"),
        ("squares outside", "squares: got shape (2, 4), expected (2, 4) with numbers in 0–1"),
        ("squares of another number", "squares: got shape (1, 4), expected (2, 4)"),
        ("trials count", "count: got 2.5, expected a whole number of at least 1"),
        ("trials seed", "seed: got 0.5, expected a whole number from 0 to"),
        ("trials kind", "kind: no kind of scene 'mosaic'"),
        ("num_classes", "num_classes: got 2.5, expected a whole number of at least 1"),
        ("output", "output: got 'head', expected a module of the backbone; choices: conv1"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_was_got_and_what_was_expected(told, name, message):
    kind, text = told[name]
    assert kind == "ValueError"
    assert text.startswith(message)


def test_every_call_is_named_in_the_table(told):
    assert len(told) == 44
