"""What all tests share: one thread each, no display, no downloads, the optional `../shared`, the embedded model."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; one worker, one thread
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test never downloads

if TYPE_CHECKING:
    from steering import Steerer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The developers' material beside the project; a test that needs it is skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared, which only developers and CI have")
    return folder


@pytest.fixture(scope="session")
def steerer() -> "Steerer":
    """The embedded model on the CPU, as a user loads it."""
    from steering import Steerer

    return Steerer.load(device="cpu")
