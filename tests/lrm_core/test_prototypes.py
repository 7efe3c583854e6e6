"""Prototypes: exact moments in one pass over the data, every pass of the model by itself, every kind of data set."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from lrm_core import LRM, Connection, LRMNet
from lrm_core.backbones import MiniNet, Preprocessing
from lrm_core.prototypes import Moments, Prototypes, compute_prototypes, main, square
from lrm_core.weights import build, save_model

NAMES = ("cat", "golden retriever", "teapot")
SQUARE = square(Preprocessing(16))


@pytest.fixture(scope="module")
def model():
    """Feedback that acts; batch norms and three outputs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = MiniNet(3, (8, 8, 8, 8, 16))
        lrm = LRM(backbone, [Connection("fc", "layer3.add"), Connection("layer3", "layer1.add")], 16)
        for path in lrm.paths.values():
            torch.nn.init.normal_(path.projection.weight)
        torch.nn.init.normal_(backbone.fc.weight, std=5.0)
    return lrm.eval()


def picture(index):
    pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


LABELS = [0, 0, 1, 2, 1, 0, 2, 2, 1, 0, 0]


@pytest.fixture(scope="module")
def items():
    """(tensor, label, index) as the published data sets give them."""
    return [(SQUARE(picture(index)), label, index) for index, label in enumerate(LABELS)]


def in_two_passes(values, labels, num_classes):
    """Mean and standard deviation over each class, from all values at once, in float64."""
    groups = [values[:, labels == label].double() for label in range(num_classes)]
    return torch.stack([g.mean(1) for g in groups], 1), torch.stack([g.std(1, correction=0) for g in groups], 1)


def test_merged_moments_are_those_of_two_passes_far_from_zero():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (1000,), generator=generator)
    labels[labels == 4] = 3
    labels[77] = 4  # one image only
    offset = torch.tensor([1e4, -1e5, 0.0])
    values = torch.randn(2, 1000, 3, generator=generator) * torch.tensor([1.0, 3.0, 0.01]) + offset
    moments = Moments(2, 5, 3)
    for start, stop in ((0, 1), (1, 8), (8, 500), (500, 1000)):
        moments.add(values[:, start:stop], labels[start:stop])
    mean, std = in_two_passes(values, labels, 5)
    torch.testing.assert_close(moments.mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments.std(), std, rtol=1e-9, atol=1e-12)
    assert moments.count.tolist() == torch.bincount(labels).tolist()
    assert (moments.std()[:, 4] == 0).all()
    naive = ((values**2).mean(1) - values.mean(1) ** 2).sqrt()[0, 1]  # float32 sums of squares, as published
    assert not 2.9 < naive < 3.1


def test_every_pass_has_the_statistics_of_its_own_outputs(model, items):
    found = compute_prototypes(model, items, passes=3, batch_size=4, names=NAMES)
    with torch.no_grad():
        outputs = torch.stack(model.rollout(torch.stack([x for x, _, _ in items]), 3))
    mean, std = in_two_passes(outputs, torch.tensor(LABELS), 3)
    torch.testing.assert_close(found.mean, mean.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.std, std.float(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found.mean[0], found.mean[1], atol=1e-2)
    assert found.count.tolist() == [5, 3, 3]
    assert found.card["passes"] == 3
    assert found.card["num_images"] == 11


def test_folders_tables_streams_and_lists_give_the_same(model, items, tmp_path):
    import datasets

    rows = {"image": [], "label": LABELS}
    for index, label in enumerate(LABELS):
        (tmp_path / f"{label} {NAMES[label]}").mkdir(exist_ok=True)
        picture(index).save(tmp_path / f"{label} {NAMES[label]}" / f"{index}.png")
        buffer = io.BytesIO()
        picture(index).save(buffer, "PNG")
        rows["image"].append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    table = datasets.Dataset.from_dict(rows, features=features)
    wanted = compute_prototypes(model, items, batch_size=4)
    assert wanted.names == ("0", "1", "2")  # a list has no names
    folder = ImageFolder(str(tmp_path), SQUARE)
    for name, data, transform in (
        ("0 cat", folder, None),
        ("0 cat", Subset(ImageFolder(str(tmp_path)), range(11)), SQUARE),
        ("cat", table, SQUARE),
        ("cat", table.to_iterable_dataset(), SQUARE),
    ):
        found = compute_prototypes(model, data, batch_size=3, transform=transform)
        assert found.names[0] == name
        torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.std, wanted.std, rtol=1e-4, atol=1e-5)


