"""The composite challenge: rates by hand, and controls that know the goal. Without feedback nothing is gained."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from lrm_core.scenes import KINDS, NUM_OBJECTS, compose
from lrm_core.trials import Trials, build, make_trials, top1
from lrm_lab.composite_controls import run_controls
from lrm_lab.composites import detection, measure, rates, sweep, trial_scores
from lrm_lab.goals import GoalSets
from lrm_lab.statistics import CONSTANTS, rate_at, resampling
from lrm_lab.trials import constant_top_one
from prior.captions import with_article
from steering import Steerer
from steering.evidence import TWIN, UNSTEERED, Seen, support
from steering.rollouts import class_goals, run_steered, run_unsteered


def numbers(value):
    """Every number in nested results."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif not isinstance(value, str):
        yield value


def test_every_number_is_finite_and_every_rate_a_share(evaluated):
    found = evaluated["composites"]
    assert list(found["kinds"]) == list(KINDS)
    assert all(math.isfinite(number) for number in numbers(found))
    for kind, entry in found["kinds"].items():
        assert entry["scenes"] == 8
        assert set(entry["goals"]) == {"diffusion", "prototype", "random"}
        assert entry["steered"] == entry["goals"]["diffusion"]
        for table in (entry["unsteered"], *entry["goals"].values()):
            assert all(0 <= table[name] <= 1 for name in ("present", "absent", "top5"))
            assert table["present"] <= table["top5"]
            assert table["J"] == pytest.approx(table["present"] - table["absent"])
            for name in ("present", "absent", "J"):
                assert table[f"{name}_interval"][0] <= table[name] <= table[f"{name}_interval"][1]
            assert ("both_in_top2" in table) == (NUM_OBJECTS[kind] == 2)
        for level in ("5%", "10%"):
            assert set(entry["at_equal_absent"][level]["controls"]) == {"constant", "reweighted", "additive"}
        for part in (entry, found["pooled"]):
            for area in ("verdict", "unsteered_logit", "steered_support", "unsteered_verdict"):
                assert 0 <= part[f"auroc_{area}"] <= 1
            assert 0 <= part["calibration_error"] <= 1
            assert part["auroc_steering_interval"][0] <= part["auroc_steering_interval"][1]
        gain = entry["steered"]["present"] - entry["unsteered"]["present"]
        assert entry["gain_interval"][0] <= gain <= entry["gain_interval"][1]


def test_a_kind_measured_alone_gives_the_same_numbers_again(toy, challenge, labelled, evaluated):
    inset = [group for group in challenge if group.kind == "inset"]
    controls = {"plain": toy.network.model}
    again = [measure(toy, inset, *labelled, controls=controls)["kinds"]["inset"] for _ in range(2)]
    assert json.dumps(again[0]) == json.dumps(again[1])
    before = evaluated["composites"]["kinds"]["inset"]
    assert again[0]["goals"] == before["goals"]
    assert again[0]["sweep"] == before["sweep"]
    level = again[0]["at_equal_absent"]["5%"]["controls"]
    assert level["constant"] == before["at_equal_absent"]["5%"]["controls"]["constant"]


def test_sweeps_meet_the_default_where_they_pass_it(evaluated):
    for entry in evaluated["composites"]["kinds"].values():
        for name, setting in (("strength", 1.0), ("passes", 3)):
            (row,) = (row for row in entry["sweep"][name] if row["setting"] == setting)
            assert row["present"] == pytest.approx(entry["steered"]["present"])
            assert row["absent"] == pytest.approx(entry["steered"]["absent"])


def test_without_feedback_steering_is_seeing(silent, challenge, labelled):
    found = measure(silent, challenge[1:3], *labelled, by_name=silent)
    for entry in found["kinds"].values():
        for goals in entry["goals"].values():
            assert goals == entry["unsteered"]
        for name in ("strength", "pairs", "passes"):
            for row in entry["sweep"][name]:
                assert row["present"] == pytest.approx(entry["unsteered"]["present"])
                assert row["absent"] == pytest.approx(entry["unsteered"]["absent"])
        for level in entry["at_equal_absent"].values():
            assert level["controls"]["constant"]["difference"] == 0
            assert level["controls"]["constant"]["interval"] == [0.0, 0.0]
        assert entry["auroc_steered_support"] == entry["auroc_unsteered_support"]
        assert entry["gain_interval"] == [0.0, 0.0]
        assert entry["auroc_unsteered_verdict"] == entry["auroc_unsteered_support"]  # the toy has no such verdict


