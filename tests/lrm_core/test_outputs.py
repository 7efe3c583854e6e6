"""Outputs of a backbone for every image of a data set, and mean outputs for classes that have none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrm_base.card import load_weights
from lrm_core.outputs import write_outputs
from lrm_core.prototypes import Prototypes


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """Three pictures of class 0 and two of class 1; the toy has six classes."""
    generator = np.random.default_rng(0)
    for name, count in (("a", 3), ("b", 2)):
        (tmp_path / "set" / "valid" / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 255, (24, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / "valid" / name / f"{index}.png")
    return str(tmp_path / "set")


def test_classes_without_an_image_get_their_mean_output(toy_folder, pictures, tmp_path):
    plain, filled = tmp_path / "plain.safetensors", tmp_path / "filled.safetensors"
    write_outputs(toy_folder, pictures, "valid", plain, 1, 0)
    prototypes = toy_folder / "prototypes.safetensors"
    write_outputs(toy_folder, pictures, "valid", filled, 1, 0, prototypes=prototypes)
    alone, both = load_weights(plain)[0], load_weights(filled)[0]
    assert alone["labels"].tolist() == [0, 0, 0, 1, 1]
    assert both["labels"].tolist() == [0, 0, 0, 1, 1, 2, 3, 4, 5]
    assert torch.equal(both["outputs"][:5], alone["outputs"])
    assert torch.equal(both["outputs"][5:], Prototypes.load(prototypes).mean[-1][2:])


def test_prototypes_of_another_model_and_unknown_columns_are_refused(toy_folder, pictures, tmp_path):
    prototypes = Prototypes.load(toy_folder / "prototypes.safetensors")
    prototypes.card["backbone_sha256"] = "other"
    prototypes.save(tmp_path / "other.safetensors")
    output = tmp_path / "o.safetensors"
    with pytest.raises(ValueError, match=r"^prototypes: .*other\.safetensors belongs to another model"):
        write_outputs(toy_folder, pictures, "valid", output, 1, 0, prototypes=tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"^only: got the column 'source'"):
        write_outputs(toy_folder, pictures, "valid", output, 1, 0, only={"source": "x"})
    assert not output.exists()
