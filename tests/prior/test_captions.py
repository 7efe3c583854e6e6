"""Plain English of class names: `prior.captions`."""

import json
from pathlib import Path

import pytest

from prior.captions import (
    PLURAL_TEMPLATES,
    TEMPLATES,
    Vocabulary,
    captions,
    fill,
    is_plural,
    plural,
    query_variants,
    with_article,
)

CLASSES = [
    {"label": 0, "name": "golden retriever", "synonyms": [], "is_a": ["dog", "pet", "animal"]},
    {"label": 1, "name": "standard poodle", "synonyms": ["caniche"], "is_a": ["dog", "pet", "animal"]},
    {"label": 2, "name": "tabby", "synonyms": ["tabby cat"], "is_a": ["cat", "pet", "animal"]},
    {"label": 3, "name": "binoculars", "synonyms": ["field glasses"], "is_a": ["optical instrument"]},
    {"label": 4, "name": "hog", "synonyms": ["pig"], "is_a": ["pig", "animal"]},
]


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("dog", "a dog"),
        ("apron", "an apron"),
        ("hourglass", "an hourglass"),
        ("hen", "a hen"),
        ("uniform", "a uniform"),
        ("umbrella", "an umbrella"),
        ("unit", "a unit"),
        ("uninvited guest", "an uninvited guest"),
        ("ukulele", "a ukulele"),
        ("European fire salamander", "a European fire salamander"),
        ("ATM", "an ATM"),
        ("CD player", "a CD player"),
        ("iPod", "an iPod"),
        ("X-ray", "an X-ray"),
        ("UFO", "a UFO"),
        ("Egyptian cat", "an Egyptian cat"),
        ("binoculars", "binoculars"),
        ("swimming trunks", "swimming trunks"),
        ("guacamole", "guacamole"),
        ("king of beasts", "a king of beasts"),
        ("school bus", "a school bus"),
        ("magnetic compass", "a magnetic compass"),
        ("abacus", "an abacus"),
    ],
)
def test_nouns_take_the_article_that_they_are_spoken_with(noun: str, expected: str) -> None:
    assert with_article(noun) == expected


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("dog", "dogs"),
        ("tabby", "tabbies"),
        ("monkey", "monkeys"),
        ("box", "boxes"),
        ("torch", "torches"),
        ("monarch", "monarchs"),
        ("goose", "geese"),
        ("ox", "oxen"),
        ("meat loaf", "meat loaves"),
        ("mashed potato", "mashed potatoes"),
        ("jellyfish", "jellyfish"),
        ("fireman", "firemen"),
        ("human", "humans"),
        ("king of beasts", "kings of beasts"),
        ("binoculars", "binoculars"),
        ("bighorn sheep", "bighorn sheep"),
        ("potter's wheel", "potter's wheels"),
        ("furniture", "furniture"),
    ],
)
def test_plurals_are_made_on_the_head(noun: str, expected: str) -> None:
    assert plural(noun) == expected


def test_a_plural_gets_no_singular_verb_and_no_second_plural() -> None:
    variants = query_variants("sunglasses")
    assert is_plural("sunglasses")
    assert "where are the sunglasses?" in variants
    assert not any("a sunglasses" in text or " is the " in text or "sunglassess" in text for text in variants)
    assert "two sunglasses" not in variants


def test_query_variants_start_with_the_bare_word_and_do_not_repeat() -> None:
    variants = query_variants("apron")
    assert variants[0] == "apron"
    assert {"an apron", "find the apron", "a photo of an apron", "two aprons", "where is the apron?"} <= set(variants)
    assert len(variants) == len(set(variants)) == len(TEMPLATES) + len(PLURAL_TEMPLATES)


def test_every_template_holds_its_noun() -> None:
    for template in TEMPLATES + PLURAL_TEMPLATES:
        text = fill(template, "zebra")
        assert "zebra" in text
        assert "{" not in text


def test_a_hypernym_means_all_of_its_classes() -> None:
    meaning = {caption.text: caption for caption in Vocabulary(CLASSES).captions()}
    assert meaning["a dog"].labels == (0, 1)
    assert meaning["find the pet"].labels == (0, 1, 2)
    assert meaning["a standard poodle"].labels == (1,)
    assert meaning["a caniche"].source == "synonym"
    assert meaning["an animal"].source == "is_a"
    assert meaning["pig"].labels == (4,)


def test_a_noun_of_several_classes_means_all_of_them() -> None:
    classes = [{"name": "cougar", "synonyms": ["panther"]}, {"name": "leopard", "synonyms": ["Panther"]}]
    meaning = {noun: labels for noun, labels, _ in Vocabulary(classes).nouns()}
    assert meaning["panther"] == (0, 1)


def test_held_out_words_reach_no_caption() -> None:
    held_out = ["Dog", "caniche", "field-glasses", "cats"]
    vocabulary = Vocabulary(CLASSES, held_out)
    nouns = {noun for noun, _, _ in vocabulary.nouns()}
    assert nouns == {"golden retriever", "standard poodle", "tabby", "tabby cat", "binoculars", "hog", "pet", "animal",
                     "optical instrument", "pig"}  # fmt: skip
    assert "dog" not in vocabulary.groups
    assert "cat" not in vocabulary.groups  # its plural is held out
    for caption in vocabulary.captions():
        assert caption.noun.lower() not in {"dog", "cat", "caniche", "field glasses"}


def test_holding_out_the_only_name_of_a_class_raises() -> None:
    with pytest.raises(ValueError, match="no name for golden retriever"):
        Vocabulary(CLASSES, ["golden retriever"])


def test_captions_of_one_class_hold_name_synonyms_and_hypernyms() -> None:
    texts = captions(CLASSES[1], ["{a}"])
    assert texts == ["a standard poodle", "a caniche", "a dog", "a pet", "an animal"]


def test_a_table_in_the_wrong_order_raises() -> None:
    with pytest.raises(ValueError, match="expected label 0, its place in the table, got 1"):
        Vocabulary(CLASSES[1:])


def test_an_entry_without_a_name_raises() -> None:
    with pytest.raises(ValueError, match="class 0: expected a name"):
        Vocabulary([{"label": 0}])


def test_a_missing_or_wrong_file_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="table of classes not found"):
        Vocabulary.load(tmp_path / "no.json")
    (tmp_path / "classes.json").write_text(json.dumps({"name": "dog"}))
    with pytest.raises(ValueError, match="expected a list of classes, got dict"):
        Vocabulary.load(tmp_path / "classes.json")


def test_every_word_of_the_real_classes_makes_captions(shared: Path) -> None:
    vocabulary = Vocabulary.load(shared / "data" / "tiny_imagenet" / "classes.json")
    assert len(vocabulary.names) == 200
    found = vocabulary.captions()
    assert {label for caption in found for label in caption.labels} == set(range(200))
    assert vocabulary.groups["dog"] == (24, 25, 26, 27, 28, 29)
    assert not [caption.text for caption in found if "  " in caption.text or caption.text != caption.text.strip()]
