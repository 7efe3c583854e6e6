"""Images: parquet and folders give the same, batches depend on seed and epoch alone, crops stay in range."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lrm_base.data import DataConfig, Images, augment, load_images, ordered_batches, training_batches


def picture(index: int) -> Image.Image:
    pixels = np.random.default_rng(index).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def parquet(tmp_path):
    import datasets

    def encoded(index: int) -> dict:
        buffer = io.BytesIO()
        picture(index).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    for part, count in (("train", 12), ("valid", 4)):
        rows = {"image": [encoded(i) for i in range(count)], "label": [i % 2 for i in range(count)]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / f"{part}-00000-of-00001.parquet")
    return DataConfig(source=str(tmp_path), num_holdout=4)


def test_the_held_out_rows_are_the_last_and_are_not_trained_on(parquet):
    train, held = load_images(parquet, "train"), load_images(parquet, "holdout")
    assert (len(train), len(held), len(load_images(parquet, "valid"))) == (8, 4, 4)
    assert np.array_equal(np.asarray(held[0]["image"]), np.asarray(picture(8)))


def test_an_image_folder_serves_as_well(tmp_path):
    for name in ("cat", "dog"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for index in range(3):
            picture(index).save(folder / f"{index}.png")
    data = load_images(DataConfig(source=str(tmp_path), num_holdout=2), "train")
    assert len(data) == 4
    assert data.features["label"].names == ["cat", "dog"]


@pytest.mark.parametrize("name", ["a[b]", "a*", "what?", "[!a]*"])
def test_a_folder_is_found_whatever_its_name(tmp_path, name, parquet):
    files, classes = tmp_path / "files" / name, tmp_path / "classes" / name
    files.mkdir(parents=True)
    for file in tmp_path.glob("*.parquet"):
        file.rename(files / file.name)
    assert len(load_images(DataConfig(source=str(files), num_holdout=4), "train")) == 8
    for index in range(3):
        (classes / "train" / "cat").mkdir(parents=True, exist_ok=True)
        picture(index).save(classes / "train" / "cat" / f"{index}.png")
    assert len(load_images(DataConfig(source=str(classes), num_holdout=1), "train")) == 2


@pytest.mark.parametrize("wrong", [{"num_holdout": -1}, {"size": 0}, {"workers": -1}])
def test_a_configuration_refuses_numbers_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DataConfig(**wrong)


def test_a_folder_without_images_says_what_it_expected(tmp_path):
    with pytest.raises(ValueError, match=r"expected train-\*\.parquet or a folder train/<class>"):
        load_images(DataConfig(source=str(tmp_path)), "train")


def test_holding_out_everything_raises(parquet):
    with pytest.raises(ValueError, match="num_holdout"):
        load_images(parquet.model_copy(update={"num_holdout": 12}), "train")


def test_memory_and_disk_give_the_same_pixels(parquet):
    data = load_images(parquet, "train")
    for (a, label_a), (b, label_b) in zip(Images(data, 16), Images(data, 16, in_memory=True), strict=False):
        assert torch.equal(a, b)
        assert label_a == label_b


def test_batches_depend_on_the_seed_and_the_epoch_alone(parquet):
    images = Images(load_images(parquet, "train"), 16)

    def labels(seed: int, epoch: int) -> list:
        return [pixels.sum().item() for pixels, _ in training_batches(images, 2, seed, epoch)]

    assert labels(0, 1) == labels(0, 1)
    assert labels(0, 1) != labels(0, 2)
    assert labels(0, 1) != labels(1, 1)
    assert sum(len(y) for _, y in ordered_batches(images, 3)) == 8


def test_batches_of_numbers_that_make_no_sense_raise(parquet):
    images = Images(load_images(parquet, "train"), 16)
    for numbers in ({"seed": 10**19}, {"seed": -1}, {"seed": True}, {"batch_size": 0}, {"epoch": -1}, {"workers": -1}):
        name, value = next(iter(numbers.items()))
        with pytest.raises(ValueError, match=f"^{name}: got {value}, expected a whole number"):
            training_batches(images, **{"batch_size": 2, "seed": 0, "epoch": 0} | numbers)
    for name, value in (("batch_size", 0), ("workers", -1)):
        with pytest.raises(ValueError, match=f"^{name}: got {value}, expected a whole number"):
            ordered_batches(images, **{"batch_size": 2} | {name: value})
    assert len(list(training_batches(images, 2, 2**32 - 1, 10**6))) == 4


def test_augmented_pixels_stay_in_range_and_follow_the_generator():
    pixels = torch.randint(0, 256, (6, 3, 20, 20), dtype=torch.uint8)
    first = augment(pixels, 16, torch.Generator().manual_seed(1))
    assert first.shape == (6, 3, 16, 16)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, augment(pixels, 16, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, augment(pixels, 16, torch.Generator().manual_seed(2)))