def test_a_published_front_runs_its_own_number_of_passes_and_keeps_nothing_of_them(items):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        front = LRMNet(MiniNet(3, (8, 8, 8, 8, 16)), [{"source": "fc", "destination": "layer1.add"}], 3, img_size=16)
        torch.nn.init.normal_(front.feedforward.fc.weight, std=5.0)
    images = torch.stack([x for x, _, _ in items])
    with torch.no_grad():
        first = front.eval()(images[:2], forward_passes=1)
        found = compute_prototypes(front, items, batch_size=5)
        went_on = front(images[:2], drop_state=False, forward_passes=1)
        outputs = front(images, return_list=True)
    labels = torch.tensor(LABELS)
    assert len(found.mean) == len(outputs) == 3
    for index, output in enumerate(outputs):
        torch.testing.assert_close(found.mean[index, 1], output[labels == 1].mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(went_on[-1], outputs[1][:2], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(first[-1], went_on[-1], atol=1e-3)


def test_a_model_in_training_is_measured_in_evaluation_and_goes_on_in_training(model, items):
    wanted = compute_prototypes(model, items, batch_size=4)
    statistics = model.backbone.bn1.running_mean.clone()
    model.train()
    model.backbone.bn1.eval()
    try:
        found = compute_prototypes(model, items, batch_size=4)
        assert torch.equal(found.mean, wanted.mean)
        assert model.training
        assert not model.backbone.bn1.training
        assert torch.equal(model.backbone.bn1.running_mean, statistics)
        with pytest.raises(ValueError, match="labels"):
            compute_prototypes(model, [(items[0][0], 3)])
        assert model.backbone.bn2.training  # also after an error
    finally:
        model.eval()


def test_classes_without_images_are_told_once_and_have_no_goal(model, items):
    with pytest.warns(UserWarning, match="1 of 3 classes have no image.*golden retriever") as caught:
        found = compute_prototypes(model, [item for item in items if item[1] != 1], names=NAMES)
    assert len(caught) == 1
    assert found.count.tolist() == [5, 0, 3]
    assert torch.equal(found.mean[:, 1], torch.zeros(2, 3))
    assert found.std.isfinite().all()
    with pytest.raises(ValueError, match="class 1, 'golden retriever', has no prototype"):
        found.goal("golden retriever")


@pytest.fixture
def prototypes():
    mean = torch.arange(2 * 4 * 3).reshape(2, 4, 3).float()
    return Prototypes((*NAMES, "Cat"), torch.ones(4, dtype=torch.int64), mean, torch.zeros(2, 4, 3))


def test_a_goal_is_the_mean_of_a_class_by_name_or_number(prototypes):
    assert torch.equal(prototypes.goal("golden retriever"), prototypes.mean[1, 1])
    assert torch.equal(prototypes.goal("Golden_Retriever", which_pass=0), prototypes.mean[0, 1])
    assert torch.equal(prototypes.goal(2), prototypes.mean[1, 2])
    assert torch.equal(prototypes.goal("Cat"), prototypes.mean[1, 3])  # as written beats without regard to case
    prototypes.goal(2).zero_()
    assert prototypes.mean[1, 2].any()  # a goal is a copy


def test_what_there_is_no_goal_for_names_the_choices(prototypes):
    with pytest.raises(ValueError, match="no class 'golden retriver' among 4; choices: golden retriever"):
        prototypes.goal("golden retriver")
    with pytest.raises(ValueError, match="no class 'xyzzy' among 4; choices: cat, golden retriever, teapot, Cat"):
        prototypes.goal("xyzzy")
    with pytest.raises(ValueError, match="name_or_index: got 4, expected a whole number from 0 to 3"):
        prototypes.goal(4)
    with pytest.raises(ValueError, match="'CAT' names classes 0 and 3, expected one of these numbers"):
        prototypes.goal("CAT")
    with pytest.raises(ValueError, match="which_pass: got 2, expected a whole number from -2 to 1"):
        prototypes.goal("cat", which_pass=2)


def test_what_was_saved_is_loaded_and_anything_else_is_refused(model, items, tmp_path):
    path = tmp_path / "prototypes.safetensors"
    found = compute_prototypes(model, items, names=NAMES, output=path, about={"backbone": "toy"})
    again = Prototypes.load(path)
    assert again.names == NAMES
    assert again.card["backbone"] == "toy"
    for name in ("count", "mean", "std"):
        assert torch.equal(getattr(found, name), getattr(again, name))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="was altered"):
        Prototypes.load(path)
    Prototypes(NAMES[:2], found.count, found.mean, found.std).save(path)
    with pytest.raises(ValueError, match="expected those of the 2 classes that its card names"):
        Prototypes.load(path)
    save_model_folder(tmp_path)
    with pytest.raises(ValueError, match="does not hold prototypes: got a card of kind 'lrm'"):
        Prototypes.load(tmp_path / "backbone.safetensors")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([(picture(0), 0)], "got a Image for an image, expected a normalised tensor of floats; give a transform"),
        ([(torch.zeros(3, 16, 16, dtype=torch.uint8), 0)], "got a tensor of torch.uint8 for an image"),
        ([(torch.zeros(3, 16, 16), -1)], "label: got -1, expected a whole number of at least 0"),
        ([(torch.full((3, 16, 16), torch.nan), 0)], "model: got outputs that are not finite"),
        ([{"img": 0, "label": 0}], "dataset: got the columns img, label, expected image and label"),
        ([], "dataset: got no image, expected at least one"),
        ([(torch.zeros(3, 16, 16), 1.5)], "label: got 1.5, expected a whole number"),
        ([(torch.zeros(3, 16, 16), 3)], "dataset: got labels from 3 to 3, expected 0 to 2"),
    ],
)
def test_data_that_does_not_fit_raises(model, data, message):
    with pytest.raises(ValueError, match=message):
        compute_prototypes(model, data)


