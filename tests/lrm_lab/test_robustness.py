"""Robustness: a measurement agrees with its parts, differences are paired, and what cannot be measured is refused."""

import json

import pytest
import torch

pytest.importorskip("art", reason="needs the extra `evaluate`")

from lrm_lab import robustness
from lrm_lab.attacks import PLAIN
from lrm_lab.corruptions import CORRUPTIONS


def test_a_measurement_is_json_repeats_itself_and_agrees_with_the_parts(small, grey, attacked):
    again = robustness.measure(small, small.model.backbone, *grey, quick=True, images=12, seed=3)
    assert json.dumps(again, allow_nan=False) == json.dumps(attacked, allow_nan=False)
    assert attacked["clean"] == {"pass1": 1.0, "pass2": 1.0, PLAIN: 1.0}
    for name, right in attacked["clean"].items():
        curve = [right, *(row[name] for row in attacked["pgd20"].values()), attacked["large"]["pgd20"][name]]
        assert curve == sorted(curve, reverse=True)
        shares = [row["5"][name] for row in attacked["corruptions"].values()]
        assert attacked["corrupted"][name] == pytest.approx(sum(shares) / len(CORRUPTIONS))
    for attack in ("fgsm", "pgd20", "autoattack"):  # the twin is the first pass
        assert all(row[PLAIN] == row["pass1"] for row in attacked[attack].values())
    assert all(parameter.requires_grad is False for parameter in small.model.parameters())


def test_a_large_ball_fools_every_target(attacked):
    assert set(attacked["large"]["pgd20"].values()) == {0.0}


def test_differences_are_paired():
    right = {"pass1": torch.tensor([1.0, 0, 0, 1]), "pass2": torch.tensor([1.0, 1, 0, 1]), PLAIN: torch.zeros(4)}
    clean = {"pass1": torch.tensor([True, False, True, True]), "pass2": torch.ones(4).bool(), PLAIN: torch.zeros(4) > 0}
    found = robustness.differences(right, clean)
    assert list(found) == ["pass2 - pass1", f"pass1 - {PLAIN}", f"pass2 - {PLAIN}"]
    assert found["pass2 - pass1"]["difference"] == 0.25
    assert found["pass2 - pass1"]["interval"] == pytest.approx([0.0, 0.75])
    assert found["pass2 - pass1"]["among_both"] == {"images": 3, "difference": 0.0, "interval": [0.0, 0.0]}
    assert found[f"pass2 - {PLAIN}"]["among_both"] is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pixels": torch.zeros(30, 3, 16, 16)}, r"got shape \(30, 3, 16, 16\), expected \(n, 3, 32, 32\)"),
        ({"pixels": torch.full((30, 3, 32, 32), 2.0)}, "pixels: got values from 2 to 2"),
        ({"pixels": torch.zeros(0, 3, 32, 32), "labels": torch.zeros(0).long()}, "labels: got 0 for 0 images"),
        ({"labels": torch.full((30,), 6)}, "labels: got 6 to 6, expected 0 to 5"),
        ({"epsilons": ()}, r"epsilons: got \[\], expected values above 0"),
        ({"epsilons": (0.0, 0.01)}, r"epsilons: got \[0.0, 0.01\]"),
        ({"epsilons": (0.01, 0.1)}, "expected values above 0 and below 0.0627"),
        ({"autoattack_epsilons": (0.01,)}, r"autoattack_epsilons: got \(0.01,\), expected some of"),
        ({"severities": (1, 6)}, r"severities: got \(1, 6\), expected some of 1 to 5"),
        ({"check_images": 0}, "images: got 0 for one of the parts"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(small, grey, changes, words):
    given = {"pixels": grey[0], "labels": grey[1], **changes}
    with pytest.raises(ValueError, match=words):
        robustness.measure(small, None, **given)
