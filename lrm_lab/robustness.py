"""Is a later pass more robust than the first one, and than a plain twin? Images are attacked within L∞ balls, and
corrupted.

Unusual: signs of masked gradients (Athalye, Carlini & Wagner 2018) are measured too. Only images that a target
classifies rightly are attacked. Under PGD, an image that fooled a target at a smaller ε counts as fooling it at every
larger one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from lrm_lab.attacks import BATCH, PLAIN, Attacker, frozen, make_targets
from lrm_lab.corruptions import CORRUPTIONS, corrupt
from lrm_lab.statistics import mean_interval, resampling
from steering.network import Network

EPSILONS = (0.5 / 255, 1 / 255, 2 / 255, 4 / 255)
LARGE_EPSILON = 16 / 255  # beyond this an undefended network that still answers has masked gradients
SEVERITIES = (1, 3, 5)


@torch.no_grad()
def correct(
    network: Network, plain: nn.Module | None, pixels: Float[Tensor, "n 3 s s"], labels: Int[Tensor, " n"]
) -> dict[str, Bool[Tensor, " n"]]:
    """Whether each target is right about each image. All passes come from one roll-out."""
    batches: dict[str, list[Tensor]] = {}
    for part, answers in zip(pixels.split(BATCH), labels.split(BATCH), strict=True):
        inputs = network.preprocessing.normalise(part.to(network.device))
        outputs = {f"pass{k}": o for k, o in enumerate(network.model.rollout(inputs, network.defaults.passes), 1)}
        if plain is not None:
            outputs[PLAIN] = plain(inputs)
        for name, output in outputs.items():
            batches.setdefault(name, []).append(output.argmax(1).cpu() == answers)
    return {name: torch.cat(parts) for name, parts in batches.items()}


def _key(epsilon: float) -> str:
    return f"{255 * epsilon:g}"


def _accuracies(right: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(values.float().mean()) for name, values in right.items()}


def differences(right: Mapping[str, Tensor], clean: Mapping[str, Tensor], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Each later pass minus the first, and each pass minus the plain twin, with paired 95 % bootstrap intervals.

    Args:
        right: for each target (n,), whether it is right, or the share of conditions in which it is.
        clean: for each target (n,), whether it is right about the undisturbed image.

    `among_both` of a difference is the same difference over the images that both targets know undisturbed. It is None
    where there is no such image.
    """
    passes = [name for name in right if name != PLAIN]
    pairs = [(name, passes[0]) for name in passes[1:]]
    if PLAIN in right:
        pairs += [(name, PLAIN) for name in passes]
    result: dict[str, dict[str, Any]] = {}
    for one, other in pairs:
        gain, both = right[one].float() - right[other].float(), clean[one] & clean[other]
        result[f"{one} - {other}"] = {
            **_bootstrap(gain, seed),
            "among_both": _bootstrap(gain[both], seed) if bool(both.any()) else None,
        }
    return result


def _bootstrap(gain: Float[Tensor, " n"], seed: int) -> dict[str, Any]:
    return {
        "images": len(gain),
        "difference": float(gain.mean()),
        "interval": mean_interval(gain, resampling(len(gain), seed)),
    }


