"""A Steerer goes to other processes, is copied, and answers as before."""

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from prior.text import TextEncoder
from steering import Steerer

ROOT = Path(__file__).resolve().parent.parent.parent
POOL = """
import multiprocessing, sys
import torch
from steering import Steerer

QUERIES = ["a cat", "a teapot", "a bridge - a lemon"]
held = None

def given(task):
    steerer, query = task
    return steerer.look("sample:cat", query).probability

def inherited(query):
    return held.look("sample:cat", query).probability

if __name__ == "__main__":
    method, folder = sys.argv[1:]
    torch.set_num_threads(2)
    held = Steerer.load(folder, device="cpu")
    expected = [held.look("sample:cat", query).probability for query in QUERIES]  # threads have run before the fork
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(given, [(held, query) for query in QUERIES]) == expected
        if method == "fork":
            assert pool.map(inherited, QUERIES) == expected
    print("the same answers")
"""


def copies(value):
    """A value that was pickled, and one that was copied."""
    return [pickle.loads(pickle.dumps(value)), copy.deepcopy(value)]


def answers(steerer: Steerer) -> list[torch.Tensor]:
    looks = steerer.look_many("sample:cat", ["a cat", "a lemon - a teapot", steerer.prototype_goal("teapot")])
    return [tensor for look in looks for tensor in (look.before, look.after, look.goal, look.heatmap)]


def test_copies_of_a_steerer_answer_as_it_does(toy: Steerer):
    expected = answers(toy)
    for twin in copies(toy):
        assert twin is not toy
        assert twin.network.model is not toy.network.model
        assert all(map(torch.equal, answers(twin), expected))
        assert twin.verdicts == toy.verdicts
        assert twin.look("sample:cat", "a cat").probability == toy.look("sample:cat", "a cat").probability


def test_a_copy_has_a_lock_and_a_cache_of_its_own(toy: Steerer):
    toy.goal("a cat")
    twin = pickle.loads(pickle.dumps(toy))
    assert twin._loading is not toy._loading
    assert twin._words.cache_info().currsize == 0
    twin.goal("a cat")
    assert twin._words.cache_info().currsize == 1
    assert twin._words.__wrapped__.__self__ is twin


def test_a_language_that_was_not_loaded_is_loaded_by_the_copy(toy_folder: Path, toy_text: Path, tmp_path: Path):
    """A folder that holds a backbone alone loads its language late."""
    for name in ("backbone.json", "backbone.safetensors"):
        (tmp_path / name).write_bytes((toy_folder / name).read_bytes())
    TextEncoder.load(toy_text)  # OpenCLIP knows the toy's configuration from now on
    steerer = Steerer.load(tmp_path, text=f"toy_clip:{toy_text / 'text.safetensors'}", device="cpu")
    early = copies(steerer)
    assert all("_language" not in vars(one) for one in (steerer, *early))
    expected = steerer.goal("a cat").vector
    for twin in (*early, *copies(steerer)):
        assert torch.equal(twin.goal("a cat").vector, expected)


def test_a_language_that_was_loaded_goes_along(toy: Steerer):
    other = toy.with_network(toy.network)
    other.goal("a cat")
    state = other.__getstate__()
    assert "_language" in state
    assert state["_load_language"] is None
    assert len(pickle.dumps(other)) < 1.2 * len(pickle.dumps(toy.with_network(toy.network)))
    expected = other.goal("a lemon").vector
    for twin in (*copies(other), *(pickle.loads(pickle.dumps(c)) for c in copies(other))):
        assert torch.equal(twin.goal("a lemon").vector, expected)


def test_a_steerer_with_another_network_is_pickled_before_and_after_its_language_is_needed(toy: Steerer):
    other = toy.with_network(toy.network.with_defaults(toy.network.defaults), toy.verdicts)
    early = pickle.loads(pickle.dumps(other))
    expected = answers(other)
    for twin in (early, *copies(other)):
        assert all(map(torch.equal, answers(twin), expected))


def test_threads_may_share_a_copy(toy: Steerer):
    queries = ["a cat", "a beagle", "a lemon", "a teapot"] * 3
    expected = [toy.look("sample:cat", query).after for query in queries]
    twin = pickle.loads(pickle.dumps(toy))
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda query: twin.look("sample:cat", query).after, queries))
    assert all(map(torch.equal, got, expected))


def test_the_parts_are_pickled_too(toy: Steerer):
    inputs = toy.network.pixels(Image.new("RGB", (40, 30), "orange"))
    expected = toy.network.pack(toy.network.glance(inputs))  # after this the network keeps a layout
    for network in copies(toy.network):
        glance = network.glance(inputs)
        assert network.pack(glance) == expected
        assert torch.equal(network.unpack(expected).output, toy.network.unpack(expected).output)
    text, prior = toy.language.text, toy.language.prior
    for encoder, twin in zip(copies(text), copies(prior), strict=True):
        embedded = encoder.encode(["a cat"])
        assert torch.equal(embedded, text.encode(["a cat"]))
        assert torch.equal(twin.goals(embedded), prior.goals(embedded))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_of_processes_gives_the_same_answers(method: str, toy_folder: Path, tmp_path: Path):
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    command = [sys.executable, "-W", "ignore", str(script), method, str(toy_folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.stdout == "the same answers\n", done.stderr
