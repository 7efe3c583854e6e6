"""Published priors: the golden numbers, dalle2-pytorch's own network and samplers, and files good and bad."""

import hashlib
import importlib.util
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prior.published_prior
from prior.published_prior import METHODS, PublishedPrior, load_clip_prototypes, load_prior
from prior.sample import ddpm

WIDTH, DIM = 24, 40  # of the small prior's texts and goals


class Oracle(nn.Module):
    """The published model on dalle2-pytorch, small: its keys, its projections."""

    def __init__(self, timesteps: int = 100, token_encodings: bool = True, **options: Any) -> None:
        from dalle2_pytorch import DiffusionPrior, DiffusionPriorNetwork

        super().__init__()
        self.project_text_embedding = nn.Linear(WIDTH, DIM)
        if token_encodings:
            self.project_text_encoding = nn.Linear(WIDTH, DIM)
        network = DiffusionPriorNetwork(dim=DIM, depth=2, dim_head=16, heads=2, ff_mult=3, max_text_len=80)
        self.diffusion_prior = DiffusionPrior(
            network,
            image_embed_dim=DIM,
            timesteps=timesteps,
            cond_drop_prob=0.2,
            condition_on_text_encodings=token_encodings,
            **options,
        )

    def condition(self, text: Tensor, encodings: Tensor | None) -> dict[str, Tensor]:
        projected = {"text_embed": self.project_text_embedding(text)}
        if encodings is not None:
            projected["text_encodings"] = self.project_text_encoding(encodings)
        return projected


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Oracle().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def small(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> PublishedPrior:
    return load_prior(write(tmp_path_factory.mktemp("prior"), {"state_dict": oracle.state_dict()}))


@pytest.fixture(scope="module")
def texts() -> tuple[Tensor, Tensor]:
    """Two texts: unit embeddings, and encodings in CLIP's 77 places with zeros behind 5 and 9 tokens."""
    generator = torch.Generator().manual_seed(1)
    embeddings = nn.functional.normalize(torch.randn(2, WIDTH, generator=generator), dim=-1)
    encodings = torch.randn(2, 77, WIDTH, generator=generator)
    encodings[0, 5:], encodings[1, 9:] = 0, 0
    return embeddings, encodings


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")  # dalle2-pytorch's bars


def write(folder: Path, payload: Any, name: str = "prior") -> Path:
    """A file in the published format: its name ends in the start of its SHA-256."""
    raw = folder / "raw"
    torch.save(payload, raw)
    return raw.rename(folder / f"{name}-{hashlib.sha256(raw.read_bytes()).hexdigest()[:8]}.pth")


class Golden:
    """The published prior filled with the golden weights, and the reference arrays."""

    def __init__(self, folder: Path) -> None:
        spec = importlib.util.spec_from_file_location("fill_weights", folder / "fill_weights.py")
        assert spec
        assert spec.loader
        fill_weights = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fill_weights)
        self.keys = (folder / "prior_keys.txt").read_text().splitlines()
        with np.load(folder / "prior_vitb16_to_alexnet_lrm.npz") as arrays:
            self.arrays = {name: torch.from_numpy(arrays[name]) for name in arrays}
        with torch.random.fork_rng():
            self.prior: PublishedPrior = fill_weights.fill_(PublishedPrior()).eval().requires_grad_(False)
        self.text = self.arrays["text_embed"], self.arrays["text_encodings"]
        self.seed = int(self.arrays["seed"])

    def denoise(self) -> Any:
        network = self.prior.network
        memory = network.read(*self.prior._project(*self.text))
        return lambda x, time: network.predict(memory, x, x.new_full((len(x),), time))


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared / "data" / "golden")


def test_the_keys_and_shapes_are_the_published_ones(golden: Golden) -> None:
    state = golden.prior.state_dict()
    assert {f"{key} {tuple(value.shape)} {value.dtype}" for key, value in state.items()} == set(golden.keys)


@pytest.mark.parametrize("time", [99, 50, 0])
def test_the_golden_predictions_are_reproduced(golden: Golden, time: int) -> None:
    found = golden.prior.predict(golden.arrays["noise"], time, *golden.text)
    torch.testing.assert_close(found, golden.arrays[f"x_start_t{time}"], atol=1e-4, rtol=0)


