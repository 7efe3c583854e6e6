"""Attacks within L∞ balls, and their targets: every pass, and a plain twin.

FGSM (Goodfellow et al. 2015), PGD (Madry et al. 2018) and AutoAttack (Croce & Hein 2020) come from the Adversarial
Robustness Toolbox. Its AutoAttack is APGD on cross-entropy and on the logits' difference ratio, DeepFool in place of
FAB, and Square.

Unusual: pass k is one differentiable function of the pixels, through all passes up to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lrm_core.backbones import Preprocessing
from steering.network import Network

PLAIN = "plain"
BATCH = 50


class RolledOut(nn.Module):
    """Pass `number` without a goal, as one function: pixels in 0–1 (b, 3, s, s) → logits (b, m)."""

    def __init__(self, network: Network, number: int) -> None:
        super().__init__()
        self.model, self.preprocessing, self.number = network.model, network.preprocessing, number

    def forward(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b m"]:
        return self.model.rollout(self.preprocessing.normalise(pixels), self.number)[-1]


class Normalised(nn.Module):
    """A module that takes normalised images, as a function of pixels in 0–1."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model, self.preprocessing = model, preprocessing

    def forward(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b m"]:
        return self.model(self.preprocessing.normalise(pixels))


def make_targets(network: Network, plain: nn.Module | None) -> dict[str, nn.Module]:
    """The targets of attacks: `pass1` to the last default pass, and `plain` if there is a plain twin."""
    targets: dict[str, nn.Module] = {f"pass{k}": RolledOut(network, k) for k in range(1, network.defaults.passes + 1)}
    return targets if plain is None else {**targets, PLAIN: Normalised(plain, network.preprocessing)}


@contextmanager
def frozen(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Modules in evaluation mode and without gradients of their parameters. Afterwards they are as they were."""
    training = [(inner, inner.training) for module in modules for inner in module.modules()]
    wanted = [(parameter, parameter.requires_grad) for module in modules for parameter in module.parameters()]
    try:
        for module in modules:
            module.eval().requires_grad_(False)
        yield
    finally:
        for inner, mode in training:
            inner.training = mode
        for parameter, gradient in wanted:
            parameter.requires_grad = gradient


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which the toolbox draws from. Afterwards it and torch's are as they were."""
    import numpy as np

    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


class Attacker:
    """The toolbox's attacks on one target. Every result is clipped to the ball and to 0–1.

    Args:
        target: pixels in 0–1 (b, 3, s, s) → logits (b, num_classes), frozen.
        size: side of its images in pixels.
    """

    def __init__(self, target: nn.Module, size: int, num_classes: int, device: torch.device, seed: int = 0) -> None:
        from art.estimators.classification import PyTorchClassifier

        kind = "gpu" if device.type == "cuda" else "cpu"
        shape, loss = (3, size, size), nn.CrossEntropyLoss()
        self.estimator: Any = PyTorchClassifier(
            target, loss, shape, num_classes, clip_values=(0.0, 1.0), device_type=kind
        )
        self.seed = seed

    def _run(self, attack: Any, pixels: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        if not len(pixels):
            return pixels
        with _seeded(self.seed):
            attacked = torch.from_numpy(attack.generate(pixels.numpy().copy(), labels.numpy()))
        return torch.maximum(torch.minimum(attacked, pixels + epsilon), pixels - epsilon).clamp(0, 1)

    def fgsm(
        self, pixels: Float[Tensor, "b 3 s s"], labels: Int[Tensor, " b"], epsilon: float
    ) -> Float[Tensor, "b 3 s s"]:
        """One step of size ε along the sign of the gradient."""
        from art.attacks.evasion import FastGradientMethod

        return self._run(FastGradientMethod(self.estimator, eps=epsilon, batch_size=BATCH), pixels, labels, epsilon)

    def pgd(
        self,
        pixels: Float[Tensor, "b 3 s s"],
        labels: Int[Tensor, " b"],
        epsilon: float,
        steps: int = 20,
        *,
        random_start: bool = True,
    ) -> Float[Tensor, "b 3 s s"]:
        """Steps of size 2.5 ε / steps, as Madry et al. took them, from a random start in the ball or its centre."""
        from art.attacks.evasion import ProjectedGradientDescent

        options = {"eps": epsilon, "eps_step": 2.5 * epsilon / steps, "max_iter": steps, "batch_size": BATCH}
        attack = ProjectedGradientDescent(self.estimator, num_random_init=int(random_start), verbose=False, **options)
        return self._run(attack, pixels, labels, epsilon)

    def autoattack(
        self, pixels: Float[Tensor, "b 3 s s"], labels: Int[Tensor, " b"], epsilon: float, steps: int, queries: int
    ) -> Float[Tensor, "b 3 s s"]:
        """The ensemble. Each attack gets what the ones before it could not fool.

        Args:
            steps: number of steps of the attacks that follow gradients.
            queries: number of queries of Square.
        """
        from art.attacks import evasion

        ball = {"eps": epsilon, "norm": "inf"}
        descent = {"max_iter": steps, "nb_random_init": 1, "eps_step": 2 * epsilon, **ball}
        options = {"batch_size": BATCH, "verbose": False}
        with _seeded(self.seed):  # APGD runs the target already when it is made
            attacks = [
                *(
                    evasion.AutoProjectedGradientDescent(self.estimator, loss_type=loss, **descent, **options)
                    for loss in ("cross_entropy", "difference_logits_ratio")
                ),
                evasion.DeepFool(self.estimator, max_iter=steps, epsilon=1e-3, nb_grads=10, **options),
                evasion.SquareAttack(self.estimator, max_iter=queries, nb_restarts=1, **options, **ball),
            ]
        ensemble = evasion.AutoAttack(self.estimator, attacks=attacks, eps_step=2 * epsilon, batch_size=BATCH, **ball)
        return self._run(ensemble, pixels, labels, epsilon)
