"""The 92 photographs and their RDMs are what the paper describes; other files are refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the extra `evaluate`")

from scipy.io import savemat
from scipy.spatial.distance import squareform

from lrm_lab.brain92 import IMAGE_FILE, RDM_FILE, load_brain92


def test_the_data_are_what_the_paper_describes(brain92: Path) -> None:
    data = load_brain92(brain92)
    assert data.images.shape == (92, 175, 175, 3)
    assert {name: int(flag.sum()) for name, flag in data.flags.items()} == {
        "human": 24,
        "face": 24,
        "animal": 48,
        "natural": 71,
    }
    assert data.names == ("BE", "KO", "SN", "TI")
    assert all(data.flags["face"][i] == ("face" in category) for i, category in enumerate(data.categories))
    mean = squareform(data.people.mean((0, 1)), checks=False)
    assert np.corrcoef(mean, data.mean_human)[0, 1] > 0.999  # of the same people: no independent data
    assert np.corrcoef(mean, data.mean_monkey)[0, 1] < 0.9


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"92_brainRDMs\.mat: no such file"):
        load_brain92(tmp_path)


def test_other_contents_are_refused(brain92: Path, tmp_path: Path) -> None:
    shutil.copy(brain92 / IMAGE_FILE, tmp_path / IMAGE_FILE)
    (tmp_path / RDM_FILE).write_bytes(b"not a MATLAB file, though long enough to have a header" * 4)
    with pytest.raises(ValueError, match="cannot be read as a MATLAB file"):
        load_brain92(tmp_path)
    savemat(tmp_path / RDM_FILE, {"other": np.zeros(3)})
    with pytest.raises(ValueError, match="holds no RDMs"):
        load_brain92(tmp_path)
    savemat(tmp_path / RDM_FILE, {"RDMs": np.zeros((3, 2))})
    with pytest.raises(ValueError, match=r"got shape \(3, 2\), expected \(4, 2\)"):
        load_brain92(tmp_path)
