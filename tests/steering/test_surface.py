"""The public surface: what is exported, what a Steerer has, what the package says of itself."""

import importlib
import inspect
import typing
from pathlib import Path

import pytest
import torch

import steering
from steering.images import open_image, sample_names

ROOT = Path(__file__).resolve().parent.parent.parent
SHOWN = [steering.Steerer, steering.Gallery, steering.Network, steering.Look]


def test_everything_exported_is_listed_and_importable():
    assert set(steering.__all__) <= set(dir(steering))
    for name in steering.__all__:
        assert getattr(steering, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        steering.Nothing  # noqa: B018


def test_what_stands_in_a_public_signature_is_exported():
    exported = {getattr(steering, name) for name in steering.__all__}
    for owner in SHOWN:
        for name, member in inspect.getmembers(owner):
            if name.startswith("_") or not callable(member):
                continue
            module = importlib.import_module(owner.__module__)
            try:
                hints = typing.get_type_hints(member, vars(module) | vars(steering))
            except NameError:  # a name for type checking alone, such as PIL's Image
                continue
            for hint in hints.values():
                for part in (hint, *typing.get_args(hint)):
                    if inspect.isclass(part) and part.__module__.startswith("steering."):
                        assert part in exported, f"{owner.__name__}.{name} speaks of {part}"


def test_a_steerer_understands_and_looks_and_nothing_else():
    public = [name for name in dir(steering.Steerer) if not name.startswith("_")]
    assert len(public) <= 14, public


def test_the_package_is_typed_and_has_a_version():
    for package in ("lrm_base", "lrm_core", "lrm_lab", "prior", "steering"):
        assert (ROOT / package / "py.typed").is_file()
    assert steering.__version__.count(".") == 2


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "float16"])
def test_half_precision_gives_the_same_answers(steerer: steering.Steerer, dtype: str | torch.dtype):
    half = steering.Steerer.load(device="cpu", dtype=dtype)
    assert half.network.dtype == (torch.float16 if dtype == "float16" else torch.bfloat16)
    queries = ["a cat", "an espresso", "a cup - a cat"]
    for image in sample_names():
        for mine, whole in zip(half.look_many(image, queries), steerer.look_many(image, queries), strict=True):
            assert mine.probability == pytest.approx(whole.probability, abs=0.02)
            assert mine.evidence == pytest.approx(whole.evidence, abs=0.25)
            assert torch.equal(mine.goal, whole.goal)  # words are understood in float32
            assert (mine.before.dtype, mine.after.dtype, mine.heatmap.dtype) == (torch.float32,) * 3
            assert (mine.heatmap - whole.heatmap).abs().mean() < 0.03
            assert float(mine.after.softmax(-1).sum()) == pytest.approx(1, abs=1e-6)
    image = half.image_goal("sample:cat")
    assert (image.vector - steerer.image_goal("sample:cat").vector).abs().max() < 0.5
    assert torch.equal(half.prototype_goal("tabby").vector, steerer.prototype_goal("tabby").vector)


def test_class_names_serve_a_half_network_as_they_serve_a_whole_one(toy_folder: Path):
    half, whole = (
        steering.Steerer.load(toy_folder, device="cpu", prior="class-names", dtype=dtype)
        for dtype in ("bfloat16", None)
    )
    assert torch.equal(half.goal("a cat").vector, whole.goal("a cat").vector)


def test_float32_is_the_default_and_changes_nothing(toy: steering.Steerer, toy_folder: Path):
    named = steering.Steerer.load(toy_folder, device="cpu", dtype="float32")
    assert named.network.dtype == toy.network.dtype == torch.float32
    assert torch.equal(named.look("sample:cat", "a cat").after, toy.look("sample:cat", "a cat").after)


def test_what_half_precision_cannot_do_is_told(
    toy_folder: Path, toy: steering.Steerer, monkeypatch: pytest.MonkeyPatch
):
    for wrong in ("int8", "half", torch.float64):
        with pytest.raises(ValueError, match=r"dtype: got .*, expected one of float32, bfloat16, float16"):
            steering.Steerer.load(toy_folder, device="cpu", dtype=wrong)
    half = steering.Steerer.load(toy_folder, device="cpu", dtype="bfloat16").network
    glance = half.glance(half.pixels(open_image("sample:cat")))
    with pytest.raises(ValueError, match="dtype: got bfloat16, expected float32: a gallery keeps first passes"):
        half.pack(glance)
    with pytest.raises(ValueError, match="dtype: got bfloat16"):
        half.unpack(toy.network.pack(toy.network.glance(toy.network.pixels(open_image("sample:cat")))))

    def lacking(*_: object, **__: object) -> None:
        raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'\nand more")

    monkeypatch.setattr("lrm_core.model.LRM.stem", lacking)
    with pytest.raises(ValueError, match=r"dtype: got float16, expected numbers that cpu can compute with") as caught:
        steering.Steerer.load(toy_folder, device="cpu", dtype="float16")
    assert "\n" not in str(caught.value)
