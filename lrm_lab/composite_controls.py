"""Controls of the composite challenge: they know the goal, but lack long-range multiplicative feedback.

Unusual: every control gets the setting that serves it best on the very scenes that it is measured on.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from lrm_core.feedback import Strength
from lrm_core.trials import Trials, top1
from lrm_lab.named import over_classes
from lrm_lab.statistics import CONSTANTS, rate_at
from lrm_lab.trials import TopOne, constant_top_one, run_both
from prior.captions import with_article
from prior.text import TextEncoder
from steering.network import Network
from steering.rollouts import Unsteered, run_unsteered
from steering.steerer import Steerer

STRENGTHS = (0.25, 0.5, 0.65, 1.0)  # tried for the trained controls, beside the model's own default
CONTROL_NAMES = {
    "constant": "constant on the goal's logit",
    "reweighted": "output plus the goal",
    "additive": "additive feedback",
    "last_layer": "gain on the last features",
    "plain": "plain twin, constant",
    "twin": "twin without goals",
    "zero_shot": "zero-shot by the text encoder, constant",
}


def run_controls(
    steerer: Steerer, trials: Trials, unsteered: Unsteered, goals: Float[Tensor, "c m"], trained: Mapping[str, Network]
) -> dict[str, TopOne]:
    """Measure every control, over constants or weights. All controls take the goals that were made for `steerer`.

    - `constant`: nats are added to the goal's unsteered logit, after the first pass or after the last.
    - `reweighted`: multiples of the whole standardised goal are added to the unsteered output.
    - `zero_shot`: the text encoder's own image tower, if it has one, with the constant.
    - `plain`, if it was trained: a network without feedback, with the constant.
    - The other trained controls: steered at each of several strengths, with the constant.

    Of several settings, the one with the highest rate of present goals at 5 % absent ones is taken.
    """
    settings: dict[str, list[TopOne]] = {
        "constant": [constant_top_one(o, o, trials, CONSTANTS) for o in (unsteered.first, unsteered.last)]
    }
    wanted = over_classes(steerer.network, goals)
    standard = (wanted - wanted.mean(1, keepdim=True)) / wanted.std(1, keepdim=True)
    settings["reweighted"] = [_reweighted(unsteered.first, trials, standard)]
    if has_image_tower(steerer):
        logits = zero_shot(steerer, trials)
        settings["zero_shot"] = [constant_top_one(logits, logits, trials, CONSTANTS)]
    for name, twin in trained.items():
        seen = run_unsteered(twin, trials.scenes.pixels)
        if name == "plain":
            settings[name] = [constant_top_one(seen.first, seen.first, trials, CONSTANTS)]
            continue
        own = float(positive_gain(steerer.network.defaults.strength))
        strengths = [own] if name == "twin" else sorted({*STRENGTHS, own})  # a twin does the same whatever the goal
        pairs = [run_both(twin, trials, seen, goals, strength) for strength in strengths]
        settings[name] = [constant_top_one(a.output, b.output, trials, CONSTANTS) for a, b in pairs]
    return {name: max(choices, key=_present_at_five) for name, choices in settings.items()}


def zero_shot(steerer: Steerer, trials: Trials, batch: int = 250) -> Float[Tensor, "b m"]:
    """Logits of the text encoder's own zero-shot classifier (Radford et al. 2021), of unit variance over classes.

    The scale does not change which class is best. It spreads the constants as the network's own logits do.
    """
    similarity = similarities(steerer, trials.scenes.pixels, batch)
    return (similarity - similarity.mean()) / similarity.std(1).mean()


def has_image_tower(steerer: Steerer) -> bool:
    """Whether the text encoder has an image tower of its own, to compare with. A CLIP's is what looks itself."""
    text = steerer.language.text
    return isinstance(text, TextEncoder) and text.sees


def similarities(steerer: Steerer, pixels: Float[Tensor, "b 3 s s"], batch: int = 250) -> Float[Tensor, "b m"]:
    """Cosines of images, pixels in 0–1, with class names, by a text encoder that has an image tower."""
    text = steerer.language.text
    assert isinstance(text, TextEncoder)
    names = text.encode([with_article(name) for name in steerer.class_names])
    return torch.cat([text.encode_images(part) for part in pixels.split(batch)]).cpu() @ names.T.cpu()


def positive_gain(strength: Strength) -> float:
    """The gain of positive feedback in a strength, which may be a pair (negative, positive)."""
    return strength if isinstance(strength, int | float) else strength[1]


def _present_at_five(control: TopOne) -> float:
    present, absent = control.rates()
    return float(rate_at(present, absent, 0.05))


def _reweighted(output: Tensor, trials: Trials, standard: Tensor) -> TopOne:
    weights = [i * 0.05 for i in range(81)]
    shown = []
    for classes in (trials.present, trials.absent):
        goal = standard[classes].to(output)
        shown.append(torch.stack([top1(output + w * goal, classes).cpu().float() for w in weights], 1))
    return TopOne(tuple(weights), *shown)
