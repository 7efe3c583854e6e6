"""Steerer: words in, a steered look out. The one place where the text encoder, the prior and the backbone meet.

Unusual: the first pass over an image never depends on the query, so an image with K queries costs one first pass and a
batch of K steered ones.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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
from lrm_core.packing import Layout
from lrm_core.places import class_evidence
from steering.errors import QueryError, printable
from steering.evidence import Answer, Verdict, features, load_verdicts, support
from steering.goals import Goal
from steering.heatmap import steering_heatmap
from steering.images import open_image, squash
from steering.look import Look

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from lrm_core.prototypes import Prototypes
    from prior.text import TextEncoder
    from steering.language import Language

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
    """An image after its first, unsteered pass: all that any query needs.

    output: (b, M) logits. places: (b, M), the probability of each class by places, see `lrm_core.places`.
    """

    stem: Stem
    state: State
    output: Tensor
    places: Tensor

    def expand(self, count: int) -> Glance:
        """That of one image as a view for a batch of goals."""
        views = (self.output.expand(count, -1), self.places.expand(count, -1))
        return Glance(self.stem.expand(count), self.state.expand(count), *views)


@dataclass(frozen=True)
class Sought:
    """What looking for one goal gave, for each of b images.

    after: (b, M), output of the last steered pass. support: (b,), of the goal after it. evidence: (b,), by how much it
    changed, in nats. probability: (b,), calibrated, that the goal is there; None where no verdict was calibrated for
    such goals.
    """

    after: Tensor
    support: Tensor
    evidence: Tensor
    probability: Tensor | None


def model_names() -> tuple[str, ...]:
    """Names of the embedded models."""
    return tuple(sorted(path.name for path in MODELS.iterdir() if (path / "backbone.json").is_file()))


def find_model(name_or_folder: str | Path) -> Path:
    """The folder of an embedded model, or the folder itself. Raises ValueError with the choices."""
    for folder in (Path(name_or_folder), MODELS / str(name_or_folder)):
        if (folder / "backbone.json").is_file():
            return folder
    from steering.published import PUBLISHED_MODELS

    raise ValueError(
        f"no model {printable(str(name_or_folder))!r}: neither a folder with backbone.safetensors and backbone.json "
        f"nor one of {', '.join((*model_names(), *PUBLISHED_MODELS))}"
    )


class Steerer:
    """A backbone with feedback, the prior that turns words into its goals, and the calibrated verdicts.

    Use `Steerer.load()`. All tensors live on `device`. The object holds no state between calls; threads may share it.

    Args:
        language: called once, when words are first to be understood.
        verdicts: one for each way of making goals that was calibrated, see `steering.goals.Goal`.
        prototypes: called when a class is first looked for by its mean output; returns None if the model has none.
    """

    def __init__(
        self,
        model: LRM,
        card: dict[str, Any],
        preprocessing: Preprocessing,
        language: Callable[[], Language],
        verdicts: Mapping[str, Verdict],
        defaults: Defaults,
        device: torch.device,
        prototypes: Callable[[], Prototypes | None],
    ) -> None:
        self.model, self.card, self.preprocessing = model, card, preprocessing
        self.verdicts, self.defaults, self.device = dict(verdicts), defaults, device
        self._load_language, self._load_prototypes = language, prototypes
        self._loading = threading.RLock()
        self._understand_words = lru_cache(1024)(self._understand_anew)  # a folder of images asks the same each time

    @classmethod
    def load(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        prior: str | None = None,
        text: str | None = None,
        device: str | None = None,
    ) -> Steerer:
        """Load an embedded model by name, any folder in the same format, or a published model.

        Args:
            prior: what turns words into goals: `class-names`, which needs no training, a file of `prior.train`, or by
                default the prior that was trained for this backbone and text encoder, where there is one.
            text: the text encoder of published models, and of folders that hold a backbone alone: `NAME:TAG` or
                `NAME:FILE`, see `TextEncoder.load`.

        Embedded models and folders need no network; files of published ones are fetched once, when they are needed.

        Raises:
            ValueError: there is no such model or prior, a file of it is missing or was altered, its parts were not
                trained for each other, or the device does not exist.
        """
        import json

        from lrm_core.weights import load_model
        from steering.language import folder_language
        from steering.published import PUBLISHED_MODELS, load_published

        place = find_device(device)
        if str(model) in PUBLISHED_MODELS:
            return load_published(str(model), prior=prior, text=text, device=place)
        folder = find_model(model)
        backbone, preprocessing, card = load_model(folder / "backbone.safetensors", place)
        prototypes = _load_prototypes(folder, card)
        outputs = None if prototypes is None else prototypes.mean[-1]
        classifier: Any = backbone.backbone.get_submodule(card["output"]).weight

        def language() -> Language:
            return folder_language(folder, card, classifier, outputs, place, prior=prior, text=text)

        verdicts = load_verdicts(folder / "verdict.json", card["sha256"]) if (folder / "verdict.json").is_file() else {}
        if not (folder / "text").is_dir():  # what `lrm_core.train` writes: a backbone alone
            return cls(backbone, card, preprocessing, language, verdicts, Defaults(1.0, 2), place, lambda: prototypes)
        loaded = language()
        try:
            defaults = Defaults(**json.loads((folder / "steering.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{folder / 'steering.json'} does not hold a model's defaults: {error}") from None
        return cls(backbone, card, preprocessing, lambda: loaded, verdicts, defaults, place, lambda: prototypes)

    def with_model(self, model: LRM) -> Steerer:
        """The same words and settings around another network with the same outputs, without verdicts.

        For controls and ablations: the card remains that of this model.
        """
        return Steerer(
            model,
            self.card,
            self.preprocessing,
            lambda: self.language,
            {},
            self.defaults,
            self.device,
            lambda: self._prototypes,
        )

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """What the backbone can name, in the order of its outputs."""
        return tuple(entry["name"] for entry in self.card["classes"])

    @property
    def output(self) -> str:
        """Name of the step that is steered: the classifier."""
        return self.card["output"]

    @property
    def language(self) -> Language:
        """How words become goals: text encoder, prior, known words. Loaded when first needed, once."""
        with self._loading:
            return self._language

    @cached_property
    def _language(self) -> Language:
        return self._load_language()

    @property
    def text(self) -> TextEncoder:
        """The text encoder."""
        return self.language.text

    @property
    def verdict(self) -> Verdict | None:
        """The verdict on goals by words, if it was calibrated for this prior."""
        return self.verdicts.get(self.language.prior.source)

    def embed(self, queries: Sequence[str]) -> Float[Tensor, "q n"]:
        """Unit-length text embeddings. Raises QueryError for an empty query or one that is too long."""
        try:
            return self.language.embed(queries)
        except ValueError as error:
            raise QueryError(str(error)) from None

    def familiarity(self, embeddings: Float[Tensor, "q n"]) -> Float[Tensor, " q"]:
        """Cosine of each text with the nearest name, synonym or hypernym of a class that the backbone knows."""
        return self.language.familiarity(embeddings)

    def goals(self, queries: Sequence[str], *, seed: int = 0) -> Float[Tensor, "q m"]:
        """Goal vectors, in logits of the backbone, one for each query. Raises like `embed`."""
        options = {"num_samples": self.defaults.num_samples, "steps": self.defaults.sampling_steps}
        try:
            return self.language.goals(queries, seed=seed, **options)
        except ValueError as error:
            raise QueryError(str(error)) from None

    def goal(self, query: str, *, seed: int = 0) -> Float[Tensor, " m"]:
        """The goal vector of one query, in logits of the backbone. Raises like `understand`."""
        return self.understand(query, seed=seed).vector.clone()

    def understand(self, query: str, *, seed: int = 0) -> Goal:
        """Words, or arithmetic on words and images (see `steering.algebra.parse`), understood.

        Raises:
            QueryError: it is empty, too long, or not well formed. ImageError: an image among the terms cannot be read.
        """
        from steering.algebra import is_plain, parse

        terms = parse(query) if query.strip() else ()
        if not terms or is_plain(terms):
            return self._understand_words(query, seed)
        understood = [self.image_goal(t.text) if t.is_image else self._understand_words(t.text, seed) for t in terms]
        return self.combine([(term.weight, goal) for term, goal in zip(terms, understood, strict=True)], query)

    def _understand_anew(self, words: str, seed: int) -> Goal:
        familiarity = float(self.familiarity(self.embed([words]))[0])
        return Goal(words, self.goals([words], seed=seed)[0], self.language.prior.source, familiarity)

    def combine(self, terms: Sequence[tuple[float, Goal]], name: str) -> Goal:
        """One goal of several, each with a weight; below zero for what should not be there.

        The vectors are combined as in `steering.algebra.combine`. Raises ValueError if no weight is positive.
        """
        from steering.algebra import combine

        vector = combine([weight for weight, _ in terms], torch.stack([goal.vector for _, goal in terms]))
        return Goal(name, vector, "algebra", min(goal.familiarity for _, goal in terms), tuple(terms))

    def prototype_goal(self, class_name: str) -> Goal:
        """A goal without words: the mean output of the last pass over training images of a class.

        Raises:
            QueryError: the model has no prototypes, or none of that name; tells the nearest names.
        """
        with self._loading:
            prototypes = self._prototypes
        if prototypes is None:
            raise QueryError(f"model {self.card['name']} has no prototypes; `python -m lrm_core.prototypes` makes them")
        try:
            vector = prototypes.goal(class_name)
        except ValueError as error:
            raise QueryError(str(error)) from None
        return Goal(class_name, vector.to(self.device), "prototype")

    @cached_property
    def _prototypes(self) -> Prototypes | None:
        return self._load_prototypes()

    @torch.no_grad()
    def image_goal(
        self, image: str | os.PathLike[str] | Image.Image | np.ndarray, *, passes: int | None = None
    ) -> Goal:
        """A goal without words: what the network, unsteered, says of another image after its last pass.

        Raises:
            ImageError: the image cannot be read.
        """
        glance = self.glance(self.pixels(open_image(image)))
        output, state = glance.output, glance.state
        for _ in range((self.defaults.passes if passes is None else passes) - 1):
            output, state = self.model.step(glance.stem, state)
        return Goal(_name(image), output[0], "image")

    def pixels(self, picture: Image.Image) -> Float[Tensor, "1 3 s s"]:
        """A photograph as the backbone takes it: the whole frame squashed to a square, normalised."""
        import numpy as np

        return self.as_input(np.asarray(squash(picture, self.preprocessing.size))[None])

    def as_input(self, pixels: np.ndarray) -> Float[Tensor, "b 3 s s"]:
        """Images of the network's size, (b, s, s, 3) uint8, normalised."""
        shown = torch.from_numpy(pixels.copy()).to(self.device).permute(0, 3, 1, 2)
        return self.preprocessing.normalise(shown.float() / 255)

    @torch.no_grad()
    def glance(self, inputs: Float[Tensor, "b 3 s s"]) -> Glance:
        """The first, unsteered pass over normalised images; it serves every query."""
        stem = self.model.stem(inputs)
        output, state = self.model.step(stem)
        return Glance(stem, state, output, class_evidence(self.model, self.output, output, state))

    @cached_property
    def _layout(self) -> Layout:
        return Layout.of(self.model, self.preprocessing.size)

    def pack(self, glance: Glance) -> list[bytes]:
        """A glance as bytes, for each image: what any steered pass starts from, in half precision."""
        return self._layout.pack(glance.stem, glance.state)

    def unpack(self, packed: Sequence[bytes]) -> Glance:
        """The glance at the images whose bytes `pack` gave. Raises ValueError if they are of another network."""
        stem, state = self._layout.unpack(list(packed), self.device)
        output = state.activations[self.output]
        return Glance(stem, state, output, class_evidence(self.model, self.output, output, state))

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
        state, steer = self.before_last(glance, goals, strength=strength, passes=passes)
        return self.model.step(glance.stem, state, [steer])[0]

    @torch.no_grad()
    def before_last(
        self,
        glance: Glance,
        goals: Float[Tensor, "b m"],
        *,
        strength: Strength | None = None,
        passes: int | None = None,
    ) -> tuple[State, Steer]:
        """The state before the last steered pass and what steers it, to run or to look into that pass."""
        steer, passes = self.steering(goals, strength, passes)
        state = glance.state
        for _ in range(passes - 2):
            _, state = self.model.step(glance.stem, state, [steer])
        return state, steer

    @torch.no_grad()
    def seek(
        self, glance: Glance, goal: Goal, *, strength: Strength | None = None, passes: int | None = None
    ) -> Sought:
        """Look for one goal in every image of a glance.

        Of a goal made of terms each term is looked for by itself, too, and the probabilities are multiplied as if the
        terms were independent: that what is wanted is there, and that what is not wanted is not.
        """
        count = len(glance.output)
        goals = goal.vector.to(self.device).expand(count, -1)
        after = self.steer(glance, goals, strength=strength, passes=passes)
        found = support(after, goals)
        probability = self._probability(glance, goal, after, strength, passes)
        return Sought(after, found, found - support(glance.output, goals), probability)

    def _probability(
        self, glance: Glance, goal: Goal, after: Tensor, strength: Strength | None, passes: int | None
    ) -> Tensor | None:
        """That a goal is in each image, (b,), of the steered pass `after`; of terms, of looking for each by itself."""
        count = len(glance.output)
        if not goal.terms:
            verdict = self.verdicts.get(goal.source)
            if verdict is None:
                return None
            goals = goal.vector.to(self.device).expand(count, -1)
            familiarity = goals.new_full((count,), goal.familiarity)
            return verdict.probability(features(glance.output, after, glance.places, goals, familiarity))
        together = after.new_ones(count)
        for weight, term in goal.terms:
            alone = self.seek(glance, term, strength=strength, passes=passes).probability
            if alone is None:
                return None
            together = together * (alone if weight > 0 else 1 - alone)
        return together

    def answer(self, goal: Goal, probability: float | None) -> Answer | None:
        """`present`, `absent` or `unsure` for a probability by `seek`; None without one."""
        if probability is None:
            return None
        while goal.terms:
            goal = goal.terms[0][1]
        return self.verdicts[goal.source].answer(probability)

    def steering(
        self, goals: Float[Tensor, "b m"], strength: Strength | None = None, passes: int | None = None
    ) -> tuple[Steer, int]:
        """What `lrm_core.LRM.step` takes to steer towards goals, and the number of passes; defaults where None."""
        passes = self.defaults.passes if passes is None else passes
        if passes < 2:
            raise ValueError(f"passes: got {passes}, expected at least 2: the first is never steered")
        return Steer(self.output, goals, self.defaults.strength if strength is None else strength), passes

    def look(
        self,
        image: str | os.PathLike[str] | Image.Image | np.ndarray,
        query: str | Goal,
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
        queries: Sequence[str | Goal],
        *,
        strength: Strength | None = None,
        passes: int | None = None,
        seed: int = 0,
    ) -> list[Look]:
        """Look at one image for several things, at the cost of one first pass and a steered batch.

        Args:
            image: a file, a sample such as `sample:cat`, a PIL image, or an (h, w, 3) uint8 array.
            queries: words, or goals by `prototype_goal` and `image_goal`.
            strength: gain of the goal's feedback, or (negative, positive); the model's default if None.
            passes: number of passes in all, at least 2; the model's default if None.
            seed: of the prior's samples.

        A verdict is given where one was calibrated for the way that the goal was made; it is None otherwise.

        Raises:
            ImageError: the image cannot be read. QueryError: a query is empty or too long. ValueError: see the options.
        """
        if isinstance(queries, str | Goal) or not queries:
            raise QueryError(f"expected a list of queries, got {queries!r}")
        start = time.perf_counter()
        understood = [q if isinstance(q, Goal) else self.understand(q, seed=seed) for q in queries]
        for goal in understood:
            if goal.vector.shape != (len(self.class_names),):
                width, got = len(self.class_names), tuple(goal.vector.shape)
                raise ValueError(f"goal {goal.name!r}: expected shape ({width},) for {self.card['name']}, got {got}")
        goals = torch.stack([goal.vector.to(self.device) for goal in understood])
        picture = open_image(image)
        one, count = self.glance(self.pixels(picture)), len(queries)
        glance = one.expand(count)
        before = glance.output
        state, steer = self.before_last(glance, goals, strength=strength, passes=passes)
        after, heatmaps = steering_heatmap(self.model, glance.stem, state, steer, goals)
        evidence = (support(after, goals) - support(before, goals)).tolist()
        found = [
            self._probability(one, goal, row[None], strength, passes)
            for goal, row in zip(understood, after, strict=True)
        ]
        chances = [None if probability is None else float(probability[0]) for probability in found]
        seconds = (time.perf_counter() - start) / count
        return [
            Look(
                image=_name(image),
                query=goal.name,
                model=self.card["name"],
                prior=goal.source,
                class_names=self.class_names,
                picture=picture,
                before=before[index],
                after=after[index],
                goal=goals[index],
                heatmap=heatmaps[index],
                evidence=evidence[index],
                verdict=self.answer(goal, chances[index]),
                probability=chances[index],
                seconds=seconds,
            )
            for index, goal in enumerate(understood)
        ]


def _load_prototypes(folder: Path, card: dict[str, Any]) -> Prototypes | None:
    """The prototypes of a model folder, if it has any. Raises ValueError if they are of another backbone."""
    if not (folder / "prototypes.safetensors").is_file():
        return None
    from lrm_core.prototypes import Prototypes

    prototypes = Prototypes.load(folder / "prototypes.safetensors")
    if prototypes.card.get("backbone_sha256") != card["sha256"]:
        raise ValueError(
            f"{folder / 'prototypes.safetensors'} are of another backbone: SHA-256 "
            f"{prototypes.card.get('backbone_sha256')}, not {card['sha256']}"
        )
    return prototypes


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
