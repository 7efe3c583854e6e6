"""Assemble a model folder and calibrate it: `python -m steering.calibrate --config configs/calibrate_mini.yaml`.

First it chooses the default strength and passes, on composites of training images that the backbone was not trained
on. Then it fits a verdict for every way of making goals, on such composites and on single images. Every scene is asked
for a class name and for a hypernym. Absent goals may also be nouns that the backbone has no class for. Goals without
words are the mean outputs of the classes and the outputs for single images.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lrm_base.card import load_card, save_weights
from lrm_base.config import Config, TrainingSeed
from lrm_base.extras import require_packages
from lrm_core.pictures import PictureConfig, Pictures
from lrm_core.prototypes import Prototypes
from lrm_core.scenes import KINDS
from lrm_core.trials import Trials, build, draw, top1
from lrm_core.weights import load_model
from prior.captions import Vocabulary
from prior.class_names import ClassNamesPrior
from prior.data import read_held_out, read_nouns, vocabulary_anchors
from prior.trained import KINDS as PRIORS
from steering.calibrate_verdicts import (
    Examples,
    MakeGoals,
    Shown,
    fit_verdict,
    image_goals,
    photographs,
    word_goals,
    wordless_goals,
)
from steering.calibrate_words import fit_familiarity, read_words, write_familiarity
from steering.evidence import FEATURES, TWIN, UNSTEERED, save_verdicts
from steering.language import prior_file
from steering.network import Defaults, Network
from steering.rollouts import Unsteered, class_goals, run_steered, run_unsteered
from steering.steerer import Steerer


class CalibrationConfig(Config):
    """What to assemble, and what to choose from.

    Attributes:
        backbone, prior, text: folders of the trained parts. The prior is one of any kind (`prior.trained`).
        prototypes: a file of `lrm_core.prototypes`.
        twin: folder of a model that learned the same scenes without goals. Its verdict is a control for the laboratory.
        output: the model folder to write.
        pictures: labelled images that the backbone was not trained on; see `lrm_core.pictures`.
        strengths, passes: tried together. The pair with the best J is taken, among those that keep absent goals rare.
        most_absent: share of the composites of each kind in which an absent goal may become top-1.
        most_absent_single: the same for single images.
        scenes: number of scenes of each kind.
        near: share of the absent goals that are near misses: what the first pass takes for likeliest among all that is
            not there.
        share_unknown: share of the absent goals that are nouns outside the vocabulary.
        familiar_words: the lists of words that choose which queries are unfamiliar; see `steering.calibrate_words`.
            Without them, none is.
    """

    backbone: str
    prior: str
    text: str
    prototypes: str
    twin: str | None = None
    output: str
    pictures: list[PictureConfig]
    classes: str
    nouns: str | None = None
    held_out: str | None = None
    familiar_words: str | None = None
    passes: list[int] = [2, 3]
    num_samples: int = 16
    sampling_steps: int = 10
    strengths: list[float]
    most_absent: float = 0.08
    most_absent_single: float = 0.025
    scenes: int = 1500
    near: float = 0.5
    share_unknown: float = 0.15
    ridge: float = 1e-3
    seed: TrainingSeed = 0


def assemble(config: CalibrationConfig) -> Vocabulary:
    """Copy the trained parts into the model folder and write the vocabulary's embeddings."""
    from prior.text import TextEncoder, compact

    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "verdict.json").unlink(missing_ok=True)  # from an earlier run
    prior = Path(config.prior) / "prior.safetensors"
    own = {kind: prior_file(output, kind) for kind in PRIORS}
    for suffix in (".safetensors", ".json"):
        for path in own.values():
            path.with_suffix(suffix).unlink(missing_ok=True)  # from an earlier run
        for path, copy in (
            (Path(config.backbone) / "backbone.safetensors", output / "backbone.safetensors"),
            (prior, own[load_card(prior)["kind"]]),
        ):
            shutil.copyfile(path.with_suffix(suffix), copy.with_suffix(suffix))
    Prototypes.load(config.prototypes).save(output / "prototypes.safetensors", half=True)
    if Path(config.text).resolve() != (output / "text").resolve():
        compact(config.text, output / "text")
    vocabulary = Vocabulary.load(config.classes, read_held_out(config.held_out))

    encoder = TextEncoder.load(output / "text")
    embeddings, _ = vocabulary_anchors(vocabulary, encoder.encode)
    card = {"name": "vocabulary", "nouns": [noun for noun, _, _ in vocabulary.nouns()], "text_encoder": encoder.name}
    save_weights(output / "vocabulary.safetensors", {"embeddings": embeddings}, card, half=True)
    write_defaults(output, Defaults(1.0, config.passes[-1], config.num_samples, config.sampling_steps))
    return vocabulary


