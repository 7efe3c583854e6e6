"""A user's own list of names as a prior: mixtures of the names' embeddings."""

import pytest
import torch
import torch.nn.functional as F

from lrm_base.profiles import standardise
from prior.class_names import TEMPERATURE
from prior.clip import open_clip_model
from prior.name_list import NameListPrior, by_name_list, read_names
from tests.clips import make_open_clip


def test_a_goal_is_the_mixture_of_the_names_by_their_standardised_cosines():
    generator = torch.Generator().manual_seed(0)
    names = F.normalize(torch.randn(7, 12, generator=generator), dim=-1)
    texts = F.normalize(torch.randn(3, 12, generator=generator), dim=-1)
    goals = NameListPrior(names).goals(texts, num_samples=2)
    weights = (standardise(texts @ names.T) / TEMPERATURE).softmax(-1)
    assert torch.allclose(goals, F.normalize(weights @ names, dim=-1), atol=1e-6)
    assert NameListPrior.source == "class-names"
    with pytest.raises(ValueError, match="expected at least two, got 1"):
        NameListPrior(names[:1])


def test_names_are_read_once_each_without_articles(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("a dog\n\n  cat \nThe  red   car\ndog\n", encoding="utf-8-sig")
    assert read_names(path) == ("dog", "cat", "red car")


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (b"", "prior: got no name in .*names.txt, expected at least two names, one a line"),
        (b" \n\n", "prior: got no name in"),
        (b"a dog\ndog\n", "prior: got one name in"),
        (b"\xff\xfe\xfa", "names.txt cannot be read: not UTF-8"),
        (None, "names.txt cannot be read: No such file"),
    ],
)
def test_a_list_that_is_none_is_one_line(tmp_path, held, message):
    path = tmp_path / "names.txt"
    if held is not None:
        path.write_bytes(held)
    with pytest.raises(ValueError, match=message) as caught:
        read_names(path)
    assert "\n" not in str(caught.value)


def test_a_name_of_the_list_means_itself(tmp_path):
    make_open_clip(tmp_path / "clip")
    (tmp_path / "names.txt").write_text("dog\ncat\nred car\nteapot\n")
    for templates in ("none", "simple"):
        text = open_clip_model(f"clip:{tmp_path / 'clip'}", templates=templates).text
        prior = by_name_list(tmp_path / "names.txt", text)
        assert prior.weights(text.encode(["a red car"])).argmax() == 2
