"""Words that were kept out of training: their goal's best classes beside the classes that are right."""

import json

from lrm_lab import words
from prior.captions import with_article


def test_a_word_is_right_where_a_right_class_is_among_the_best_of_its_goal(toy, tmp_path):
    order = [toy.class_names[i] for i in toy.goal(with_article("pup")).vector.argsort(descending=True).tolist()]
    (tmp_path / "w.json").write_text(json.dumps({"pup": [order[1], order[2]], "cub": list(toy.class_names)}))
    measured = words.measure(toy, tmp_path / "w.json")
    assert measured == {"words": 2, "top1": 0.5, "top5": 1.0, "wrong": {"pup": order[:5]}}
    (tmp_path / "w.json").write_text(json.dumps({"pup": [order[0]], "puppy": [order[5]]}))
    assert words.measure(toy, tmp_path / "w.json")["top1"] >= 0.5


def test_the_projects_own_words_are_fifty(toy):
    assert words.measure(toy)["words"] == 50
