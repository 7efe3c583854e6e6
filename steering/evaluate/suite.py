"""The parts of `steer evaluate`, run one after the other; what is measured is kept at once, and a later run goes on.

A part is known by its name in the results. What decides the numbers stands in the header beside the parts: results of
another model, other images, another seed or size are never mixed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrm_base.card import sha256_of, write_atomically
from steering.steerer import Steerer, find_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lrm_core.model import LRM
    from steering.trials import Triplets

    Pictures = dict[str, dict[str, Figure]]

GEOMETRY_GOALS = ("a dog", "a bridge")
PARTS = (
    *("single", "words", "photographs", "composites", "where", "search"),
    *("gallery", "geometry", "robustness", "brain", "encoding"),
)
HEADER = (
    *("model", "backbone_sha256", "prior", "seed", "quick", "source", "scenes", "images", "triplets"),
    *("strength", "passes", "parts_sha256", "controls_sha256"),
)
OPPOSED = ("composites", "robustness")  # parts in which the controls appear
PARTS_OF = {
    "composites": ("single", "words", "photographs", "composites", "where"),
    "gallery": ("gallery", "geometry"),
    "search": ("search",),
    "robustness": ("robustness",),
    "brain": ("brain", "encoding"),
    "all": PARTS,
}


@dataclass(frozen=True)
class Asked:
    """What a command asks for: see `steer evaluate --help`. `output` is where the numbers are kept, part by part."""

    what: str = "all"
    model: str = "lrm_mini"
    prior: str | None = None
    device: str | None = None
    source: str = "zh-plus/tiny-imagenet"
    photos: str | None = None
    brain: str | None = None
    responses: str | None = None
    triplets: str | None = None
    scenes: int | None = None
    images: int | None = None
    quick: bool = False
    seed: int = 1000
    output: str | None = None
    resume: bool = False
    pictures: bool = False


class Suite:
    """Loads each thing once, when the first part needs it."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.steerer = Steerer.load(asked.model, prior=asked.prior, device=asked.device)
        self.scenes = asked.scenes or (60 if asked.quick else 1000)
        self.pictures: Pictures = {}

    @cached_property
    def images(self) -> tuple[Tensor, Tensor]:
        """Validation images, pixels in 0–1, and labels: the model's classes."""
        from steering.evaluate.single import image_tensors

        size = self.steerer.preprocessing.size
        return image_tensors(self.asked.source, "valid", size, classes=self.steerer.card["classes"])

    @cached_property
    def single_images(self) -> tuple[Tensor, Tensor]:
        """As many of them as are looked at alone, evenly spaced: a folder lists class by class."""
        pixels, labels = self.images
        count = min(self.asked.images or (500 if self.asked.quick else len(labels)), len(labels))
        rows = torch.arange(count) * len(labels) // count
        return pixels[rows], labels[rows]

    @cached_property
    def triplets(self) -> list[Triplets]:
        """Which images make the scenes."""
        from steering.evaluate.triplets import triplets_for

        classes = len(self.steerer.class_names)
        asked = self.asked
        return triplets_for(self.images[1], classes, count=self.scenes, seed=asked.seed, path=asked.triplets)

    @cached_property
    def controls(self) -> dict[str, LRM]:
        """The trained opponents beside the model."""
        from steering.evaluate.controls import load_controls

        return {} if self.folder is None else load_controls(self.folder, self.steerer.device)

    def header(self) -> dict[str, Any]:
        """What decides the numbers; the images only where the parts asked for see them."""
        asked, steerer = self.asked, self.steerer
        found = {
            "model": steerer.card["name"],
            "backbone_sha256": steerer.card["sha256"],
            "prior": steerer.language.prior.source,
            "seed": asked.seed,
            "quick": asked.quick,
            "strength": steerer.defaults.strength,
            "passes": steerer.defaults.passes,
            "parts_sha256": {**self._hashes("prior.safetensors"), **self._hashes("verdict.json")},
        }
        if asked.what == "brain":
            return found
        return {
            **found,
            "source": Path(asked.source).name,
            "scenes": self.scenes,
            "images": asked.images,
            "triplets": None if asked.triplets is None else sha256_of(Path(asked.triplets))[:12],
        }

    def _hashes(self, pattern: str) -> dict[str, str]:
        """SHA-256, its start, of files in the model's folder; none for a published model, which has no folder."""
        paths = [] if self.folder is None else sorted(self.folder.glob(pattern))
        return {path.stem: sha256_of(path)[:12] for path in paths}

    @cached_property
    def folder(self) -> Path | None:
        """The model's folder; published models have none."""
        try:
            return find_model(self.asked.model)
        except ValueError:
            return None

    def run(self) -> dict[str, Any]:
        """The header and every part asked for, each kept in `output` as soon as it is there.

        Parts of the file that were measured in the same way stay; with `resume` they are not measured again, unless
        their pictures are wanted.
        """
        asked = self.asked
        judged = set(PARTS_OF[asked.what]) & {"photographs", "composites", "search", "gallery"}
        if judged and self.steerer.verdict is None:
            raise ValueError(
                f"{self.steerer.card['name']} has no calibrated verdict for goals by "
                f"{self.steerer.language.prior.source}; `python -m steering.calibrate` makes it"
            )
        header = self.header()
        opponents = {"controls_sha256": self._hashes("controls/*.safetensors")}
        kept = _stored(asked.output, header, opponents)
        results = {**kept, **header, **opponents}
        for name in PARTS_OF[asked.what]:
            measure = self._part(name)
            if measure is None or (asked.resume and name in kept and not (name == "gallery" and asked.pictures)):
                continue
            start = time.monotonic()
            results[name] = measure()
            print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
            if asked.output:
                _keep(asked.output, results)
        return results

    def _part(self, name: str) -> Callable[[], dict[str, Any]] | None:
        """What measures a part; None if what it needs was not given."""
        needed = {"photographs": self.asked.photos, "brain": self.asked.brain, "encoding": self.asked.responses}
        return None if name in needed and not needed[name] else getattr(self, f"_{name}")

    def _single(self) -> dict[str, Any]:
        from steering.evaluate.single import measure_single

        return measure_single(self.steerer, *self.single_images)

    def _words(self) -> dict[str, Any]:
        from steering.evaluate.single import measure_words

        return measure_words(self.steerer)

    def _photographs(self) -> dict[str, Any]:
        from steering.evaluate.single import measure_photos

        return measure_photos(self.steerer, str(self.asked.photos), self.asked.seed)

    def _composites(self) -> dict[str, Any]:
        from steering.evaluate import composites

        asked = self.asked
        by_name = None if asked.prior else Steerer.load(asked.model, prior="class-names", device=asked.device)
        return composites.measure(
            self.steerer,
            self.triplets,
            *self.images,
            by_name=by_name,
            controls=self.controls,
            sweep_scenes=min(self.scenes, 300),
        )

    def _where(self) -> dict[str, Any]:
        from steering.evaluate import where

        scenes = self.scenes
        return where.measure(
            self.steerer, self.triplets, *self.images, scenes=min(scenes, 500), ablation_scenes=min(scenes, 300)
        )

    def _search(self) -> dict[str, Any]:
        from steering.evaluate import search

        queries = 10 if self.asked.quick else None
        return search.measure(self.steerer, *self.images, scenes=self.scenes, queries=queries, seed=self.asked.seed)

    def _gallery(self) -> dict[str, Any]:
        from steering.evaluate import gallery, gallery_report

        trials = 40 if self.asked.quick else 200
        found = gallery.gather(self.steerer, *self.images, trials=trials, seed=self.asked.seed)
        if self.asked.pictures:
            self.pictures["gallery"] = gallery_report.figures(found)
        return gallery.summary(found)

    def _geometry(self) -> dict[str, Any]:
        from steering.evaluate import geometry

        return geometry.measure(self.steerer, *self.images, GEOMETRY_GOALS, seed=self.asked.seed)

    def _robustness(self) -> dict[str, Any]:
        from steering.evaluate import robustness

        plain = self.controls["plain"].backbone if "plain" in self.controls else None
        return robustness.measure(
            self.steerer, plain, *self.single_images, quick=self.asked.quick, seed=self.asked.seed
        )

    def _brain(self) -> dict[str, Any]:
        from steering.evaluate import brain

        return brain.measure(self.steerer, str(self.asked.brain), seed=self.asked.seed, quick=self.asked.quick)

    def _encoding(self) -> dict[str, Any]:
        from steering.evaluate import encoding

        return encoding.measure(self.steerer, str(self.asked.responses), seed=self.asked.seed, quick=self.asked.quick)


