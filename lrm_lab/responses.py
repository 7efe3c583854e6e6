"""Your own measured responses to images: an `.npz` file, read and checked. docs/brain.md documents it.

Unusual: nothing in it is unpickled, and what is wrong is said before any image is read.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from steering.errors import printable


@dataclass(frozen=True)
class Responses:
    """Measured responses to images.

    Attributes:
        values: (images, units, repeats), in any unit of measurement; one repeat where nothing was repeated.
        images: a file for each row.
        subjects: for each unit, the subject it belongs to; empty if the file does not say.
    """

    values: Float[np.ndarray, "n u r"]
    images: tuple[Path, ...]
    subjects: tuple[str, ...] = ()


def load_responses(path: str | Path) -> Responses:
    """Read your own responses, an `.npz` file. docs/brain.md documents it.

    Keys: `responses`, floats (n_images, n_units) or (n_images, n_units, n_repeats); `images`, n_images paths, relative
    ones from the file's folder; `subject`, optional, one string or one for each unit.

    Raises:
        ValueError: the file does not exist or is no npz; a key is missing; shapes do not agree; values are not finite;
            a unit never changes; an image is named twice; or images do not exist (the message lists them).
    """
    path = Path(path)
    arrays = _arrays(path)
    missing = [key for key in ("responses", "images") if key not in arrays]
    if missing:
        raise ValueError(
            f"{path}: missing {', '.join(missing)}; expected the keys responses and images (optional: subject), "
            f"got {', '.join(sorted(arrays)) or 'none'}"
        )
    values, names = arrays["responses"], arrays["images"]
    if values.ndim not in (2, 3) or 0 in values.shape or values.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: responses: got shape {values.shape} of {values.dtype}, expected numbers "
            "(n_images, n_units) or (n_images, n_units, n_repeats)"
        )
    if names.ndim != 1 or names.dtype.kind != "U":
        raise ValueError(f"{path}: images: got shape {names.shape} of {names.dtype}, expected (n_images,) strings")
    if len(names) != len(values):
        raise ValueError(f"{path}: {len(names)} images, but responses to {len(values)}")
    values = values.astype(np.float64).reshape(*values.shape[:2], -1)
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).any((0, 2)).sum())
        raise ValueError(f"{path}: responses of {count} of {values.shape[1]} units are not all finite; leave them out")
    constant = np.flatnonzero(np.ptp(values.mean(2), axis=0) == 0)
    if len(constant):
        raise ValueError(f"{path}: {len(constant)} units respond the same to every image ({_some(constant)})")
    images = tuple(path.parent / str(name) for name in names)
    if len(set(images)) < len(images):
        twice = [str(image) for image in dict.fromkeys(images) if images.count(image) > 1]
        raise ValueError(f"{path}: named twice: {_some(twice)}; repeats go on the third axis of responses")
    absent = [printable(image) for image in images if not image.is_file()]
    if absent:
        raise ValueError(f"{path}: {len(absent)} of {len(images)} images do not exist: {_some(absent)}")
    return Responses(values, images, _subjects(path, arrays.get("subject"), values.shape[1]))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: expected an .npz file of numpy.savez ({error})") from None
    except ValueError as error:  # pickled objects are never loaded
        raise ValueError(f"{path}: {error}; save strings as numpy.array(names, dtype=str)") from None


def _subjects(path: Path, subject: np.ndarray | None, num_units: int) -> tuple[str, ...]:
    if subject is None:
        return ()
    if subject.ndim == 0:
        return (str(subject),) * num_units
    if subject.shape != (num_units,):
        raise ValueError(f"{path}: subject: got shape {subject.shape}, expected one string or ({num_units},)")
    return tuple(str(name) for name in subject)


def _some(things: Sequence[Any] | np.ndarray, most: int = 10) -> str:
    shown = ", ".join(str(thing) for thing in things[:most])
    return f"{shown}, …" if len(things) > most else shown
