"""The published numbers: every array that the published code computed on deterministic weights."""

from pathlib import Path

import pytest

from lrm_core.compat import PUBLISHED_CONNECTIONS, ours_to_published

ARRAYS = (
    "plain_2", "plain_3", "steer_s1", "steer_s3", "steer_neg1_pos3", "steer_s3_alpha05", "steer_s3_first",
    "steer_s3_3passes", "plain_160px",
)  # fmt: skip
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=PUBLISHED_CONNECTIONS)
def published(request, shared: Path):
    """(folder, model, seed, arrays) of one published model."""
    folder = shared / "data" / "golden"
    if not folder.is_dir():
        pytest.skip("needs the golden arrays in ../shared/data/golden, which only developers and CI have")
    from benchmarks.golden import build, expected

    return folder, build(folder, request.param), *expected(folder, request.param)


@pytest.mark.parametrize("array", ARRAYS)
def test_the_published_numbers_come_out(published, array):
    from benchmarks.golden import call

    folder, model, seed, arrays = published
    got, wanted = call(folder, model, seed, array), arrays[array]
    assert got.shape == wanted.shape
    difference = float((got - wanted).abs().max())
    assert difference <= TOLERANCE, f"{array}: max |Δ| {difference:.1e}, tolerance {TOLERANCE:.0e}"


def test_no_published_array_is_left_out(published):
    *_, arrays = published
    assert set(arrays) == set(ARRAYS)


def test_keys_and_shapes_are_the_published_ones(shared: Path):
    from torchvision.models import alexnet

    from lrm_core import LRMNet

    listed = (shared / "data" / "golden" / "alexnet_lrm3_keys.txt").read_text().splitlines()
    model = LRMNet(alexnet(weights=None), PUBLISHED_CONNECTIONS["alexnet_lrm3"])
    ours = ours_to_published(model.state_dict(), model.lrm.connections)
    assert sorted(f"{key} {tuple(value.shape)}" for key, value in ours.items()) == sorted(listed)
