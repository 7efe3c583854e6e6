"""A model object goes to files and to other processes, where its graph is made anew."""

import copy
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = '''
import sys

import torch
from torch.utils.data import DataLoader, Dataset

from lrm_core import LRM, Connection, Steer
from lrm_core.backbones import MiniNet


def small():
    torch.manual_seed(0)
    model = LRM(MiniNet(5, (8, 8, 8, 8, 16)), [Connection("fc", "layer3.bn1"), Connection("values", "attend")], 32)
    for path in model.paths.values():
        torch.nn.init.normal_(path.projection.weight, std=0.1)
    return model.eval()


@torch.no_grad()
def looks(model):
    """The outputs of both passes for one image and one goal."""
    images = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    return torch.stack(model.rollout(images, 2, [Steer("fc", torch.eye(5)[:1] * 9)]))


class Looks(Dataset):
    def __init__(self, model):
        self.model = model

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return looks(self.model)


def sent(model, queue):
    queue.put(looks(model).numpy())


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = small()
    assert not torch.equal(*looks(model))
    context = torch.multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    process = context.Process(target=sent, args=(model, queue))
    process.start()
    found = torch.from_numpy(queue.get(timeout=100))
    process.join()
    print("process", torch.equal(found, looks(model)))
    [found] = DataLoader(Looks(model), batch_size=2, num_workers=1, multiprocessing_context=context)
    print("worker", torch.equal(found[0], looks(model)))
'''


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_another_process_and_a_worker_of_a_data_loader_look_alike(context, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", context], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["process", "True", "worker", "True"], done.stderr


def test_a_saved_model_and_a_copy_look_alike():
    names: dict = {"__name__": "script"}
    exec(SCRIPT, names)
    model, file = names["small"](), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), copy.deepcopy(model)):
        assert torch.equal(names["looks"](other), names["looks"](model))
        assert repr(other) == repr(model)
