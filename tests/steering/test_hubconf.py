"""The project as torch.hub serves it, from another folder and another process."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import json, sys
import torch
source, model = sys.argv[1:]
path = list(sys.path)
steerer = torch.hub.load(source, "steerer", model, device="cpu", source="local")
look = steerer.look("sample:cat", "a cat")
look.plot("look.png")
try:
    torch.hub.load(source, "steerer", "nonsense", source="local")
except ValueError as error:
    refused = str(error)
print(json.dumps({
    "model": look.model, "same_path": sys.path == path, "refused": refused,
    "verdict": look.verdict, "home": sys.modules["steering"].__file__,
}))
"""


def test_entry_points_are_all_that_is_public_and_what_they_need_is_there():
    """As `torch.hub.list` and `torch.hub.load` read the file."""
    path = str(ROOT / "hubconf.py")
    spec = importlib.util.spec_from_file_location("hubconf", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert [name for name in vars(module) if not name.startswith("_")] == ["dependencies", "steerer"]
    assert [name for name in module.dependencies if importlib.util.find_spec(name) is None] == []


def test_the_steerer_loads_and_looks_from_another_folder(toy_folder, tmp_path):
    """Beside user modules of the same names, which are not in the way; afterwards nothing is left on the path."""
    (tmp_path / "prior.py").write_text("raise RuntimeError('the user\\'s own prior was imported')")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT), str(toy_folder)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["model"] == "toy"
    assert found["verdict"] in ("present", "absent", "unsure")
    assert found["same_path"]
    assert Path(found["home"]).parent == ROOT / "steering"
    assert "no model 'nonsense'" in found["refused"]
    assert (tmp_path / "look.png").stat().st_size > 1000
