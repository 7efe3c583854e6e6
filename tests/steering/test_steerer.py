"""Steerer: the whole way from a picture and words to a look, on a toy model and on the embedded one."""

import json
import pickle
import shutil
import threading
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from steering import QueryError, Steerer
from steering.catalogue import DEFAULT_MODEL, model_names
from steering.goals import Goal
from steering.images import open_image


@pytest.fixture(params=["toy", "steerer"])
def each(request):
    """The toy model, then the embedded one: they keep the same contracts."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def copy(toy_folder, tmp_path):
    """The toy model's folder, to be spoilt."""
    return shutil.copytree(toy_folder, tmp_path / "copy")


def test_a_goal_has_a_value_for_every_class_and_follows_the_seed(each):
    goal = each.goal("a teapot").vector
    assert goal.shape == (len(each.class_names),)
    assert torch.equal(each.goal("a teapot").vector, goal)
    assert not torch.equal(each.goal("a teapot", seed=1).vector, goal)
    assert not torch.equal(each.goal("a lemon").vector, goal)
    torch.testing.assert_close(each.goals(["a lemon", "a teapot"])[1].vector, goal, atol=1e-3, rtol=1e-3)


def test_a_goal_cannot_be_changed_from_outside(each):
    goal, before = each.goal("a teapot"), each.look("sample:cat", "a teapot").after
    vector = goal.vector
    goal.vector.zero_()
    assert torch.equal(goal.vector, vector)
    with pytest.raises(AttributeError, match="cannot be changed"):
        goal.vector = vector * 2
    with pytest.raises(AttributeError, match="cannot be changed"):
        goal.name = "a lemon"
    with pytest.raises(AttributeError, match="cannot be changed"):
        del goal.name
    assert torch.equal(each.look("sample:cat", "a teapot").after, before)
    given = torch.zeros(len(each.class_names))
    own = Goal("mine", given, "image")
    given += 1  # what it was made of does not reach into it either
    assert not own.vector.any()
    assert torch.equal(pickle.loads(pickle.dumps(goal)).vector, vector)


@pytest.mark.parametrize(
    "vector", [torch.tensor(3.0), torch.zeros(2, 3), torch.zeros(6, dtype=torch.long), torch.full((6,), float("nan"))]
)
def test_what_cannot_be_a_goal_is_refused(vector):
    with pytest.raises((ValueError, TypeError)):  # the shape checker may come first
        Goal("odd", vector, "image")


def test_a_look_carries_the_notes_of_its_goal(each):
    goal = each.goal("not a red teapot")
    assert goal.is_complement
    assert len(goal.notes) == 2
    for look in each.look_many("sample:cat", ["not a red teapot", goal]):
        assert look.notes == goal.notes
        assert look.is_complement
    plain = each.look("sample:cat", "a teapot")
    assert (plain.notes, plain.is_complement) == ((), False)


def test_every_query_may_be_words_or_a_goal(each):
    goal = each.goal("a teapot")
    assert each.goal(goal) is goal
    assert each.goals([goal, "a lemon"])[0] is goal
    assert torch.equal(each.look("sample:cat", goal).after, each.look("sample:cat", "a teapot").after)


def test_arithmetic_is_understood_wherever_goals_are_made(each):
    one, many = each.goal("a teapot - a lemon"), each.goals(["a cat", "a teapot - a lemon"])[1]
    assert one.source == many.source == "algebra"
    torch.testing.assert_close(one.vector, many.vector)


def test_other_defaults_give_other_goals_at_once(toy):
    fewer = toy.with_network(toy.network.with_defaults(replace(toy.network.defaults, num_samples=1)))
    goal = fewer.goal("a cat").vector
    fewer.network.defaults = toy.network.defaults
    assert torch.equal(fewer.goal("a cat").vector, toy.goal("a cat").vector)
    assert not torch.equal(goal, toy.goal("a cat").vector)