def test_at_strength_zero_a_goal_changes_nothing(toy, challenge, labelled):
    """Where all feedback comes from the steered step, strength 0 is the first pass."""
    from lrm_core.model import LRM

    model = LRM(toy.network.model.backbone, toy.network.model.connections[:2], 16).eval()
    model.load_state_dict({k: v for k, v in toy.network.model.state_dict().items() if k in model.state_dict()})
    network, goals = toy.network.with_model(model), class_goals(toy)
    trials = build(challenge[1], *labelled)
    unsteered = run_unsteered(network, trials.scenes.pixels)
    first = (unsteered.first, unsteered.first)
    after = [run_steered(network, unsteered, goals[c], 0.0).output for c in (trials.present, trials.absent)]
    assert torch.equal(after[0], unsteered.first)
    weights = resampling(8)
    assert rates((after[0], after[1]), trials, weights) == rates(first, trials, weights)
    row = sweep(network, trials, goals)["strength"][0]
    assert (row["setting"], row["present"]) == (0.0, float(top1(unsteered.first, trials.present).float().mean()))


def test_rates_are_counted_as_they_are_said():
    labels = torch.tensor([[0, 1], [2, 3], [4, 5], [0, 5]])
    scenes = compose("blend", torch.rand(4, 2, 3, 8, 8), labels)
    trials = Trials(scenes, torch.tensor([0, 3, 4, 5]), torch.tensor([5, 0, 0, 1]))
    present = torch.zeros(4, 6)
    present[0, [0, 1]] = torch.tensor([3.0, 2.0])  # best, and the other object second
    present[1, [3, 0]] = torch.tensor([3.0, 2.0])  # best alone
    present[2] = torch.tensor([5.0, 4.0, 3.0, 2.0, 0.0, 1.0])  # last
    present[3, [0, 5]] = torch.tensor([3.0, 2.0])  # both, the goal second
    absent = torch.zeros(4, 6)
    absent[1, 0] = 1.0
    absent[[0, 2, 3], [0, 4, 0]] = 1.0
    found = rates((present, absent), trials, resampling(4))
    assert (found["present"], found["absent"], found["J"]) == (0.5, 0.25, 0.25)
    assert (found["top5"], found["both_in_top2"]) == (0.75, 0.5)


def test_random_goals_are_those_of_all_other_classes_and_never_their_own(toy):
    for seed in range(5):
        sets = GoalSets.of(toy, None, seed)
        own, other = sets.by["diffusion"], sets.by["random"]
        taken = [int((own == row).all(1).nonzero()[0]) for row in other]
        assert sorted(taken) == list(range(6))
        assert all(index != label for label, index in enumerate(taken))
    assert sets.familiarity.shape == (6,)


def test_goals_are_compared_by_who_makes_them(toy, toy_folder):
    by_name = Steerer.load(toy_folder, prior="class-names", device="cpu")
    sets = GoalSets.of(toy, by_name, 0)
    assert list(sets.by) == ["diffusion", "class-names", "prototype", "random"]
    assert torch.equal(sets.by["class-names"], class_goals(by_name))
    assert torch.equal(sets.by["prototype"], 6 * torch.eye(6))
    bare = Steerer(toy.network, lambda: toy.language, {}, lambda: None)
    assert "prototype" not in GoalSets.of(bare, None, 0).by


@pytest.fixture(scope="module")
def trials(labelled):
    return make_trials("side", *labelled, 6, 40, 0)


def present_at_five(hits):
    return float(rate_at(*hits.rates(), 0.05))


