"""Steerer: words in, a steered look out. The one place where the text encoder, the prior and the backbone meet.

Unusual: the first pass over an image never depends on the query, so an image with K queries costs one first pass and a
batch of K steered ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from lrm_core import LRM, State, Steer, Stem
from lrm_core.backbones import Preprocessing
from lrm_core.feedback import Strength
from steering.errors import QueryError, printable
from steering.evidence import Verdict, features, support
from steering.heatmap import steering_heatmap
from steering.images import open_image
from steering.look import Look

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from prior.model import Prior
    from prior.text import TextEncoder

MODELS = Path(__file__).parent / "models"
DEFAULT_MODEL = "lrm_mini"


@dataclass(frozen=True)
class Defaults:
    """What a look uses unless told otherwise; chosen on composites of training images and kept in `steering.json`."""

    strength: float
    passes: int
    num_samples: int = 16
    sampling_steps: int = 10


@dataclass(frozen=True)
class Glance:
    """An image after its first, unsteered pass: all that any query needs."""

    stem: Stem
    state: State
    output: Tensor


def model_names() -> tuple[str, ...]:
    """Names of the embedded models."""
    return tuple(sorted(path.name for path in MODELS.iterdir() if (path / "backbone.json").is_file()))


def find_model(name_or_folder: str | Path) -> Path:
    """The folder of an embedded model, or the folder itself. Raises ValueError with the choices."""
    for folder in (Path(name_or_folder), MODELS / str(name_or_folder)):
        if (folder / "backbone.json").is_file():
            return folder
    raise ValueError(
        f"no model {printable(str(name_or_folder))!r}: neither a folder with backbone.safetensors and backbone.json "
        f"nor one of {', '.join(model_names())}"
    )


class Steerer:
    """A backbone with feedback, the prior that turns words into its goals, and the calibrated verdict.

    Use `Steerer.load()`. All tensors live on `device`. The object holds no state between calls; threads may share it.
    """

    def __init__(
        self,
        model: LRM,
        card: dict[str, Any],
        preprocessing: Preprocessing,
        prior: Prior,
        text: TextEncoder,
        vocabulary: Tensor,
        verdict: Verdict | None,
        defaults: Defaults,
        device: torch.device,
    ) -> None:
        self.model, self.card, self.preprocessing = model, card, preprocessing
        self.prior, self.text, self.vocabulary = prior, text, vocabulary
        self.verdict, self.defaults, self.device = verdict, defaults, device
        self._understand = lru_cache(1024)(self._understand_anew)  # a folder of images asks the same words each time

    @classmethod
    def load(cls, model: str | Path = DEFAULT_MODEL, *, device: str | None = None) -> Steerer:
        """Load an embedded model by name, or any folder in the same format. Nothing is fetched from a network.

        Raises:
            ValueError: there is no such model, a file of it is missing or was altered, its parts were not trained for
                each other, or the device does not exist.
        """
        import json

        from lrm_base.card import load_weights
        from lrm_core.weights import load_model
        from prior.model import Prior
        from prior.text import TextEncoder

        folder = find_model(model)
        place = find_device(device)
        backbone, preprocessing, card = load_model(folder / "backbone.safetensors", place)
        prior, trained_on = Prior.load(folder / "prior.safetensors", place)
        text = TextEncoder.load(folder / "text", device=str(place))
        vocabulary = load_weights(folder / "vocabulary.safetensors")[0]["embeddings"].to(place)
        verdict = Verdict.load(folder / "verdict.json") if (folder / "verdict.json").is_file() else None
        try:
            defaults = Defaults(**json.loads((folder / "steering.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{folder / 'steering.json'} does not hold a model's defaults: {error}") from None
        _check_fit(folder, card, prior, trained_on, text, vocabulary)
        return cls(backbone, card, preprocessing, prior, text, vocabulary, verdict, defaults, place)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """What the backbone can name, in the order of its outputs."""
        return tuple(entry["name"] for entry in self.card["classes"])

    @property
    def output(self) -> str:
        """Name of the step that is steered: the classifier."""
        return self.card["output"]

    def embed(self, queries: Sequence[str]) -> Float[Tensor, "q n"]:
        """Unit-length text embeddings. Raises QueryError for an empty query or one that is too long."""
        try:
            return self.text.encode(list(queries)).to(self.device)
        except ValueError as error:
            raise QueryError(str(error)) from None

    def familiarity(self, embeddings: Float[Tensor, "q n"]) -> Float[Tensor, " q"]:
        """Cosine of each text with the nearest name, synonym or hypernym of a class that the backbone knows."""
        return (embeddings @ self.vocabulary.T).amax(1)

    def goals(self, queries: Sequence[str], *, seed: int = 0) -> Float[Tensor, "q m"]:
        """Goal vectors, in logits of the backbone, one for each query."""
        return self._goals(self.embed(queries), seed)

    def goal(self, query: str, *, seed: int = 0) -> Float[Tensor, " m"]:
        """The goal vector of one query, in logits of the backbone."""
        return self._understand(query, seed)[0].clone()

    def _understand_anew(self, query: str, seed: int) -> tuple[Tensor, Tensor]:
        """The goal (M,) and the familiarity () of a query."""
        embeddings = self.embed([query])
        return self._goals(embeddings, seed)[0], self.familiarity(embeddings)[0]

    def _goals(self, embeddings: Tensor, seed: int) -> Tensor:
        options = {"num_samples": self.defaults.num_samples, "steps": self.defaults.sampling_steps}
        return self.prior.goals(embeddings, seed=seed, **options)

    def pixels(self, picture: Image.Image) -> Float[Tensor, "1 3 s s"]:
        """A photograph as the backbone takes it: the whole frame squashed to a square, normalised."""
        from PIL import Image
        from torchvision.transforms.functional import pil_to_tensor

        size = self.preprocessing.size
        small = picture.resize((size, size), Image.Resampling.BILINEAR)
        pixels = pil_to_tensor(small).to(self.device).float()[None] / 255
        return self.preprocessing.normalise(pixels)

    @torch.no_grad()
    def glance(self, inputs: Float[Tensor, "b 3 s s"]) -> Glance:
        """The first, unsteered pass over normalised images; it serves every query."""
        stem = self.model.stem(inputs)
        output, state = self.model.step(stem)
        return Glance(stem, state, output)

    @torch.no_grad()
    def steer(
        self,
        glance: Glance,
        goals: Float[Tensor, "b m"],
        *,
        strength: Strength | None = None,
        passes: int | None = None,
    ) -> Float[Tensor, "b m"]:
        """Outputs of the last steered pass, one goal for each image of the glance."""
        steer, passes = self._steer(goals, strength, passes)
        output, state = glance.output, glance.state
        for _ in range(passes - 1):
            output, state = self.model.step(glance.stem, state, [steer])
        return output

    def _steer(self, goals: Tensor, strength: Strength | None, passes: int | None) -> tuple[Steer, int]:
        passes = self.defaults.passes if passes is None else passes
        if passes < 2:
            raise ValueError(f"passes: got {passes}, expected at least 2: the first is never steered")
        return Steer(self.output, goals, self.defaults.strength if strength is None else strength), passes

    def look(
        self,
        image: str | os.PathLike[str] | Image.Image | np.ndarray,
        query: str,
        *,
        strength: Strength | None = None,
        passes: int | None = None,
        seed: int = 0,
    ) -> Look:
        """Look at one image for one thing. See `look_many`."""
        return self.look_many(image, [query], strength=strength, passes=passes, seed=seed)[0]

    def look_many(
        self,
        image: str | os.PathLike[str] | Image.Image | np.ndarray,
        queries: Sequence[str],
        *,
        strength: Strength | None = None,
        passes: int | None = None,
        seed: int = 0,
    ) -> list[Look]:
        """Look at one image for several things, at the cost of one first pass and a steered batch.

        Args:
            image: a file, a sample such as `sample:cat`, a PIL image, or an (h, w, 3) uint8 array.
            strength: gain of the goal's feedback, or (negative, positive); the model's default if None.
            passes: number of passes in all, at least 2; the model's default if None.
            seed: of the prior's samples.

        Raises:
            ImageError: the image cannot be read. QueryError: a query is empty or too long. ValueError: see the options.
        """
        if self.verdict is None:
            raise ValueError("this model has no calibrated verdict; `python -m steering.calibrate` makes it")
        if isinstance(queries, str) or not queries:
            raise QueryError(f"expected a list of queries, got {queries!r}")
        start = time.perf_counter()
        understood = [self._understand(query, seed) for query in queries]
        goals = torch.stack([goal for goal, _ in understood])
        familiarity = torch.stack([cosine for _, cosine in understood])
        steer, passes = self._steer(goals, strength, passes)
        picture = open_image(image)
        glance = self.glance(self.pixels(picture))
        count = len(queries)
        stem, state = glance.stem.expand(count), glance.state.expand(count)
        with torch.no_grad():
            for _ in range(passes - 2):
                _, state = self.model.step(stem, state, [steer])
        after, heatmaps = steering_heatmap(self.model, stem, state, steer, goals)
        before = glance.output.expand(count, -1)
        values = features(before, after, goals, familiarity)
        probabilities = self.verdict.probability(values).tolist()
        evidence = (support(after, goals) - support(before, goals)).tolist()
        seconds = (time.perf_counter() - start) / count
        return [
            Look(
                image=_name(image),
                query=query,
                model=self.card["name"],
                prior="diffusion",
                class_names=self.class_names,
                picture=picture,
                before=before[index],
                after=after[index],
                goal=goals[index],
                heatmap=heatmaps[index],
                evidence=evidence[index],
                verdict=self.verdict.answer(probabilities[index]),
                probability=probabilities[index],
                seconds=seconds,
            )
            for index, query in enumerate(queries)
        ]


def _check_fit(
    folder: Path, card: dict[str, Any], prior: Prior, trained_on: dict[str, Any], text: TextEncoder, vocabulary: Tensor
) -> None:
    """Raises ValueError where backbone, prior and text encoder of a folder were not trained for each other."""
    widths = {prior.network.text_width, text.width, vocabulary.shape[1]}
    backbone = trained_on.get("backbone_sha256")
    if backbone != card["sha256"] or prior.network.dim != len(card["classes"]) or len(widths) > 1:
        raise ValueError(
            f"{folder}: the parts were not trained for each other: the prior speaks to a backbone of "
            f"{prior.network.dim} classes, SHA-256 {backbone}, from texts of width {prior.network.text_width}; "
            f"got {len(card['classes'])} classes, SHA-256 {card['sha256']}, width {text.width}"
        )


def _name(image: Any) -> str:
    """What an image is called in a `Look`: its path, or the file that a PIL image came from."""
    if isinstance(image, str | os.PathLike):
        return os.fsdecode(image)
    return os.fsdecode(getattr(image, "filename", "") or "image")


def find_device(name: str | None) -> torch.device:
    """The named device, or the GPU if there is one. Raises ValueError if torch cannot use it."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {reason}") from None
    return torch.device(name)