def test_a_look_works_in_inference_mode_and_afterwards(toy, toy_folder):
    expected = toy.look("sample:cat", "a lemon")
    with torch.inference_mode():
        loaded = Steerer.load(toy_folder, device="cpu")
        goal = loaded.goal("a lemon")
        inside = [loaded.look("sample:cat", "a lemon"), loaded.look("sample:cat", goal)]
        glance = loaded.network.glance(loaded.network.pixels(open_image("sample:cat")))
        after, heatmap = loaded.network.heatmap(glance, goal.vector[None])
    for look in (*inside, loaded.look("sample:cat", goal)):
        assert torch.equal(look.after, expected.after)
        assert torch.equal(look.heatmap, expected.heatmap)
    assert torch.equal(after.output[0], expected.after)
    assert torch.equal(heatmap[0], expected.heatmap)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": float("nan")}, "strength: got nan"),
        ({"strength": 1e38}, r"strength: got 1e\+38"),
        ({"passes": True}, "passes: got True"),
        ({"seed": 10**20}, "seed: got 100000000000000000000"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(toy, options, message):
    with pytest.raises(ValueError, match=f"{message}, expected"):
        toy.look("sample:cat", "a cat", **options)


@pytest.mark.parametrize("passes", [-3, 0])
def test_a_goal_by_an_image_needs_a_pass(toy, passes):
    with pytest.raises(ValueError, match=f"passes: got {passes}, expected a whole number"):
        toy.image_goal("sample:cat", passes=passes)
    assert toy.image_goal("sample:cat", passes=1).vector.shape == (6,)


def test_a_look_tells_what_was_asked_and_what_was_seen(each):
    look = each.look("sample:coffee", "a teapot")
    assert (look.image, look.query, look.model) == ("sample:coffee", "a teapot", each.network.card["name"])
    assert look.class_names == each.class_names
    assert look.before.shape == look.after.shape == look.goal.shape == (len(each.class_names),)
    assert torch.equal(look.goal, each.goal("a teapot").vector)
    assert look.heatmap.ndim == 2
    assert 0 <= look.heatmap.min() <= look.heatmap.max() <= 1
    assert look.verdict == each.verdict.answer(look.probability)
    assert 0 <= look.probability <= 1
    assert look.picture.size == open_image("sample:coffee").size
    assert look.seconds > 0
    assert not look.after.requires_grad
    json.dumps(look.as_dict())


def test_before_is_the_plain_backbone_and_evidence_is_what_steering_changed(each):
    from steering.evidence import support

    look = each.look("sample:cat", "a teapot")
    with torch.no_grad():
        plain = each.network.model.backbone(each.network.pixels(look.picture))[0]
    torch.testing.assert_close(look.before, plain)
    change = support(look.after, look.goal) - support(look.before, look.goal)
    assert look.evidence == pytest.approx(change.item(), abs=1e-4)


def test_looking_for_many_is_looking_one_by_one(each):
    queries = ["a cat", "a teapot", "a lemon", "a cat"]
    many = each.look_many("sample:cat", queries)
    assert [look.query for look in many] == queries
    for look, query in zip(many, queries, strict=True):
        alone = each.look("sample:cat", query)
        torch.testing.assert_close(look.after, alone.after, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(look.heatmap, alone.heatmap, atol=1e-3, rtol=1e-3)
        assert look.probability == pytest.approx(alone.probability, abs=1e-4)


def test_many_queries_share_one_first_pass(each, monkeypatch):
    calls = {"stem": 0, "first": 0}
    stem, step = each.network.model.stem, each.network.model.step

    def counted_stem(images):
        calls["stem"] += 1
        return stem(images)

    def counted_step(values, state=None, steer=()):
        calls["first"] += state is None
        return step(values, state, steer)

    monkeypatch.setattr(each.network.model, "stem", counted_stem)
    monkeypatch.setattr(each.network.model, "step", counted_step)
    each.look_many("sample:cat", ["a cat", "a teapot", "a lemon"])
    assert calls == {"stem": 1, "first": 1}


def test_threads_that_share_a_steerer_agree(each):
    work = [("sample:cat", "a cat"), ("sample:coffee", "a teapot"), ("sample:cat", "a lemon")]
    expected = [each.look(*pair).after for pair in work]
    wrong = []

    def look(index):
        for _ in range(4):
            if not torch.equal(each.look(*work[index]).after, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=look, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_at_strength_zero_the_words_do_not_reach_the_network(each):
    cat, teapot = each.look_many("sample:cat", ["a cat", "a teapot"], strength=0.0)
    torch.testing.assert_close(cat.after, teapot.after, atol=1e-5, rtol=1e-5)
    cat, teapot = each.look_many("sample:cat", ["a cat", "a teapot"])
    assert not torch.allclose(cat.after, teapot.after, atol=1e-3)


def test_strength_of_either_sign_and_passes_change_the_look(each):
    usual = each.look("sample:cat", "a teapot").after
    for options in ({"strength": 3.0}, {"strength": (0.0, 1.0)}, {"passes": 4}, {"seed": 5}):
        assert not torch.equal(each.look("sample:cat", "a teapot", **options).after, usual), options


def test_an_image_may_be_a_name_a_picture_a_path_or_an_array(each, tmp_path):
    picture = open_image("sample:cat")
    picture.save(tmp_path / "cat.png")
    expected = each.look("sample:cat", "a cat").after
    for image in (picture, np.asarray(picture), tmp_path / "cat.png", str(tmp_path / "cat.png")):
        assert torch.equal(each.look(image, "a cat").after, expected)
    assert each.look(tmp_path / "cat.png", "a cat").image == str(tmp_path / "cat.png")


def test_a_look_leaves_no_trace(each):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    each.look("sample:cat", "an umbrella never asked for before")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in each.network.model.parameters())
    assert not each.network.model.training


@pytest.mark.parametrize("passes", [1, 0, -3])
def test_too_few_passes_are_refused(each, passes):
    with pytest.raises(ValueError, match=f"passes: got {passes}, expected a whole number from 2"):
        each.look("sample:cat", "a cat", passes=passes)


@pytest.mark.parametrize("query", ["", "   ", "dog " * 400])
def test_a_query_that_cannot_be_understood_is_refused(each, query):
    with pytest.raises(QueryError, match=r"the query is (empty|too long)"):
        each.look("sample:cat", query)
    with pytest.raises(QueryError):
        each.goal(query)


@pytest.mark.parametrize("queries", [[], "a cat"])
def test_no_queries_and_a_bare_string_of_them_are_refused(each, queries):
    with pytest.raises(QueryError, match="expected a list of at least one query"):
        each.look_many("sample:cat", queries)


def test_a_copied_folder_gives_the_same_looks(toy, copy):
    elsewhere = Steerer.load(copy, device="cpu")
    a, b = (model.look("sample:cat", "a cat") for model in (toy, elsewhere))
    assert torch.equal(a.after, b.after)
    assert a.probability == b.probability


@pytest.mark.parametrize("name", ["nonsense", "", f"{DEFAULT_MODEL}/text"])
def test_an_unknown_model_is_refused_with_the_choices(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"or one of {', '.join(model_names())}"):
        Steerer.load(name)


@pytest.mark.parametrize("name", ["backbone", "prior", "text/text", "vocabulary"])
def test_altered_or_missing_weights_are_refused(copy, name):
    path = copy / f"{name}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="was altered"):
        Steerer.load(copy)
    path.unlink()
    with pytest.raises(ValueError, match="no weights"):
        Steerer.load(copy)


@pytest.mark.parametrize("text", [None, "{", '{"strength": 1.0}', '{"strength": 1.0, "passes": 3, "colour": 1}'])
def test_missing_or_wrong_defaults_are_refused(copy, text):
    (copy / "steering.json").unlink()
    if text is not None:
        (copy / "steering.json").write_text(text)
    with pytest.raises(ValueError, match=r"steering\.json does not hold a model's defaults"):
        Steerer.load(copy)


def test_a_prior_that_was_trained_for_another_backbone_is_refused(copy):
    card = json.loads((copy / "prior.json").read_text())
    (copy / "prior.json").write_text(json.dumps({**card, "backbone_sha256": "0" * 64}))
    with pytest.raises(ValueError, match="the parts were not trained for each other"):
        Steerer.load(copy)


def test_a_model_without_verdicts_looks_and_says_that_it_is_not_calibrated(copy):
    (copy / "verdict.json").unlink()
    look = Steerer.load(copy, device="cpu").look("sample:cat", "a cat")
    assert (look.verdict, look.probability) == (None, None)
    assert "NOT CALIBRATED" in look.text()
    assert json.loads(json.dumps(look.as_dict()))["verdict"] is None


def test_a_verdict_is_given_only_for_the_ways_of_making_goals_that_were_calibrated(toy):
    goals = ["a cat", toy.prototype_goal("cat"), toy.image_goal("sample:cat")]
    looks = toy.look_many("sample:coffee", goals)
    assert [look.prior for look in looks] == ["diffusion", "prototype", "image"]
    assert [look.query for look in looks] == ["a cat", "cat", "sample:cat"]
    assert [look.verdict is None for look in looks] == [False, False, True]
    assert torch.equal(looks[1].goal, 6 * torch.eye(6)[0])


def test_an_images_goal_is_what_the_last_unsteered_pass_says_of_it(toy):
    inputs = toy.network.pixels(open_image("sample:cat"))
    expected = toy.network.model.rollout(inputs, toy.network.defaults.passes)[-1][0]
    torch.testing.assert_close(toy.image_goal("sample:cat").vector, expected)


def test_a_class_without_a_prototype_is_told_with_the_choices(toy, copy):
    with pytest.raises(
        QueryError, match=r"class_name: got .zebra., expected a class that has a prototype: .*choices: cat, beagle"
    ):
        toy.prototype_goal("zebra")
    (copy / "prototypes.safetensors").unlink()
    with pytest.raises(QueryError, match=r"has no prototypes; `python -m lrm_core\.prototypes`"):
        Steerer.load(copy, device="cpu").prototype_goal("cat")


def test_a_backbone_alone_is_steered_by_images_and_with_a_text_encoder_by_words(toy_folder, tmp_path):
    for suffix in ("safetensors", "json"):
        shutil.copyfile(toy_folder / f"backbone.{suffix}", tmp_path / f"backbone.{suffix}")
    bare = Steerer.load(tmp_path, device="cpu")
    look = bare.look("sample:cat", bare.image_goal("sample:coffee"))
    assert (look.prior, look.verdict) == ("image", None)
    with pytest.raises(ValueError, match="has no text encoder: give one as NAME:TAG or NAME:FILE"):
        bare.goal("a cat")
    weights = toy_folder / "text" / "text.safetensors"
    with_words = Steerer.load(tmp_path, text=f"toy_clip:{weights}", device="cpu")
    assert with_words.look("sample:cat", "a teapot").prior == "class-names"
    with pytest.raises(ValueError, match="has its own text encoder"):
        Steerer.load(toy_folder, text="ViT-B-16:openai")


def test_language_is_loaded_once_by_many_threads(toy):
    calls, barrier = [], threading.Barrier(8)

    def language():
        calls.append(1)
        return toy.language

    fresh = Steerer(toy.network, language, {}, prototypes=lambda: None)

    def ask():
        barrier.wait()
        fresh.goal("a cat")

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]


def test_another_network_is_steered_by_the_same_words_without_a_verdict(toy):
    model = deepcopy(toy.network.model)
    torch.nn.init.zeros_(model.backbone.fc.weight)
    other = toy.with_network(toy.network.with_model(model))
    assert torch.equal(other.goal("a cat").vector, toy.goal("a cat").vector)
    assert torch.equal(other.prototype_goal("cat").vector, toy.prototype_goal("cat").vector)
    look = other.look("sample:cat", "a cat")
    assert (look.verdict, look.probability, look.model) == (None, None, "toy")
    torch.testing.assert_close(look.after, model.backbone.fc.bias)
    assert toy.look("sample:cat", "a cat").verdict is not None


def test_what_steers_takes_the_defaults_unless_told_otherwise(toy):
    network, goals = toy.network, torch.randn(2, 6)
    glance = network.glance(network.pixels(open_image("sample:cat"))).expand(2)
    state, steer = network.before_last(glance, goals)
    assert (steer.source, steer.strength, steer.mix, state.num_passes) == ("fc", 1.0, 1.0, 2)
    assert steer.target is goals
    state, steer = network.before_last(glance, goals, strength=(0.5, 0.0), passes=5)
    assert (steer.strength, state.num_passes) == ((0.5, 0.0), 4)
    with pytest.raises(ValueError, match="passes: got 1, expected a whole number from 2"):
        network.before_last(glance, goals, passes=1)


def test_a_goal_of_another_width_is_refused(toy):
    goal = Goal("zebra", torch.zeros(7), "image")
    with pytest.raises(ValueError, match=r"goal 'zebra': got shape \(7,\), expected \(6,\) for toy"):
        toy.look("sample:cat", goal)


def test_a_model_without_a_trained_prior_speaks_by_its_class_names(copy, toy_folder):
    for suffix in ("safetensors", "json"):
        (copy / f"prior.{suffix}").unlink()
    bare, named = Steerer.load(copy, device="cpu"), Steerer.load(toy_folder, prior="class-names", device="cpu")
    look = bare.look("sample:cat", "a teapot")
    assert look.prior == named.look("sample:cat", "a teapot").prior == "class-names"
    assert look.ranking("goal", 1)[0][0] == "teapot"
    assert torch.equal(look.goal, named.goal("a teapot").vector)
    with pytest.raises(ValueError, match=r"has no prior 'diffusion'; choices: class-names"):
        Steerer.load(copy, prior="diffusion")
    back = Steerer.load(copy, prior=str(toy_folder / "prior.safetensors"), device="cpu")
    assert back.look("sample:cat", "a teapot").prior == "diffusion"
    with pytest.raises(ValueError, match=r"no prior 'ridge'; choices: diffusion, class-names"):
        Steerer.load(toy_folder, prior="ridge")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta"])
def test_a_device_that_does_not_exist_is_refused(toy_folder, device):
    with pytest.raises(ValueError, match=f"device: got '{device}', which cannot be used here; choices: cpu"):
        Steerer.load(toy_folder, device=device)


def test_the_embedded_model_names_its_200_classes_and_knows_their_words(steerer):
    assert len(set(steerer.class_names)) == 200
    names = ("teapot", "lemon", "school bus", "goldfish", "umbrella")
    goals = steerer.goals([f"a {name}" for name in names])
    best = [steerer.class_names[int(goal.vector.argmax())] for goal in goals]
    assert best == list(names)


def test_an_absent_word_is_not_hallucinated(steerer):
    looks = steerer.look_many("sample:cat", ["a cat", "a school bus", "a lemon", "a teapot", "a suspension bridge"])
    assert [look.verdict for look in looks[1:]].count("present") == 0
    for look in looks[1:]:
        assert look.ranking("after", 1)[0][0] != look.query.removeprefix("a ")
    assert looks[0].probability > max(look.probability for look in looks[1:])


def test_looking_for_a_cat_raises_cats(steerer):
    """Every look at the sample gathers more probability on what the words stand for."""
    look = steerer.look("sample:cat", "a cat")
    cats = [index for index, name in enumerate(look.class_names) if "cat" in name.split()]
    assert cats
    assert look.after.softmax(0)[cats].sum() > look.before.softmax(0)[cats].sum()
