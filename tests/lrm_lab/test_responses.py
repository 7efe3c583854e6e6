"""One's own responses are read with their images; files that are not as documented are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrm_lab.responses import load_responses

Save = Callable[..., Path]


def test_responses_are_loaded_with_paths_from_the_file(stimuli: list[Path], save_responses: Save) -> None:
    folder = stimuli[0].parent
    values = np.random.default_rng(0).normal(size=(len(stimuli), 2))
    found = load_responses(save_responses(folder, values, [name.name for name in stimuli], subject="S1"))
    assert found.values.shape == (len(stimuli), 2, 1)
    assert found.images == tuple(stimuli)
    assert found.subjects == ("S1", "S1")


def test_bad_files_are_refused(stimuli: list[Path], tmp_path: Path, save_responses: Save) -> None:
    good = np.random.default_rng(0).normal(size=(len(stimuli), 2))
    constant, holes = good.copy(), good.copy()
    constant[:, 1], holes[3, 0] = 1.0, np.nan
    wrong: list[tuple[np.ndarray, list[Any], dict[str, Any], str]] = [
        (good[:, 0], stimuli, {}, r"got shape \(60,\)"),
        (good[:-1], stimuli, {}, "60 images, but responses to 59"),
        (constant, stimuli, {}, r"1 units respond the same to every image \(1\)"),
        (holes, stimuli, {}, "1 of 2 units are not all finite"),
        (good, [*stimuli[:-1], stimuli[0]], {}, "named twice: .*000.png; repeats go on the third axis"),
        (good, [*stimuli[:-2], "gone.png", "lost.png"], {}, "2 of 60 images do not exist: .*gone.png, .*lost.png"),
        (good, stimuli, {"subject": np.array(["A", "B", "C"])}, r"subject: got shape \(3,\)"),
    ]
    for responses, names, more, message in wrong:
        with pytest.raises(ValueError, match=message):
            load_responses(save_responses(tmp_path, responses, names, **more))
    np.savez(tmp_path / "keys.npz", response=good)
    with pytest.raises(ValueError, match=r"missing responses, images; expected .*, got response"):
        load_responses(tmp_path / "keys.npz")
    np.savez(tmp_path / "pickled.npz", responses=good, images=np.array(stimuli, dtype=object))
    with pytest.raises(ValueError, match="dtype=str"):
        load_responses(tmp_path / "pickled.npz")
    np.save(tmp_path / "single.npy", good)
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("single.npy", "text.npz", "empty.npz", "absent.npz"):
        with pytest.raises(ValueError, match=name):
            load_responses(tmp_path / name)
