"""Words: what says no is turned round, what is not looked at is told, what cannot be judged gets no answer."""

import copy
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from lrm_base.card import load_card
from lrm_base.imagenet import imagenet_names
from prior.captions import normal, with_article
from steering import QueryError, Steerer
from steering.algebra import Term, combine_goals, parse
from steering.calibrate_words import WordLists, fit_familiarity, main, read_words
from steering.catalogue import MODEL_VARIABLE
from steering.familiarity import Unfamiliar, single_words, suggestion, unfamiliar
from steering.goals import Goal
from steering.negation import negated
from steering.seek import answer, is_unknown
from steering.words import Reading, judged, notes, read

ROOT = Path(__file__).resolve().parent.parent.parent
LISTS = ROOT / "lrm_lab" / "familiar_words.json"
MINI = Path(os.environ[MODEL_VARIABLE])  # the mini model, as tests/conftest.py set it
CARD = json.loads((MINI / "vocabulary.json").read_text())
KNOWN = frozenset(normal(name) for name in (*CARD["nouns"], *imagenet_names()))


# --- what says no


@pytest.mark.parametrize(
    ("query", "unwanted"),
    [
        ("not a cat", ["a cat"]),
        ("no cat", ["cat"]),
        ("No cats!", ["cats"]),
        ("no cats in the picture", ["cats"]),
        ("a photo without a cat", ["a cat"]),
        ("a picture with no cats", ["cats"]),
        ("a photo not of a cat", ["a cat"]),
        ("without a cat", ["a cat"]),
        ("anything but a dog", ["a dog"]),
        ("everything except a dog", ["a dog"]),
        ("something other than a dog", ["a dog"]),
        ("there are no cats", ["cats"]),
        ("is there no cat here?", ["cat"]),
        ("a cat is absent", ["a cat"]),
        ("the absence of a cat", ["a cat"]),
        ("a non-cat", ["cat"]),
        ("an image that does not show a cat", ["a cat"]),
        ("photos which do not contain a cat or a dog", ["a cat", "a dog"]),
        ("a picture in which there is no dog", ["dog"]),
        ("neither a cat nor a dog", ["a cat", "a dog"]),
        ("no cats or dogs", ["cats", "dogs"]),
        ("no cat and no dog", ["cat", "dog"]),
        ("without cats and dogs", ["cats", "dogs"]),
    ],
)
def test_what_is_negated_at_the_front_is_the_complement(query, unwanted):
    assert negated(query) == ("", tuple(unwanted))
    assert parse(query) == tuple(Term(-1.0, thing) for thing in unwanted)


@pytest.mark.parametrize(
    ("query", "wanted", "unwanted"),
    [
        ("a dog without a leash", "a dog", ["a leash"]),
        ("a beach without people", "a beach", ["people"]),
        ("a street with no cars", "a street", ["cars"]),
        ("a cat but not a dog", "a cat", ["a dog"]),
        ("a cat, not a dog", "a cat", ["a dog"]),
        ("a dog and no cat", "a dog", ["cat"]),
        ("animals other than dogs", "animals", ["dogs"]),
        ("any animal but a dog", "any animal", ["a dog"]),
        ("an animal that is not a dog", "an animal", ["a dog"]),
        ("a dog that does not wear a collar", "a dog", ["a collar"]),
        ("a street where there are no cars", "a street", ["cars"]),
        ("a dog with no leash and no collar", "a dog", ["leash", "collar"]),
        ("a cat with neither a hat nor a tie", "a cat", ["a hat", "a tie"]),
    ],
)
def test_what_is_negated_after_a_thing_is_taken_away_from_it(query, wanted, unwanted):
    assert parse(query) == (Term(1.0, wanted), *(Term(-1.0, thing) for thing in unwanted))


@pytest.mark.parametrize(
    "query",
    [
        "nothing but a dog",
        "isn't a cat",
        "there isn’t a cat",
        "not only a cat",
        "not without a cat",
        "never a cat",
        "no one",
        "a cat not on a sofa",
        "not a cat but a dog",
        "no cat and a dog",
        "no cats, only dogs",
        "a people-free beach",
        "a dog that does not bark",
        "I do not have a cat",
        "a man who did not show up",
        "not",
        "a cat without",
    ],
)
def test_a_no_that_cannot_be_read_is_refused_with_the_form_that_can(query):
    with pytest.raises(QueryError, match='cannot be read here; "- a cat" asks whether a cat is absent'):
        parse(query)


