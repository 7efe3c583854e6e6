"""The bench that every part is measured on: it loads the model, the images and the scenes once, when first needed."""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lrm_base.card import sha256_of
from lrm_base.checks import seed as check_seed
from lrm_base.checks import whole_number
from lrm_base.data import image_tensors
from lrm_core.model import LRM
from lrm_core.trials import Triplets
from lrm_lab.commands import Asked
from lrm_lab.controls import WEIGHTS, find_controls, load_controls
from lrm_lab.named import named
from lrm_lab.triplets import triplets_for
from prior.model import Prior
from steering.catalogue import calibration_folder
from steering.cutoff import SAMPLE, for_search, is_calibrated
from steering.language import prior_file
from steering.loading import find_model
from steering.rollouts import run_unsteered
from steering.steerer import Steerer

NO_CONTROLS = (
    "no trained controls of {model} were found, so nothing is compared with them. They are not part of the installed "
    "package; a checkout of the project has some in lrm_lab/weights. To use your own, train them with "
    "configs/control_*.yaml and keep them with: python -m lrm_lab.controls --model FOLDER NAME=RUN"
)


class Bench:
    """The model, the images and the scenes that parts are measured on.

    Attributes:
        asked: what was asked for.
        steerer: the model that is measured, as users have it.
        network: the network of that model.
        scenes: number of scenes of each kind.
        draw: whether pictures that need the images are drawn while a part is measured.
        pictures: these pictures, by the name of the part.
    """

    def __init__(self, asked: Asked, *, draw: bool = False) -> None:
        """Load the model. Raises ValueError if there is no such model, or if a number is out of range."""
        check_seed(asked.seed)
        for name in ("scenes", "images"):
            if getattr(asked, name) is not None:
                whole_number(name, getattr(asked, name), 1)
        self.asked, self.draw = asked, draw
        self.steerer = Steerer.load(asked.model, prior=asked.prior, device=asked.device)
        self.network = self.steerer.network
        self.scenes = asked.scenes or (60 if asked.quick else 1000)
        self.pictures: dict[str, dict[str, Figure]] = {}

    @cached_property
    def by_name(self) -> Steerer | None:
        """The same model, whose prior is `class-names`. None if a prior was asked for, and for a CLIP."""
        asked = self.asked
        if asked.prior or self.network.is_open:
            return None
        return Steerer.load(asked.model, prior="class-names", device=asked.device)

    @cached_property
    def other_priors(self) -> dict[str, Steerer]:
        """The same model with its class names as prior, and with a diffusion prior, where a file of one lies.

        It lies in the model's folder, or beside the controls.
        """
        asked, found = self.asked, {} if self.by_name is None else {"class-names": self.by_name}
        if self.folder is None or self.steerer.language.prior.source == Prior.source:
            return found
        name = prior_file(self.folder, Prior.source).name
        for path in (self.folder / name, WEIGHTS / self.network.card["name"] / name):
            if path.is_file():
                found[Prior.source] = Steerer.load(asked.model, prior=str(path), device=asked.device)
                break
        return found

    @cached_property
    def named(self) -> Steerer:
        """The model with outputs over the classes of the images. A classifier has them already."""
        return named(self.steerer, self.asked.source)

    @cached_property
    def judging(self) -> Steerer:
        """The same with a verdict. A CLIP that nobody calibrated has the presumed one of `steering.cutoff`.

        The images at large that it needs are the single images.
        """
        if not self.network.is_open or is_calibrated(self.named):
            return self.named
        network, pixels = self.named.network, self.single_images[0]
        few = pixels[evenly(len(pixels), SAMPLE)]
        kept = [network.kept(glance)[1] for glance in run_unsteered(network, few).glances]
        return for_search(self.named, np.concatenate(kept))

    @cached_property
    def images(self) -> tuple[Tensor, Tensor]:
        """Validation images (n, 3, s, s), pixels in 0–1, and their classes (n,)."""
        network = self.network
        classes = None if network.is_open else network.card["classes"]  # a CLIP takes the classes of the images
        return image_tensors(self.asked.source, "valid", network.preprocessing.size, classes=classes)

    @cached_property
    def single_images(self) -> tuple[Tensor, Tensor]:
        """The images that are looked at alone. They are evenly spaced, since a folder lists class by class."""
        pixels, labels = self.images
        rows = evenly(len(labels), self.asked.images or (500 if self.asked.quick else len(labels)))
        return pixels[rows], labels[rows]

    @cached_property
    def triplets(self) -> list[Triplets]:
        """Which images make the scenes."""
        asked, classes = self.asked, len(self.named.class_names)
        return triplets_for(self.images[1], classes, count=self.scenes, seed=asked.seed, path=asked.triplets)

    @cached_property
    def controls(self) -> dict[str, LRM]:
        """The trained controls of the model. Where there are none, one line on stderr says so. A CLIP has none."""
        controls = {} if self.folder is None else load_controls(self.folder, self.network.device)
        if not controls and not self.network.is_open:
            print(NO_CONTROLS.format(model=self.network.card["name"]), file=sys.stderr)
        return controls

    @cached_property
    def folder(self) -> Path | None:
        """The model's folder. Published models have none."""
        try:
            return find_model(self.asked.model)
        except ValueError:
            return None

    def header(self, *, sees_images: bool = True) -> dict[str, Any]:
        """What decides the numbers.

        Args:
            sees_images: whether the labelled images are measured, so that they decide too.
        """
        asked, network = self.asked, self.network
        header = {
            "model": network.card["name"],
            "backbone_sha256": network.card["sha256"],
            "prior": self.steerer.language.prior.source,
            "seed": asked.seed,
            "quick": asked.quick,
            "strength": network.defaults.strength,
            "passes": network.defaults.passes,
            "parts_sha256": self._parts(),
        }
        if network.is_open:
            header["verdict"] = "fitted" if is_calibrated(self.steerer) else "presumed"
        if not sees_images:
            return header
        return {
            **header,
            "source": Path(asked.source).name,
            "scenes": self.scenes,
            "images": asked.images,
            "triplets": None if asked.triplets is None else _short_hash(Path(asked.triplets)),
        }

    def controls_header(self) -> dict[str, Any]:
        """What decides the numbers of the parts that compare with controls."""
        paths = {} if self.folder is None else find_controls(self.folder)
        return {"controls_sha256": {name: _short_hash(path) for name, path in paths.items()}}

    def _parts(self) -> dict[str, str]:
        """Hashes of what makes goals and verdicts in the model's folder. A file that is not there is left out.

        Of a CLIP it is what was calibrated for it.
        """
        names = ("prior.safetensors", "meaning.safetensors", "vocabulary.json", "verdict.json")
        folder = calibration_folder(self.network.card["sha256"]) if self.network.is_open else self.folder
        paths = [] if folder is None else [folder / name for name in names]
        return {path.stem: _short_hash(path) for path in paths if path.is_file()}


def evenly(count: int, most: int) -> Tensor:
    """At most so many of `count` rows, evenly spaced, the first one included."""
    chosen = min(count, most)
    return torch.arange(chosen) * count // chosen


def _short_hash(path: Path) -> str:
    """The start of a file's SHA-256."""
    return sha256_of(path)[:12]
