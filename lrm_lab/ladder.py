"""A ladder of ways from words to goals, on words that were kept out of all training.

The rungs are the class names, a ridge regression, a network that answers in one shot, the model's own prior, a
diffusion prior where there is one, and the oracle: the mean output for the classes that the word means. Ridge and
network learn here, from the nouns of the model's vocabulary to the mean outputs of what they mean.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lrm_core.trials import Trials, make_trials
from lrm_lab.statistics import auroc
from prior.captions import Vocabulary, with_article
from prior.data import membership
from steering.evidence import support
from steering.rollouts import run_steered, run_unsteered
from steering.steerer import Steerer

Rung = Callable[[Tensor], Tensor]
"""Text embeddings (b, N) → goals (b, M) in logits."""

STEPS, BATCH, RATE, NOISE, WIDTH = 800, 384, 2e-3, 0.4, 768  # of the network; they are those of the membership prior
TIMED = 15  # goals whose time is taken, one by one
ORACLE = "oracle"


def measure(
    steerer: Steerer,
    held_out: Mapping[str, Sequence[str]],
    pixels: Float[Tensor, "n 3 s s"],
    labels: Int[Tensor, " n"],
    *,
    others: Mapping[str, Steerer],
    scenes: int,
    seed: int = 0,
) -> dict[str, Any]:
    """How well each rung understands the held-out words, and how well steering by its goals tells present from absent.

    Args:
        held_out: word → the WordNet ids of the classes that it means.
        pixels, labels: labelled images, in 0–1. Blends are made of them.
        others: the same model with other priors, by the name of the rung.
        scenes: number of blends.
        seed: number that draws the blends and starts the network.

    Raises:
        ValueError: the model has no prototypes or no vocabulary, or no word means a class of the images.
    """
    language, classes = steerer.language, steerer.network.card["classes"]
    row = {entry["wnid"]: index for index, entry in enumerate(classes)}
    meant = membership([tuple(row[wnid] for wnid in wnids) for wnids in held_out.values()], len(classes))
    means = torch.stack([steerer.prototype_goal(entry["name"]).vector.cpu() for entry in classes])
    embeddings = language.embed([with_article(word) for word in held_out]).cpu()
    if language.vocabulary is None or not language.known:
        raise ValueError(f"model {steerer.network.card['name']} has no vocabulary to learn from")
    texts, targets = _lessons(
        dict(zip(language.known, language.vocabulary.cpu(), strict=True)), classes, held_out, means
    )
    rungs: dict[str, Rung] = {
        **{name: _prior(other) for name, other in others.items()},
        "ridge": ridge(texts, targets),
        "one-shot": one_shot(texts, targets, seed),
        steerer.language.prior.source: _prior(steerer),
    }
    oracle = (meant / meant.sum(1, keepdim=True)) @ means
    goals = {name: rung(embeddings).float().cpu() for name, rung in rungs.items()} | {ORACLE: oracle}
    trials, words = _blends(meant, pixels, labels, scenes, seed)
    entries = {}
    for name, found in goals.items():
        entries[name] = {
            **_understood(found, meant.bool(), oracle, means.mean(0)),
            "presence_auroc": _presence(steerer, trials, found[words[0]], found[words[1]]),
            "milliseconds": _milliseconds(rungs[name], embeddings) if name in rungs else None,
        }
    return {"words": len(held_out), "scenes": len(trials.present), "own": language.prior.source, "rungs": entries}


def _prior(steerer: Steerer) -> Rung:
    defaults = steerer.network.defaults
    device = steerer.network.device

    def goals(embeddings: Tensor) -> Tensor:
        return steerer.language.prior.goals(
            embeddings.to(device), num_samples=defaults.num_samples, steps=defaults.sampling_steps
        )

    return goals


def _lessons(
    known: Mapping[str, Tensor],
    classes: Sequence[dict[str, Any]],
    held_out: Iterable[str],
    means: Float[Tensor, "m m"],
) -> tuple[Float[Tensor, "v n"], Float[Tensor, "v m"]]:
    """Embeddings of the known nouns, and what each should become: the mean output for the classes that it means."""
    nouns = [(noun, labels) for noun, labels, _ in Vocabulary(classes, held_out).nouns() if noun in known]
    members = membership([labels for _, labels in nouns], len(means))
    return torch.stack([known[noun] for noun, _ in nouns]), (members / members.sum(1, keepdim=True)) @ means


def ridge(texts: Float[Tensor, "v n"], targets: Float[Tensor, "v m"]) -> Rung:
    """Ridge regression (scikit-learn). Leaving one noun out at a time chooses the penalty."""
    from sklearn.linear_model import RidgeCV

    fitted = RidgeCV(alphas=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)).fit(texts.numpy(), targets.numpy())
    return lambda embeddings: torch.from_numpy(fitted.predict(embeddings.cpu().numpy()))


def one_shot(texts: Float[Tensor, "v n"], targets: Float[Tensor, "v m"], seed: int) -> Rung:
    """A network with one hidden layer, trained on squared errors; noise is added to the texts."""
    mean, spread = targets.mean(0), targets.std()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(texts.shape[1], WIDTH), nn.GELU(), nn.Dropout(0.2), nn.Linear(WIDTH, targets.shape[1])
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for _ in range(STEPS):
            rows = torch.randint(0, len(texts), (BATCH,))
            noise = NOISE * torch.rand(BATCH, 1) * F.normalize(torch.randn(BATCH, texts.shape[1]), dim=1)
            found = network(_scaled(texts[rows] + noise))
            loss = F.mse_loss(found, (targets[rows] - mean) / spread)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval().requires_grad_(False)
    return lambda embeddings: network(_scaled(embeddings)) * spread + mean


def _scaled(embeddings: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Entries of unit-length embeddings are about 1/sqrt(N). This brings them to about 1."""
    return F.normalize(embeddings, dim=1) * embeddings.shape[1] ** 0.5


