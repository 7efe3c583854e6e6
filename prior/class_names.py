"""Goals from words without training: `ClassNamesPrior` needs only the names of the backbone's classes.

A query is compared with the name of every class in the text encoder's space. A softmax over the standardised cosines
says how much the query means each class. The goal is the mixture of what the backbone says of those classes.

Unusual: where the backbone's mean outputs are not known, they are estimated from its classifier. Features are made from
a class's own weights, and the classifier reads them. Its answer tells which classes look alike; names hardly tell that.
The constants in this file were chosen with class names alone: goals for the embedded backbone were compared with those
of its trained prior.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lrm_base.checks import finite_number, whole_number
from lrm_base.checks import seed as check_seed
from lrm_base.profiles import classifier_profiles, compress, standardise
from prior.captions import fill

Encode = Callable[[Sequence[str]], Tensor]

TEMPLATES = ("{name}", "{a}", "a photo of {a}")
TEMPERATURE = 0.5  # of the softmax over classes, in standard deviations of a query's cosines
SCALE = 1.1  # logits: standard deviation over the classes of a class's mean output, about 0.65 of a single output's
SHARPNESS = 4.0  # temperature, in standard deviations, of the softmax in `name_profiles`


class ClassNamesPrior(nn.Module):
    """A prior made of class names; build it with `from_names`. It is used like `prior.model.Prior`.

    Args:
        embeddings: (m, n), embeddings of the class names, of unit length.
        profiles: (m, m), logits; row j is the goal of class j.
        temperature: temperature of the softmax over classes, in standard deviations of a query's cosines.

    Raises:
        ValueError: the shapes do not fit, there are fewer than two classes, or the temperature is not positive.
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
        """Build a prior from the names of a backbone's outputs, in the order of the outputs.

        Each class needs a profile: what the backbone says of that class. `outputs` gives the best profiles, then
        `classifier`. With neither, profiles are made from how alike the names are.

        Args:
            encode: function from texts to embeddings of unit length, (b, n).
            outputs: (m, m), logits; row j is the backbone's mean output over images of class j.
            classifier: (m, d), weights of the layer whose outputs are the goals.
            mean, scale: mean and standard deviation of the backbone's outputs in logits, each one number or (m,).
                Not used with `outputs`.
            templates: sentences for a name. Their embeddings are averaged, as in CLIP's zero-shot classifier.

        Raises:
            ValueError: both `outputs` and `classifier` are given, or one does not fit the number of names. Or
                `embed_names` raises it.
        """
        if outputs is not None and classifier is not None:
            raise ValueError("outputs and classifier: expected at most one of them, got both")
        embeddings = embed_names(encode, names, templates)
        if outputs is not None:
            return cls(embeddings, outputs.float(), temperature)
        shapes = name_profiles(embeddings) if classifier is None else classifier_profiles(classifier.float())
        profiles = torch.as_tensor(mean).to(shapes) + torch.as_tensor(scale).to(shapes) * shapes
        return cls(embeddings, profiles, temperature)

    @torch.no_grad()
    def weights(self, text_embed: Float[Tensor, "b n"]) -> Float[Tensor, "b m"]:
        """How much a text means each class. The weights of a text add up to 1.

        Raises:
            ValueError: the text embeddings and the names' embeddings differ in width.
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
        """Goals in logits, in the shape that `Prior.sample` returns. Nothing is random: a text's samples are all alike.

        `steps`, `guidance` and `seed` are checked as in `Prior.sample`, but change nothing.

        Raises:
            ValueError: the text embeddings and the names' embeddings differ in width, or a number is out of range.
        """
        num_samples = checked_samples(num_samples, steps, guidance, seed)
        return (self.weights(text_embed) @ self.profiles)[:, None].repeat(1, num_samples, 1)

    def goals(self, text_embed: Float[Tensor, "b n"], **options: Any) -> Float[Tensor, "b m"]:
        """One goal for each text, in logits of the backbone. Options as in `sample`."""
        return self.sample(text_embed, **options)[:, 0]


def checked_samples(num_samples: int, steps: int, guidance: float, seed: int) -> int:
    """The number of samples, for a prior whose samples are all alike. Raises ValueError as `Prior.sample` would."""
    num_samples = whole_number("num_samples", num_samples, 1)
    whole_number("steps", steps, 1)
    finite_number("guidance", guidance, 0)
    check_seed(seed)
    return num_samples


def embed_names(
    encode: Encode, names: Sequence[str], templates: Sequence[str] = TEMPLATES, batch_size: int = 256
) -> Float[Tensor, "m n"]:
    """The mean of each name's embeddings in all templates, of unit length.

    Args:
        encode: function from texts to embeddings of unit length, (b, n).
        batch_size: number of texts for each call of `encode`.

    Raises:
        ValueError: there is no name or no template, or `names` is one string.
    """
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


def name_profiles(embeddings: Float[Tensor, "m n"]) -> Float[Tensor, "m m"]:
    """How like the name of each class is to the names of all classes, sharpened by a softmax.

    Each row is brought to mean 0 and standard deviation 1, as in `classifier_profiles`.
    """
    return compress((standardise(embeddings @ embeddings.T) / SHARPNESS).softmax(-1))
