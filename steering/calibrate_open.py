"""Fit the verdict of a CLIP on photographs whose words are known: what `steer calibrate` does.

The first of five folds of the photographs is held out for the report. The others fit the verdict, and choose its form
and the strength; see `steering.calibrate_scenes` for what is asked, and `steering.calibrate_choice` for the choice.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from prior.identity import IdentityPrior
from steering.calibrate import write_defaults
from steering.calibrate_choice import choose, report
from steering.calibrate_scenes import PASSES, Questions, Shown, bar, deal
from steering.cutoff import FEWEST
from steering.errors import ImageError, QueryError, printable
from steering.evidence import FEATURES, Verdict, save_verdicts
from steering.images import framed
from steering.joint import JointNetwork
from steering.labelled import Labelled
from steering.language import Language
from steering.network import Defaults
from steering.open_words import DEFAULTS, IMAGES, VERDICTS
from steering.rollouts import batch_of, inputs_of
from steering.steerer import Steerer

CARD = "calibration.json"
LEAST_IMAGES, LEAST_NAMES = 20, 2
MOST_IMAGES, MOST_AT_LARGE = 2000, 2000
MANY_IMAGES = 200  # from which on a verdict may read products of features
MANY_NAMES = 10  # fewer make a poor sample of images at large
BATCH = 200  # texts


@dataclass(frozen=True)
class Calibration:
    """What was fitted, ready to be written.

    Attributes:
        verdicts: by the source of goals, and the same without steering, as controls.
        defaults: the strength and the passes that were chosen.
        images: (n, M), of unit length: embeddings of images at large; None where there are too few.
        card: data, counts, date, choices, measured numbers, and the hash of the weights.
    """

    verdicts: Mapping[str, Verdict]
    defaults: Defaults
    images: Tensor | None
    card: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Replace what a folder held. All files are complete before the first is replaced."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".made-") as place:
            made = Path(place)
            write_defaults(made, self.defaults)
            if self.images is not None:
                save_file({"embeddings": self.images.cpu().contiguous()}, made / IMAGES)
            (made / CARD).write_text(json.dumps(self.card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            save_verdicts(made / VERDICTS, self.verdicts, self.card["backbone_sha256"])
            for name in (IMAGES, DEFAULTS, CARD, VERDICTS):
                if (made / name).is_file():
                    os.replace(made / name, folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)


def check_enough(labelled: Labelled) -> None:
    """Raises ValueError if there are too few images, or of too few things."""
    images, names = len(labelled.labels), len(set(labelled.labels))
    what = "caption" if labelled.are_captions else "name"
    if names < LEAST_NAMES:
        raise ValueError(
            f"folder: got {names} {what}{'' if names == 1 else 's'} in {printable(labelled.source)}, expected at least "
            f"{LEAST_NAMES}: what is there is told from what is not"
        )
    if images < LEAST_IMAGES:
        where = printable(labelled.source)
        raise ValueError(f"folder: got {images} images with a {what} in {where}, expected at least {LEAST_IMAGES}")


def calibrate(
    steerer: Steerer, labelled: Labelled, *, images: int = MOST_IMAGES, seed: int = 0, quiet: bool = False
) -> Calibration:
    """Choose a strength and fit verdicts for a CLIP: on its text embeddings, and on its own prior if it has one.

    Args:
        images: at most so many images are looked at, of as many different names as there are.
        seed: number that fixes what is drawn.
        quiet: whether to show no progress bar.

    Raises:
        ValueError: the model is no CLIP; or there are too few images or names, without those that cannot be read and
            captions that the model would cut.
    """
    network = steerer.network
    if not isinstance(network, JointNetwork):
        raise ValueError(f"model: got {network.card['name']}, expected a CLIP such as clip:NAME:TAG")
    ways = _ways(steerer)
    generator = torch.Generator().manual_seed(seed)
    drawn = labelled.only(_spread(labelled.labels, generator)[:images])
    usable = _short_enough(ways[IdentityPrior.source], drawn.texts)
    asked = drawn.only([row for row, label in enumerate(drawn.labels) if usable[label]])
    check_enough(asked)
    shown = _shown(network, asked, generator, quiet)
    goals = {source: _goals(language, asked.texts, seed) for source, language in ways.items()}
    at_large = None
    fitted_on = int((shown.folds > 0).sum())
    if fitted_on >= FEWEST and len(shown.labels.unique()) >= MANY_NAMES:
        at_large = _embeddings(network, shown.pixels[shown.folds > 0][:MOST_AT_LARGE], quiet)
        network = network.with_images(at_large)
    examples = Questions(network, goals, generator).ask(shown, seed, quiet)
    verdicts, strength, chosen = choose(examples, tuple(goals), products=len(shown.labels) >= MANY_IMAGES)
    card = {
        "model": network.card["name"],
        "backbone_sha256": network.card["sha256"],
        "date": datetime.date.today().isoformat(),
        "seed": seed,
        "data": {
            "source": labelled.source,
            "images": len(shown.labels),
            "fitted_on": fitted_on,
            "held_out": len(shown.labels) - fitted_on,
            "captions" if labelled.are_captions else "names": len(shown.labels.unique()),
            "unread": dict(shown.unread),
            "captions_too_long": len(drawn.labels) - len(asked.labels),
            "notes": list(labelled.notes),
        },
        "images_at_large": 0 if at_large is None else len(at_large),
        "features": list(FEATURES),
        "strength": strength,
        "passes": PASSES,
        **chosen,
        "held_out": report(examples.of(examples.fold == 0), verdicts, strength),
    }
    return Calibration(
        verdicts, dataclasses.replace(network.defaults, strength=strength, passes=PASSES), at_large, card
    )


def _spread(labels: Sequence[int], generator: torch.Generator) -> list[int]:
    """Images in random order: first one of each name, then another one of each, and so on."""
    taken: dict[int, int] = {}
    turns = []
    for row in torch.randperm(len(labels), generator=generator).tolist():
        taken[labels[row]] = taken.get(labels[row], 0) + 1
        turns.append((taken[labels[row]], row))
    return [row for _, row in sorted(turns, key=lambda turn: turn[0])]


def _ways(steerer: Steerer) -> dict[str, Language]:
    """How texts become goals, by the source: as they are, and by the prior of the steerer."""
    language = steerer.language
    plain = dataclasses.replace(language, prior=IdentityPrior(steerer.network.width))
    return {IdentityPrior.source: plain, language.prior.source: language}


def _short_enough(language: Language, texts: Sequence[str]) -> list[bool]:
    """Which texts the text encoder takes whole."""

    def fits(some: Sequence[str]) -> bool:
        try:
            language.embed(some)
        except QueryError:
            return False
        return True

    found: list[bool] = []
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        found += [True] * len(batch) if fits(batch) else [fits([text]) for text in batch]
    return found


def _goals(language: Language, texts: Sequence[str], seed: int) -> Float[Tensor, "t m"]:
    parts = [language.goals(texts[start : start + BATCH], seed=seed) for start in range(0, len(texts), BATCH)]
    return torch.cat(parts).float()


def _shown(network: JointNetwork, labelled: Labelled, generator: torch.Generator, quiet: bool) -> Shown:
    """Read the photographs. Raises ValueError if too few can be read."""
    pixels, rows, unread = [], [], {}
    for row in bar(range(len(labelled.labels)), len(labelled.labels), "reading", quiet):
        try:
            picture = np.asarray(framed(labelled.open(row), network.preprocessing.frame))
        except ImageError as error:
            unread[labelled.files[row]] = str(error)
            continue
        pixels.append(rearrange(torch.from_numpy(picture.copy()), "h w c -> c h w"))
        rows.append(row)
    read = dataclasses.replace(labelled, labels=tuple(labelled.labels[row] for row in rows))
    try:
        check_enough(read)
    except ValueError as error:
        told = f"; {len(unread)} could not be read, such as {next(iter(unread.values()))}" if unread else ""
        raise ValueError(f"{error}{told}") from None
    labels = torch.tensor(read.labels)
    return Shown(torch.stack(pixels), labels, deal(labels, generator), unread)


@torch.no_grad()
def _embeddings(network: JointNetwork, pixels: UInt8[Tensor, "n 3 s s"], quiet: bool) -> Float[Tensor, "n m"]:
    """Embeddings of images, of unit length, in half precision."""
    parts = []
    size = batch_of(network, pixels[:1].float())
    for batch in bar(pixels.split(size), -(-len(pixels) // size), "images at large", quiet):
        seen = network.glance(inputs_of(network, batch.float() / 255))
        assert seen.embedding is not None
        parts.append(F.normalize(seen.embedding, dim=-1).half())
    return torch.cat(parts)
