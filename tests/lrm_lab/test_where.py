"""Where steering acts: peaks and boxes by hand, connections taken away exactly, changes of known size."""

import copy
import json

import pytest
import torch

from lrm_core import Steer
from lrm_core.model import LRM
from lrm_core.scenes import compose
from lrm_core.trials import Trials, build
from lrm_lab.where import ablation, changes, measure, named_boxes, peak_in_box, pointing, without
from steering.rollouts import class_goals


def test_a_peak_counts_where_the_centre_of_its_cell_lies_in_the_box():
    maps = torch.zeros(4, 4, 4)
    maps[0, 0, 0] = maps[1, 0, 0] = maps[2, 3, 1] = maps[3, 1, 2] = 1.0
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 1.0], [0.25, 0.75, 0.5, 1.0], [0.7, 0.0, 1.0, 1.0]])
    assert peak_in_box(maps, boxes).tolist() == [True, False, True, False]
    wide = torch.zeros(2, 2, 8)
    wide[:, 1, 6] = 1.0
    boxes = torch.tensor([[0.75, 0.5, 0.875, 1.0], [0.0, 0.0, 0.8, 1.0]])
    assert peak_in_box(wide, boxes).tolist() == [True, False]


def test_a_map_without_heat_has_no_peak_that_could_lie_in_a_box():
    maps = torch.stack([torch.zeros(4, 4), torch.full((4, 4), -1.0), torch.full((4, 4), 1e-6)])
    assert peak_in_box(maps, torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(3, -1)).tolist() == [False, False, True]


def test_the_box_is_that_of_the_object_that_is_named():
    labels = torch.tensor([[3, 5, 1, 2], [0, 4, 2, 1]])
    scenes = compose("grid", torch.rand(2, 4, 3, 8, 8), labels)
    trials = Trials(scenes, torch.tensor([1, 4]), torch.tensor([0, 3]))
    assert named_boxes(trials).tolist() == [[0.0, 0.5, 0.5, 1.0], [0.5, 0.0, 1.0, 0.5]]


def test_places_connections_and_changes_are_measured_of_the_kinds_that_have_them(toy, evaluated):
    found = evaluated["where"]
    assert set(found["pointing"]) == set(found["changes"]) == {"side", "cutmix", "inset", "grid"}
    destinations = {c.destination for c in toy.network.model.connections}
    for kind, entry in found["pointing"].items():
        assert entry["scenes"] == 8
        assert 0 <= entry["steered"] <= 1
        assert entry["steered_interval"][0] <= entry["steered"] <= entry["steered_interval"][1]
        assert ("by_size" in entry) == (kind == "inset")
        assert set(found["changes"][kind]) == destinations
        assert all(change["relative"] > 0 for change in found["changes"][kind].values())
    assert found["pointing"]["side"]["area"] == pytest.approx(0.5)
    assert found["pointing"]["grid"]["area"] == pytest.approx(0.25)
    names = [f"{c.source} → {c.destination}" for c in toy.network.model.connections]
    assert list(found["ablation"]["without"]) == ["none", *names]


def test_measured_again_the_numbers_are_the_same(toy, challenge, labelled, evaluated):
    inset = [group for group in challenge if group.kind == "inset"]
    once, again = (measure(toy, inset, *labelled) for _ in range(2))
    assert json.dumps(once) == json.dumps(again)
    assert once["pointing"]["inset"] == evaluated["where"]["pointing"]["inset"]
    assert once["changes"]["inset"] == evaluated["where"]["changes"]["inset"]


def test_insets_are_told_apart_by_size(evaluated):
    thirds = evaluated["where"]["pointing"]["inset"]["by_size"]
    sides = [side for third in thirds for side in third["side"]]
    assert sides == sorted(sides)
    assert sides[0] < sides[-1]


