"""The lists of words for ImageNet's 1,000 classes: counts, real classes, and no word in two lists that must differ."""

import json
import re

import pytest

from lrm_lab.imagenet_words import LISTS, lacks_classes, lacks_wnids, word_lists
from prior.captions import normal, plural, with_article

COUNTS = {
    "held_out": 200,
    "above": 40,
    "unknown_choosing": 100,
    "unknown_reporting": 60,
    "known_choosing": 200,
    "known_reporting": 200,
}
ARTICLE = re.compile(r"^(an?|the) ")


@pytest.fixture(scope="module")
def lists():
    return json.loads(LISTS.read_text())


@pytest.fixture(scope="module")
def imagenet(shared):
    return json.loads((shared / "data" / "imagenet" / "classes.json").read_text())


def forms(words):
    """The words without articles, and their plurals, in one spelling."""
    nouns = [ARTICLE.sub("", word) for word in words]
    return {re.sub(r"[^a-z0-9]", "", form.lower()) for noun in nouns for form in (noun, normal(plural(noun)))}


def test_every_list_is_as_long_as_it_was_planned_and_says_nothing_twice(lists):
    assert {name: len(entries) for name, entries in lists.items()} == COUNTS
    for name, entries in lists.items():
        assert len({normal(word) for word in entries}) == COUNTS[name], name


@pytest.mark.parametrize("name", ["held_out", "above"])
def test_every_word_means_classes_that_exist(lists, imagenet, name):
    wnids = {entry["wnid"] for entry in imagenet["classes"]}
    for word, members in lists[name].items():
        assert members, word
        assert len(set(members)) == len(members), word
        assert set(members) <= wnids, word


@pytest.mark.parametrize("choosing", ["known_choosing", "unknown_choosing", "above"])
def test_no_held_out_word_is_in_a_list_that_others_may_see(lists, choosing):
    assert forms(lists["held_out"]) & forms(lists[choosing]) == set()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("known_choosing", "known_reporting"),
        ("unknown_choosing", "unknown_reporting"),
        ("unknown_choosing", "known_choosing"),
        ("unknown_choosing", "known_reporting"),
        ("unknown_reporting", "known_choosing"),
        ("unknown_reporting", "known_reporting"),
        ("unknown_reporting", "held_out"),
        ("unknown_reporting", "above"),
    ],
)
def test_lists_do_not_overlap(lists, one, other):
    assert forms(lists[one]) & forms(lists[other]) == set()


def test_no_class_and_nothing_above_it_is_called_as_what_is_unknown(lists, imagenet):
    names = [name for entry in imagenet["classes"] for name in entry["names"]]
    names += [name for above in imagenet["above"].values() for name in above]
    assert forms([*lists["unknown_choosing"], *lists["unknown_reporting"]]) & forms(names) == set()


def test_every_text_can_be_read_as_a_query(lists, toy):
    for name in ("held_out", "above"):
        assert len(toy.goals([with_article(word) for word in lists[name]])) == COUNTS[name]
    for name in COUNTS.keys() - {"held_out", "above"}:
        assert not any(goal.terms for goal in toy.goals(lists[name])), name


def test_rows_follow_the_cards_own_order(lists, imagenet):
    classes = [{"wnid": entry["wnid"], "name": entry["names"][0]} for entry in reversed(imagenet["classes"])]
    told = word_lists(classes)
    assert [classes[row]["wnid"] for row in told.above["bear"]] == lists["above"]["bear"]
    assert told.known == tuple(lists["known_reporting"])
    assert told.unknown == tuple(lists["unknown_reporting"])


def test_other_classes_are_refused_with_the_reason(imagenet):
    whole = [{"wnid": entry["wnid"]} for entry in imagenet["classes"]]
    assert lacks_classes(whole) == lacks_wnids(whole) == ""
    assert lacks_wnids([{"name": "cat"}, whole[0]]) == "1 of the model's 2 classes have no WordNet id"
    assert lacks_classes(whole[:200]) == "the lists are for ImageNet's 1,000 classes, and the model has 200"
    assert lacks_classes([{"wnid": "n00000000"}, *whole[1:]]) == "the model lacks 1 of the classes that the lists name"
    with pytest.raises(ValueError, match="and the model has 200"):
        word_lists(whole[:200])
