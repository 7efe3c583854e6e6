"""What `steer evaluate` can be asked for. Nothing heavy is imported here, so that its help is printed at once."""

from __future__ import annotations

from dataclasses import dataclass

ALL, TRIPLETS = "all", "triplets"
COMMANDS = {
    ALL: "everything below, for the README, RESULTS.md and a page",
    "composites": "find what is in a scene, stay quiet about what is not, against controls",
    "search": "search a gallery of crowded scenes for what is in them",
    "examples": "heatmaps and failures that a rule chooses, and the geometry of the passes",
    "robustness": "attacks and common corruptions, for each pass",
    "brain": "similarity with inferior temporal cortex, and encoding of your own responses",
    TRIPLETS: "write which images make the composite scenes",
}
"""Every command and what it does. All but `triplets` measure parts."""


@dataclass(frozen=True)
class Asked:
    """A request to `steer evaluate`: what to measure, and on what.

    Attributes:
        what: one of `COMMANDS`, except `triplets`.
        model, prior, device: see `Steerer.load`.
        source: labelled images; see `lrm_base.data.DataConfig`.
        photos: a folder of full-size photographs with photos.json.
        brain: a folder with the 92 images and their RDMs; see `lrm_lab.brain92`.
        responses: an .npz file of your own responses; see docs/brain.md.
        triplets: a CSV of scenes; see `lrm_lab.triplets`. None takes those that came with the project, or draws them.
        scenes: number of scenes of each kind. None means 1000, or 60 if `quick`.
        images: number of single images. None means all, or 500 if `quick`.
        quick: whether to take few images and scenes, to see that everything runs.
        seed: number that fixes the scenes, attacks and pictures.
    """

    what: str = ALL
    model: str | None = None
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
