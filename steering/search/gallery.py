"""Gallery: images are indexed once, and searched by looking for what is named.

A search has two stages. The first compares the class evidence by places of every image with the goal, over the whole
gallery, and picks the nearest images. The second looks at these images *for* the goal, with a steered pass each. It
ranks them by the calibrated probability that the goal is there.

Unusual: each hit has two probabilities. One is that of the image alone. The other knows how frequent the goal is in the
gallery: when many images are looked at, some show anything by chance. A few images that the first stage ranks low are
looked at as well, since images that nobody looked at are no evidence of absence; see `steering.search.odds`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from PIL import Image

from lrm_base import checks
from lrm_core.feedback import Strength
from steering.errors import GalleryError, ImageError, QueryError, printable
from steering.goals import Goal
from steering.search.engine import Engine, local_engine
from steering.search.files import file_of, to_key, to_path
from steering.search.hits import Hit, Hits
from steering.search.indexing import update
from steering.search.query import find, matrix, pages
from steering.search.report import Report
from steering.search.schema import FILTERS, GalleryCard
from steering.search.store import Store
from steering.seek import is_unknown
from steering.steerer import Steerer

if TYPE_CHECKING:
    from steering.look import Look

Keep = Literal["pixels", "first-pass", "nothing"]
RERANK = 128


class Gallery:
    """Images on disk or in an object store, and the network that looks at them. Open it with `Gallery.open`.

    Threads may share it. Readers may search while another process writes, and several processes may write at once.

    Attributes:
        store: the tables.
        steerer: the network and its words.
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
        """The gallery in a folder, or at an address of an object store. It is made if there is none.

        A gallery keeps what several models saw, each in tables of its own. Those of the first model lie in the folder,
        the others below `models/` in it. Each is brought up to date by itself.

        Args:
            steerer: what `Steerer.load()` gives by default.
            create: whether to make a gallery if there is none.
            keep: what a new gallery keeps of each image for later looks. `pixels` (the default) keeps what the network
                saw (27 KB at 96 px), so that no file needs to be read again. `first-pass` also keeps what a steered
                pass starts from (60 KB more), so that a look takes a third of the time. `nothing` keeps neither.
            storage_options: how to reach an object store; see Lance.

        Raises:
            GalleryError: there is no gallery and none is to be made; it is damaged; it was made with other networks
                alone or by another version of this program; or it keeps something else.
            ValueError: `keep` is none of these.
        """
        if keep is not None and keep not in get_args(Keep):
            raise ValueError(f"keep: got {keep!r}, expected one of {', '.join(get_args(Keep))}")
        steerer = steerer or Steerer.load()
        network = steerer.network
        made_by = (str(network.card["name"]), str(network.card.get("sha256", "")))
        side = 0 if keep == "nothing" else network.preprocessing.size
        aspect = network.preprocessing.keeps_aspect
        vectors: dict[str, Any] = {"keeps_aspect": aspect, "full": network.is_open}
        card = GalleryCard(*made_by, network.width, side, keep == "first-pass", **vectors)
        store = Store.open(path, card if create else None, storage_options)
        if not store.card.is_of(card):  # what another model saw is kept beside it
            store = _beside(store, card, create=create)
        made = store.card
        if keep is not None and (made.side, made.first_pass) != (card.side, card.first_pass):
            kept = "the first pass" if made.first_pass else "pixels" if made.side else "nothing"
            raise GalleryError(
                f"keep: got {keep!r}, but {printable(store.uri)} keeps {kept} of each image; this is settled when a "
                "gallery is made"
            )
        return cls(store, steerer)

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
        exclude: str | Sequence[str] = (),
        include_all: bool = False,
        progress: Any = None,
    ) -> Report:
        """Index what is new or changed in a source, and forget what is gone from it.

        Images that vanished from a folder are removed from the gallery. Images whose files are gone, and that are found
        under another name, keep their rows: a renamed folder is not read again. Bad files are skipped and listed in the
        report, and so is what is left out. If a name comes several times, its last image counts. You may interrupt this
        at any time; the next call goes on.

        Args:
            source: a folder or file, or several; a torchvision `ImageFolder`; a `datasets.Dataset`; or (name, image)
                pairs.
            workers: processes that read images, unless `engine` is given. All cores by default; 0 reads in this
                process.
            engine: what reads images and runs the first pass; see `steering.search.ray_engine` for many machines.
            retry: whether to read again what could not be read before.
            prune: whether to forget the images of a folder that is empty or gone now.
            exclude: patterns of what to leave out, such as `*.gif`, `drafts` or `2019/*`. Each is compared with the
                name of a file or folder, and with its path relative to the source. Images that are left out now are
                removed from the gallery.
            include_all: whether to take hidden files and folders below a folder, and those that other programs keep for
                themselves (`steering.search.selection.LEFT_OUT`).
            progress: wraps the iterator of results. It is called with the iterator, the number of results (or None)
                and the `Report`.

        Raises:
            ImageError: a path does not exist. GalleryError: the gallery is damaged or cannot be written.
            ValueError: the source is none of these, `workers` is out of range, or a pattern is empty.
        """
        engine = engine or local_engine(self.steerer.network, workers, first_pass=self.store.card.first_pass)
        return update(
            self.store,
            source,
            engine,
            retry=retry,
            prune=prune,
            exclude=exclude,
            include_all=include_all,
            progress=progress,
        )

    def skipped(self) -> dict[str, str]:
        """Paths of files that could not be indexed, and why."""
        return {to_path(name): reason for name, reason in self.store.reasons().items()}

    def images(self, where: str | None = None) -> Iterator[dict[str, Any]]:
        """What is known of every image, in no order: path, size, modified, sha256, width, height, sees."""
        self.store.count(where)  # tells of a bad condition now, not at the first row
        batches = self.store.images.batches(FILTERS, where)
        return ({**row, "path": to_path(row["path"])} for batch in batches for row in batch.to_pylist())

    def vectors(self, where: str | None = None) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
        """What the first pass saw, in batches and no order: paths, outputs (b, M) in logits, class evidence (b, M).

        Of a CLIP these are embeddings, and the same at unit length.
        """
        power = 1 if self.store.card.full else 2
        self.store.count(where)
        batches = self.store.images.batches(("path", "output", "evidence"), where)
        return (
            (list(map(to_path, batch["path"].to_pylist())), matrix(batch["output"]), matrix(batch["evidence"]) ** power)
            for batch in batches
        )

    def search(
        self,
        query: str | Goal,
        *,
        top: int = 10,
        rerank: int = RERANK,
        where: str | None = None,
        threshold: float | None = None,
        fold: bool = True,
        anyway: bool = False,
        strength: Strength | None = None,
        passes: int | None = None,
        seed: int = 0,
    ) -> Hits:
        """The images that show what is looked for, the likeliest first, and what the gallery as a whole answers.

        Args:
            query: words, arithmetic on words and images (`steering.algebra.parse`), or a goal.
            top: number of hits to return.
            rerank: number of the nearest candidates to look at; some others are drawn at random and looked at, too
                (`steering.search.candidates`). With 0, the first stage alone ranks the images.
            where: an SQL condition on the columns of `images`, such as `width > 500 AND path LIKE '%/2024/%'`.
            threshold: least probability of a hit. None lists all that were ranked; of a CLIP those that are likelier
                relevant than not (`steering.cutoff`).
            fold: whether images that are the same to the eye are one hit.
            anyway: whether to rank images by words that the network has no eyes for. The answer to these is `unknown`,
                and without `anyway` there are no hits.
            strength, passes: see `Steerer.look_many`.
            seed: number that fixes the prior's samples and the images that are drawn.

        Raises:
            QueryError: the query cannot be understood. GalleryError: the condition cannot be understood, or the gallery
                is damaged. ValueError: a number is out of range, or a threshold is given where there is no probability.
        """
        top, rerank = checks.whole_number("top", top, 1), checks.whole_number("rerank", rerank, 0)
        if threshold is not None:
            threshold = checks.finite_number("threshold", threshold, 0, 1)
            if not rerank:
                raise ValueError(
                    f"threshold: got {threshold:g} with `rerank` 0, expected `rerank` of at least 1 with it"
                )
        strength = None if strength is None else checks.strength(strength)
        passes = None if passes is None else checks.whole_number("passes", passes, 2, checks.MOST_PASSES)
        goal = self.goal(query, seed=seed)
        choice: dict[str, Any] = {"top": top, "rerank": rerank, "where": where, "fold": fold, "seed": seed}
        choice |= {"anyway": anyway, "threshold": threshold, "strength": strength, "passes": passes}
        return find(self.store, self.steerer, goal, **choice)

    def stream(
        self,
        query: str | Goal,
        *,
        where: str | None = None,
        page: int = RERANK,
        anyway: bool = False,
        seed: int = 0,
    ) -> Iterator[Hit]:
        """Every image of the gallery, the nearest first. Each page of images is looked at and ranked by itself.

        This is for results that are too many for `search`. Memory holds a score for each image, and one page. Ranks run
        on over the pages. Probabilities are not corrected for the number of looks, which is not known before the end:
        `probability` is `alone`.

        Args:
            page: number of images that are ranked together.
            anyway: whether to rank images by words that the network has no eyes for.

        Raises:
            QueryError: the network has no eyes for the words, and `anyway` is false. QueryError, GalleryError,
                ValueError: as in `search`.
        """
        page = checks.whole_number("page", page, 1)
        goal = self.goal(query, seed=seed)
        if is_unknown(self.steerer.verdicts, goal) and not anyway:
            raise QueryError(f"query {goal.name!r}: {goal.unfamiliar}; anyway=True ranks all the same")
        self.store.count(where)
        return pages(self.store, self.steerer, goal, where, page)

    def goal(self, query: str | Goal, *, seed: int = 0) -> Goal:
        """Understand a query. Arguments and errors are those of `Steerer.goal`."""
        return self.steerer.goal(query, seed=seed)

    def look(self, hit: Hit, query: str | Goal, **options: Any) -> Look:
        """A whole look at a hit, with heatmap and picture: at its file, or at the stored pixels if the file is gone.

        Args:
            options: as in `Steerer.look`.

        Raises:
            ImageError: the file is gone, and no pixels are stored. QueryError, ValueError: as in `Steerer.look`.
        """
        goal = self.goal(query, seed=options.get("seed", 0))
        name = to_key(hit.path)
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
        """Groups of paths of images that are the same. Groups and their members are sorted.

        Args:
            near: whether to group also images that are the same to the eye (resized, compressed anew). Their difference
                hashes differ in at most 3 of 64 bits, and their stored pixels differ by at most 6 % of the range, on
                average. Without it, only files that are the same byte for byte are grouped.
        """
        from steering.search.duplicates import groups

        return groups(self.store, near=near)


def _beside(store: Store, card: GalleryCard, *, create: bool) -> Store:
    """The tables of another model in the gallery of `store`. Raises GalleryError if there are none."""
    place = f"{store.uri.rstrip('/')}/models/{card.backbone_sha256[:16]}"
    try:
        other = Store.open(place, card if create else None, store.images.options)
    except GalleryError:
        made = store.card
        raise GalleryError(
            f"{printable(store.uri)} was made with {made.model} ({made.backbone_sha256[:8]}), not with {card.model} "
            f"({card.backbone_sha256[:8]}): `steer index FOLDER --model {card.model}` adds what this model sees"
        ) from None
    if not other.card.is_of(card):
        raise GalleryError(f"{printable(place)} was made with {other.card.model}, not with {card.model}: delete it")
    return other


def _shape(hit: Hit, longest: int = 384) -> tuple[int, int]:
    """A size that is fit for drawing, with the image's own aspect."""
    scale = longest / max(hit.width, hit.height)
    return max(round(hit.width * scale), 1), max(round(hit.height * scale), 1)
