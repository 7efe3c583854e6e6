"""What a classifier says of each class, estimated without images: profiles, which serve as goals."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

COMPRESSION = 0.75  # power that lowers a profile's peak from 8 standard deviations to 5 or 6, as mean outputs have


def classifier_profiles(weight: Float[Tensor, "m d"]) -> Float[Tensor, "m m"]:
    """What a linear classifier says of features made from a class's own weights, for each class.

    The features of class j are its weights minus the mean over the classes, rectified. Row j is what the classifier
    answers to them, brought to mean 0 and standard deviation 1. The classifier should be one that reads rectified
    features.
    """
    centred = weight - weight.mean(0)
    return compress(F.relu(centred) @ centred.T)


def compress(profiles: Float[Tensor, "b m"]) -> Float[Tensor, "b m"]:
    """Profiles with a lower peak, each brought to mean 0 and standard deviation 1."""
    shapes = standardise(profiles)
    return standardise(shapes.sign() * shapes.abs() ** COMPRESSION)


def standardise(values: Float[Tensor, "b m"]) -> Float[Tensor, "b m"]:
    """Each row brought to mean 0 and standard deviation 1."""
    spread = values.std(-1, correction=0, keepdim=True).clamp(min=1e-6)
    return (values - values.mean(-1, keepdim=True)) / spread


def estimated_outputs(
    mean: Float[Tensor, "m m"], count: Float[Tensor, " m"], weight: Float[Tensor, "m d"], worth: float
) -> Float[Tensor, "m m"]:
    """Mean outputs of all classes, where some have few images or none.

    A class's mean over n images counts n / (n + worth). The rest is an estimate from the classifier: an average output,
    plus a multiple of the class's profile, plus a bonus for the class itself, fitted to the classes that have images.

    Args:
        mean: (m, m), mean output over the images of each class.
        count: number of images of each class.
        weight: (m, d), weights of the classifier.
        worth: how many images the estimate is worth.

    Raises:
        ValueError: no class has an image.
    """
    seen = count > 0
    if not bool(seen.any()):
        raise ValueError("count: got no image of any class, expected some")
    profiles, own = (
        part - part[seen].mean(0) for part in (classifier_profiles(weight), torch.eye(len(weight)).to(weight))
    )
    average = mean[seen].mean(0)
    design = torch.stack([profiles[seen].flatten(), own[seen].flatten()], 1)
    found = torch.linalg.lstsq(design, (mean[seen] - average).flatten()[:, None]).solution[:, 0]
    estimate = average + found[0] * profiles + found[1] * own
    share = (count / (count + worth)).to(mean)[:, None]
    return share * mean + (1 - share) * estimate
