"""A quick start for a process that imports torch and loads a model.

Python's garbage collector looks through all objects again and again while they grow in number, and once more when the
process ends. An import of torch makes some hundred thousand objects that live as long as the process. So nothing is
collected meanwhile, and the collector never looks at these objects afterwards (`gc.freeze`).

Threads of OpenMP that wait for work spin by default. On a busy machine they take the processors from the threads that
work. Here they sleep, unless the user set $OMP_WAIT_POLICY.

Unusual: only commands do this, which own their process. A library must not change the process of another program.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quick_start() -> Iterator[None]:
    """Within this context a command imports and loads what it needs for its whole life.

    Nothing changes in a process that has torch already, since then it belongs to somebody else, or whose collector is
    off.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