def test_a_control_gets_the_pass_and_the_strength_that_serve_it_best(toy, trials):
    goals, unsteered = class_goals(toy), run_unsteered(toy.network, trials.scenes.pixels)
    found = run_controls(toy, trials, unsteered, goals, {"additive": toy.network, "plain": toy.network})
    assert set(found) == {"constant", "reweighted", "additive", "plain"}
    plain = constant_top_one(unsteered.first, unsteered.first, trials, CONSTANTS)
    late = constant_top_one(unsteered.last, unsteered.last, trials, CONSTANTS)
    assert torch.equal(found["plain"].present, plain.present)
    assert present_at_five(found["constant"]) == max(present_at_five(plain), present_at_five(late))
    for strength in (0.5, 1.0):
        own = [run_steered(toy.network, unsteered, goals[c], strength).output for c in (trials.present, trials.absent)]
        assert present_at_five(found["additive"]) >= present_at_five(constant_top_one(*own, trials, CONSTANTS))


def test_the_reweighted_output_ends_at_the_goal(toy, trials):
    """With more and more of the goal it wins, present or absent, if it is its own best class."""
    goals, unsteered = 100 * torch.eye(6), run_unsteered(toy.network, trials.scenes.pixels)
    hits = run_controls(toy, trials, unsteered, goals, {})["reweighted"]
    assert torch.equal(hits.present[:, 0] > 0, top1(unsteered.first, trials.present))
    assert (hits.present.diff(dim=1) >= 0).all()
    assert (hits.absent.diff(dim=1) >= 0).all()
    assert hits.absent[:, -1].sum() > hits.absent[:, 0].sum()


def test_a_text_encoder_that_sees_is_a_control(toy, toy_folder, trials, tmp_path):
    folder = tmp_path / "seeing"
    shutil.copytree(toy_folder, folder)
    card = json.loads((folder / "text" / "text.json").read_text())
    (folder / "text" / "text.json").write_text(json.dumps({**card, "measured": {"zero_shot/top1": 0.5}}))
    seeing = Steerer.load(folder, device="cpu")
    unsteered = run_unsteered(seeing.network, trials.scenes.pixels)
    hits = run_controls(seeing, trials, unsteered, class_goals(seeing), {})["zero_shot"]
    text = seeing.language.text
    names = text.encode([with_article(name) for name in seeing.class_names])
    nearest = (text.encode_images(trials.scenes.pixels) @ names.T).argmax(1)
    at = CONSTANTS.index(0.0)
    assert torch.equal(hits.present[:, at] > 0, nearest == trials.present)
    assert torch.equal(hits.absent[:, at] > 0, nearest == trials.absent)
    assert "zero_shot" not in run_controls(toy, trials, unsteered, class_goals(toy), {})


def test_without_a_calibrated_verdict_nothing_is_measured(toy, challenge, labelled):
    with pytest.raises(ValueError, match="toy has no calibrated verdict for goals by diffusion"):
        measure(toy.with_network(toy.network), challenge[1:2], *labelled)


def test_a_verdict_fitted_without_steering_scores_the_first_pass_alone(toy, trials):
    unsteered, goals = run_unsteered(toy.network, trials.scenes.pixels), GoalSets.of(toy, None, 0)
    own = goals.by["diffusion"]
    afters = tuple(run_steered(toy.network, unsteered, own[classes]) for classes in (trials.present, trials.absent))
    without = toy.with_network(toy.network, toy.verdicts)
    told, scores, outcome = trial_scores(without, trials, unsteered, goals, afters)
    assert scores.shape == (5, 80)
    assert outcome.tolist() == [1] * 40 + [0] * 40
    assert torch.equal(scores[4], scores[2])  # none was fitted: the support before
    halved = replace(toy.verdict, weights=tuple(0.5 * weight for weight in toy.verdict.weights))
    without = toy.with_network(toy.network, {**toy.verdicts, f"diffusion{UNSTEERED}": halved})
    again, fitted, _ = trial_scores(without, trials, unsteered, goals, afters)
    assert torch.equal(again, told)
    assert torch.equal(fitted[:4], scores[:4])
    # The toy's verdicts read the support after steering, which without any is the support before.
    torch.testing.assert_close(fitted[4], torch.sigmoid(0.5 * scores[2]))
    other = tuple(Seen(-after.output, after.places) for after in afters)  # whatever steering made of it
    assert torch.equal(trial_scores(without, trials, unsteered, goals, other)[1][4], fitted[4])
    classes = torch.cat([trials.present, trials.absent])
    steered = torch.sigmoid(support(Seen.cat(afters).output, own[classes]))
    torch.testing.assert_close(told, steered)
    assert not torch.allclose(told, torch.sigmoid(scores[2]))


