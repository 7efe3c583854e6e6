"""Labels of any data set as rows of a model's classes: by name, by WordNet id, or as they are."""

import numpy as np
import pytest
import torch
from PIL import Image

from lrm_base.data import class_rows, image_tensors

CLASSES = [{"wnid": f"n{i:08}", "name": name} for i, name in enumerate(("cat", "lemon", "bridge"))]


def dataset(labels, names=None):
    import datasets

    label = datasets.Value("int64") if names is None else datasets.ClassLabel(names=names)
    return datasets.Dataset.from_dict({"label": labels}, features=datasets.Features({"label": label}))


def test_classes_are_found_by_name_or_by_their_wordnet_id():
    assert class_rows(dataset([0], ["bridge", "cat"]), CLASSES) == [2, 0]
    assert class_rows(dataset([0], ["n00000001", "n00000002", "n00000000"]), CLASSES) == [1, 2, 0]
    assert class_rows(dataset([0], ["n00000001", "bridge"]), CLASSES) == [1, 2]
    assert class_rows(dataset([0], ["bridge"]), [{"name": "cat"}, {"name": "bridge"}]) == [1]  # tables without ids


def test_integers_are_taken_as_the_models_rows():
    assert class_rows(dataset([2, 0]), CLASSES) == [0, 1, 2]
    assert class_rows(dataset([1]), CLASSES) == [0, 1, 2]
    with pytest.raises(ValueError, match="labels: got 0 to 3, expected 0 to 2"):
        class_rows(dataset([0, 3]), CLASSES)


def test_a_class_that_the_model_does_not_know_is_refused_with_its_name():
    with pytest.raises(ValueError, match=r"2 of 3 classes of the data set are not the model's: zebra, n99; expected"):
        class_rows(dataset([0], ["zebra", "cat", "n99"]), CLASSES)


@pytest.mark.parametrize("key", ["name", "wnid"])
def test_an_image_folder_that_lists_classes_in_another_order_gets_the_models_rows(tmp_path, key):
    for row, entry in enumerate(CLASSES[::-1]):
        for number in range(2):
            path = tmp_path / "valid" / entry[key] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 100 * (2 - row) + number, np.uint8)).save(path)
    pixels, labels = image_tensors(str(tmp_path), "valid", 4, classes=CLASSES)
    assert pixels.shape == (6, 3, 4, 4)
    shades = (255 * pixels[:, 0, 0, 0]).round().long()
    assert torch.equal(shades // 100, labels)  # every image shows its class's row
    assert sorted(shades.tolist()) == [0, 1, 100, 101, 200, 201]
    own = image_tensors(str(tmp_path), "valid", 4)[1]  # without a model, the folder's own order
    assert own.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(own, labels) == (key == "wnid")


def test_an_image_folder_of_other_classes_is_refused(tmp_path):
    for name in ("cat", "zebra"):
        (tmp_path / "valid" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "valid" / name / "0.png")
    with pytest.raises(ValueError, match="1 of 2 classes of the data set are not the model's: zebra"):
        image_tensors(str(tmp_path), "valid", 4, classes=CLASSES)
