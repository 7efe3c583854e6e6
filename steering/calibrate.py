"""Assemble a model folder and calibrate it: `python -m steering.calibrate --config configs/calibrate_mini.yaml`.

Chooses the default strength on composites of training images that the backbone was not trained on, then fits the
verdict on such composites and single images, with goals by words: class names, hypernyms, and nouns that the backbone
has no class for (which are never present).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lrm_base.card import save_weights
from lrm_base.config import Config
from lrm_core.scenes import KINDS
from prior.captions import Vocabulary, with_article
from prior.data import read_nouns, vocabulary_anchors
from steering.evaluate.bars import image_tensors
from steering.evidence import FEATURES, Verdict, expand
from steering.steerer import Defaults, Steerer
from steering.trials import (
    Trials,
    class_goals,
    make_trials,
    presence_features,
    run_steered,
    run_unsteered,
    steering_hits,
)


class CalibrationConfig(Config):
    """backbone, prior, text: folders of the trained parts; output: the model folder to write.

    strengths: tried in order; the last is taken whose absent goals become top-1 in at most `most_absent` of the
    composites of every kind and `most_absent_single` of the single images.
    scenes: of each kind. share_unknown: of the absent goals that are nouns outside the vocabulary.
    """

    backbone: str
    prior: str
    text: str
    output: str
    data: str
    classes: str
    nouns: str | None = None
    held_out: str | None = None
    passes: int = 3
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
    for folder, name in ((config.backbone, "backbone"), (config.prior, "prior")):
        for suffix in (".safetensors", ".json"):
            shutil.copyfile(Path(folder) / f"{name}{suffix}", output / f"{name}{suffix}")
    if Path(config.text).resolve() != (output / "text").resolve():
        shutil.copytree(config.text, output / "text", dirs_exist_ok=True)
    held_out = json.loads(Path(config.held_out).read_text()) if config.held_out else {}
    vocabulary = Vocabulary.load(config.classes, held_out)

    from prior.text import TextEncoder

    encoder = TextEncoder.load(output / "text")
    embeddings, _ = vocabulary_anchors(vocabulary, encoder.encode)
    card = {"name": "vocabulary", "nouns": [noun for noun, _, _ in vocabulary.nouns()], "text_encoder": encoder.name}
    save_weights(output / "vocabulary.safetensors", {"embeddings": embeddings}, card, half=True)
    write_defaults(output, Defaults(1.0, config.passes, config.num_samples, config.sampling_steps))
    return vocabulary


def write_defaults(folder: Path, defaults: Defaults) -> None:
    """Keep what a look uses unless told otherwise."""
    (folder / "steering.json").write_text(json.dumps(dataclasses.asdict(defaults), indent=1) + "\n")


def choose_strength(steerer: Steerer, trials: Sequence[Trials], config: CalibrationConfig) -> tuple[float, list[Any]]:
    """The largest strength whose absent goals stay rare, and the table that it was chosen from."""
    goals = class_goals(steerer)
    table: list[dict[str, Any]] = [{"strength": s, "present": {}, "absent": {}} for s in config.strengths]
    for trial in trials:
        unsteered = run_unsteered(steerer, trial.scenes.pixels)
        present, absent = steering_hits(steerer, trial, unsteered, goals, config.strengths).rates()
        for row, p, a in zip(table, present[0].tolist(), absent[0].tolist(), strict=True):
            row["present"][trial.scenes.kind], row["absent"][trial.scenes.kind] = p, a
    chosen = config.strengths[0]
    for row in table:
        composites = [rate for kind, rate in row["absent"].items() if kind != "single"]
        if max(composites) <= config.most_absent and row["absent"]["single"] <= config.most_absent_single:
            chosen = row["strength"]
    return chosen, table


def verdict_examples(
    steerer: Steerer,
    trials: Sequence[Trials],
    vocabulary: Vocabulary,
    unknown: Sequence[str],
    config: CalibrationConfig,
) -> tuple[Tensor, Tensor]:
    """Features (n, f) and answers (n,) of present and absent goals over all trials."""
    generator = torch.Generator().manual_seed(config.seed)
    groups = [(noun, set(labels)) for noun, labels in vocabulary.groups.items() if 2 <= len(labels) <= 40]
    rows, answers = [], []
    for trial in tqdm(trials, desc="verdict examples", disable=None):
        unsteered = run_unsteered(steerer, trial.scenes.pixels)
        shown = [set(labels) for labels in trial.scenes.labels.tolist()]
        for is_present, classes in ((True, trial.present), (False, trial.absent)):
            queries = []
            for label, inside in zip(classes.tolist(), shown, strict=True):
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
            embeddings = steerer.embed([with_article(query) for query in distinct])
            batches = [distinct[i : i + 200] for i in range(0, len(distinct), 200)]
            goals = torch.cat([steerer.goals([with_article(query) for query in batch]) for batch in batches])
            after = run_steered(steerer, unsteered, goals[index])
            rows.append(presence_features(steerer, unsteered.first, after, goals[index], embeddings[index]))
            answers.append(torch.full((len(queries),), float(is_present)))
    return torch.cat(rows), torch.cat(answers)


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
    """Assemble, choose the strength, fit the verdict; writes everything into the model folder."""
    vocabulary = assemble(config)
    folder = Path(config.output)
    steerer = Steerer.load(folder)
    num_holdout = steerer.card["training"]["data"]["num_holdout"]  # those that the backbone was not trained on
    pixels, labels = image_tensors(config.data, "holdout", steerer.preprocessing.size, num_holdout)
    count = len(steerer.class_names)
    trials = [make_trials(kind, pixels, labels, count, config.scenes, config.seed + i) for i, kind in enumerate(KINDS)]
    strength, table = choose_strength(steerer, trials, config)
    defaults = Defaults(strength, config.passes, config.num_samples, config.sampling_steps)
    write_defaults(folder, defaults)
    print(f"strength {strength}")
    for row in table:
        print(json.dumps(row))

    steerer = Steerer.load(folder)
    unknown: list[str] = []
    if config.nouns:
        nouns = read_nouns(config.nouns, vocabulary)[::40]
        near = torch.cat([steerer.familiarity(steerer.embed(nouns[i : i + 500])) for i in range(0, len(nouns), 500)])
        unknown = [noun for noun, cosine in zip(nouns, near.tolist(), strict=True) if cosine < 0.5]
    values, answers = verdict_examples(steerer, trials, vocabulary, unknown, config)
    verdict = fit_verdict(values, answers, config.ridge)
    verdict.save(folder / "verdict.json")
    probability = verdict.probability(values)
    right = ((probability >= 0.5) == (answers > 0.5)).float().mean()
    print(f"verdict on {len(answers)} trials from features {', '.join(FEATURES)}: {right:.1%} right")


if __name__ == "__main__":
    calibrate(CalibrationConfig.from_command_line(__doc__.splitlines()[0]))