def test_detection_tells_ranking_from_calibration():
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(20_000, generator=generator)
    outcome = (torch.rand(20_000, generator=generator) < probability).long()
    pairs = torch.cat([outcome.nonzero()[:9_500, 0], (1 - outcome).nonzero()[:9_500, 0]])  # a scene has both answers
    probability, outcome = probability[pairs], outcome[pairs]
    noise = torch.randn(3, len(outcome), generator=generator)
    scores = torch.stack([noise[0], probability, noise[1], probability.logit(), noise[2]])
    near = probability[outcome == 0]
    honest = detection(probability, scores, outcome, near)
    assert honest["calibration_error"] < 0.02
    assert honest["calibration_error_near"] == pytest.approx(honest["calibration_error"], abs=1e-3)
    assert honest["auroc_near"] == pytest.approx(honest["auroc_verdict"], abs=1e-3)
    fooled = detection(probability, scores, outcome, torch.ones_like(near))
    assert fooled["auroc_near"] < 0.1
    assert fooled["calibration_error_near"] > 0.1
    assert fooled["calibration_error"] == honest["calibration_error"]
    assert honest["auroc_unsteered_logit"] == pytest.approx(honest["auroc_verdict"], abs=1e-3)  # the better row
    assert honest["auroc_steered_support"] == pytest.approx(honest["auroc_verdict"], abs=1e-3)
    assert honest["auroc_unsteered_support"] == pytest.approx(0.5, abs=0.02)
    assert honest["auroc_unsteered_verdict"] == pytest.approx(0.5, abs=0.02)
    alone = honest["auroc_verdict"] - honest["auroc_unsteered_verdict"]
    assert 0.25 < honest["auroc_steering_interval"][0] < alone < honest["auroc_steering_interval"][1]
    same = detection(probability, torch.stack([*noise[[0, 1, 2, 0]], probability]), outcome, near)
    assert same["auroc_steering_interval"] == [0.0, 0.0]
    assert honest["auroc_gain"] == pytest.approx(0, abs=1e-3)
    boastful = detection((probability > 0.5).float(), scores, outcome, near)
    assert boastful["calibration_error"] == pytest.approx(0.25, abs=0.02)
    assert boastful["auroc_gain"] < 0
    assert boastful["auroc_gain_interval"][1] < 0


def test_a_twin_is_judged_by_its_own_verdict_on_its_own_second_pass(toy, trials):
    goals = GoalSets.of(toy, None, 0)
    unsteered = run_unsteered(toy.network, trials.scenes.pixels)
    table = goals.by["diffusion"]
    afters = tuple(run_steered(toy.network, unsteered, table[classes]) for classes in (trials.present, trials.absent))
    plain = trial_scores(toy, trials, unsteered, goals, afters, toy.network)
    assert len(plain[1]) == 5  # no verdict was fitted on a twin
    twin = toy.with_network(toy.network, {**toy.verdicts, f"diffusion{TWIN}": toy.verdicts["diffusion"]})
    probability, scores, outcome = trial_scores(twin, trials, unsteered, goals, afters, toy.network)
    torch.testing.assert_close(scores[5], probability)  # a twin that is the network itself
    near = probability[outcome == 0]
    found = detection(probability, scores, outcome, near)
    assert found["auroc_twin_verdict"] == pytest.approx(found["auroc_verdict"])
    assert found["auroc_twin_interval"] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert "auroc_twin_verdict" not in detection(probability, scores[:5], outcome, near)