def _understood(
    goals: Float[Tensor, "w m"], meant: Bool[Tensor, "w m"], oracle: Float[Tensor, "w m"], centre: Float[Tensor, " m"]
) -> dict[str, float]:
    """R@1, R@5, mean cosine with the oracle's goal after centring, and the spread over words as a share of its."""
    best = goals.topk(5, 1).indices
    right = meant.gather(1, best)
    spread, widest = (table.var(0).sum().sqrt() for table in (goals, oracle))
    return {
        "R@1": float(right[:, 0].float().mean()),
        "R@5": float(right.any(1).float().mean()),
        "cosine": float(F.cosine_similarity(goals - centre, oracle - centre).mean()),
        "spread": float(spread / widest),
    }


def _blends(
    meant: Float[Tensor, "w m"],
    pixels: Float[Tensor, "n 3 s s"],
    labels: Int[Tensor, " n"],
    scenes: int,
    seed: int,
) -> tuple[Trials, Int[Tensor, "2 b"]]:
    """Blends, and for each a word that means its present goal, and a word that means nothing that it shows."""
    usable = meant[:, labels].any(0)
    if not usable.any():
        raise ValueError("held_out: got no word that means a class of the images")
    trials = make_trials("blend", pixels[usable], labels[usable], meant.shape[1], scenes, seed)
    generator = torch.Generator().manual_seed(seed)
    present = torch.multinomial(meant[:, trials.present].T, 1, generator=generator)[:, 0]
    shown = meant[:, trials.scenes.labels].any(2)  # (w, b)
    absent = torch.multinomial((~shown).float().T, 1, generator=generator)[:, 0]
    return trials, torch.stack([present, absent])


def _presence(steerer: Steerer, trials: Trials, present: Float[Tensor, "b m"], absent: Float[Tensor, "b m"]) -> float:
    """AUROC of the goal's support after steering by it."""
    unsteered = run_unsteered(steerer.network, trials.scenes.pixels)
    scores = []
    for goals in (present, absent):
        own = goals.to(unsteered.first)
        scores.append(support(run_steered(steerer.network, unsteered, own).output, own).cpu())
    return auroc(torch.cat(scores), torch.tensor([1, 0]).repeat_interleave(len(present)))


def _milliseconds(rung: Rung, embeddings: Float[Tensor, "w n"]) -> float:
    """Median time for one goal."""
    times = []
    for embedding in embeddings[:TIMED]:
        start = time.perf_counter()
        rung(embedding[None])
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)
