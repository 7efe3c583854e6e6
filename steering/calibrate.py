"""Assemble a model folder and calibrate it: `python -m steering.calibrate --config configs/calibrate_mini.yaml`.

First it chooses the default strength and passes, on composites of training images that the backbone was not trained
on. Then it fits a verdict for every way of making goals, on such composites and on single images. Goals by words are
class names, hypernyms, and nouns that the backbone has no class for, which are never present. Goals without words are
the mean outputs of the classes and the outputs for single images.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lrm_base.card import save_weights
from lrm_base.config import Config, TrainingSeed
from lrm_base.data import image_tensors
from lrm_base.extras import require_packages
from lrm_core.scenes import KINDS
from lrm_core.trials import Trials, make_trials, top1
from lrm_core.weights import held_out_rows
from prior.captions import Vocabulary, with_article
from prior.data import read_nouns, vocabulary_anchors
from steering.calibrate_words import fit_familiarity, read_words, write_familiarity
from steering.evidence import FEATURES, UNSTEERED, Verdict, expand, features, save_verdicts
from steering.network import Defaults, Network
from steering.rollouts import Unsteered, class_goals, run_steered, run_unsteered
from steering.steerer import Steerer

MakeGoals = Callable[[Trials, Tensor, bool], tuple[Tensor, Tensor]]
"""(trials, classes, whether they are present) → goals (b, m) and their familiarity (b,)."""


class CalibrationConfig(Config):
    """What to assemble, and what to choose from.

    Attributes:
        backbone, prior, text: folders of the trained parts.
        prototypes: a file of `lrm_core.prototypes`.
        output: the model folder to write.
        data: labelled images; see `lrm_base.data.DataConfig`.
        strengths, passes: tried together. The pair with the best J is taken, among those that keep absent goals rare.
        most_absent: share of the composites of each kind in which an absent goal may become top-1.
        most_absent_single: the same for single images.
        scenes: number of scenes of each kind.
        share_unknown: share of the absent goals that are nouns outside the vocabulary.
        share_hypernym: share of the goals that are hypernyms.
        familiar_words: the lists of words that choose which queries are unfamiliar; see `steering.calibrate_words`.
            Without them, none is.
    """

    backbone: str
    prior: str
    text: str
    prototypes: str
    output: str
    data: str
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
    share_unknown: float = 0.15
    share_hypernym: float = 0.2
    ridge: float = 1e-3
    seed: TrainingSeed = 0


def assemble(config: CalibrationConfig) -> Vocabulary:
    """Copy the trained parts into the model folder and write the vocabulary's embeddings."""
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "verdict.json").unlink(missing_ok=True)  # from an earlier run
    for folder, name in ((config.backbone, "backbone"), (config.prior, "prior")):
        for suffix in (".safetensors", ".json"):
            shutil.copyfile(Path(folder) / f"{name}{suffix}", output / f"{name}{suffix}")
    for suffix in (".safetensors", ".json"):
        shutil.copyfile(Path(config.prototypes).with_suffix(suffix), output / f"prototypes{suffix}")
    if Path(config.text).resolve() != (output / "text").resolve():
        shutil.copytree(config.text, output / "text", dirs_exist_ok=True)
    held_out = json.loads(Path(config.held_out).read_text()) if config.held_out else {}
    vocabulary = Vocabulary.load(config.classes, held_out)

    from prior.text import TextEncoder

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
    steerer: Steerer, trials: Sequence[Trials], config: CalibrationConfig
) -> tuple[Defaults, list[dict[str, Any]]]:
    """Strength and passes with the best J among those that keep absent goals rare, and the table of all of them.

    J is how often a goal is top-1 when present minus how often when absent, as the mean over kinds of composites.

    Raises:
        ValueError: no pair keeps absent goals as rare as asked for.
    """
    goals = class_goals(steerer)
    table: list[dict[str, Any]] = []
    for passes in config.passes:
        network = steerer.network.with_defaults(dataclasses.replace(steerer.network.defaults, passes=passes))
        rates: dict[str, list[tuple[float, float]]] = {}
        for trial in trials:
            unsteered = run_unsteered(network, trial.scenes.pixels)
            kind = trial.scenes.kind
            rates[kind] = [top1_rates(network, trial, unsteered, goals, strength) for strength in config.strengths]
        for index, strength in enumerate(config.strengths):
            present = {kind: pairs[index][0] for kind, pairs in rates.items()}
            absent = {kind: pairs[index][1] for kind, pairs in rates.items()}
            kinds = [kind for kind in rates if kind != "single"]
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
        float(top1(run_steered(network, unsteered, goals[classes], strength), classes).float().mean())
        for classes in (trial.present, trial.absent)
    )
    return present, absent


