"""ClassNamesPrior: goals from words without training, through the backbone's own class names.

A query is compared with the name of every class in the text encoder's space; a softmax over the standardised cosines
says how much each class is meant, and the goal is the mixture of what the backbone says of those classes.

Unusual: what it says of a class is read off its classifier where no mean outputs are known. Features rectified from a
class's own weights, read by the classifier again, tell which classes look alike, which their names hardly do. Numbers
in this file were chosen with class names alone, on the embedded backbone, against the goals of its trained prior.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prior.captions import fill

Encode = Callable[[Sequence[str]], Tensor]

TEMPLATES = ("{name}", "{a}", "a photo of {a}")
TEMPERATURE = 0.5  # of the softmax over classes, in standard deviations of a query's cosines
SCALE = 1.1  # logits: how far a class's mean output varies over the classes (about 0.65 of what single outputs do)
SHARPNESS = 4.0  # temperature, in standard deviations, at which names alone stand in for a classifier
COMPRESSION = 0.75  # power that brings a profile's peak from 8 to the 5 or 6 standard deviations of mean outputs


class ClassNamesPrior(nn.Module):
    """A prior that knows nothing but names; use `from_names`. The interface is that of `prior.model.Prior`.

    Args:
        embeddings: (m, n), unit length, of the class names. profiles: (m, m), logits; row j is the goal for class j.
        temperature: of the softmax over classes, in standard deviations of a query's cosines.

    Raises:
        ValueError: shapes do not fit each other, there are fewer than two classes, or the temperature is not positive.
    """

    source = "class-names"
    embeddings: Tensor
    profiles: Tensor

    def __init__(
        self, embeddings: Float[Tensor, "m n"], profiles: Float[Tensor, "k l"], temperature: float = TEMPERATURE
    ) -> None:
        super().__init__()
        count = len(embeddings)
        if count < 2:
            raise ValueError(f"class names: expected at least two, got {count}")
        if profiles.shape != (count, count):
            raise ValueError(f"profiles: expected {count} × {count} for {count} names, got {tuple(profiles.shape)}")
        if not temperature > 0:
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        self.temperature = temperature
        self.register_buffer("embeddings", embeddings)
        self.register_buffer("profiles", profiles.to(embeddings.device))

    @classmethod
    def from_names(
        cls,
        encode: Encode,
        names: Sequence[str],
        *,
        outputs: Float[Tensor, "k l"] | None = None,
        classifier: Float[Tensor, "k d"] | None = None,
        mean: Tensor | float = 0.0,
        scale: Tensor | float = SCALE,
        temperature: float = TEMPERATURE,
        templates: Sequence[str] = TEMPLATES,
    ) -> ClassNamesPrior:
        """Build one from the names of a backbone's outputs, in their order.

        Args:
            encode: texts to unit-length embeddings, (b, n).
            outputs: (m, m), the backbone's mean output over images of each class, in logits: the best there is.
            classifier: (m, d), weights of the layer that is steered; used where no outputs are known. Without either
                the names' own similarities stand in.
            mean, scale: one number, or (m,), of the backbone's outputs in logits; only used without `outputs`, which
                bring their own.
            templates: texts of a name, whose embeddings are averaged as in CLIP's zero-shot classifier.

        Raises:
            ValueError: outputs and classifier are both given, or do not fit the number of names.
        """
        if outputs is not None and classifier is not None:
            raise ValueError("outputs and classifier: expected at most one of them")
        embeddings = embed_names(encode, names, templates)
        if outputs is not None:
            return cls(embeddings, outputs.float(), temperature)
        shapes = name_profiles(embeddings) if classifier is None else classifier_profiles(classifier.float())
        profiles = torch.as_tensor(mean).to(shapes) + torch.as_tensor(scale).to(shapes) * shapes
        return cls(embeddings, profiles, temperature)

    @torch.no_grad()
    def weights(self, text_embed: Float[Tensor, "b n"]) -> Float[Tensor, "b m"]:
        """How much each class is meant by a text, adding up to 1.

        Raises:
            ValueError: the embeddings' width is not that of the names.
        """
        width = self.embeddings.shape[1]
        if text_embed.shape[-1] != width:
            raise ValueError(
                f"text embedding: expected width {width}, got {text_embed.shape[-1]}; "
                "were the class names embedded by another text encoder?"
            )
        text = F.normalize(text_embed.to(self.embeddings), dim=-1)
        return (standardise(text @ self.embeddings.T) / self.temperature).softmax(-1)

    @torch.no_grad()
    def sample(
        self,
        text_embed: Float[Tensor, "b n"],
        *,
        num_samples: int = 1,
        steps: int = 1,
        guidance: float = 1.0,
        seed: int = 0,
    ) -> Float[Tensor, "b s m"]:
        """Goals as `Prior.sample` gives them. Nothing is drawn: all samples of a text are alike, whatever the options.

        Raises:
            ValueError: the embeddings' width is not that of the names.
        """
        goals = self.weights(text_embed) @ self.profiles
        return goals[:, None].repeat(1, num_samples, 1)

    def goals(self, text_embed: Float[Tensor, "b n"], **options: Any) -> Float[Tensor, "b m"]:
        """One goal for each text, in logits of the backbone. Options as in `sample`."""
        return self.sample(text_embed, **options)[:, 0]


def embed_names(
    encode: Encode, names: Sequence[str], templates: Sequence[str] = TEMPLATES, batch_size: int = 256
) -> Float[Tensor, "m n"]:
    """Unit-length mean of each name's embeddings in all templates. Raises ValueError without names or templates."""
    if isinstance(names, str) or not names or not templates:
        raise ValueError(f"expected class names and templates, got {names!r} and {templates!r}")
    total = None
    for template in templates:
        texts = [fill(template, name.replace("_", " ")) for name in names]
        parts = [encode(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        embeddings = torch.cat(parts).float()
        total = embeddings if total is None else total + embeddings
    assert total is not None
    return F.normalize(total, dim=-1)


def classifier_profiles(weight: Float[Tensor, "m d"]) -> Float[Tensor, "m m"]:
    """For each class, what a linear classifier says of features rectified from that class's own weights; standardised.

    Row j has mean 0 and deviation 1 over the classes. Meant for classifiers that read rectified features.
    """
    centred = weight - weight.mean(0)
    return _compress(F.relu(centred) @ centred.T)


def name_profiles(embeddings: Float[Tensor, "m n"]) -> Float[Tensor, "m m"]:
    """For each class, how alike the names of the others are, sharpened; standardised as in `classifier_profiles`."""
    return _compress((standardise(embeddings @ embeddings.T) / SHARPNESS).softmax(-1))


def standardise(values: Float[Tensor, "b m"]) -> Float[Tensor, "b m"]:
    """Each row with mean 0 and deviation 1."""
    spread = values.std(-1, correction=0, keepdim=True).clamp(min=1e-6)
    return (values - values.mean(-1, keepdim=True)) / spread


def _compress(profiles: Tensor) -> Tensor:
    shapes = standardise(profiles)
    return standardise(shapes.sign() * shapes.abs() ** COMPRESSION)
