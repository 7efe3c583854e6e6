"""Gallery: images indexed once, searched by looking for what is named.

A search has two stages. The first finds, over the whole gallery, the images whose class evidence by places is nearest
to the goal. The second looks at the best of them *for* the goal, a steered pass each, and ranks them by the calibrated
probability that it is there.

Unusual: the answer may be that nothing is there. Of many looks some would find anything; their probabilities are
corrected for how frequent the goal is in the gallery, see `steering.search.odds`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from lrm_core.feedback import Strength
from steering.errors import GalleryError, ImageError, QueryError, printable
from steering.evidence import Answer
from steering.goals import Goal
from steering.search.files import file_of, to_path, to_text
from steering.search.indexing import Engine, Report, local_engine, update
from steering.search.odds import corrected, frequency
from steering.search.store import FILTERS, SHOWN, GalleryCard, Store
from steering.steerer import Glance, Steerer

if TYPE_CHECKING:
    from steering.look import Look

Keep = Literal["pixels", "first-pass", "nothing"]
RERANK = 128
BATCH = 64  # images a steered pass


@dataclass(frozen=True)
class Hit:
    """One image that was found.

    path: its file, or its name if it has none. rank: from 1 on. score: of the first stage, cosine of its class
    evidence and the goal, 0 to 1. looked_at: whether the second stage looked at it. evidence: change of the support for
    the goal by steering, in nats. probability: that it shows the goal, given how many images were looked at; alone: the
    same if it were the only one. verdict: of `probability`. The last four are None where there was no look, the last
    three as well where the model has no calibrated verdict. sees: likeliest class before any goal.
    """

    path: str
    rank: int
    score: float
    width: int
    height: int
    sees: str
    looked_at: bool = False
    evidence: float | None = None
    probability: float | None = None
    alone: float | None = None
    verdict: Answer | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in self.__dict__.items()}


class Hits(list[Hit]):
    """Hits, the best first, and what they are an answer to.

    query: as given. images: in the gallery, of those that the filter lets through. looked_at: how many of them were
    looked at. frequency: estimated share of images that show the goal; None without a calibrated verdict.
    seconds: what the search took.
    """

    def __init__(
        self, hits: Sequence[Hit], query: str, images: int, looked_at: int, share: float | None, seconds: float
    ) -> None:
        super().__init__(hits)
        self.query, self.images, self.looked_at, self.frequency, self.seconds = query, images, looked_at, share, seconds

    @property
    def present(self) -> list[Hit]:
        """Those that are said to show the goal."""
        return [hit for hit in self if hit.verdict == "present"]


class Gallery:
    """Images on disk or in an object store, and the network that looks at them. Open it with `Gallery.open`.

    Threads may share it, readers may search while another process writes, and several may write at once.
    """

    def __init__(self, store: Store, steerer: Steerer) -> None:
        self.store, self.steerer = store, steerer

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        steerer: Steerer | None = None,
        *,
        create: bool = True,
        keep: Keep | None = None,
        storage_options: dict[str, str] | None = None,
    ) -> Gallery:
        """The gallery in a folder, or at an address of an object store; made where there is none.

        Args:
            steerer: the embedded model by default. create: whether to make one.
            keep: what a new gallery keeps of each image for later looks: `pixels` (the default), what the network saw
                (27 KB at 96 px), so that no file need be read again; `first-pass`, also what a steered pass starts from
                (60 KB more), so that a look costs a third; or `nothing`.
            storage_options: of an object store, see Lance.

        Raises:
            GalleryError: it is not there and not to be made, is damaged, was made with another network, or keeps
                something else.
        """
        network = steerer or Steerer.load()
        made_by = (str(network.card["name"]), str(network.card.get("sha256", "")))
        side = 0 if keep == "nothing" else network.preprocessing.size
        card = GalleryCard(*made_by, len(network.class_names), side, keep == "first-pass")
        store = Store.open(path, card if create else None, storage_options)
        made = store.card
        if (made.backbone_sha256, made.classes) != (card.backbone_sha256, card.classes):
            raise GalleryError(
                f"{store.uri} was made with {made.model} ({made.backbone_sha256[:8]}), not with {card.model} "
                f"({card.backbone_sha256[:8]}): index with this model into another gallery"
            )
        if keep is not None and (made.side, made.first_pass) != (card.side, card.first_pass):
            kept = "the first pass" if made.first_pass else "pixels" if made.side else "nothing"
            raise GalleryError(
                f"{store.uri} keeps {kept} of each image: what to keep is settled when a gallery is made"
            )
        return cls(store, network)

    def __len__(self) -> int:
        return self.store.count()

    def add(
        self,
        source: Any,
        *,
        workers: int | None = None,
        engine: Engine | None = None,
        retry: bool = False,
        prune: bool = False,
        progress: Any = None,
    ) -> Report:
        """Index what is new or changed in a source, and forget what is gone from it.

        Args:
            source: a folder or file, or several; a torchvision `ImageFolder`; a `datasets.Dataset`; or (name, image)
                pairs. Of folders, images that vanished are removed from the gallery and renamed ones keep their rows.
            workers: processes that read images (all cores by default; 0: this process).
            engine: what reads images and runs the first pass; see `steering.search.ray_engine` for many machines.
            retry: read again what could not be read before. prune: forget the images of a folder that is empty now.
            progress: wraps the iterator of results: called with it, their number (or None) and the `Report`.

        Bad files are skipped and listed in the report. May be interrupted at any time; the next call goes on.

        Raises:
            ImageError: a path does not exist. GalleryError: the gallery cannot be written.
        """
        made = engine or local_engine(self.steerer, workers, first_pass=self.store.card.first_pass)
        options = {"retry": retry, "prune": prune, "keep_pixels": self.store.card.side > 0, "progress": progress}
        return update(self.store, self.steerer.class_names, source, made, **options)

    def skipped(self) -> dict[str, str]:
        """Files that could not be indexed, and why."""
        return self.store.reasons()

    def images(self, where: str | None = None) -> Iterator[dict[str, Any]]:
        """What is known of every image, in no order: path, size, modified, sha256, width, height, sees."""
        self.store.count(where)  # a bad condition is told before the first row
        for batch in self.store.images.batches(FILTERS, where):
            yield from batch.to_pylist()

    def vectors(self, where: str | None = None) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
        """What the first pass saw, in batches and no order: names, outputs (b, M) in logits, class evidence (b, M)."""
        self.store.count(where)
        for batch in self.store.images.batches(("path", "output", "evidence"), where):
            shape = (len(batch), self.store.card.classes)
            output, evidence = (
                batch[name].flatten().to_numpy().reshape(shape).astype(np.float32) for name in ("output", "evidence")
            )
            yield batch["path"].to_pylist(), output, evidence**2

    def search(
        self,
        query: str | Goal,
        *,
        top: int = 10,
        rerank: int = RERANK,
        where: str | None = None,
        threshold: float | None = None,
        strength: Strength | None = None,
        passes: int | None = None,
        seed: int = 0,
    ) -> Hits:
        """The images that show what is looked for, the likeliest first.

        Args:
            query: words, arithmetic on words and images (`steering.algebra.parse`), or a goal.
            top: hits to return. rerank: candidates to look at; 0 ranks by the first stage alone.
            where: an SQL condition on the columns of `images`, such as `width > 500 AND path LIKE '%/2024/%'`.
            threshold: least probability of a hit. strength, passes, seed: see `Steerer.look_many`.

        Raises:
            QueryError: the query cannot be understood. GalleryError: the condition cannot, or the gallery is damaged.
            ValueError: `top` or `rerank` is too small, or the threshold not in 0–1.
        """
        if top < 1 or rerank < 0:
            raise ValueError(f"top: got {top}, expected at least 1; rerank: got {rerank}, expected at least 0")
        if threshold is not None and not (0 <= threshold <= 1 and rerank):
            raise ValueError(f"threshold: got {threshold:g}, expected a probability, 0 to 1, and `rerank` above 0")
        start = time.perf_counter()
        goal = self.goal(query, seed=seed)
        total = self.store.count(where)
        found = self.store.nearest(direction(goal), max(top, rerank), where) if total else None
        rows = [] if found is None else found.to_pylist()
        candidates = rows[:rerank]
        looks = self._look_for(goal, candidates, strength=strength, passes=passes)
        if threshold is not None and looks.alone is None:
            raise ValueError(
                f"threshold: {self.store.card.model} has no calibrated verdict for goals by {goal.source!r}"
            )
        share = None if looks.alone is None or not candidates else frequency(looks.alone, total)
        hits = [*_ranked(candidates, looks, share, self.steerer, goal), *map(_unseen, rows[rerank:])]
        if threshold is not None:
            hits = [hit for hit in hits if hit.probability is not None and hit.probability >= threshold]
        numbered = [replace(hit, rank=rank) for rank, hit in enumerate(hits[:top], start=1)]
        return Hits(numbered, goal.name, total, len(candidates), share, time.perf_counter() - start)

    def stream(
        self, query: str | Goal, *, where: str | None = None, page: int = RERANK, seed: int = 0
    ) -> Iterator[Hit]:
        """Every image of the gallery, page by page from the nearest on, each page looked at and ranked.

        For results that are too many for `search`: memory holds a score for each image, and one page. Ranks run on over
        pages. Probabilities are not corrected for the number of looks, which is not known before the end:
        `probability` is `alone`.

        Raises: like `search`.
        """
        if page < 1:
            raise ValueError(f"page: got {page}, expected at least 1")
        goal = self.goal(query, seed=seed)
        self.store.count(where)
        scores, names = self._scores(direction(goal), where)
        order = np.argsort(-scores, kind="stable")
        rank = 0
        for start in range(0, len(order), page):
            part = order[start : start + page]
            rows = self._rows(names.take(part).to_pylist(), scores[part])
            looks = self._look_for(goal, rows)
            for hit in _ranked(rows, looks, None, self.steerer, goal):
                rank += 1
                yield replace(hit, rank=rank)

    def _scores(self, query: np.ndarray, where: str | None) -> tuple[np.ndarray, pa.ChunkedArray]:
        """The first stage's score and the name of every image."""
        scores, names = [np.zeros(0, np.float32)], []
        for batch in self.store.images.batches(("path", "evidence"), where):
            vectors = batch["evidence"].flatten().to_numpy().reshape(len(batch), -1).astype(np.float32)
            scores.append(vectors @ query / np.linalg.norm(vectors, axis=1))
            names.append(batch["path"])
        return np.concatenate(scores), pa.chunked_array(names, pa.string())

    def _rows(self, names: Sequence[str], scores: np.ndarray) -> list[dict[str, Any]]:
        """Rows by name, in that order; those that are gone by now are left out."""
        rows = {row["path"]: row for row in self.store.rows(names, SHOWN)}
        pairs = zip(names, scores.tolist(), strict=True)
        return [{**rows[name], "score": score} for name, score in pairs if name in rows]

    def goal(self, query: str | Goal, *, seed: int = 0) -> Goal:
        """A query understood. Raises QueryError if it cannot be, or if a goal is another network's."""
        if isinstance(query, Goal):
            if query.vector.shape != (self.store.card.classes,):
                got, width = tuple(query.vector.shape), self.store.card.classes
                raise QueryError(
                    f"goal {query.name!r}: expected shape ({width},) for {self.store.card.model}, got {got}"
                )
            return query
        return self.steerer.understand(query, seed=seed)

    def look(self, hit: Hit, query: str | Goal, **options: Any) -> Look:
        """A whole look at a hit, with heatmap and picture: at its file, or at the stored pixels where there is none.

        Raises:
            ImageError: neither is there any longer. Otherwise like `Steerer.look`.
        """
        goal = self.goal(query, seed=options.get("seed", 0))
        name = to_text(hit.path)
        if (file := file_of(name)) is not None:
            try:
                return self.steerer.look(file, goal, **options)
            except ImageError:
                pass
        pixels = self.store.pixels([name])[0]
        if pixels is None:
            raise ImageError(f"{printable(hit.path)}: the file is gone, and its pixels are not stored")
        picture = Image.fromarray(pixels).resize(_shape(hit), Image.Resampling.BICUBIC)
        return replace(self.steerer.look(picture, goal, **options), image=hit.path)

    def duplicates(self, *, near: bool = False) -> list[list[str]]:
        """Groups of images that are the same: byte for byte, or with `near` also to the eye (resized, compressed anew).

        Near are difference hashes that differ in at most 3 of 64 bits and stored pixels in at most 6 % of the range, on
        average. Groups and their members are sorted.
        """
        from steering.search.duplicates import groups

        return groups(self.store, near=near)

    def _look_for(
        self, goal: Goal, rows: Sequence[dict[str, Any]], *, strength: Strength | None = None, passes: int | None = None
    ) -> Looks:
        """A steered pass over each candidate."""
        if not rows:
            return Looks(np.zeros(0, bool), np.zeros(0), np.zeros(0), np.zeros(0))
        count = len(rows)
        seen, supports, evidence = np.zeros(count, bool), np.full(count, -np.inf), np.full(count, -np.inf)
        alone: np.ndarray | None = np.zeros(count)
        for places, glance in self._glances([row["path"] for row in rows]):
            sought = self.steerer.seek(glance, goal, strength=strength, passes=passes)
            seen[places] = True
            supports[places], evidence[places] = sought.support.cpu().numpy(), sought.evidence.cpu().numpy()
            if alone is not None and sought.probability is not None:
                alone[places] = sought.probability.cpu().numpy()
            else:
                alone = None
        return Looks(seen, supports, evidence, alone)

    def _glances(self, names: Sequence[str]) -> Iterator[tuple[list[int], Glance]]:
        """First passes over images in batches, each with their places among the names; those out of reach left out.

        Stored ones are taken, the others made from pixels.
        """
        packed = self.store.first_passes(names) if self.store.card.first_pass else [None] * len(names)
        stored = [(place, found) for place, found in enumerate(packed) if found is not None]
        for start in range(0, len(stored), BATCH):
            places, found = zip(*stored[start : start + BATCH], strict=True)
            yield list(places), self.steerer.unpack(found)
        rest = [place for place, found in enumerate(packed) if found is None]
        pixels = self._pixels([names[place] for place in rest])
        shown = [(place, p) for place, p in zip(rest, pixels, strict=True) if p is not None]
        for start in range(0, len(shown), BATCH):
            part = shown[start : start + BATCH]
            yield (
                [place for place, _ in part],
                self.steerer.glance(self.steerer.as_input(np.stack([p for _, p in part]))),
            )

    def _pixels(self, names: Sequence[str]) -> list[np.ndarray | None]:
        """What the network sees of images: stored, or read from their files; None where neither can be had."""
        if self.store.card.side:
            return self.store.pixels(names)
        from steering.search.decode import pixels_of

        return [pixels_of(file_of(name), self.steerer.preprocessing.size) for name in names]