def word_goals(
    steerer: Steerer, vocabulary: Vocabulary, unknown: Sequence[str], config: CalibrationConfig
) -> MakeGoals:
    """Goals by words: class names and hypernyms. Absent goals may also be nouns outside the vocabulary."""
    generator = torch.Generator().manual_seed(config.seed)
    groups = [(noun, set(labels)) for noun, labels in vocabulary.groups.items() if 2 <= len(labels) <= 40]

    def make(trial: Trials, classes: Tensor, is_present: bool) -> tuple[Tensor, Tensor]:
        queries = []
        for label, inside in zip(classes.tolist(), map(set, trial.scenes.labels.tolist()), strict=True):
            coin = float(torch.rand((), generator=generator))
            fitting = [n for n, ls in groups if label in ls and (is_present or not ls & inside)]
            pick = int(torch.randint(0, 1_000_000, (), generator=generator))
            if not is_present and unknown and coin < config.share_unknown:
                queries.append(unknown[pick % len(unknown)])
            elif coin > 1 - config.share_hypernym and fitting:
                queries.append(fitting[pick % len(fitting)])
            else:
                queries.append(steerer.class_names[label])
        distinct = sorted(set(queries))
        index = torch.tensor([distinct.index(query) for query in queries])
        batches = [[with_article(q) for q in distinct[i : i + 200]] for i in range(0, len(distinct), 200)]
        goals = [goal for batch in batches for goal in steerer.goals(batch)]
        vectors = torch.stack([goal.vector for goal in goals])
        return vectors[index], vectors.new_tensor([goal.familiarity for goal in goals])[index]

    return make


def wordless_goals(goals: Callable[[Tensor], Tensor]) -> MakeGoals:
    """Goals that need no words. `goals` maps class indices (b,) to goal vectors (b, m)."""

    def make(trial: Trials, classes: Tensor, is_present: bool) -> tuple[Tensor, Tensor]:
        vectors = goals(classes)
        return vectors, vectors.new_ones(len(vectors))

    return make