@pytest.mark.parametrize(
    "query",
    [
        "a no parking sign",
        "no smoking",
        "no-fly zone",
        "no man's land",
        "no dogs allowed sign",
        "forget-me-not",
        "touch me not",
        "a minus sign",
        "a missing link",
        "a knot",
        "a notebook",
        "a nose",
        "a canoe",
        "a butterfly",
        "butter",
        "a non-stick pan",
        "an umbrella never asked for before",
        "a hands-free phone",
        "Dr. No",
        "a without-a-doubt winner",
        "two does",
    ],
)
def test_names_that_hold_a_no_are_read_as_they_stand(query):
    assert negated(query) is None
    assert parse(query) == (Term(1.0, query),)


def test_no_known_name_says_no():
    for name in (*CARD["nouns"], *imagenet_names()):
        assert negated(with_article(name)) is None, name


@pytest.mark.parametrize("query", ["- a cat", "-a cat", "-1:a cat", "− a cat", "not a cat", "+ -1:a cat"])
def test_every_minus_in_front_gives_the_same_complement(toy: Steerer, query):
    cat, goal = toy.goal("a cat"), toy.goal(query)
    assert goal.is_complement
    assert not cat.is_complement
    assert not toy.goal("a cat - a teapot").is_complement
    torch.testing.assert_close(goal.vector, cat.vector, atol=1e-4, rtol=1e-4)
    look, plain = toy.look("sample:cat", query), toy.look("sample:cat", "a cat")
    assert look.probability == pytest.approx(1 - plain.probability, abs=1e-5)
    torch.testing.assert_close(look.heatmap, plain.heatmap, atol=1e-3, rtol=1e-3)  # where the cat may be
    assert look.is_complement
    assert "  note: judged: that “a cat” is absent; the heatmap shows where it may be" in str(look).splitlines()
    assert look.as_dict()["notes"] == list(look.notes) == list(goal.notes)


@pytest.mark.parametrize("query", ["- -1:a cat", "--a cat", "- no cat", "a dog - not a cat"])
def test_two_that_say_no_are_refused(query):
    with pytest.raises(QueryError, match=r"two minus signs|says no after a minus"):
        parse(query)


@pytest.mark.parametrize(
    ("chance", "plain", "turned"),
    [
        (0.0, "absent", "present"),
        (0.3, "absent", "present"),
        (0.31, "unsure", "unsure"),
        (0.7, "unsure", "unsure"),
        (0.75, "unsure", "unsure"),
        (0.8, "present", "absent"),
        (1.0, "present", "absent"),
    ],
)
def test_the_thresholds_of_a_complement_are_those_of_the_thing_turned_round(toy: Steerer, chance, plain, turned):
    verdict = toy.verdicts["diffusion"]
    assert (verdict.absent_below, verdict.present_above) == (0.3, 0.8)
    assert answer(toy.verdicts, toy.goal("a cat"), chance) == plain
    assert answer(toy.verdicts, toy.goal("- a cat"), 1 - chance) == turned
    assert answer(toy.verdicts, toy.goal("- a cat"), None) is None


def test_neither_of_two_is_the_product_of_both_absences(toy: Steerer):
    neither, cat, tea = toy.look_many("sample:cat", ["neither a cat nor a teapot", "a cat", "a teapot"])
    assert neither.probability == pytest.approx((1 - cat.probability) * (1 - tea.probability), rel=1e-4)
    assert "“a cat” and “a teapot” are absent" in neither.notes[0]


def test_words_that_were_taken_for_arithmetic_are_told_so(toy: Steerer):
    assert toy.goal("a cat without a teapot").notes == ('read as "a cat - a teapot"',)
    assert toy.goal("a cat - a teapot").notes == ()


def test_the_embedded_model_does_not_turn_words_round(steerer: Steerer):
    queries = ["a cat", "not a cat", "no cats", "a photo without a cat", "- a cat", "-1:a cat"]
    assert [look.verdict for look in steerer.look_many("sample:cat", queries)] == ["present", *["absent"] * 5]
    assert [look.verdict for look in steerer.look_many("sample:coffee", queries)] == ["absent", *["present"] * 5]


# --- what is not looked at


