"""ImageNet's classes as a table: names that differ, synonyms, and what lies above."""

import json

import pytest

from prior.captions import Vocabulary, normal
from prior.class_table import class_table, main

ABOVE = {
    "n1": ["bird"],
    "n2": ["lifting device"],
    "n3": ["artifact", "artefact"],
    "n4": ["corgi", "Welsh corgi"],
    "n5": ["dog", "domestic dog"],
    "n02085374": ["toy dog", "toy"],
}


def source():
    classes = [
        {"wnid": "a", "names": ["crane"], "is_a": ["n1"]},
        {"wnid": "b", "names": ["crane"], "is_a": ["n2", "n3"]},
        {"wnid": "c", "names": ["Cardigan", "Cardigan Welsh corgi"], "is_a": ["n4", "n5"]},
        {"wnid": "d", "names": ["cardigan"], "is_a": ["n3"]},
        {"wnid": "e", "names": ["maillot", "tank suit"], "is_a": ["n3"]},
        {"wnid": "f", "names": ["maillot"], "is_a": ["n3"]},
        {"wnid": "g", "names": ["pug", "pug-dog"], "is_a": ["n02085374", "n5"]},
    ]
    return {"classes": [{"index": label, **entry} for label, entry in enumerate(classes)], "above": ABOVE}


def test_every_class_has_a_name_of_its_own():
    table = class_table(source())
    assert [entry["name"] for entry in table] == [
        "crane bird", "crane lifting device", "Cardigan Welsh corgi", "cardigan", "tank suit", "maillot", "pug",
    ]  # fmt: skip
    assert table[0]["synonyms"] == table[1]["synonyms"] == ["crane"]
    assert table[2]["synonyms"] == []  # a cardigan is no dog
    assert table[4]["synonyms"] == ["maillot"]


def test_what_lies_above_is_named_without_empty_and_misleading_words():
    table = class_table(source())
    assert table[1]["is_a"] == ["lifting device"]
    assert table[2]["is_a"] == ["corgi", "Welsh corgi", "dog", "domestic dog"]
    assert table[6]["is_a"] == ["toy dog", "dog", "domestic dog"]


def test_a_hypernym_of_half_of_all_classes_is_left_out(monkeypatch):
    monkeypatch.setattr("prior.class_table.MOST_CLASSES", 2)
    assert class_table(source())[6]["is_a"] == ["toy dog"]


def test_a_wrong_source_is_refused():
    wrong = source()
    wrong["classes"][1]["index"] = 5
    with pytest.raises(ValueError, match="class b: expected index 1, its place, got 5"):
        class_table(wrong)
    with pytest.raises(ValueError, match="expected index, wnid, names and is_a of each, and above; got KeyError"):
        class_table({"classes": []})
    same = [{"index": label, "wnid": str(label), "names": ["crane"], "is_a": ["n1"]} for label in range(2)]
    with pytest.raises(ValueError, match="expected names that differ, got several classes of crane bird"):
        class_table({"classes": same, "above": ABOVE})


def test_the_command_writes_what_a_vocabulary_reads(tmp_path, capsys):
    (tmp_path / "classes.json").write_text(json.dumps(source()))
    main([str(tmp_path / "classes.json"), "--output", str(tmp_path / "made" / "table.json")])
    assert "7 classes" in capsys.readouterr().out
    assert Vocabulary.load(tmp_path / "made" / "table.json").groups["dog"] == (2, 6)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "missing.json"), "--output", str(tmp_path / "table.json")])


def test_imagenet_s_thousand_classes(shared):
    table = class_table(json.loads((shared / "data" / "imagenet" / "classes.json").read_text()))
    assert len({normal(entry["name"]) for entry in table}) == 1000
    vocabulary = Vocabulary(table)
    assert [vocabulary.names[label] for label in (0, 134, 517, 264, 474)] == [
        "tench", "crane bird", "construction crane", "Cardigan Welsh corgi", "cardigan",
    ]  # fmt: skip
    assert len(vocabulary.groups["dog"]) == 118
    assert {"entity", "artifact", "object"}.isdisjoint(vocabulary.groups)
