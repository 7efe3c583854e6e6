"""Words that were kept out of training: their goal's best classes beside the classes that are right."""

import json

from lrm_lab import words, words_report
from lrm_lab.imagenet_words import LISTS
from prior.captions import with_article


def test_a_word_is_right_where_a_right_class_is_among_the_best_of_its_goal(toy, tmp_path):
    order = [toy.class_names[i] for i in toy.goal(with_article("pup")).vector.argsort(descending=True).tolist()]
    (tmp_path / "w.json").write_text(json.dumps({"pup": [order[1], order[2]], "cub": list(toy.class_names)}))
    measured = words.measure(toy, tmp_path / "w.json")
    assert measured == {"list": "w.json", "words": 2, "top1": 0.5, "top5": 1.0, "wrong": {"pup": order[:5]}}
    (tmp_path / "w.json").write_text(json.dumps({"pup": [order[0]], "puppy": [order[5]]}))
    assert words.measure(toy, tmp_path / "w.json")["top1"] >= 0.5


def test_a_right_class_may_be_told_by_its_wordnet_id_in_an_object_of_held_out_words(toy, tmp_path, monkeypatch):
    classes = [{**entry, "wnid": f"n{row}"} for row, entry in enumerate(toy.network.card["classes"])]
    monkeypatch.setitem(toy.network.card, "classes", classes)
    best = int(toy.goal(with_article("pup")).vector.argmax())
    (tmp_path / "w.json").write_text(json.dumps({"held_out": {"pup": [f"n{best}"]}, "above": {}}))
    measured = words.measure(toy, tmp_path / "w.json")
    assert (measured["words"], measured["top1"], measured["wrong"]) == (1, 1.0, {})


def test_the_projects_own_words_are_fifty(toy):
    assert words.measure(toy)["words"] == 50
    assert words.measure(toy)["list"] == "heldout_words.json"


def test_models_of_imagenets_classes_have_a_list_of_their_own(toy):
    wnids = {
        wnid for name in ("held_out", "above") for ids in json.loads(LISTS.read_text())[name].values() for wnid in ids
    }
    whole = [*sorted(wnids), *(f"n{row}" for row in range(1000 - len(wnids)))]
    assert words.held_out_of([{"wnid": wnid} for wnid in whole]) == LISTS
    assert words.held_out_of([{"wnid": wnid} for wnid in whole[1:]]) == words.HELD_OUT


def test_each_list_has_bars_of_its_own():
    told = {"words": 200, "top1": 0.849, "top5": 0.96, "wrong": {}}
    assert words_report.rows({**told, "list": LISTS.name})[0][2] == "≥ 85 % / ≥ 95 %, **missed**"
    assert words_report.rows({**told, "list": "heldout_words.json"})[0][2] == "≥ 70 % / ≥ 90 %"
    assert words_report.rows(told)[0][2] == "≥ 70 % / ≥ 90 %"  # results from before there were two lists