def test_a_model_without_feedback_and_no_pass_at_all_raise(model, items):
    with pytest.raises(ValueError, match="model: got MiniNet, expected an LRM, an LRMNet or a SteerableLRM"):
        compute_prototypes(model.backbone, items)
    with pytest.raises(ValueError, match="passes: got 0"):
        compute_prototypes(model, items, passes=0)


def save_model_folder(folder):
    lrm, entry = build("mini", 3)
    save_model(
        folder / "backbone.safetensors",
        lrm,
        name="toy",
        backbone="mini",
        preprocessing=Preprocessing(16),
        output=entry.output,
        classes=[{"name": name} for name in NAMES],
        training={"data": {"num_holdout": 1}},
        measured={},
    )


def test_the_command_writes_prototypes_with_the_model_s_names(tmp_path, capsys):
    for index, label in enumerate(LABELS):
        (tmp_path / "train" / str(label)).mkdir(parents=True, exist_ok=True)
        picture(index).save(tmp_path / "train" / str(label) / f"{index}.png")
    save_model_folder(tmp_path / "model")
    output = tmp_path / "out" / "prototypes.safetensors"
    arguments = ["--source", str(tmp_path), "--output", str(output), "--batch-size", "4"]
    main(["--model", str(tmp_path / "model"), *arguments])
    found = Prototypes.load(output)
    assert found.names == NAMES
    assert found.count.sum() == len(LABELS) - 1  # one row, of whichever class, is held out
    assert found.goal("teapot").shape == (3,)
    sha = json.loads((tmp_path / "model" / "backbone.json").read_text())["sha256"]
    assert (found.card["backbone_sha256"], found.card["split"]) == (sha, "train")
    with pytest.raises(SystemExit) as caught:
        main(["--model", str(tmp_path / "none"), *arguments])
    assert caught.value.code == 2
    assert "no weight card" in capsys.readouterr().err
