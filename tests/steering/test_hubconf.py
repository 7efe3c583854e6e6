"""The project as torch.hub serves it: from another folder, in another process, among the user's own modules."""

import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = [
    "SteerableLRM", "LRMNet", "alexnet_lrm1", "alexnet_lrm2", "alexnet_lrm3", "compute_prototypes",
    "load_clip_prototypes", "load_vision_prototypes", "steerer",
]  # fmt: skip
COMMON_NAMES = (
    "lrm_base", "lrm_core", "lrm_lab", "prior", "steering", "hubconf", "steer_cli", "tests", "configs", "benchmarks",
)  # fmt: skip

# What follows the user's program: nothing of the checkout is left under a name that others could mean.
LEFT_BEHIND = """
import importlib, os
def home(module):
    names = getattr(module, "__dict__", {})
    paths = [names.get("__file__"), *names.get("__path__", [])]
    return any(p and os.path.realpath(p).startswith(os.path.realpath(source) + os.sep) for p in paths)
public = [n for n, m in sys.modules.items() if home(m) and not n.startswith("_lrm_steering_")]
owners = {n: importlib.import_module(n).OWNER for n in names}
print(json.dumps({"found": found, "path": sys.path == path, "public": public, "owners": owners}))
"""

STEERER = """
import json, os, sys
import torch
import prior  # the user's own, and there first
source, model, names = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
path = list(sys.path)
steerer = torch.hub.load(source, "steerer", model, device="cpu", source="local")
look = steerer.look("sample:cat", "a cat")
look.plot("look.png")
try:
    torch.hub.load(source, "steerer", "nonsense", source="local")
except ValueError as error:
    refused = str(error)
os.environ["STEER_MODEL"] = model
default = torch.hub.load(source, "steerer", device="cpu", source="local")
found = {"model": look.model, "verdict": look.verdict, "refused": refused, "home": type(steerer).__module__}
found["default"] = default.network.card["name"]
"""

# The four examples of the published README, with a local file for the weights, and what else is published.
PUBLISHED = """
import json, sys
import torch
from torchvision import models
source, file, names = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
path = list(sys.path)
load = lambda *arguments, **options: torch.hub.load(source, *arguments, source="local", **options)

model, transforms = load("alexnet_lrm3", pretrained=file, steering=True)
query = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
model.eval()
with torch.no_grad():
    signals = [dict(source="classifier.6", activation=query, strength=3)]
    steered = model(torch.rand(1, 3, 224, 224), steering_signals=signals)

untrained, _ = load("alexnet_lrm3", pretrained=False, steering=False)
outputs = untrained(torch.rand(2, 3, 224, 224))
loss = sum(torch.nn.functional.cross_entropy(output, torch.tensor([1, 2])) for output in outputs) / len(outputs)
loss.backward()

class UsersOwn(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu = torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(inplace=True)
        self.pool, self.flat = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        self.fc = torch.nn.Linear(4, 5)

    def forward(self, x):
        import prior  # late, while the hub has its folder first on the path
        assert prior.OWNER == "user", prior
        return self.fc(self.flat(self.pool(self.relu(self.conv(x)))))

connections = [dict(source="fc", destination="conv")]
steerable = load("SteerableLRM", UsersOwn(), connections, img_size=32)
LRMNet = load("LRMNet")
wrapped = LRMNet(UsersOwn(), connections, forward_passes=3, img_size=32)
images = [(torch.rand(3, 32, 32), index % 5) for index in range(10)]
found = {
    "steered": [list(output.shape) for output in steered],
    "bias": model.feedforward.features[0].bias[:2].tolist(),
    "transforms": sorted(transforms),
    "gradients": all(p.grad is not None for p in untrained.parameters()),
    "wrapped": len(wrapped(torch.rand(1, 3, 32, 32), return_list=True)),
    "same class": type(load("LRMNet", UsersOwn(), connections, img_size=32)) is LRMNet is type(untrained),
    "classes": [type(steerable).__name__, load("SteerableLRM").__name__],
    "prototypes": load("compute_prototypes", steerable, images, progress=False).count.tolist(),
    "functions": [load(n).__name__ for n in ("load_vision_prototypes", "load_clip_prototypes", "compute_prototypes")],
}
try:
    load("load_vision_prototypes", "alexnet_lrm4")
except ValueError as error:
    found["refused"] = str(error)
"""