def image_outputs(steerer: Steerer, pixels: Tensor, labels: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """A function from classes (b,) to the network's unsteered outputs (b, m) for an image of each, drawn at random.

    Raises:
        ValueError: there is no image of some class.
    """
    outputs = run_unsteered(steerer.network, pixels).last
    generator = torch.Generator().manual_seed(seed)
    members = [torch.nonzero(labels == label)[:, 0] for label in range(len(steerer.class_names))]
    empty = [name for name, rows in zip(steerer.class_names, members, strict=True) if not len(rows)]
    if empty:
        raise ValueError(f"no image among {len(labels)} of {len(empty)} classes: {', '.join(empty[:5])}")

    def draw(classes: Tensor) -> Tensor:
        picks = torch.rand(len(classes), generator=generator)
        return outputs[torch.stack([members[c][int(p * len(members[c]))] for c, p in zip(classes, picks, strict=True)])]

    return draw


def verdict_examples(steerer: Steerer, trials: Sequence[Trials], make: MakeGoals) -> tuple[Tensor, Tensor, Tensor]:
    """Over all trials: features (n, f), the features as if steering changed nothing (n, f), and answers (n,)."""
    rows, without, answers = [], [], []
    for trial in tqdm(trials, desc="verdict examples", disable=None):
        unsteered = run_unsteered(steerer.network, trial.scenes.pixels)
        for is_present, classes in ((True, trial.present), (False, trial.absent)):
            goals, familiarity = make(trial, classes, is_present)
            after = run_steered(steerer.network, unsteered, goals)
            rows.append(features(unsteered.first, after, unsteered.places, goals, familiarity).cpu())
            first, places = unsteered.first, unsteered.places
            without.append(features(first, first, places, goals, familiarity).cpu())
            answers.append(torch.full((len(classes),), float(is_present)))
    return torch.cat(rows), torch.cat(without), torch.cat(answers)


def fit_verdict(values: Tensor, answers: Tensor, ridge: float) -> Verdict:
    """Ridge-penalised logistic regression (scikit-learn) on the expanded features."""
    from sklearn.linear_model import LogisticRegression

    mean, std = values.mean(0), values.std(0).clamp(min=1e-6)
    design = expand((values - mean) / std)
    fitted = LogisticRegression(C=1 / (ridge * len(answers)), fit_intercept=False, max_iter=2000).fit(
        design.numpy(), answers.numpy()
    )
    return Verdict(tuple(mean.tolist()), tuple(std.tolist()), tuple(fitted.coef_[0].tolist()))


def calibrate(config: CalibrationConfig) -> None:
    """Assemble a model folder, choose its strength and passes, and fit its verdicts. All is written into the folder."""
    vocabulary = assemble(config)
    folder = Path(config.output)
    steerer = Steerer.load(folder)
    network = steerer.network
    num_holdout = held_out_rows(network.card)
    pixels, labels = image_tensors(config.data, "holdout", network.preprocessing.size, num_holdout)
    count = len(steerer.class_names)

    def scenes_of(part: slice) -> list[Trials]:
        shown = pixels[part], labels[part]
        return [make_trials(kind, *shown, count, config.scenes, config.seed + i) for i, kind in enumerate(KINDS)]

    trials = scenes_of(slice(None))
    defaults, table = choose_defaults(steerer, trials, config)
    write_defaults(folder, defaults)
    print(f"strength {defaults.strength}, {defaults.passes} passes")
    for row in table:
        print(json.dumps(row))

    steerer = Steerer.load(folder)
    unknown: list[str] = []
    if config.nouns:
        nouns = read_nouns(config.nouns, vocabulary)[::40]
        language = steerer.language
        near = torch.cat([language.familiarity(language.embed(nouns[i : i + 500])) for i in range(0, len(nouns), 500)])
        unknown = [noun for noun, cosine in zip(nouns, near.tolist(), strict=True) if cosine < 0.5]
    by_name = Steerer.load(folder, prior="class-names")
    prototypes = torch.stack([steerer.prototype_goal(name).vector for name in steerer.class_names])
    evens, odds = slice(0, None, 2), slice(1, None, 2)  # a goal must not be the very image that a scene shows
    images = image_outputs(steerer, pixels[odds], labels[odds], config.seed)
    ways = {
        "diffusion": (steerer, trials, word_goals(steerer, vocabulary, unknown, config)),
        "class-names": (by_name, trials, word_goals(by_name, vocabulary, unknown, config)),
        "prototype": (steerer, trials, wordless_goals(prototypes.__getitem__)),
        "image": (steerer, scenes_of(evens), wordless_goals(images)),
    }
    verdicts = {}
    for way, (model, shown, make) in ways.items():
        values, without, answers = verdict_examples(model, shown, make)
        verdicts[way] = fit_verdict(values, answers, config.ridge)
        verdicts[f"{way}{UNSTEERED}"] = fit_verdict(without, answers, config.ridge)  # to compare with
        probability = verdicts[way].probability(values)
        right = ((probability >= 0.5) == (answers > 0.5)).float().mean()
        print(f"{way}: verdict on {len(answers)} trials, {right:.1%} right")
    save_verdicts(folder / "verdict.json", verdicts, network.card["sha256"])
    print(f"features: {', '.join(FEATURES)}")
    if config.familiar_words:
        found = fit_familiarity(steerer.language, *read_words(config.familiar_words))
        write_familiarity(folder, found)
        print(f"familiar words: {json.dumps(found)}")


def main(argv: list[str] | None = None) -> None:
    """Assemble and calibrate the model that a configuration describes."""
    config = CalibrationConfig.from_command_line(__doc__.splitlines()[0], argv)
    require_packages("datasets", "sklearn")
    calibrate(config)


if __name__ == "__main__":
    main()