def only(toy, *indices):
    """The toy with some of its connections."""
    whole = toy.network.model
    model = LRM(whole.backbone, [whole.connections[i] for i in indices], whole.image_size).eval()
    trained = whole.state_dict()
    model.load_state_dict({key: trained[key] for key in model.state_dict()})
    return model.requires_grad_(False)


@pytest.mark.parametrize("index", [0, 2, 6])
def test_taking_a_connection_away_is_a_model_built_without_it(toy, index):
    images, goals = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)), class_goals(toy)[:3]
    steer, passes = Steer("fc", goals, 1.0), toy.network.defaults.passes
    whole = toy.network.model.rollout(images, passes, [steer])[-1]
    fewer = without(toy.network.model, index)
    built = only(toy, *(i for i in range(len(toy.network.model.connections)) if i != index))
    assert fewer.connections == built.connections
    assert not fewer.training
    assert torch.equal(fewer.rollout(images, passes, [steer])[-1], built.rollout(images, passes, [steer])[-1])
    assert not torch.equal(fewer.rollout(images, passes, [steer])[-1], whole)
    assert torch.equal(toy.network.model.rollout(images, passes, [steer])[-1], whole)
    assert all(path.gain is toy.network.model.paths[key].gain for key, path in fewer.paths.items())
    adding = copy.deepcopy(toy.network.model)
    adding.rule = "add"
    assert without(adding, index).rule == "add"


def test_a_path_that_is_zero_is_not_missed_and_the_last_one_from_the_goal_is_not_taken_away(toy, challenge, labelled):
    model = copy.deepcopy(only(toy, 0, 5, 6))  # fc → attend, and the two from the values
    torch.nn.init.zeros_(model.paths[model.connections[2].key].projection.weight)
    trials = [build(group, *labelled) for group in challenge[1:3]]
    found = ablation(toy.network.with_model(model), trials, class_goals(toy))
    assert found["scenes"] == 8
    assert list(found["without"]) == ["none", "values → value", "values → layer2.add"]
    assert found["without"]["values → layer2.add"] == found["without"]["none"]


def test_without_feedback_nothing_changes_and_the_peak_stays(toy, silent, challenge, labelled):
    trials = build(next(group for group in challenge if group.kind == "inset"), *labelled)
    goals = class_goals(toy)
    for found in changes(silent.network, trials, goals).values():
        assert found["relative"] == 0
        assert found.get("inside", 0.0) == 0
    last = copy.deepcopy(only(toy, 1))  # fc → value: both maps are of this one step
    torch.nn.init.zeros_(last.paths["fc->value"].projection.weight)
    entry = pointing(toy.network.with_model(last), trials, goals)
    assert entry["steered"] == entry["unsteered_cam"]
    assert entry["difference_interval"] == [0.0, 0.0]


def test_the_size_of_a_change_is_that_of_the_factor(toy, challenge, labelled):
    """A path that scales all channels alike changes the mean size by just that factor, in the box and outside."""
    model = copy.deepcopy(only(toy, 1))
    row = torch.tensor([0.3, -0.1, 0.2, 0.5, -0.4, 0.1])
    model.paths["fc->value"].projection.weight.copy_(row.expand(384, 6))
    trials, goals = build(challenge[2], *labelled), class_goals(toy)
    target = goals[trials.present]
    factor = torch.tanh(torch.nn.functional.layer_norm(target, (6,))) @ row
    found = changes(toy.network.with_model(model), trials, goals)
    assert found["value"]["relative"] == pytest.approx(float(factor.abs().mean()), rel=1e-4)


def test_what_lies_in_the_box_is_told_from_what_lies_outside():
    from lrm_lab.where import _inside

    maps = torch.ones(2, 4, 4)
    maps[0, :2, :2], maps[1, :, 2:] = 3.0, 5.0
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 1.0]])
    assert _inside(maps, boxes).tolist() == [3.0, 5.0]
    assert _inside(torch.ones(1, 4, 4), boxes[:1]).tolist() == [1.0]
