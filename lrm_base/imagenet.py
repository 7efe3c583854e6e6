"""The names of ImageNet's 1,000 classes, from torchvision.

Unusual: they stand in a file of torchvision, which is read as text. Importing torchvision takes seconds.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import lru_cache
from pathlib import Path

_LIST = "_IMAGENET_CATEGORIES"  # in torchvision/models/_meta.py


@lru_cache(1)
def imagenet_names() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the order of the labels."""
    found = importlib.util.find_spec("torchvision")  # which imports nothing
    for folder in (found.submodule_search_locations or ()) if found else ():
        file = Path(folder) / "models" / "_meta.py"
        for node in ast.parse(file.read_text()).body if file.is_file() else ():
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == _LIST for t in node.targets):
                return tuple(ast.literal_eval(node.value))
    from torchvision.models import AlexNet_Weights  # another torchvision keeps them elsewhere

    return tuple(AlexNet_Weights.IMAGENET1K_V1.meta["categories"])