@pytest.mark.parametrize(
    ("query", "text", "ignored"),
    [
        ("two cups", "cups", ["two"]),
        ("2 cups", "cups", ["2"]),
        ("a few dogs", "dogs", ["a few"]),
        ("a lot of dogs", "dogs", ["a lot of"]),
        ("at least three dogs", "dogs", ["at least", "three"]),
        ("a red car", "a car", ["red"]),
        ("a red apple", "an apple", ["red"]),
        ("a light blue car", "a car", ["light", "blue"]),
        ("a dark-red car", "a car", ["dark-red"]),
        ("a black and white cat", "a cat", ["black", "white"]),
        ("an orange car", "a car", ["orange"]),
        ("a very small red dog", "a dog", ["very", "small", "red"]),
        ("a photo of a small dog", "a photo of a dog", ["small"]),
        ("two brown bears", "brown bears", ["two"]),
        ("a dog in the background", "a dog", ["in the background"]),
        ("a cat in the top left corner", "a cat", ["in the top left corner"]),
        ("a cat in the middle of the picture", "a cat", ["in the middle of the picture"]),
    ],
)
def test_colours_numbers_sizes_and_places_are_taken_out_and_told(query, text, ignored):
    reading = read(query, lambda: KNOWN)
    assert (reading.text, sorted(reading.ignored)) == (text, sorted(ignored))
    (note,) = notes([reading])
    for word in ignored:
        assert f"“{word}”" in note
    assert note.endswith("looked at: this network tells kinds of things apart, not colours, numbers, sizes or places")


@pytest.mark.parametrize(
    "query",
    [
        "brown bear",
        "a red fox",
        "black widow",
        "an orange",
        "two-toed sloth",
        "king penguin",
        "a big cat",
        "dark glasses",
        "a great white shark",
        "a light bulb",
        "red",
        "12",
        "where is the dog?",
        "is there a cat in the photo?",
        "a cup of coffee",
    ],
)
def test_a_name_is_kept_whole(query):
    assert read(query, lambda: KNOWN) == Reading(query)


def test_no_known_name_loses_a_word():
    for name in (*CARD["nouns"], *imagenet_names()):
        assert read(with_article(name), lambda: KNOWN).text == with_article(name)


@pytest.mark.parametrize(
    ("query", "how", "both"),
    [
        ("a dog on a sofa", "on", "a dog + a sofa"),
        ("a dog left of a cat", "left of", "a dog + a cat"),
        ("a cat to the left of a dog", "to the left of", "a cat + a dog"),
        ("a dog behind a small tree", "behind", "a dog + a tree"),
        ("a cat in front of a car", "in front of", "a cat + a car"),
    ],
)
def test_a_relation_is_told_with_the_query_that_asks_for_both(query, how, both):
    reading = read(query)
    assert reading.relation == (how, both)
    assert how in reading.text  # the query itself stays
    assert notes([reading])[-1] == f'the relation “{how}” is not looked at: "{both}" asks for both'


def test_one_note_is_given_for_a_query_of_several_terms(toy: Steerer):
    (note,) = toy.goal("a red cat + a blue teapot").notes
    assert note.startswith("“red” and “blue” are not looked at")
    assert toy.goal("a red cat").notes == ("“red” is not looked at" + note.split("are not looked at")[1],)
    assert judged(["a cat"]).startswith("judged: that “a cat” is absent")


def test_what_is_not_looked_at_does_not_reach_the_network(toy: Steerer):
    plain, red = toy.goal("a cat"), toy.goal("a small red cat")
    assert torch.equal(plain.vector, red.vector)
    assert plain.familiarity == red.familiarity
    assert red.name == "a small red cat"
    assert (plain.notes, len(red.notes)) == ((), 1)
    batch = toy.goals(["a cat", "a small red cat"])[1]
    assert batch.notes == red.notes


# --- what cannot be judged


def test_why_no_answer_is_given_is_told():
    def found(text, cosine=0.4, nearest=("espresso",)):
        words = frozenset(("coffee", "zebra", "elephant", "teapot"))
        return unfamiliar(text, cosine, 0.7, nearest, lambda: words, lambda word: word in words or word == "sky")

    def told(text, cosine=0.4):
        return found(text, cosine).reason

    assert told("кошка", 0.9) == "“кошка” is not in Latin letters (Cyrillic): the text encoder reads English only"
    assert "(Chinese)" in told("猫")
    for text in ("12", "☕", "3.14"):
        assert told(text, 0.9).startswith(f"“{text}” is not a word")
    for wrong, right in (("a cofee", "coffee"), ("zeebra", "zebra"), ("elefants", "elephant"), ("a teapott", "teapot")):
        assert f"did you mean “{right}”?" in told(wrong)
    assert "did you mean “teapot”?" in told("a teapott", 0.93)  # near, and yet no word
    assert told("the sky") == "“sky” is not like any thing that this network knows; the nearest is “espresso”"
    for nearest, said in (
        (("cup", "mug"), "the nearest are “cup” and “mug”"),
        (("cup", "mug", "pot"), "the nearest are “cup”, “mug” and “pot”"),
    ):
        reason = f"“sky” is not like any thing that this network knows; {said}"
        assert found("the sky", 0.4, nearest) == Unfamiliar(reason, nearest)
    assert found("a cofee").nearest == ("coffee",)
    assert found("кошка").nearest == found("12").nearest == ()
    assert found("the sky", 0.7) is found("a teapot", 1.0) is None