# Every entry point at work. It notes which top-level modules our modules import, late imports included.
IMPORTS = """
import builtins, json, sys
real, imported = builtins.__import__, set()
def noting(name, globals=None, locals=None, fromlist=(), level=0):
    if level == 0 and (globals or {}).get("__name__", "").startswith("_lrm_steering_"):
        imported.add(name.partition(".")[0])
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = noting
import torch
from torchvision.models import alexnet
source, model, weights, empty, names = *sys.argv[1:5], sys.argv[5].split(",")
path = list(sys.path)
load = lambda *arguments, **options: torch.hub.load(source, *arguments, source="local", **options)

look = load("steerer", model, device="cpu").look("sample:cat", "a cat")
look.plot("look.png")
load("alexnet_lrm3", pretrained=weights)
connections = [dict(source="classifier.6", destination="features.8")]
wrapped = load("SteerableLRM", alexnet(num_classes=5), connections, img_size=64)
images = [(torch.rand(3, 64, 64), index % 5) for index in range(5)]
load("compute_prototypes", wrapped, images, progress=False)
torch.hub.set_dir(empty)
unreachable = 0
for entry in ("load_vision_prototypes", "load_clip_prototypes", "alexnet_lrm1"):
    try:
        load(entry) if entry.startswith("alexnet") else load(entry, "alexnet_lrm1")
    except ValueError as error:
        unreachable += "cannot reach" in str(error)
found = {"imported": sorted(imported), "unreachable": unreachable}
"""


def run(program: str, folder: Path, *arguments: str) -> dict:
    """Run a user's program in a folder that holds nothing but modules with our names. It cannot reach the network."""
    for name in COMMON_NAMES:
        (folder / f"{name}.py").write_text("OWNER = 'user'\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-c", program + LEFT_BEHIND, str(ROOT), *arguments, ",".join(COMMON_NAMES)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["path"]
    assert said["public"] == []
    assert said["owners"] == dict.fromkeys(COMMON_NAMES, "user")
    return said["found"]


def test_entry_points_are_all_that_is_public_and_what_they_need_is_there():
    """As `torch.hub.list` and `torch.hub.load` read the file."""
    path = str(ROOT / "hubconf.py")
    spec = importlib.util.spec_from_file_location("hubconf", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert sorted(name for name in vars(module) if not name.startswith("_")) == sorted([*ENTRIES, "dependencies"])
    assert all(vars(module)[name].__doc__ for name in ENTRIES)
    assert [name for name in module.dependencies if importlib.util.find_spec(name) is None] == []


def test_the_dependencies_are_what_the_entry_points_import(toy_folder, weights, tmp_path, tmp_path_factory):
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    empty = tmp_path_factory.mktemp("empty")
    found = run(IMPORTS, tmp_path, str(toy_folder), str(weights), str(empty))
    assert found["unreachable"] == 3
    others = {name for name in found["imported"] if not name.startswith("_lrm_steering_")}
    assert others - sys.stdlib_module_names == set(module.dependencies) - {"open_clip"}  # of which a file is read


def test_the_steerer_loads_and_looks_from_another_folder(toy_folder, tmp_path):
    """Although the user's own `prior` was imported before ours; late imports of ours still find ours."""
    found = run(STEERER, tmp_path, str(toy_folder))
    assert found["model"] == found["default"] == "toy"
    assert found["verdict"] in ("present", "absent", "unsure")
    assert found["home"].startswith("_lrm_steering_")
    assert "model: got 'nonsense'" in found["refused"]
    assert (tmp_path / "look.png").stat().st_size > 1000


@pytest.fixture
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of AlexNet-LRM3 in the published format; entry number i is i / 1000 everywhere, stored once."""
    from torchvision.models import alexnet

    from lrm_core import LRMNet
    from lrm_core.compat import PUBLISHED_CONNECTIONS, ours_to_published

    with torch.device("meta"):
        model = LRMNet(alexnet(), PUBLISHED_CONNECTIONS["alexnet_lrm3"])
    published = ours_to_published(model.state_dict(), model.lrm.connections)
    stream = io.BytesIO()
    entries = enumerate(published.items())
    torch.save({key: torch.tensor(index / 1000).expand(value.shape) for index, (key, value) in entries}, stream)
    data = stream.getvalue()
    path = tmp_path_factory.mktemp("weights") / f"alexnet-{hashlib.sha256(data).hexdigest()[:10]}.pth"
    path.write_bytes(data)
    return path


def test_the_published_entries_work_from_another_folder(weights, tmp_path):
    """The usage examples of the published README. The user's own modules of our names are first met by the hub call."""
    found = run(PUBLISHED, tmp_path, str(weights))
    assert found["steered"] == [[1, 1000], [1, 1000]]
    assert found["bias"] == pytest.approx([0.001, 0.001])
    assert found["transforms"] == ["inv_transform", "test_transform", "train_transform", "val_transform"]
    assert found["gradients"]
    assert found["wrapped"] == 3
    assert found["same class"]
    assert found["classes"] == ["SteerableLRM", "SteerableLRM"]
    assert found["prototypes"] == [2] * 5
    assert found["functions"] == ["load_vision_prototypes", "load_clip_prototypes", "compute_prototypes"]
    assert "no visual prototypes 'alexnet_lrm4'" in found["refused"]
