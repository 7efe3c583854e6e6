"""Steerer: understand what to look for, and look for it. Here the words meet the network."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lrm_base.checks import seed as check_seed
from lrm_core.feedback import Strength
from prior.captions import normal
from steering import loading
from steering.algebra import combine_goals, is_plain, parse, said_of_terms
from steering.errors import QueryError
from steering.evidence import Verdict
from steering.goals import Goal
from steering.images import image_name, open_image
from steering.joint import JointNetwork
from steering.look import Look
from steering.network import Network
from steering.seek import answer, is_unknown, probability
from steering.words import Reading, notes, read

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from lrm_core.prototypes import Prototypes
    from steering.language import Language

    ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray


class Steerer:
    """A network, the language that turns words into its goals, and the calibrated verdicts. Use `Steerer.load()`.

    The object holds no state between calls, so threads may share it.

    Attributes:
        network: the network, with its class names and defaults. It runs first passes and steered passes.
        verdicts: one for each way of making goals that was calibrated, by `Goal.source`.
    """

    def __init__(
        self,
        network: Network,
        language: Callable[[], Language],
        verdicts: Mapping[str, Verdict],
        prototypes: Callable[[], Prototypes | None],
    ) -> None:
        """Put the parts together. `language` and `prototypes` are called once, when they are first needed."""
        self.network, self.verdicts = network, dict(verdicts)
        self._load_language, self._load_prototypes = language, prototypes
        self._prepare()

    def _prepare(self) -> None:
        """Make what stays in a process: the lock, and the cache of words."""
        self._loading = threading.RLock()
        self._words = lru_cache(1024)(self._understand)  # a folder of images asks for the same words each time

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or another process gets. What was loaded goes along; what was not is loaded there."""
        with self._loading:
            state = dict(self.__dict__)
        for loaded, load in (("_language", "_load_language"), ("_prototypes", "_load_prototypes")):
            if loaded in state:
                state[load] = None  # not needed any more; it may hold another network
        return {key: value for key, value in state.items() if key not in ("_loading", "_words")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        prior: str | None = None,
        text: str | None = None,
        templates: str = "none",
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        detail: float = 1.0,
    ) -> Steerer:
        """Load an embedded model by name, a folder in the same format, a CLIP, or a published model.

        Embedded models and folders need no network connection. The files of a published model are fetched once, when
        they are first needed.

        Args:
            model: a name or a folder; for a CLIP `clip:NAME:TAG`, `clip:NAME:FILE` or `clip:FOLDER`, see
                `prior.clip.open_clip_model`. The default is $STEER_MODEL, or `catalogue.DEFAULT_MODEL`.
            prior: what turns words into goals: `class-names`, which needs no training, or a file of `prior.train`. The
                default is the prior that was trained for this network and text encoder, where there is one.
            text: the text encoder of a published model, or of a folder that holds a backbone alone: `NAME:TAG` or
                `NAME:FILE`; see `prior.text.TextEncoder.load`.
            templates: the sentences that the words for a CLIP are put into: `none`, `simple` (seven of them) or
                `imagenet` (eighty); see `prior.templates`.
            device: such as `cpu` or `cuda:1`. The default is the best that there is.
            dtype: the numbers that the network computes with: `float32` (the default), `bfloat16` or `float16`. Goals,
                outputs and verdicts are float32 all the same.
            detail: factor, 0.5 to 4, of the size in which photographs are seen; see `Network.in_detail`.

        Raises:
            ValueError: there is no such model, prior, device, dtype or detail; the device cannot compute with these
                numbers; a file is missing or was altered; or the parts were not trained for each other.
        """
        parts = loading.load(model, prior=prior, text=text, templates=templates, device=device, dtype=dtype)
        return cls(parts.network.in_detail(detail), parts.language, parts.verdicts, parts.prototypes)

    def with_network(self, network: Network, verdicts: Mapping[str, Verdict] | None = None) -> Steerer:
        """The same language with another network that has the same outputs. Without `verdicts` the result has none."""
        language, prototypes = partial(getattr, self, "language"), partial(getattr, self, "prototypes")
        return Steerer(network, language, verdicts or {}, prototypes)

    def against(self, names: Sequence[str]) -> Steerer:
        """This CLIP with other alternatives than the bank: a look then says how likely each of them is, and the query.

        Such looks have no verdict: a verdict is fitted against the bank.

        Raises:
            ValueError: the model is no CLIP, or there are no names.
        """
        network = self.network
        if not isinstance(network, JointNetwork):
            raise ValueError(f"against: got {network.card['name']}, expected a model clip:…")
        listed = [name.strip() for name in names if name.strip()]
        if not listed:
            raise ValueError("against: got no names, expected for example 'a dog, a cat, grass'")
        return self.with_network(network.against(listed, self.language.embed(listed)))

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the network can name, in the order of its outputs."""
        return self.network.class_names

    @property
    def language(self) -> Language:
        """How words become goals: text encoder, prior, known words. It is loaded when it is first needed."""
        with self._loading:
            return self._language

    @cached_property
    def _language(self) -> Language:
        return self._load_language()

    @property
    def prototypes(self) -> Prototypes | None:
        """Mean outputs of the classes, where the model has them. They are loaded when they are first needed."""
        with self._loading:
            return self._prototypes

    @cached_property
    def _prototypes(self) -> Prototypes | None:
        return self._load_prototypes()

    @property
    def verdict(self) -> Verdict | None:
        """The verdict on goals by words, if one was calibrated for this prior."""
        return self.verdicts.get(self.language.prior.source)

    def goal(self, query: str | Goal, *, seed: int = 0) -> Goal:
        """Understand words, or arithmetic on words and images such as "a dog - grass"; see `steering.algebra.parse`.

        What is negated ("a dog without a leash", "no cat") becomes a term that is not wanted. Colours, numbers, sizes
        and places are not looked at; the goal's `notes` say so.

        Args:
            query: words. A `Goal` is checked and comes back as it is.
            seed: number that fixes the prior's samples.

        Raises:
            QueryError: the query is neither words nor a `Goal` for this network, is empty, too long or not well formed.
            ImageError: an image among the terms cannot be read.
        """
        seed = check_seed(seed)
        if isinstance(query, Goal):
            return self._fitting(query)
        if not isinstance(query, str):
            raise QueryError(f"query: got {_kind(query)}, expected words such as 'a dog', or a Goal")
        terms = parse(query)
        if is_plain(terms):
            return self._goal_of_words(query, seed)
        goals = [self.image_goal(t.text) if t.is_image else self._goal_of_words(t.text, seed) for t in terms]
        readings = [Reading(term.text) if term.is_image else self._read(term.text) for term in terms]
        told = (*said_of_terms(query, terms, [reading.text for reading in readings]), *notes(readings))
        weighed = [(term.weight, goal) for term, goal in zip(terms, goals, strict=True)]
        return combine_goals(weighed, query, told, self.network.combine)

    def goals(self, queries: Sequence[str | Goal], *, seed: int = 0) -> list[Goal]:
        """Understand several queries. Plain words go through the prior in one batch. See `goal`."""
        if isinstance(queries, str | Goal) or not isinstance(queries, Sequence):
            raise QueryError(f"queries: got {_kind(queries)}, expected a list of words or Goals")
        seed, defaults = check_seed(seed), self.network.defaults
        plain = [i for i, query in enumerate(queries) if isinstance(query, str) and is_plain(parse(query))]
        words = [str(queries[i]) for i in plain]
        batch = self._goals_of_words(words, seed, defaults.num_samples, defaults.sampling_steps) if words else []
        understood = dict(zip(plain, batch, strict=True))
        return [understood.get(i) or self.goal(query, seed=seed) for i, query in enumerate(queries)]

    def prototype_goal(self, class_name: str) -> Goal:
        """A goal without words: the mean output of the last pass over training images of a class.

        Raises:
            QueryError: the model has no prototypes, or none of that name; the message tells the nearest names.
        """
        prototypes = self.prototypes
        if prototypes is None:
            name = self.network.card["name"]
            raise QueryError(f"model {name} has no prototypes; `python -m lrm_core.prototypes` makes them")
        try:
            vector = prototypes.goal(class_name)
        except ValueError as error:
            told = str(error).removeprefix("name_or_index: ")
            raise QueryError(f"class_name: got {class_name!r}, expected a class that has a prototype: {told}") from None
        return Goal(class_name, vector.to(self.network.device), "prototype")

    @torch.inference_mode(False)
    @torch.no_grad()
    def image_goal(self, image: ImageLike, *, passes: int | None = None) -> Goal:
        """A goal without words: the output of the last unsteered pass over another image.

        Args:
            passes: at least 1; the model's default if None.

        Raises:
            ImageError: the image cannot be read. ValueError: the number of passes is not a whole number of at least 1.
        """
        glance = self.network.glance(self.network.pixels(open_image(image)))
        return Goal(image_name(image), self.network.unsteered(glance, passes)[-1][0], "image")

    def look(
        self,
        image: ImageLike,
        query: str | Goal,
        *,
        strength: Strength | None = None,
        passes: int | None = None,
        seed: int = 0,
    ) -> Look:
        """Look at one image for one thing. See `look_many`."""
        return self.look_many(image, [query], strength=strength, passes=passes, seed=seed)[0]

    @torch.inference_mode(False)  # the heatmap needs gradients, whatever mode the caller is in
    @torch.no_grad()
    def look_many(
        self,
        image: ImageLike,
        queries: Sequence[str | Goal],
        *,
        strength: Strength | None = None,
        passes: int | None = None,
        seed: int = 0,
    ) -> list[Look]:
        """Look at one image for several things, at the cost of one first pass and a batch of steered passes.

        Args:
            image: a file, a sample such as `sample:cat`, a PIL image, or an array (h, w, 3) of uint8.
            queries: words, arithmetic, or goals by `goal`, `prototype_goal` and `image_goal`.
            strength: gain of the goal's feedback, or (negative, positive). The model's default if None.
            passes: number of passes in all, at least 2. The model's default if None.
            seed: number that fixes the prior's samples.

        A look has a verdict where one was calibrated for goals that were made in this way. Otherwise it is None. The
        verdict on words that the network cannot judge is `unknown`, without a probability.

        Raises:
            ImageError: the image cannot be read. QueryError: a query cannot be understood. ValueError: a strength,
                a number of passes or a seed is out of range.
        """
        start = time.perf_counter()
        if isinstance(queries, str | Goal) or not isinstance(queries, Sequence) or not queries:
            raise QueryError(f"queries: got {_kind(queries)}, expected a list of at least one query")
        goals = [self.goal(query, seed=seed) for query in queries]
        network, count = self.network, len(goals)
        vectors = torch.stack([goal.vector.to(network.device) for goal in goals])
        picture = open_image(image)
        one = network.glance(network.pixels(picture))
        glance = one.expand(count)
        after, heatmaps = network.heatmap(glance, vectors, strength=strength, passes=passes)
        evidence = (network.support(after, vectors) - network.support(glance, vectors)).tolist()
        before, then = (network.asked(seen, vectors)[0] for seen in (glance, after))
        asked_for = network.spelled(vectors)
        options: dict[str, Any] = {"strength": strength, "passes": passes}
        chances = [
            probability(network, self.verdicts, one, goal, after[row : row + 1], **options)
            for row, goal in enumerate(goals)
        ]
        numbers = [None if chance is None else float(chance[0]) for chance in chances]
        seconds = (time.perf_counter() - start) / count
        return [
            Look(
                image=image_name(image),
                query=goal.name,
                model=network.card["name"],
                prior=goal.source,
                class_names=network.names_for(goal.name),
                picture=picture,
                before=before.output[index],
                after=then.output[index],
                goal=asked_for[index],
                heatmap=network.over_picture(heatmaps[index], *picture.size),
                evidence=evidence[index],
                verdict=answer(self.verdicts, goal, numbers[index]),
                probability=None if is_unknown(self.verdicts, goal) else numbers[index],
                seconds=seconds,
                notes=tuple(note for note in (*network.notes, *goal.notes, goal.unfamiliar) if note),
                is_complement=goal.is_complement,
                nearest=goal.nearest,
            )
            for index, goal in enumerate(goals)
        ]

    def _goal_of_words(self, words: str, seed: int) -> Goal:
        defaults = self.network.defaults  # part of the key of the cache: other defaults give other goals
        return self._words(words, seed, defaults.num_samples, defaults.sampling_steps)

    def _understand(self, words: str, seed: int, num_samples: int, steps: int) -> Goal:
        return self._goals_of_words([words], seed, num_samples, steps)[0]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _goals_of_words(self, words: Sequence[str], seed: int, num_samples: int, steps: int) -> list[Goal]:
        language = self.language
        readings = [self._read(text) for text in words]
        texts = [reading.text for reading in readings]
        embeddings = language.embed(texts)
        familiarity, strange = language.familiarity(embeddings).tolist(), language.unfamiliar(texts, embeddings)
        vectors = language.goals(texts, seed=seed, num_samples=num_samples, steps=steps)
        return [
            Goal(
                text,
                vectors[i],
                language.prior.source,
                familiarity[i],
                notes=notes([readings[i]]),
                unfamiliar=why.reason if why else "",
                nearest=why.nearest if why else (),
            )
            for i, (text, why) in enumerate(zip(words, strange, strict=True))
        ]

    def _names(self) -> frozenset[str]:
        return self.language.names() | {normal(name) for name in self.class_names}

    def _read(self, text: str) -> Reading:
        """What is really looked for. A network of open words takes them as they stand."""
        return Reading(text) if self.network.is_open else read(text, self._names)

    def _fitting(self, goal: Goal) -> Goal:
        """The goal, if it has the width of this network's output. Raises QueryError otherwise."""
        width, got = self.network.width, tuple(goal.vector.shape)
        if got != (width,):
            name = self.network.card["name"]
            raise QueryError(f"goal {goal.name!r}: got shape {got}, expected ({width},) for {name}")
        return goal


def _kind(value: Any) -> str:
    """A short name for what was given instead of a query. For a tensor it tells the shape."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} of shape {tuple(shape)} (a goal's vector is not a goal: give the Goal itself)"
    return f"{type(value).__name__} {value!r}"[:80]
