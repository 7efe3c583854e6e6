"""Common corruptions of `lrm_lab.corruptions`, beside what their numbers say."""

import pytest
import torch
import torch.nn.functional as F

from lrm_lab.corruptions import CORRUPTIONS, corrupt


@pytest.fixture(scope="module")
def smooth():
    """Pictures of 64 px, coarse noise with a little that is fine."""
    generator = torch.Generator().manual_seed(0)
    coarse = F.interpolate(torch.rand(4, 3, 16, 16, generator=generator), (64, 64), mode="bicubic")
    return (0.9 * coarse + 0.1 * torch.rand(4, 3, 64, 64, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_worse_severities_change_more_and_stay_in_range(name, smooth):
    kept = smooth.clone()
    found = [corrupt(name, severity, smooth, torch.Generator().manual_seed(0)) for severity in range(1, 6)]
    assert torch.equal(smooth, kept)
    assert all(torch.equal(f.clamp(0, 1), f) and f.shape == smooth.shape and f.dtype == smooth.dtype for f in found)
    changes = torch.stack([(f - smooth).square().mean().sqrt() for f in found])
    assert (changes.diff() > 0).all()
    assert 0.01 < changes[0] < changes[-1] < 0.6
    assert torch.equal(corrupt(name, 5, smooth, torch.Generator().manual_seed(0)), found[-1])


def test_corruptions_are_what_their_numbers_say(smooth):
    generator, middle = torch.Generator().manual_seed(0), 0.3 + 0.3 * smooth
    mean = middle.mean((2, 3), keepdim=True)
    torch.testing.assert_close(corrupt("contrast", 1, middle, generator), mean + 0.4 * (middle - mean))
    torch.testing.assert_close(corrupt("brightness", 2, middle, generator).amax(1), middle.amax(1) + 0.2)
    blocks = F.avg_pool2d(smooth, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(corrupt("pixelate", 5, smooth, generator), blocks, atol=1.5 / 255, rtol=0)
    noise = corrupt("Gaussian noise", 1, middle, generator) - middle
    assert float(noise.std()) == pytest.approx(0.04, rel=0.03)
    shot = corrupt("shot noise", 2, torch.full((1, 3, 64, 64), 0.25), generator)
    assert float(shot.var()) == pytest.approx(0.25 / 100, rel=0.05)
    salted = corrupt("impulse noise", 5, middle, generator)
    assert float(((salted == 0) | (salted == 1)).float().mean()) == pytest.approx(0.14, rel=0.1)


@pytest.mark.parametrize(("name", "severity"), [("fog", 1), ("JPEG", 0), ("JPEG", 6)])
def test_unknown_corruptions_and_severities_are_refused(name, severity, smooth):
    with pytest.raises(ValueError, match="fog" if name == "fog" else f"severity: got {severity}, expected 1 to 5"):
        corrupt(name, severity, smooth, torch.Generator())
