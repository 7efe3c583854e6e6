"""Training pairs: what texts mean, how often they are drawn, and that held-out words never enter."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as F

from prior.captions import Vocabulary
from prior.data import (
    NOUN_TEMPLATES,
    Pairs,
    Texts,
    build_texts,
    membership,
    read_nouns,
    soft_labels,
    vocabulary_anchors,
)

CLASSES = [
    {"name": "tabby cat", "synonyms": ["tabby"], "is_a": ["cat", "animal"]},
    {"name": "beagle", "synonyms": ["hunting dog"], "is_a": ["dog", "animal"]},
    {"name": "lemon", "synonyms": [], "is_a": ["citrus"]},
]
HELD_OUT = ["Citrus", "hunting dog", "race-car", "puppies"]
NOUNS = """n1\tpuppy, pup
n2\trace car, racing automobile
n3\tlemon, lemon tree
n4\tcat, kitty
n5\ta very long noun phrase
"""


def encode(texts):
    """Letter pairs of a text, counted: texts that share words lie near each other."""
    rows = torch.zeros(len(texts), 676)
    for row, text in zip(rows, texts, strict=True):
        letters = re.sub(r"[^a-z]", "", text.lower())
        for a, b in itertools.pairwise(letters):
            row[(ord(a) - 97) * 26 + ord(b) - 97] += 1
    return F.normalize(rows, dim=1)


@pytest.fixture
def vocabulary():
    return Vocabulary(CLASSES, HELD_OUT)


@pytest.fixture
def nouns(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text(NOUNS)
    return path


def built(vocabulary, nouns, encoder=encode, **changes):
    options = {"group_share": 0.2, "noun_share": 0.3, "temperature": 0.05, "nearest": 0.0}
    options |= {"synonym_handicap": 0.0, **changes}
    return build_texts(vocabulary, encoder, nouns, **options)


def test_further_nouns_are_read_once_without_the_long_the_known_and_the_held_out(vocabulary, nouns):
    assert read_nouns(nouns, vocabulary) == ["pup", "racing automobile", "lemon tree", "kitty"]


def test_held_out_words_never_reach_the_encoder(vocabulary, nouns):
    seen = []

    def listening(texts):
        seen.extend(text.lower() for text in texts)
        return encode(texts)

    built(vocabulary, read_nouns(nouns, vocabulary), listening)
    assert any("kitty" in text for text in seen)
    for word in ("citrus", "hunting dog", "race car", "puppy", "puppies"):
        assert [text for text in seen if word in text] == []


def test_every_class_and_every_group_is_drawn_equally_often(vocabulary):
    texts = built(vocabulary, [], noun_share=0.0)
    torch.testing.assert_close(texts.weights.sum(), torch.tensor(1.0))
    captions = vocabulary.captions()
    for label in range(3):
        mine = [i for i, c in enumerate(captions) if c.source != "is_a" and c.labels == (label,)]
        torch.testing.assert_close(texts.weights[mine].sum(), torch.tensor(0.8 / 3))
    for noun in ("cat", "dog", "animal"):
        mine = [i for i, c in enumerate(captions) if c.noun == noun]
        torch.testing.assert_close(texts.weights[mine].sum(), torch.tensor(0.2 / 3))


def test_nouns_take_their_share_in_every_template(vocabulary):
    nouns = ["pup", "lemon tree"]
    texts = built(vocabulary, nouns)
    count = len(vocabulary.captions())
    assert len(texts.weights) == count + len(nouns) * len(NOUN_TEMPLATES)
    torch.testing.assert_close(texts.weights[count:].sum(), torch.tensor(0.3))
    torch.testing.assert_close(texts.weights.sum(), torch.tensor(1.0))


def test_a_group_means_its_classes_alike(vocabulary):
    texts = built(vocabulary, [])
    rows = [i for i, caption in enumerate(vocabulary.captions()) if caption.noun == "animal"]
    assert rows
    assert all(row == [0.5, 0.5, 0.0] for row in texts.meanings[rows].tolist())


def test_a_noun_means_what_its_nearest_known_words_mean(vocabulary):
    texts = built(vocabulary, ["lemon tree"])
    meaning = texts.meanings[-1]
    assert meaning.argmax() == 2
    assert meaning[2] > 0.9
    torch.testing.assert_close(texts.meanings.sum(1), torch.ones(len(texts.meanings)))


def test_nouns_far_from_everything_known_are_kept_one_in_ten(vocabulary):
    nouns = [f"xq{letter}jz" for letter in "abcdefghijklmnopqrst"]
    count = len(built(vocabulary, []).weights)
    assert len(built(vocabulary, nouns, nearest=0.9).weights) - count == 2 * len(NOUN_TEMPLATES)
    assert len(built(vocabulary, nouns, nearest=-1.0).weights) - count == 20 * len(NOUN_TEMPLATES)


def test_soft_labels_share_an_anchor_among_its_classes_and_sharpen_with_temperature():
    anchors = torch.eye(3)
    members = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    sharp = soft_labels(anchors, anchors, members, torch.zeros(len(anchors)), 0.01)
    torch.testing.assert_close(sharp, torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    flat = soft_labels(anchors, anchors, members, torch.zeros(len(anchors)), 1000.0)
    torch.testing.assert_close(flat, torch.tensor([[0.5, 1 / 6, 1 / 3]]).expand(3, 3), atol=1e-3, rtol=0)


def test_anchors_are_all_known_nouns_with_the_classes_that_they_mean(vocabulary):
    embeddings, members = vocabulary_anchors(vocabulary, encode)
    nouns = [noun for noun, _, _ in vocabulary.nouns()]
    assert nouns == ["tabby cat", "beagle", "lemon", "tabby", "cat", "animal", "dog"]
    assert torch.equal(members, membership([(0,), (1,), (2,), (0,), (0,), (0, 1), (1,)], 3))
    assert torch.equal(embeddings[nouns.index("animal")], encode(["an animal"])[0])


def pairs():
    texts = Texts(
        torch.eye(3), torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1.0]]), torch.tensor([0.5, 0.25, 0.25])
    )
    labels = torch.tensor([2, 0, 1, 0, 2, 1, 0])
    return Pairs(texts, torch.stack([labels.float(), torch.arange(7.0)], 1), labels)


def test_a_drawn_output_is_of_an_image_that_the_text_fits():
    text, outputs = pairs().draw(4000, torch.Generator().manual_seed(0))
    rows = text.argmax(1)
    assert (outputs[rows == 0, 0] == 0).all()
    assert (outputs[rows == 2, 0] == 2).all()
    assert outputs[rows == 1, 0].mean().item() == pytest.approx(0.5, abs=0.06)
    assert (rows == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert set(outputs[:, 1].tolist()) == set(range(7))  # every image takes its turn


def test_the_generator_decides_the_pairs():
    first, again, other = (pairs().draw(8, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_a_class_without_images_and_a_label_without_class_are_refused():
    texts = pairs().texts
    with pytest.raises(ValueError, match=r"no image of classes \[1\]"):
        Pairs(texts, torch.randn(2, 2), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"expected images of classes 0 to 2, got labels up to 3"):
        Pairs(texts, torch.randn(4, 2), torch.tensor([0, 1, 2, 3]))


def test_a_handicap_makes_an_anchor_attract_less():
    anchors, members = torch.eye(2), torch.eye(2)
    text = torch.tensor([[0.7071, 0.7071]])
    even = soft_labels(text, anchors, members, torch.zeros(2), 0.1)
    torch.testing.assert_close(even, torch.tensor([[0.5, 0.5]]))
    assert soft_labels(text, anchors, members, torch.tensor([0.0, 0.05]), 0.1)[0, 0] > 0.6


def test_a_target_is_the_mean_of_several_images():
    texts = Texts(torch.eye(2), torch.eye(2), torch.ones(2))
    outputs = torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 5.0]])
    pairs = Pairs(texts, outputs, torch.tensor([0, 0, 1]))
    text, target = pairs.draw(400, torch.Generator().manual_seed(0), 4)
    first = target[text[:, 0] == 1][:, 0]
    assert set((first * 2).tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    assert len(set(first.tolist())) > 2
    assert (target[text[:, 1] == 1] == 5).all()