def test_only_a_word_that_nobody_knows_is_taken_for_a_misspelling():
    assert suggestion(["coffees"], {"coffee"}, lambda _: False, 0.8) is None
    assert suggestion(["coffe"], {"coffee"}, lambda _: True, 0.8) is None
    for possessive in ("coffee's", "coffee’s"):
        assert suggestion([possessive], {"coffee"}, lambda _: False, 0.8) is None
    assert suggestion(["coffe"], {"coffee"}, lambda _: False, 0.8) == ("coffe", "coffee")
    assert single_words(["Egyptian cat", "jack-o'-lantern"]) == {"egyptian", "cat", "jack", "lantern"}


@pytest.mark.parametrize(
    ("query", "reason", "count"),
    [
        ("a cofee", "did you mean “coffee”?", 1),
        ("zeebra", "did you mean “zebra”?", 1),
        ("elefant", "did you mean “elephant”?", 1),
        ("кошка", "not in Latin letters", 0),
        ("🐱", "is not a word", 0),
        ("happiness", "is not like any thing that this network knows", 3),
        ("a person", "is not like any thing", 3),
        ("- a person", "is not like any thing", 3),
        ("a cat + a person", "is not like any thing", 3),
        ("a cat - a person", "is not like any thing", 3),
    ],
)
def test_the_embedded_model_has_no_eyes_for_words_that_it_cannot_judge(steerer: Steerer, query, reason, count):
    goal = steerer.goal(query)
    assert reason in goal.unfamiliar
    assert len(goal.nearest) == count
    assert all(f"“{name}”" in goal.unfamiliar for name in goal.nearest)
    for image in ("sample:cat", "sample:coffee"):
        look = steerer.look(image, query)
        assert (look.verdict, look.probability, look.nearest) == ("unknown", None, goal.nearest)
        assert reason in look.notes[-1]
        assert reason in str(look)
        assert "  UNKNOWN · evidence" in str(look)
        plain = look.as_dict()
        assert (plain["verdict"], plain["probability"], plain["nearest"]) == ("unknown", None, list(goal.nearest))


def test_what_is_familiar_has_no_nearest(steerer: Steerer):
    for goal in (steerer.goal("a cat"), steerer.goal("a cat - a dog"), steerer.image_goal("sample:cat")):
        assert (goal.unfamiliar, goal.nearest, is_unknown(steerer.verdicts, goal)) == ("", (), False)
    assert steerer.look("sample:cat", "a cat").nearest == ()


def test_a_goal_is_unfamiliar_for_a_term_of_a_term(toy: Steerer):
    strange = Goal("x", torch.zeros(6), "diffusion", unfamiliar="why", nearest=("cat",))
    inner = combine_goals([(1.0, toy.goal("a cat")), (-1.0, strange)], "inner")
    outer = combine_goals([(1.0, toy.goal("a cat")), (1.0, inner)], "outer")
    assert (outer.unfamiliar, outer.nearest) == ("why", ("cat",))
    for chance in (None, 0.0, 1.0):
        assert answer(toy.verdicts, outer, chance) == "unknown"


def test_a_model_without_a_verdict_says_that_it_is_not_calibrated_whatever_the_words_are(steerer: Steerer):
    bare = steerer.with_network(steerer.network)
    look = bare.look("sample:cat", "a person")
    assert (look.verdict, look.probability, len(look.nearest)) == (None, None, 3)
    assert "NOT CALIBRATED" in str(look)
    assert "is not like any thing" in look.notes[-1]
    assert not is_unknown(bare.verdicts, bare.goal("a person"))
    assert not is_unknown({"image": steerer.verdicts["image"]}, steerer.goal("image:sample:cat + a person"))


def test_every_name_that_the_embedded_model_was_taught_is_familiar(steerer: Steerer):
    goals = steerer.goals([with_article(noun) for noun in CARD["nouns"]])
    assert [goal.name for goal in goals if goal.unfamiliar or goal.notes] == []