def write_defaults(folder: Path, defaults: Defaults) -> None:
    """Keep what a look uses unless told otherwise."""
    (folder / "steering.json").write_text(json.dumps(dataclasses.asdict(defaults), indent=1) + "\n")


def choose_defaults(
    steerer: Steerer, trials: Iterable[Trials], config: CalibrationConfig
) -> tuple[Defaults, list[dict[str, Any]]]:
    """Strength and passes with the best J among those that keep absent goals rare, and the table of all of them.

    J is how often a goal is top-1 when present minus how often when absent, as the mean over kinds of composites.

    Raises:
        ValueError: no pair keeps absent goals as rare as asked for.
    """
    goals = class_goals(steerer)
    table: list[dict[str, Any]] = []
    rates: dict[tuple[int, float], dict[str, tuple[float, float]]] = {}
    for trial in trials:
        unsteered = run_unsteered(steerer.network, trial.scenes.pixels)
        for passes in config.passes:
            network = steerer.network.with_defaults(dataclasses.replace(steerer.network.defaults, passes=passes))
            for strength in config.strengths:
                pair = top1_rates(network, trial, unsteered, goals, strength)
                rates.setdefault((passes, strength), {})[trial.scenes.kind] = pair
    for passes in config.passes:
        for strength in config.strengths:
            present = {kind: pair[0] for kind, pair in rates[passes, strength].items()}
            absent = {kind: pair[1] for kind, pair in rates[passes, strength].items()}
            kinds = [kind for kind in present if kind != "single"]
            j = sum(present[kind] - absent[kind] for kind in kinds) / len(kinds)
            table.append({"strength": strength, "passes": passes, "J": j, "present": present, "absent": absent})
    chosen = pick(table, config)
    return dataclasses.replace(steerer.network.defaults, strength=chosen["strength"], passes=chosen["passes"]), table


def pick(table: Sequence[dict[str, Any]], config: CalibrationConfig) -> dict[str, Any]:
    """The row with the best J among those that keep absent goals rare. Raises ValueError if there is none."""
    slack = 1e-6  # rates are counts over scenes in float32: a rate at its limit is within it
    rare = [
        row
        for row in table
        if max(rate for kind, rate in row["absent"].items() if kind != "single") <= config.most_absent + slack
        and row["absent"].get("single", 0.0) <= config.most_absent_single + slack
    ]
    if not rare:
        raise ValueError(
            f"no strength among {config.strengths} keeps absent goals below {config.most_absent:.1%} of the composites "
            f"and {config.most_absent_single:.1%} of the single images: {json.dumps(list(table))}"
        )
    return max(rare, key=lambda row: row["J"])


def top1_rates(
    network: Network, trial: Trials, unsteered: Unsteered, goals: Tensor, strength: float
) -> tuple[float, float]:
    """How often the goal becomes top-1 at a strength: when it is present, and when it is absent."""
    present, absent = (
        float(top1(run_steered(network, unsteered, goals[classes], strength).output, classes).float().mean())
        for classes in (trial.present, trial.absent)
    )
    return present, absent


def scenes_of(kind: str, pictures: Pictures, count: int, config: CalibrationConfig) -> Shown:
    """Trials of one kind from all the pictures; see `lrm_core.trials`. The absent goals are drawn at random."""
    pixels, labels = (torch.cat(parts) for parts in zip(*pictures.sets, strict=True))
    triplets = draw(kind, labels, count, config.scenes, config.seed + KINDS.index(kind))
    rows, within = triplets.images.unique(return_inverse=True)
    own = dataclasses.replace(triplets, images=within)
    return Shown(build(own, pixels[rows].float() / 255, labels[rows]), triplets.images)