def _stored(path: str | None, header: dict[str, Any], opponents: dict[str, Any]) -> dict[str, Any]:
    """What a file holds, less the parts that were measured against other opponents.

    Raises:
        ValueError: the file is no JSON object, or its parts were measured on another model or in another way.
    """
    if path is None or not Path(path).is_file():
        return {}
    try:
        before = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected results of `steer evaluate` as JSON: {error}") from None
    if not isinstance(before, dict):
        raise ValueError(f"{path}: expected results of `steer evaluate`, got a {type(before).__name__}")
    differ = [key for key, value in header.items() if key in before and before[key] != value]
    if not before.keys() & {"backbone_sha256"}:
        raise ValueError(f"{path}: expected results of `steer evaluate`, got JSON without the model's hash")
    if differ:
        told = "; ".join(f"{key}: {before.get(key)!r}, now {header[key]!r}" for key in differ)
        raise ValueError(f"{path} holds results that were measured otherwise ({told}): remove it, or give another file")
    same = all(before.get(key) == value for key, value in opponents.items())
    if not same and before.keys() & set(OPPOSED):
        print(f"{path}: the controls changed: {', '.join(OPPOSED)} there no longer count", file=sys.stderr)
    return {key: before[key] for key in (*HEADER, *PARTS) if key in before and (same or key not in OPPOSED)}


def _keep(path: str, results: dict[str, Any]) -> None:
    """Write the results whole or not at all, header first and parts in their order."""
    ordered = {key: results[key] for key in (*HEADER, *PARTS) if key in results}
    write_atomically(Path(path), (json.dumps(ordered, indent=1) + "\n").encode())
