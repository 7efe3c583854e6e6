"""Arithmetic on goals: what is read, what it means, and what looking for it says."""

import pytest
import torch

from steering import QueryError, Steerer
from steering.algebra import Term, combine, is_plain, parse
from steering.images import open_image


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("a dog", [Term(1.0, "a dog")]),
        ("a t-shirt + well-being", [Term(1.0, "a t-shirt"), Term(1.0, "well-being")]),
        ("dog - grass", [Term(1.0, "dog"), Term(-1.0, "grass")]),
        ("- grass + 0.5: dog", [Term(-1.0, "grass"), Term(0.5, "dog")]),
        (
            "2:dog + image:a b/c-d.jpg - 3:image:x",
            [Term(2.0, "dog"), Term(1.0, "a b/c-d.jpg", True), Term(-3.0, "x", True)],
        ),
        ("12:30 train", [Term(12.0, "30 train")]),
        ("- dog", [Term(-1.0, "dog")]),
        ("-dog", [Term(-1.0, "dog")]),
        ("-0.5:a dog", [Term(-0.5, "a dog")]),
        ("a dog -grass + -2:cat", [Term(1.0, "a dog"), Term(-1.0, "grass"), Term(-2.0, "cat")]),
        ("-image:a -b.jpg", [Term(-1.0, "a -b.jpg", True)]),
        ("image:my -x.jpg + hat", [Term(1.0, "my -x.jpg", True), Term(1.0, "hat")]),
        ("2:a dog without a leash", [Term(2.0, "a dog"), Term(-2.0, "a leash")]),
    ],
)
def test_terms_are_read(query: str, terms: list[Term]):
    assert list(parse(query)) == terms
    assert is_plain(parse(query)) == (query == "a dog")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("dog - ", "a term is empty"),
        ("dog + + cat", "a term is empty"),
        ("image:", "a term is empty"),
        ("0:dog", "got weight 0, expected more than 0"),
        ("- - dog", "a term is empty"),
        ("--dog", "two minus signs"),
        ("-0:dog", "got weight 0, expected more than 0"),
        ("+", "a term is empty"),
    ],
)
def test_what_is_not_well_formed_is_told(query: str, message: str):
    with pytest.raises(QueryError, match=message):
        parse(query)


def test_one_term_is_itself_whatever_its_weight():
    goal = torch.tensor([[5.0, -2.0, 1.0, 0.0]])
    for weight in (1.0, 7.0):
        torch.testing.assert_close(combine([weight], goal), goal[0], atol=1e-5, rtol=1e-5)


def test_what_is_added_is_as_sharp_for_each_as_alone_and_weights_are_odds():
    goals = 12 * torch.eye(4)[:2]
    both = combine([3.0, 1.0], goals).softmax(0)
    torch.testing.assert_close(both, torch.tensor([0.75, 0.25, 0, 0]), atol=1e-4, rtol=0)


def test_what_is_taken_away_is_pushed_down_and_nothing_else_is():
    goals = torch.stack([torch.tensor([6.0, 6.0, 0.0, 0.0]), torch.tensor([0.0, 30.0, 0.0, 0.0])])
    before, after = combine([1.0], goals[:1]), combine([1.0, -1.0], goals)
    moved = after - before
    torch.testing.assert_close(moved[1] - moved[0], -torch.tensor(5.0).log(), atol=1e-4, rtol=0)  # log(1 + 4 classes)
    torch.testing.assert_close(moved[[2, 3]], moved[[0, 0]], atol=1e-4, rtol=0)
    more = combine([1.0, -2.0], goals)
    assert more[1] - more[0] < after[1] - after[0]
    with pytest.raises(ValueError, match="expected none that is 0"):
        combine([0.0], goals[:1])


def test_what_is_unwanted_alone_is_mixed_as_if_it_were_wanted():
    goals = 12 * torch.eye(4)[:2]
    torch.testing.assert_close(combine([-3.0, -1.0], goals), combine([3.0, 1.0], goals))


def test_a_look_for_terms_multiplies_what_looks_for_each_of_them_say(toy: Steerer):
    cat, tea, both, without = toy.look_many(
        "sample:cat", ["a cat", "a teapot", "a cat + 2:a teapot", "a cat - a teapot"]
    )
    for one in (cat, tea):
        assert one.probability is not None
    assert both.probability == pytest.approx(cat.probability * tea.probability, rel=1e-4)
    assert without.probability == pytest.approx(cat.probability * (1 - tea.probability), rel=1e-4)
    assert both.prior == "algebra"
    assert both.verdict == toy.verdicts["diffusion"].answer(both.probability)


def test_negative_terms_steer_through_the_negative_gain(toy: Steerer):
    goal, network = toy.goal("a cat - a teapot"), toy.network
    assert [weight for weight, _ in goal.terms] == [1, -1]
    glance = network.glance(network.pixels(open_image("sample:cat")))
    plain = network.steer(glance, toy.goal("a cat").vector[None]).output
    assert not torch.allclose(network.steer(glance, goal.vector[None]).output, plain, atol=1e-3)
    no_negative = network.steer(glance, goal.vector[None], strength=(0.0, 1.0)).output
    assert not torch.allclose(
        network.steer(glance, goal.vector[None], strength=(1.0, 1.0)).output, no_negative, atol=1e-3
    )


def test_an_image_is_a_term_and_has_the_verdict_only_if_all_have_one(toy: Steerer):
    goal = toy.goal("image:sample:coffee + a cat")
    torch.testing.assert_close(goal.terms[0][1].vector, toy.image_goal("sample:coffee").vector)
    look = toy.look("sample:cat", goal)
    assert look.probability is None  # the toy has no verdict on goals by images
    assert look.verdict is None


def test_a_single_image_by_words_is_that_images_goal(toy: Steerer):
    goal = toy.goal("image:sample:coffee")
    torch.testing.assert_close(goal.vector, toy.image_goal("sample:coffee").vector, atol=1e-4, rtol=1e-4)


def test_terms_that_cannot_be_understood_are_told(toy: Steerer):
    with pytest.raises(ValueError, match=r"nowhere\.jpg: no such file"):
        toy.goal("image:nowhere.jpg + a cat")
    with pytest.raises(QueryError, match="term is empty"):
        toy.look("sample:cat", "a cat -  + a dog")


def test_the_embedded_model_finds_the_coffee_without_a_cat_where_there_is_none(steerer: Steerer):
    both, alone = (steerer.look(image, "a coffee - a cat") for image in ("sample:cat|coffee", "sample:coffee"))
    assert both.probability is not None
    assert alone.probability is not None
    assert alone.probability > both.probability