@dataclass(frozen=True)
class Looks:
    """Of each candidate: whether it could be looked at, the goal's support after steering, evidence, probability."""

    seen: np.ndarray
    support: np.ndarray
    evidence: np.ndarray
    alone: np.ndarray | None


def direction(goal: Goal) -> np.ndarray:
    """What the first stage is nearest to: the goal's class probabilities, at length 1; (M,) float32.

    The cosine of it and the square root of an image's class evidence p is Σ q_c √p_c / |q|: for a goal of one class the
    order of that class's probability. A term that should not be there leaves the others.
    """
    chances = goal.vector.float().softmax(-1).cpu().numpy()
    return chances / np.linalg.norm(chances)


def _ranked(
    rows: Sequence[dict[str, Any]], looks: Looks, share: float | None, steerer: Steerer, goal: Goal
) -> list[Hit]:
    """Candidates as hits, the likeliest first; those that could not be looked at come last."""
    alone = looks.alone
    chances = None if alone is None else (alone if share is None else corrected(alone, share))
    order = np.lexsort((-looks.support, -(np.zeros(len(rows)) if alone is None else alone), ~looks.seen))
    hits = []
    for index in order.tolist():
        hit = _unseen(rows[index])
        if looks.seen[index]:
            hit = replace(hit, looked_at=True, evidence=float(looks.evidence[index]))
            if chances is not None and alone is not None:
                chance = float(chances[index])
                answer = steerer.answer(goal, chance)
                hit = replace(hit, probability=chance, alone=float(alone[index]), verdict=answer)
        hits.append(hit)
    return hits


def _unseen(row: dict[str, Any]) -> Hit:
    """A hit by the first stage alone."""
    about = {key: row[key] for key in ("width", "height", "sees", "score")}
    return Hit(path=to_path(row["path"]), rank=0, **about)


def _shape(hit: Hit, longest: int = 384) -> tuple[int, int]:
    """The picture's own aspect, at a size fit for drawing."""
    scale = longest / max(hit.width, hit.height)
    return max(round(hit.width * scale), 1), max(round(hit.height * scale), 1)