def test_the_golden_single_steps_are_reproduced(golden: Golden) -> None:
    denoise = golden.denoise()
    for time in (99, 50, 0):
        generator = torch.Generator().manual_seed(golden.seed)
        found = ddpm(denoise, golden.arrays["noise"], golden.prior.posterior, generator=generator, times=[time])
        torch.testing.assert_close(found, golden.arrays[f"p_sample_t{time}"], atol=1e-5, rtol=0)


def test_the_golden_ddpm_is_reproduced(golden: Golden) -> None:
    generator = torch.Generator().manual_seed(golden.seed)
    noise = torch.randn(2, 1000, generator=generator)
    found = ddpm(golden.denoise(), noise, golden.prior.posterior, generator=generator)
    expected = golden.arrays["ddpm_100"]
    torch.testing.assert_close(found / golden.prior.image_embed_scale, expected, atol=1e-7, rtol=0)
    assert expected.abs().max() > 1e-3


def test_the_golden_loss_is_reproduced(golden: Golden) -> None:
    outputs = golden.arrays["image_embed"].clone()
    loss = golden.prior.loss(outputs, *golden.text, generator=torch.Generator().manual_seed(golden.seed))
    assert loss.item() == pytest.approx(golden.arrays["loss_eval"].item(), rel=1e-6)
    assert torch.equal(outputs, golden.arrays["image_embed"])  # dalle2-pytorch scales them in place