def test_a_goal_with_notes_survives_pickling_and_copying(toy: Steerer):
    goal = Goal("x", torch.zeros(3), "image", notes=("one", "two"), unfamiliar="why", nearest=("cat",))
    for other in (pickle.loads(pickle.dumps(goal)), copy.deepcopy(goal), copy.copy(goal)):
        assert (other.notes, other.unfamiliar, other.nearest) == (("one", "two"), "why", ("cat",))
        assert not other.is_complement
    negative = pickle.loads(pickle.dumps(toy.goal("- a red cat")))
    assert negative.is_complement
    assert len(negative.notes) == 2
    with pytest.raises(AttributeError, match="cannot be changed"):
        goal.notes = ()


# --- the threshold


def test_the_stored_threshold_is_what_the_stored_lists_give(steerer: Steerer):
    words = read_words(LISTS)
    assert min(len(words.known_reporting), len(words.unknown_reporting)) >= 75
    found = fit_familiarity(steerer.language, words)
    assert found == CARD["familiarity"]
    assert steerer.language.least == found["least"]
    assert found["known_called_unfamiliar"]["choosing"] <= 0.05
    assert found["known_called_unfamiliar"]["reporting"] <= 0.05
    assert found["unknown_called_unfamiliar"]["choosing"] >= 0.95
    assert found["unknown_called_unfamiliar"]["reporting"] >= 0.90
    called = [bool(goal.unfamiliar) for goal in steerer.goals(words.known_reporting)]
    assert sum(called) / len(called) == pytest.approx(found["known_called_unfamiliar"]["reporting"], abs=1e-3)


def test_a_model_without_a_threshold_judges_every_word(toy: Steerer):
    assert toy.language.least is None
    for query in ("кошка", "asdf", "12"):
        assert toy.goal(query).unfamiliar == ""
        assert toy.look("sample:cat", query).verdict == toy.verdicts["diffusion"].answer(
            toy.look("sample:cat", query).probability
        )


@pytest.fixture
def worded(toy_folder, tmp_path):
    """The toy, with the words of its vocabulary in the card."""
    import shutil

    shutil.copytree(toy_folder, tmp_path / "toy")
    path = tmp_path / "toy" / "vocabulary.json"
    nouns = [entry["name"] for entry in json.loads((toy_folder / "backbone.json").read_text())["classes"]]
    path.write_text(json.dumps({**load_card(path), "nouns": nouns}))
    return tmp_path / "toy"


def test_the_command_writes_the_threshold_into_the_model(worded, tmp_path, capsys):
    known = ["a cat", "a beagle", "a lemon", "a teapot"]
    (tmp_path / "words.json").write_text(json.dumps({"known": known, "unknown": ["кошка", "12", "猫", "☕"]}))
    main([str(worded), str(tmp_path / "words.json")])
    found = json.loads(capsys.readouterr().out)
    assert found == load_card(worded / "vocabulary.json")["familiarity"]
    assert found["known_called_unfamiliar"] == {"choosing": 0.0, "reporting": 0.0}
    assert found["unknown_called_unfamiliar"] == {"choosing": 1.0, "reporting": 1.0}
    steerer = Steerer.load(worded, device="cpu")
    assert steerer.language.least == found["least"]
    assert steerer.look("sample:cat", "кошка").verdict == "unknown"
    assert Steerer.load(worded, prior="class-names", device="cpu").goal("кошка").unfamiliar


def test_lists_that_no_threshold_divides_are_refused(steerer: Steerer, tmp_path, capsys):
    lists = WordLists.split(["love", "hope", "fear", "time"], ["a cat", "a dog", "a hat", "a car"])
    with pytest.raises(ValueError, match="words: no threshold"):
        fit_familiarity(steerer.language, lists)
    with pytest.raises(ValueError, match="words: got 1 known and 4 unknown"):
        WordLists.split(["a cat"], ["b"] * 4)
    (tmp_path / "odd.json").write_text("[]")
    with pytest.raises(SystemExit):
        main([str(MINI), str(tmp_path / "odd.json")])
    assert "expected a JSON file of two lists, known and unknown" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "value"), [("nouns", ["a cat"]), ("familiarity", {"least": 7})])
def test_a_card_that_does_not_fit_is_refused(worded, key, value):
    path = worded / "vocabulary.json"
    path.write_text(json.dumps({**load_card(path), key: value}))
    with pytest.raises(ValueError, match=r"vocabulary\.json: got .*, expected"):
        Steerer.load(worded, device="cpu")