def calibrate(config: CalibrationConfig) -> None:
    """Assemble a model folder, choose its strength and passes, and fit its verdicts. All is written into the folder."""
    vocabulary = assemble(config)
    folder = Path(config.output)
    steerer = Steerer.load(folder)
    network, count = steerer.network, len(steerer.class_names)
    pictures = Pictures(config.pictures, network.card["classes"])
    defaults, table = choose_defaults(
        steerer, (scenes_of(kind, pictures, count, config).trials for kind in KINDS), config
    )
    write_defaults(folder, defaults)
    print(f"strength {defaults.strength}, {defaults.passes} passes")
    for row in table:
        print(json.dumps(row))

    steerer = Steerer.load(folder)
    by_name = Steerer.load(folder, prior=ClassNamesPrior.source)
    unknown = unknown_nouns(steerer, vocabulary, config)
    prototypes = torch.stack([steerer.prototype_goal(name).vector for name in steerer.class_names])

    def words(speaker: Steerer) -> list[MakeGoals]:
        parts = speaker, vocabulary, unknown, config.share_unknown, config.seed
        return [word_goals(*parts, hypernyms=hypernyms) for hypernyms in (False, True)]

    ways: dict[str, list[MakeGoals]] = {
        steerer.language.prior.source: words(steerer),
        ClassNamesPrior.source: words(by_name),
        "prototype": [wordless_goals(prototypes.__getitem__)],
        "image": [image_goals(steerer, pictures, config.seed)],
    }
    generator = torch.Generator().manual_seed(config.seed)
    twin = None
    if config.twin is not None:
        twin = network.with_model(load_model(Path(config.twin) / "backbone.safetensors", network.device)[0])
    examples = Examples(network, ways, config.near, generator, twin)
    for kind in tqdm(KINDS, desc="verdict examples", disable=None):
        examples.add(scenes_of(kind, pictures, count, config))
    for shown in photographs(network, config.pictures, pictures):
        examples.add(shown)
    verdicts = {}
    for way in ways:
        values, without, answers = examples.of(way)
        verdicts[way] = fit_verdict(values, answers, config.ridge)
        verdicts[f"{way}{UNSTEERED}"] = fit_verdict(without, answers, config.ridge)  # to compare with
        right = ((verdicts[way].probability(values) >= 0.5) == (answers > 0.5)).float().mean()
        print(f"{way}: verdict on {len(answers)} trials, {right:.1%} right")
    if twin is not None:
        way = f"{next(iter(ways))}{TWIN}"
        verdicts[way] = fit_verdict(*examples.of(way)[::2], config.ridge)
    save_verdicts(folder / "verdict.json", verdicts, network.card["sha256"])
    print(f"features: {', '.join(FEATURES)}")
    if config.familiar_words:
        found = fit_familiarity(steerer.language, read_words(config.familiar_words))
        write_familiarity(folder, found)
        print(f"familiar words: {json.dumps(found)}")


def unknown_nouns(steerer: Steerer, vocabulary: Vocabulary, config: CalibrationConfig) -> list[str]:
    """Nouns that the network has no class for and that are far from all its words; they serve as absent goals."""
    if not config.nouns or not config.share_unknown:
        return []
    nouns = read_nouns(config.nouns, vocabulary)[::40]
    language = steerer.language
    near = torch.cat([language.familiarity(language.embed(nouns[i : i + 500])) for i in range(0, len(nouns), 500)])
    return [noun for noun, familiarity in zip(nouns, near.tolist(), strict=True) if familiarity < 0.5]


def main(argv: list[str] | None = None) -> None:
    """Assemble and calibrate the model that a configuration describes."""
    config = CalibrationConfig.from_command_line(__doc__.splitlines()[0], argv)
    require_packages("datasets", "sklearn")
    calibrate(config)


if __name__ == "__main__":
    main()