def test_the_golden_ddim_is_dalle2_pytorchs_own(golden: Golden) -> None:
    """Not a number, throughout: the golden weights make its schedule's ᾱ negative. It holds no more than that."""
    from dalle2_pytorch import DiffusionPrior

    predict = golden.denoise()

    class Network(nn.Module):
        dim, self_cond = 1000, False

        def forward_with_cond_scale(self, x: Tensor, times: Tensor, **_options: Any) -> Tensor:
            return predict(x, int(times[0]))

    theirs = DiffusionPrior(Network(), image_embed_dim=1000, timesteps=100)
    theirs.noise_scheduler.load_state_dict(golden.prior.diffusion_prior.noise_scheduler.state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(golden.seed)
        found = theirs.p_sample_loop((2, 1000), text_cond={}, timesteps=10)
    torch.testing.assert_close(found, golden.arrays["ddim_10"], equal_nan=True, atol=1e-6, rtol=0)


@pytest.mark.parametrize("time", [99, 3, 0])
def test_predictions_are_those_of_dalle2_pytorchs_network(oracle: Oracle, small: PublishedPrior, texts, time) -> None:
    noisy = torch.randn(2, DIM, generator=torch.Generator().manual_seed(2))
    expected = oracle.diffusion_prior.net(noisy, torch.full((2,), time), **oracle.condition(*texts))
    torch.testing.assert_close(small.predict(noisy, time, *texts), expected, atol=1e-5, rtol=1e-5)
    other = small.predict(noisy, time, texts[0], texts[1].flip(0))
    assert (other - expected).abs().max() > 1e-3


def test_padding_may_be_left_off(small: PublishedPrior, texts) -> None:
    embeddings, encodings = texts
    whole = small.sample(embeddings, encodings, num_samples=2)
    torch.testing.assert_close(small.sample(embeddings, encodings[:, :9], num_samples=2), whole, atol=1e-6, rtol=1e-5)
    assert (small.sample(embeddings, encodings[:, :4], num_samples=2) - whole).abs().max() > 1e-4


def test_without_token_encodings_too(texts, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        oracle = Oracle(token_encodings=False).eval().requires_grad_(False)
    prior = load_prior(write(tmp_path, oracle.state_dict()))
    noisy = torch.randn(2, DIM, generator=torch.Generator().manual_seed(2))
    expected = oracle.diffusion_prior.net(noisy, torch.full((2,), 7), **oracle.condition(texts[0], None))
    torch.testing.assert_close(prior.predict(noisy, 7, texts[0]), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="trained without token encodings: expected text_encodings=None"):
        prior.sample(*texts)


def test_ddpm_is_dalle2_pytorchs_in_logits(oracle: Oracle, small: PublishedPrior, texts) -> None:
    """Both texts get the same noise here, one for each of the two samples; there, each text has its own."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = oracle.diffusion_prior.p_sample_loop((2, DIM), text_cond=oracle.condition(*texts), timesteps=100)
    ours = small.sample(*texts, num_samples=2, method="ddpm", seed=5)
    torch.testing.assert_close(torch.stack([ours[0, 0], ours[1, 1]]), theirs, atol=1e-5, rtol=1e-4)


def test_all_steps_with_full_eta_are_ddpm(small: PublishedPrior, texts) -> None:
    ancestral = small.sample(*texts, num_samples=3, method="ddpm", seed=5)
    found = small.sample(*texts, num_samples=3, steps=100, eta=1.0, seed=5)
    torch.testing.assert_close(found, ancestral, atol=1e-4, rtol=1e-3)


def test_the_released_single_step_exists_by_name(oracle: Oracle, small: PublishedPrior, texts) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(6)
        noise = torch.rand(2, DIM)
        theirs, _ = oracle.diffusion_prior.p_sample(noise, torch.full((2,), 99), text_cond=oracle.condition(*texts))
    ours = small.sample(*texts, num_samples=2, method="published-one-step", seed=6)
    torch.testing.assert_close(torch.stack([ours[0, 0], ours[1, 1]]), theirs, atol=1e-5, rtol=1e-5)


def test_guidance_goes_away_from_the_noisy_output_read_without_text(
    oracle: Oracle, small: PublishedPrior, texts
) -> None:
    """One step from noise shows it: there the sample is the guided prediction itself."""
    found = small.sample(*texts, num_samples=2, steps=1, guidance=3.0, seed=7) * small.image_embed_scale
    noise = torch.randn(2, DIM, generator=torch.Generator().manual_seed(7))
    for index in range(2):
        text = oracle.condition(texts[0][[index]].expand(2, -1), texts[1][[index]].expand(2, -1, -1))
        times = torch.full((2,), 99)
        with_text = oracle.diffusion_prior.net(noise, times, **text)
        without = oracle.diffusion_prior.net(noise, times, **text, text_cond_drop_prob=1.0)
        torch.testing.assert_close(found[index], without + 3 * (with_text - without), atol=1e-4, rtol=1e-4)


def test_the_loss_is_dalle2_pytorchs_hidden_texts_and_outputs_included(oracle: Oracle, small: PublishedPrior) -> None:
    generator = torch.Generator().manual_seed(8)
    outputs, embeddings = torch.randn(64, DIM, generator=generator), torch.randn(64, WIDTH, generator=generator)
    encodings = torch.randn(64, 77, WIDTH, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(9)
        expected = oracle.diffusion_prior(image_embed=outputs.clone(), **oracle.condition(embeddings, encodings))
    found = small.loss(outputs, embeddings, encodings, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-5)
    kept = small.loss(outputs, embeddings, encodings, generator=torch.Generator().manual_seed(9), drop=0.0)
    assert not torch.allclose(kept, expected, rtol=1e-4)


def test_every_parameter_learns(texts) -> None:
    prior = PublishedPrior(WIDTH, DIM, depth=2, heads=2, head_width=16, max_text_len=80)
    prior.loss(torch.randn(2, DIM), *texts, generator=torch.Generator().manual_seed(0), drop=0.5).backward()
    idle = [name for name, value in prior.named_parameters() if value.requires_grad and value.grad is None]
    assert idle == []


def test_a_fresh_schedule_is_the_published_one(oracle: Oracle) -> None:
    expected = oracle.diffusion_prior.noise_scheduler.state_dict()
    found = PublishedPrior(WIDTH, DIM, depth=1).diffusion_prior.noise_scheduler.state_dict()
    assert found.keys() == expected.keys()
    for name in expected.keys() - {"posterior_log_variance_clipped"}:  # log 0, clipped elsewhere
        torch.testing.assert_close(found[name], expected[name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_texts_samples_depend_on_the_seed_and_not_on_its_company(small: PublishedPrior, texts, method: str) -> None:
    samples = small.sample(*texts, num_samples=3, method=method)
    assert samples.shape == (2, 3, DIM)
    for index in range(2):
        alone = small.sample(texts[0][[index]], texts[1][[index]], num_samples=3, method=method)
        torch.testing.assert_close(alone[0], samples[index], atol=1e-5, rtol=1e-5)
    assert torch.equal(small.sample(*texts, num_samples=3, method=method, seed=0), samples)
    assert not torch.equal(small.sample(*texts, num_samples=3, method=method, seed=1), samples)
    torch.testing.assert_close(small.goals(*texts, num_samples=3, method=method), samples.mean(1))


def test_a_generator_goes_on_from_call_to_call(small: PublishedPrior, texts) -> None:
    generator = torch.Generator().manual_seed(4)
    state = torch.random.get_rng_state()
    first, second = (small.sample(*texts, num_samples=2, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, small.sample(*texts, num_samples=2, seed=4))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dpm"}, "method: got 'dpm', choices: ddim, ddpm, published-one-step"),
        ({"method": "ddpm", "steps": 10}, "method ddpm: got steps=10, eta=0; expected steps=100, eta=0"),
        (
            {"method": "published-one-step", "guidance": 2.0},
            "method published-one-step: got guidance=2; expected guidance=1",
        ),
        ({"steps": 101}, "steps: got 101, expected a whole number from 1 to 100"),
        ({"steps": 0}, "steps: got 0, expected a whole number from 1 to 100"),
    ],
)
def test_options_that_a_method_does_not_have_are_refused(small: PublishedPrior, texts, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small.sample(*texts, **options)


def test_texts_of_another_encoder_are_refused(small: PublishedPrior, texts) -> None:
    embeddings, _ = texts
    with pytest.raises(ValueError, match=r"text embedding: expected width 24, got 7; .* OpenCLIP's ViT-B-16, openai"):
        small.sample(torch.randn(2, 7), torch.randn(2, 9, 7))
    with pytest.raises(ValueError, match="trained with token encodings: expected text_encodings"):
        small.sample(embeddings)
    with pytest.raises(ValueError, match=r"text encodings: expected \(2, at most 77, 24\), got \(2, 78, 24\)"):
        small.sample(embeddings, torch.zeros(2, 78, WIDTH))


def test_dalle2_pytorch_is_not_imported() -> None:
    program = (
        "import sys, torch; from prior.published_prior import PublishedPrior; from prior.templates import templates;"
        "prior = PublishedPrior(8, 16, depth=1, token_encodings=False); prior.goals(torch.randn(1, 8));"
        "sys.exit('dalle2_pytorch' in sys.modules)"
    )
    root = Path(prior.published_prior.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize("place", [None, "model", "state_dict"])
def test_a_file_loads_from_every_published_spelling(oracle: Oracle, tmp_path: Path, place: str | None) -> None:
    state = {f"module.{key}": value for key, value in oracle.state_dict().items()}
    results = defaultdict(list, epoch=[0], val_loss_avg=[1.5])  # as the published training saves them
    file = write(tmp_path, {place: state, "results": results} if place else state)
    loaded = load_prior(file)
    assert not loaded.training
    assert not any(value.requires_grad for value in loaded.parameters())
    assert loaded.image_embed_scale == DIM**0.5
    for key, value in oracle.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_the_scale_is_read_from_the_file_unless_it_is_given(oracle: Oracle, tmp_path: Path) -> None:
    params = {"model.image_embed_scale": 1.0, "model.arch": "alexnet"}
    file = write(tmp_path, {"state_dict": oracle.state_dict(), "params": params})
    assert load_prior(file).image_embed_scale == 1.0
    assert load_prior(file, image_embed_scale=3.0).image_embed_scale == 3.0


def test_a_published_name_is_taken_from_the_cache(
    oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, {"state_dict": oracle.state_dict()})
    monkeypatch.setitem(prior.published_prior.PRIORS, "alexnet_lrm3", f"http://localhost:1/{file.name}")
    assert load_prior("alexnet_lrm3", folder=tmp_path).dim == DIM
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{file.name}.*: expected a SHA-256 that starts with"):
        load_prior("alexnet_lrm3", folder=tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=f"cannot reach http://localhost:1/{file.name}"):
        load_prior("alexnet_lrm3", folder=tmp_path)


def test_a_file_is_not_read_before_its_hash_is_checked(oracle: Oracle, tmp_path: Path) -> None:
    file = write(tmp_path, oracle.state_dict())
    with pytest.raises(ValueError, match=r"0123abcd\.pth.*: expected a SHA-256 that starts with 0123abcd"):
        load_prior(file.rename(tmp_path / "prior-0123abcd.pth"))
    with pytest.raises(
        ValueError, match=r"got 'alexnet_lrm4', which is neither a file nor one of alexnet_lrm1, alexnet"
    ):
        load_prior("alexnet_lrm4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"project_text_embedding.bias": None}, "missing: project_text_embedding.bias$"),
        ({"diffusion_prior.net.learned_query": None}, "missing: diffusion_prior.net.learned_query; got"),
        ({"diffusion_prior.net.extra": torch.zeros(1)}, "unexpected: diffusion_prior.net.extra$"),
        ({"project_text_encoding.bias": torch.zeros(3)}, r"project_text_encoding.bias \(3,\) instead of \(40,\)$"),
        ({"project_text_encoding.weight": None}, "missing: project_text_encoding.weight$"),
        (
            {"diffusion_prior.net.causal_transformer.layers.1.0.null_kv": None, "a": torch.zeros(1)},
            r"missing: diffusion_prior.net.causal_transformer.layers.1.0.null_kv; unexpected: a$",
        ),
    ],
)
def test_other_weights_are_refused_by_their_keys(oracle: Oracle, tmp_path: Path, change, message: str) -> None:
    state = {key: value for key, value in {**oracle.state_dict(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match="is not a prior in the published format; .*" + message):
        load_prior(write(tmp_path, {"state_dict": state}))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a prior in the published format; missing: .*; got weight"):
        load_prior(write(tmp_path, {"weight": torch.zeros(2)}))
    with pytest.raises(ValueError, match="expected a dictionary, got Tensor"):
        load_prior(write(tmp_path, torch.zeros(2)))
    with pytest.raises(ValueError, match="is damaged or holds more than weights"):
        load_prior(write(tmp_path, {"path": Path("a")}))


def test_clip_prototypes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mean = torch.randn(5, generator=torch.Generator().manual_seed(0))
    entry = {"count": 3, "sum": 3 * mean, "sumsq": 3 * mean**2, "mean": mean, "std": torch.zeros(5)}
    file = write(tmp_path, {0: entry, 7: entry}, "prototypes")
    monkeypatch.setitem(prior.published_prior.CLIP_PROTOTYPES, "alexnet_lrm1", f"http://localhost:1/{file.name}")
    for found in (load_clip_prototypes(file), load_clip_prototypes("alexnet_lrm1", folder=tmp_path)):
        assert list(found) == [0, 7]
        assert torch.equal(found[7]["mean"], mean)
        assert found[7]["count"] == 3


@pytest.mark.parametrize(
    ("payload", "found"),
    [({"dog": {}}, "'dog' → $"), ({3: {"mean": 1.0}}, "3 → mean"), ({3: torch.zeros(2)}, "3 → Tensor")],
)
def test_a_file_without_prototypes_is_refused(tmp_path: Path, payload, found: str) -> None:
    with pytest.raises(ValueError, match="expected class index → count, sum, sumsq, mean, std; got " + found):
        load_clip_prototypes(write(tmp_path, payload))


@pytest.mark.parametrize("table", ["PRIORS", "CLIP_PROTOTYPES"])
def test_every_published_address_states_its_backbone_and_its_hash(table: str) -> None:
    from lrm_base.download import NAMED_HASH

    for name, address in getattr(prior.published_prior, table).items():
        assert f"_{name}_" in address
        assert NAMED_HASH.search(address)
