"""What a classifier says of each class, estimated without images."""

import pytest
import torch

from lrm_base.profiles import classifier_profiles, estimated_outputs


def test_classes_that_a_classifier_reads_alike_are_alike_in_its_profiles():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 64, generator=generator)
    weight[1] = weight[0] + 0.5 * torch.randn(64, generator=generator)
    profiles = classifier_profiles(weight)
    assert profiles.argmax(1).tolist() == list(range(20))
    assert profiles[0].topk(2).indices.tolist() == [0, 1]
    torch.testing.assert_close(profiles.mean(1), torch.zeros(20), atol=1e-5, rtol=0)
    torch.testing.assert_close(profiles.std(1, correction=0), torch.ones(20))
    torch.testing.assert_close(classifier_profiles(3 * weight + 1), profiles, atol=1e-4, rtol=1e-4)


def test_classes_without_images_are_estimated_and_those_with_many_are_kept():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 64, generator=generator)
    truth = 2 + 3 * classifier_profiles(weight) + 1.5 * torch.eye(30)
    count = torch.tensor([0.0, 1.0, 1000.0] * 10)
    noise = torch.randn(30, 30, generator=generator) / count.clamp(min=1e-3).sqrt()[:, None]
    found = estimated_outputs(torch.where(count[:, None] > 0, truth + noise, 0.0), count, weight, worth=4.0)
    error = (found - truth).square().mean(1).sqrt()
    assert error[count == 0].max() < 0.5  # nothing was measured there
    assert error[count == 1].mean() < 0.5 < noise[count == 1].square().mean().sqrt()
    assert error[count == 1000].max() < 0.1


def test_an_estimate_needs_some_class_with_images():
    with pytest.raises(ValueError, match="no image of any class"):
        estimated_outputs(torch.zeros(3, 3), torch.zeros(3), torch.randn(3, 5), worth=1.0)
