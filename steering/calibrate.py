"""Assemble a model folder and calibrate it: `python -m steering.calibrate --config configs/calibrate_mini.yaml`.

Chooses the default strength and passes on composites of training images that the backbone was not trained on, then
fits a verdict on such composites and single images for every way of making goals. Goals by words are class names,
hypernyms, and nouns that the backbone has no class for (which are never present); those without words are the classes'
mean outputs and the outputs of single images.
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
from lrm_base.config import Config
from lrm_core.scenes import KINDS
from lrm_core.weights import held_out_rows
from prior.captions import Vocabulary, with_article
from prior.data import read_nouns, vocabulary_anchors
from steering.evaluate.single import image_tensors
from steering.evidence import FEATURES, UNSTEERED, Verdict, expand, features, save_verdicts
from steering.steerer import Defaults, Steerer
from steering.trials import Trials, class_goals, make_trials, run_steered, run_unsteered, steering_hits

MakeGoals = Callable[[Trials, Tensor, bool], tuple[Tensor, Tensor]]
"""(trials, classes, whether they are present) → goals (b, m) and their familiarity (b,)."""


class CalibrationConfig(Config):
    """backbone, prior, text: folders of the trained parts; prototypes: a file; output: the model folder to write.

    strengths, passes: tried together; of those whose absent goals become top-1 in at most `most_absent` of the
    composites of every kind and `most_absent_single` of the single images, the ones with the best J are taken.
    scenes: of each kind. share_unknown: of the absent goals that are nouns outside the vocabulary.
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
    seed: int = 0


def assemble(config: CalibrationConfig) -> Vocabulary:
    """Copy the trained parts into the model folder and write the vocabulary's embeddings."""
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "verdict.json").unlink(missing_ok=True)  # of what was there before
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
    """Strength and passes of the best J whose absent goals stay rare, and the table that they were chosen from.

    J is the mean over composites of how often a goal is top-1 when present minus when absent. Leaves the defaults of
    the steerer as chosen.

    Raises:
        ValueError: nothing keeps absent goals as rare as asked for.
    """
    goals = class_goals(steerer)
    table: list[dict[str, Any]] = []
    fit: list[tuple[float, Defaults]] = []
    for passes in config.passes:
        steerer.defaults = dataclasses.replace(steerer.defaults, passes=passes)
        rates: dict[str, Any] = {}
        for trial in trials:
            unsteered = run_unsteered(steerer, trial.scenes.pixels)
            rates[trial.scenes.kind] = steering_hits(steerer, trial, unsteered, goals, config.strengths).rates()
        for index, strength in enumerate(config.strengths):
            present = {kind: float(found[0][0, index]) for kind, found in rates.items()}
            absent = {kind: float(found[1][0, index]) for kind, found in rates.items()}
            kinds = [kind for kind in rates if kind != "single"]
            j = sum(present[kind] - absent[kind] for kind in kinds) / len(kinds)
            table.append({"strength": strength, "passes": passes, "J": j, "present": present, "absent": absent})
            # Rates are counts over scenes, in float32: a rate at its limit is within it.
            rare = max(absent[kind] for kind in kinds) <= config.most_absent + 1e-6
            if rare and absent.get("single", 0.0) <= config.most_absent_single + 1e-6:
                fit.append((j, dataclasses.replace(steerer.defaults, strength=strength)))
    if not fit:
        raise ValueError(
            f"no strength among {config.strengths} keeps absent goals below {config.most_absent:.1%} of the composites "
            f"and {config.most_absent_single:.1%} of the single images: {json.dumps(table)}"
        )
    steerer.defaults = max(fit, key=lambda pair: pair[0])[1]
    return steerer.defaults, table


def word_goals(
    steerer: Steerer, vocabulary: Vocabulary, unknown: Sequence[str], config: CalibrationConfig
) -> MakeGoals:
    """Goals by words: class names, hypernyms, and for absent ones nouns outside the vocabulary."""
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
        goals = torch.cat([steerer.goals(batch) for batch in batches])
        familiarity = torch.cat([steerer.familiarity(steerer.embed(batch)) for batch in batches])
        return goals[index], familiarity[index]

    return make


def wordless_goals(goals: Callable[[Tensor], Tensor]) -> MakeGoals:
    """Goals of classes that need no words: `goals` maps class indices (b,) to (b, m)."""

    def make(trial: Trials, classes: Tensor, is_present: bool) -> tuple[Tensor, Tensor]:
        vectors = goals(classes)
        return vectors, vectors.new_ones(len(vectors))

    return make


def image_outputs(steerer: Steerer, pixels: Tensor, labels: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """For classes (b,), what the network, unsteered, says of an image of each, drawn at random.

    Raises:
        ValueError: there is no image of some class.
    """
    outputs = run_unsteered(steerer, pixels).last
    generator = torch.Generator().manual_seed(seed)
    members = [torch.nonzero(labels == label)[:, 0] for label in range(len(steerer.class_names))]
    empty = [name for name, found in zip(steerer.class_names, members, strict=True) if not len(found)]
    if empty:
        raise ValueError(f"no image among {len(labels)} of {len(empty)} classes: {', '.join(empty[:5])}")

    def draw(classes: Tensor) -> Tensor:
        picks = torch.rand(len(classes), generator=generator)
        return outputs[torch.stack([members[c][int(p * len(members[c]))] for c, p in zip(classes, picks, strict=True)])]

    return draw


def verdict_examples(steerer: Steerer, trials: Sequence[Trials], make: MakeGoals) -> tuple[Tensor, Tensor, Tensor]:
    """Features (n, f), the same as if steering changed nothing, and answers (n,), over all trials."""
    rows, without, answers = [], [], []
    for trial in tqdm(trials, desc="verdict examples", disable=None):
        unsteered = run_unsteered(steerer, trial.scenes.pixels)
        for is_present, classes in ((True, trial.present), (False, trial.absent)):
            goals, familiarity = make(trial, classes, is_present)
            after = run_steered(steerer, unsteered, goals)
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
    """Assemble, choose the strength, fit the verdicts; writes everything into the model folder."""
    vocabulary = assemble(config)
    folder = Path(config.output)
    steerer = Steerer.load(folder)
    num_holdout = held_out_rows(steerer.card)
    pixels, labels = image_tensors(config.data, "holdout", steerer.preprocessing.size, num_holdout)
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
        near = torch.cat([steerer.familiarity(steerer.embed(nouns[i : i + 500])) for i in range(0, len(nouns), 500)])
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
    save_verdicts(folder / "verdict.json", verdicts, steerer.card["sha256"])
    print(f"features: {', '.join(FEATURES)}")


if __name__ == "__main__":
    calibrate(CalibrationConfig.from_command_line(__doc__.splitlines()[0]))