def measure(
    network: Network,
    plain: nn.Module | None,
    pixels: Float[Tensor, "n 3 s s"],
    labels: Int[Tensor, " n"],
    *,
    epsilons: Sequence[float] = EPSILONS,
    images: int = 200,
    autoattack_images: int = 40,
    autoattack_epsilons: Sequence[float] | None = None,
    autoattack_steps: int = 50,
    autoattack_queries: int = 300,
    check_images: int = 40,
    more_steps: int = 100,
    severities: Sequence[int] = SEVERITIES,
    quick: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy of every pass and of the plain twin on images as they are, attacked, and corrupted.

    Args:
        plain: maps normalised images to logits of the same classes, on the network's device. None if there is no twin.
        pixels: in 0–1, of the network's size, on the CPU.
        labels: classes.
        epsilons: radii of the L∞ balls, in units of 0–1.
        images: number of images that are drawn.
        autoattack_images, check_images: AutoAttack and the checks take so many of these images, the first ones.
        autoattack_epsilons: some of `epsilons`. None takes the second one, or the only one. The checks take the first
            of these.
        autoattack_steps, autoattack_queries: AutoAttack's budget. Its authors took 100 and 5000.
        more_steps: number of steps of PGD that shows whether 20 are enough.
        severities: severities of the corruptions.
        quick: whether to take few images and the first two ε, to see that everything runs.

    Raises:
        ValueError: pixels are of another size or outside 0–1, labels do not fit, or there is no image; an ε is not
            above 0 and below `LARGE_EPSILON`; an ε of AutoAttack is none of `epsilons`; or a severity is not 1 to 5.
    """
    if quick:
        images, autoattack_images, autoattack_steps, autoattack_queries = min(images, 24), 3, 10, 20
        check_images, more_steps, epsilons = 4, 40, epsilons[:2]
        autoattack_epsilons, severities = None, severities[-1:]
    epsilons = sorted(epsilons)
    wanted = tuple(autoattack_epsilons or epsilons[1:2] or epsilons)
    _check(network, pixels, labels)
    _check_settings(epsilons, wanted, severities, min(images, autoattack_images, check_images))
    picks = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:images]
    pixels, labels = pixels[picks], labels[picks]
    targets = make_targets(network, plain)
    results: dict[str, Any] = {"images": len(labels), "epsilons": [_key(e) for e in epsilons]}
    with (
        frozen([network.model, *([] if plain is None else [plain])]),
        tqdm(total=len(targets) * (2 * len(epsilons) + len(wanted) + 3), desc="attacks", disable=None) as bar,
    ):
        shape = (pixels.shape[-1], len(network.class_names), network.device)
        attackers = {name: Attacker(target, *shape, seed) for name, target in targets.items()}
        clean = correct(network, plain, pixels, labels)
        session = _Session(network, plain, pixels, labels, targets, attackers, clean, bar, seed)
        results["clean"] = _accuracies(clean)
        intervals: dict[str, Any] = {"clean": differences(clean, clean, seed)}
        results["intervals"] = intervals
        after = _attacked(session, epsilons)
        for attack, curve in after.items():
            results[attack] = {e: _accuracies(r) for e, r in curve.items() if e in results["epsilons"]}
            intervals[attack] = {e: differences(curve[e], clean, seed) for e in results[attack]}
        results["large"] = {"epsilon": _key(LARGE_EPSILON), "pgd20": _accuracies(after["pgd20"][_key(LARGE_EPSILON)])}
        ensemble, intervals["autoattack"] = _autoattacked(
            session, wanted, autoattack_images, autoattack_steps, autoattack_queries
        )
        pgd = {e: {n: r[:autoattack_images] for n, r in after["pgd20"].get(e, {}).items()} for e in ensemble}
        results["autoattack"] = ensemble
        results["autoattack_budget"] = {
            "images": min(autoattack_images, len(labels)),
            "steps": autoattack_steps,
            "queries": autoattack_queries,
            "pgd20_same_images": {e: _accuracies(right) for e, right in pgd.items()},
        }
        results |= _masked_gradients(session, wanted[0], check_images, more_steps)
        results["corruptions"], mean = _corrupted(session, severities)
    results["corrupted"] = _accuracies(mean)
    intervals["corruptions"] = differences(mean, clean, seed)
    return results


@dataclass(frozen=True, eq=False)
class _Session:
    """What is attacked, and with what.

    Attributes:
        clean: whether each target is right about each undisturbed image.
    """

    network: Network
    plain: nn.Module | None
    pixels: Tensor
    labels: Tensor
    targets: Mapping[str, nn.Module]
    attackers: Mapping[str, Attacker]
    clean: Mapping[str, Tensor]
    bar: Any
    seed: int

    def survivors(
        self, name: str, start: Bool[Tensor, " n"], attack: Callable[[Attacker, Tensor, Tensor], Tensor]
    ) -> Bool[Tensor, " n"]:
        """The images in `start` about which the target is still right after the attack."""
        self.bar.update()
        index, right = start.nonzero()[:, 0], start.clone()
        if len(index):
            labels = self.labels[index]
            attacked = attack(self.attackers[name], self.pixels[index], labels)
            right[index] = _right(self.targets[name], attacked, labels, self.network.device)
        return right


def _attacked(session: _Session, epsilons: Sequence[float]) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Attack (`fgsm`, `pgd20`) → ε → target → whether it is still right. PGD also runs at `LARGE_EPSILON`."""
    after: dict[str, dict[str, dict[str, Tensor]]] = {"fgsm": {}, "pgd20": {}}
    for name, known in session.clean.items():
        left = known
        for epsilon in (*epsilons, LARGE_EPSILON):
            left = session.survivors(name, left, lambda by, x, y: by.pgd(x, y, epsilon))  # noqa: B023 - called at once
            after["pgd20"].setdefault(_key(epsilon), {})[name] = left
        for epsilon in epsilons:
            right = session.survivors(name, known, lambda by, x, y: by.fgsm(x, y, epsilon))  # noqa: B023 - called at once
            after["fgsm"].setdefault(_key(epsilon), {})[name] = right
    return after


def _autoattacked(
    session: _Session, epsilons: Sequence[float], images: int, steps: int, queries: int
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Accuracies of the first `images` under AutoAttack, by ε, and their `differences`."""
    known = {name: right[:images] for name, right in session.clean.items()}
    few = torch.arange(len(session.labels)) < images
    results, intervals = {}, {}
    for epsilon in epsilons:

        def ensemble(by: Attacker, x: Tensor, y: Tensor, epsilon: float = epsilon) -> Tensor:
            return by.autoattack(x, y, epsilon, steps, queries)

        right = {name: session.survivors(name, own & few, ensemble)[:images] for name, own in session.clean.items()}
        results[_key(epsilon)] = _accuracies(right)
        intervals[_key(epsilon)] = differences(right, known, session.seed)
    return results, intervals


def _masked_gradients(session: _Session, epsilon: float, images: int, more_steps: int) -> dict[str, Any]:
    """Check the first `images`: every target on what PGD made for each (`transfer`), and PGD with `more_steps`."""
    pixels, labels = session.pixels[:images], session.labels[:images]
    known = {name: right[:images] for name, right in session.clean.items()}
    transfer, longer = {}, {}
    for name, attacker in session.attackers.items():
        answers = correct(session.network, session.plain, attacker.pgd(pixels, labels, epsilon), labels)
        transfer[name] = _accuracies({other: known[other] & right for other, right in answers.items()})
        session.bar.update()
        attacked = attacker.pgd(pixels, labels, epsilon, more_steps)
        longer[name] = known[name] & _right(session.targets[name], attacked, labels, session.network.device)
        session.bar.update()
    checked = {"steps": more_steps, "images": len(labels), "epsilon": _key(epsilon), "pgd": _accuracies(longer)}
    return {"transfer": transfer, "more_steps": checked}


def _corrupted(
    session: _Session, severities: Sequence[int]
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, Tensor]]:
    """Accuracies by corruption and severity, and for each target and image the share of these that it gets right."""
    results: dict[str, dict[str, dict[str, float]]] = {}
    shares = []
    generator = torch.Generator().manual_seed(session.seed)
    for corruption in tqdm(CORRUPTIONS, desc="corruptions", disable=None):
        for severity in severities:
            changed = corrupt(corruption, severity, session.pixels, generator)
            right = correct(session.network, session.plain, changed, session.labels)
            results.setdefault(corruption, {})[str(severity)] = _accuracies(right)
            shares.append(right)
    return results, {name: torch.stack([right[name].float() for right in shares]).mean(0) for name in session.targets}


@torch.no_grad()
def _right(target: nn.Module, pixels: Tensor, labels: Tensor, device: torch.device) -> Tensor:
    return torch.cat([target(part.to(device)).argmax(1).cpu() for part in pixels.split(BATCH)]) == labels


def _check(network: Network, pixels: Tensor, labels: Tensor) -> None:
    size, count = network.preprocessing.size, len(network.class_names)
    if pixels.shape[1:] != (3, size, size):
        raise ValueError(f"pixels: got shape {tuple(pixels.shape)}, expected (n, 3, {size}, {size})")
    if len(pixels) != len(labels) or not len(labels):
        raise ValueError(
            f"labels: got {len(labels)} for {len(pixels)} images, expected one for each of at least one image"
        )
    if float(pixels.min()) < 0 or float(pixels.max()) > 1:
        raise ValueError(f"pixels: got values from {float(pixels.min()):g} to {float(pixels.max()):g}, expected 0 to 1")
    if int(labels.min()) < 0 or int(labels.max()) >= count:
        raise ValueError(f"labels: got {int(labels.min())} to {int(labels.max())}, expected 0 to {count - 1}")


def _check_settings(epsilons: Sequence[float], wanted: Sequence[float], severities: Sequence[int], images: int) -> None:
    if not epsilons or min(epsilons) <= 0 or max(epsilons) >= LARGE_EPSILON:
        raise ValueError(f"epsilons: got {epsilons}, expected values above 0 and below {LARGE_EPSILON:.4f}")
    if not set(map(_key, wanted)) <= set(map(_key, epsilons)):
        raise ValueError(f"autoattack_epsilons: got {wanted}, expected some of {epsilons}")
    if not severities or not set(severities) <= set(range(1, 6)):
        raise ValueError(f"severities: got {severities}, expected some of 1 to 5")
    if images < 1:
        raise ValueError(f"images: got {images} for one of the parts, expected at least 1")
