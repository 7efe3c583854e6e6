"""The 92 object photographs of Kriegeskorte et al. (Neuron 2008), with RDMs of human and monkey IT, read and checked.

Unusual: the mean human RDM is the mean of the same four people. So it is no further evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

NUM_IMAGES, NUM_PEOPLE, NUM_SESSIONS = 92, 4, 2
FLAGS = ("human", "face", "animal", "natural")
RDM_FILE, IMAGE_FILE = "92_brainRDMs.mat", "Kriegeskorte_Neuron2008_supplementalData.mat"


@dataclass(frozen=True)
class Brain92:
    """The data of Kriegeskorte et al., Neuron 2008, as rsatoolbox publishes them.

    Attributes:
        images: the photographs, RGB on grey.
        flags: `human`, `face`, `animal`, `natural`, for each image.
        categories: such as "human face", for each image.
        people: RDMs (people, sessions, images, images), 1 − r of voxel patterns in human IT.
        names: initials of the people.
        mean_human, mean_monkey: condensed RDMs: the mean of these people, and 674 neurons of monkey IT.
    """

    images: UInt8[np.ndarray, "n h w 3"]
    flags: dict[str, Bool[np.ndarray, " n"]]
    categories: tuple[str, ...]
    people: Float[np.ndarray, "p s n n"]
    names: tuple[str, ...]
    mean_human: Float[np.ndarray, " pairs"]
    mean_monkey: Float[np.ndarray, " pairs"]


def load_brain92(folder: str | Path) -> Brain92:
    """Read the two files of `brain92`.

    Raises:
        ValueError: a file is missing or cannot be read, lacks a part, or a part is not what it should be.
    """
    folder = Path(folder)
    sessions = _matlab(folder / RDM_FILE, "RDMs")
    stimuli = _matlab(folder / IMAGE_FILE, "stimuli_92objs").reshape(-1)
    means = _matlab(folder / IMAGE_FILE, "RDMs_mIT_hIT_fig1").reshape(-1)
    _expect(folder / RDM_FILE, "RDMs", sessions.shape, (NUM_PEOPLE, NUM_SESSIONS))
    _expect(folder / IMAGE_FILE, "stimuli_92objs", stimuli.shape, (NUM_IMAGES,))
    _expect(folder / IMAGE_FILE, "RDMs_mIT_hIT_fig1", means.shape, (2,))
    try:
        people = np.array([[np.asarray(s["RDM"], np.float64) for s in person] for person in sessions])
        names = tuple(str(person[0]["name"]).split("|")[1].strip() for person in sessions)
        flags = {flag: np.array([bool(one[flag]) for one in stimuli]) for flag in FLAGS}
        categories = tuple(str(one["category"]) for one in stimuli)
        images = np.array([one["image"] for one in stimuli])
        by_name = {str(mean["name"])[:3]: np.asarray(mean["RDM"], np.float64) for mean in means}
        monkey, human = by_name["mIT"], by_name["hIT"]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{folder}: not the data of Kriegeskorte et al. 2008 as expected: {error}") from None
    _expect(folder / RDM_FILE, "RDMs", people.shape, (NUM_PEOPLE, NUM_SESSIONS, NUM_IMAGES, NUM_IMAGES))
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(
            f"{folder / IMAGE_FILE}: images: got {images.shape} of {images.dtype}, expected (92, h, w, 3) of uint8"
        )
    for name, rdm in (("mIT", monkey), ("hIT", human)):
        _expect(folder / IMAGE_FILE, f"RDM of {name}", rdm.shape, (NUM_IMAGES * (NUM_IMAGES - 1) // 2,))
    if not all(np.isfinite(rdm).all() for rdm in (people, monkey, human)):
        raise ValueError(f"{folder}: an RDM holds values that are not finite")
    if not np.allclose(people, people.swapaxes(2, 3)) or np.einsum("psii->psi", people).any():
        raise ValueError(f"{folder / RDM_FILE}: an RDM is not symmetric with a diagonal of 0")
    return Brain92(images, flags, categories, people, names, human, monkey)


def _matlab(path: Path, key: str) -> np.ndarray:
    from scipy.io import loadmat

    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a folder with {RDM_FILE} and {IMAGE_FILE}")
    try:
        return np.asarray(loadmat(path, variable_names=[key], squeeze_me=True)[key])
    except KeyError:
        raise ValueError(f"{path}: holds no {key}") from None
    except Exception as error:  # scipy raises many types on damaged files
        raise ValueError(f"{path}: cannot be read as a MATLAB file ({error})") from None


def _expect(path: Path, name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if got != expected:
        raise ValueError(f"{path}: {name}: got shape {got}, expected {expected}")
