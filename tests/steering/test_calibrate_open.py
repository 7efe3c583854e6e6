"""Calibrating a CLIP: what a folder tells, what is asked of its scenes, what is chosen, and what is kept."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steering import Steerer
from steering.calibrate_choice import (
    RIDGES,
    Form,
    calibration_error,
    choose,
    cross_validate,
    log_loss,
    measured,
    report,
    simplest,
)
from steering.calibrate_open import Calibration, calibrate
from steering.calibrate_scenes import FOLDS, STRENGTHS, Examples, Questions, Shown, deal
from steering.calibrate_verdicts import fit_verdict
from steering.errors import ImageError
from steering.evidence import FEATURES, UNSTEERED, Verdict, load_verdicts
from steering.labelled import read_labelled
from steering.network import Defaults
from tests.clips import make_open_clip

THINGS = (
    "red_ball",
    "blue_sky",
    "green_leaf",
    "black_cat",
    "white_dog",
    "tin",
    "umbrella",
    "an_owl",
    "map",
    "sea",
    "hat",
)


def write_images(folder: Path, names: tuple[str, ...], count: int) -> Path:
    """Noise around a colour of its own for each name, 40 × 30 pixels."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            random = np.random.default_rng(100 * number + index)
            colour = np.random.default_rng(number).uniform(30, 220, 3)
            pixels = random.normal(colour, 30, (30, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Steerer:
    folder = tmp_path_factory.mktemp("clip") / "model"
    make_open_clip(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(folder.parent / "data"))
        return Steerer.load(f"clip:{folder}", device="cpu")


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("labelled") / "things", THINGS, 7)


# what a folder tells


def said(source: Path) -> dict[str, str]:
    """The text of each photograph, by its file below the folder."""
    found = read_labelled(str(source))
    return {
        str(Path(file).relative_to(source)): found.texts[row]
        for file, row in zip(found.files, found.labels, strict=True)
    }


def test_names_of_folders_are_words_with_an_article(tmp_path: Path):
    write_images(tmp_path, ("fire_engine", "an_owl", "binoculars"), 2)
    (tmp_path / "binoculars" / "sub").mkdir()
    (tmp_path / "binoculars" / "0.png").rename(tmp_path / "binoculars" / "sub" / "0.png")
    assert said(tmp_path) == {
        "fire_engine/0.png": "a fire engine",
        "fire_engine/1.png": "a fire engine",
        "an_owl/0.png": "an owl",
        "an_owl/1.png": "an owl",
        "binoculars/1.png": "binoculars",
        "binoculars/sub/0.png": "binoculars",
    }


def test_parts_of_a_data_set_are_no_names_but_a_train_among_things_is(tmp_path: Path):
    write_images(tmp_path / "set" / "train", ("cat", "dog"), 1)
    write_images(tmp_path / "set" / "val", ("cat",), 1)
    assert said(tmp_path / "set") == {"train/cat/0.png": "a cat", "train/dog/0.png": "a dog"}
    write_images(tmp_path / "things", ("train", "tram"), 1)
    assert set(said(tmp_path / "things").values()) == {"a train", "a tram"}


def test_captions_come_from_one_file(tmp_path: Path):
    write_images(tmp_path, ("a", "b"), 2)
    lines = ["image,caption", 'a/0.png,"a cat, a hat and  a bag"', "a/1.png,two dogs", "a/1.png,more", "gone.jpg,x", ""]
    (tmp_path / "captions.txt").write_text("\n".join(lines))
    assert said(tmp_path) == {"a/0.png": "a cat, a hat and a bag", "a/1.png": "two dogs"}
    found = read_labelled(str(tmp_path))
    assert found.are_captions
    assert found.notes == ("1 image or caption without the other was left out",)
    (tmp_path / "captions.txt").write_text("a/0.png\ta cat, a hat\nb/1.png\tgrass\n")
    assert said(tmp_path) == {"a/0.png": "a cat, a hat", "b/1.png": "grass"}


def test_captions_lie_beside_their_images(tmp_path: Path):
    write_images(tmp_path, ("x",), 3)
    (tmp_path / "x" / "0.txt").write_text("a child with\nan umbrella\n")
    (tmp_path / "x" / "2.txt").write_text("")
    found = read_labelled(str(tmp_path))
    assert said(tmp_path) == {"x/0.png": "a child with an umbrella"}
    assert found.notes == ("2 images or captions without the other were left out",)


@pytest.mark.parametrize("form", ["list", "dict"])
def test_parquet_files_take_their_names_from_a_table(tmp_path: Path, form: str):
    import datasets

    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 10, 10)).save(buffer, "PNG")
    image = {"bytes": buffer.getvalue(), "path": None}
    rows = {"image": [image] * 4, "label": [1, 0, -1, -1], "wnid": ["n2", "n1", "n3", "n9"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    entries = [
        {"index": i, "wnid": f"n{i + 1}", "names": [n], "is_a": []} for i, n in enumerate(("tench", "great_owl"))
    ]
    table = {"classes": entries, "above": {"n3": ["animal", "beast"]}}
    plain = [{"wnid": entry["wnid"], "name": entry["names"][0]} for entry in entries]
    (tmp_path / "classes.json").write_text(json.dumps(table if form == "dict" else plain))
    found = read_labelled(str(tmp_path))
    texts = [found.texts[row] for row in found.labels]
    assert texts == ["a great owl", "a tench", *(["an animal"] if form == "dict" else [])]
    assert found.open(len(texts) - 1).size == (8, 6)
    assert found.notes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no images in this folder"),
        (
            lambda folder: write_images(folder / "x", ("a",), 1) and (folder / "x/a/0.png").rename(folder / "0.png"),
            "dog/1",
        ),
        (lambda folder: write_images(folder, ("n02123045",), 1), "n02123045, a number of WordNet"),
        (lambda folder: (folder / "captions.txt").write_text("x.png\tno such image"), "names no image that is there"),
        (lambda folder: (folder / "train-0.parquet").write_text("no"), "has no readable parquet files"),
    ],
)
def test_a_folder_that_does_not_tell_is_refused_in_a_line(tmp_path: Path, make, message: str):
    make(tmp_path)
    with pytest.raises(ValueError, match=r"^folder: ") as caught:
        read_labelled(str(tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_caption_without_a_mark_is_told_with_its_line(tmp_path: Path):
    write_images(tmp_path, ("a",), 1)
    (tmp_path / "captions.txt").write_text("a/0.png\tyes\na cat on a mat\n")
    with pytest.raises(ValueError, match=r"captions\.txt, line 2: got 'a cat on a mat'"):
        read_labelled(str(tmp_path))


# what is asked


@pytest.fixture(scope="module")
def asked(clip: Steerer, things: Path) -> tuple[Questions, Shown, Examples]:
    labelled = read_labelled(str(things))
    pixels = torch.stack(
        [torch.from_numpy(np.array(labelled.open(row).resize((64, 64)))).permute(2, 0, 1) for row in range(77)]
    )
    labels = torch.tensor(labelled.labels)
    generator = torch.Generator().manual_seed(0)
    shown = Shown(pixels, labels, deal(labels, generator), {})
    goals = {"identity": clip.language.goals(list(labelled.texts))}
    questions = Questions(clip.network, goals, generator)
    return questions, shown, questions.ask(shown, 0, quiet=True)


def test_each_name_is_dealt_out_evenly():
    folds = deal(torch.arange(60) % 3, torch.Generator().manual_seed(0))
    assert [int((folds[torch.arange(60) % 3 == name] == fold).sum()) for name in range(3) for fold in range(5)] == [
        4
    ] * 15


def test_a_composite_shows_images_of_its_fold_and_every_image_is_shown_once_by_itself(asked):
    questions, shown, _ = asked
    batches = list(questions._batches(shown, 0, 50))
    assert {triplets.kind for _, triplets in batches} == {"single", "blend", "side", "cutmix", "inset", "grid"}
    for fold, triplets in batches:
        assert (shown.folds[triplets.images] == fold).all()
        assert (shown.labels[triplets.images] == triplets.present[:, None]).any(1).all()
        assert (shown.labels[triplets.images] != triplets.absent[:, None]).all()
    singles = torch.cat([triplets.images[:, 0] for _, triplets in batches if triplets.kind == "single"])
    assert sorted(singles.tolist()) == list(range(77))


def test_for_each_goal_that_is_there_one_is_not_and_half_of_those_are_near(asked):
    _, _, examples = asked
    present = examples.answers == 1
    assert int(present.sum()) == int((~present).sum()) > 300
    assert 0.4 < float(examples.is_near.float().mean()) < 0.6
    assert int(examples.is_near[present].sum()) == int(examples.is_near[~present].sum())
    assert set(examples.fold.tolist()) == set(range(FOLDS))


def test_without_strength_the_passes_are_equal_and_with_it_they_are_not(asked):
    _, _, examples = asked
    before, after = (FEATURES.index(f"support {when}") for when in ("before", "after"))
    assert {strength for _, strength in examples.values} == set(STRENGTHS)
    none, most = examples.values["identity", 0.0], examples.values["identity", STRENGTHS[-1]]
    assert torch.equal(none[:, before], none[:, after])
    assert torch.equal(none[:, before], most[:, before])
    assert (most[:, before] != most[:, after]).all()


def test_what_means_the_same_as_what_is_there_is_never_absent(clip: Steerer, asked):
    questions, shown, examples = asked
    first = shown.labels == 0
    others = Questions(clip.network, questions.goals, torch.Generator().manual_seed(0))
    others.alike = questions.alike.clone()
    others.alike[0] = True  # beside the first thing, nothing is absent
    found = others.ask(shown, 0, quiet=True)
    for each, images in ((examples, 77), (found, 77 - int(first.sum()))):
        assert int((each.is_single & (each.answers == 1)).sum()) == images
    only = Shown(shown.pixels[first], shown.labels[first], shown.folds[first], {})
    others = Questions(clip.network, questions.goals, torch.Generator().manual_seed(0))
    others.alike = torch.ones_like(questions.alike)
    with pytest.raises(ValueError, match=r"got 11 names or captions that mean nearly the same"):
        others.ask(only, 0, quiet=True)


def test_texts_that_are_the_same_to_the_model_are_alike(clip: Steerer):
    goals = clip.language.goals(["a cat", "a cat", "the sea at night"])
    alike = Questions(clip.network, {"identity": goals}, torch.Generator()).alike
    assert alike.tolist() == [[True, True, False], [True, True, False], [False, False, True]]


# what is chosen


def made_up(helps: bool, count: int = 1500) -> Examples:
    """Examples whose answers depend on the support: the steered one if steering helps, else on the first one."""
    generator = torch.Generator().manual_seed(0)
    values = {s: torch.randn(count, len(FEATURES), generator=generator) for s in (0.0, 0.1, 0.3)}
    before, after = (FEATURES.index(f"support {when}") for when in ("before", "after"))
    for value in values.values():
        value[:, before] = values[0.0][:, before]
    values[0.0][:, after] = values[0.0][:, before]
    logit = 2 * (values[0.3][:, after] if helps else values[0.0][:, before])
    answers = (torch.rand(count, generator=generator) < logit.sigmoid()).float()
    return Examples(
        {("identity", strength): value for strength, value in values.items()},
        answers,
        torch.arange(count) % FOLDS,
        torch.arange(count) % 2 == 0,
        torch.arange(count) % 3 == 0,
    )


def test_the_strength_that_helps_is_chosen():
    verdicts, strength, told = choose(made_up(helps=True), ["identity"], products=True)
    assert (strength, told["steering_helps"]) == (0.3, True)
    assert told["log_loss_by_strength"]["0.3"] < told["log_loss_by_strength"]["0"] - 0.1
    assert set(verdicts) == {"identity", f"identity{UNSTEERED}"}


def test_where_no_strength_helps_the_smallest_is_kept_and_it_is_told():
    _, strength, told = choose(made_up(helps=False), ["identity"], products=False)
    assert (strength, told["steering_helps"]) == (0.1, False)
    assert told["log_loss_by_strength"]["0.1"] > told["log_loss_by_strength"]["0"] - 0.01


def test_the_first_fold_is_not_looked_at():
    examples = made_up(helps=True)
    held_out = examples.fold == 0
    turned = dataclasses.replace(examples, answers=torch.where(held_out, 1 - examples.answers, examples.answers))
    verdicts = [choose(each, ["identity"], products=False)[0]["identity"] for each in (examples, turned)]
    assert verdicts[0] == verdicts[1]
    worth = [
        report(each.of(held_out), choose(each, ["identity"], products=False)[0], 0.3)["identity"]["steered"]["all"]
        for each in (examples, turned)
    ]
    assert worth[0]["auroc"] == pytest.approx(1 - worth[1]["auroc"])
    assert worth[0]["examples"] == int(held_out.sum())


def test_few_examples_do_not_make_a_verdict_sure_of_noise():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(120, len(FEATURES), generator=generator)
    answers = (torch.rand(120, generator=generator) < 0.5).float()
    none = torch.zeros(120, dtype=torch.bool)
    by_strength = {("identity", strength): values for strength in (0.0, 0.1)}
    noise = Examples(by_strength, answers, torch.arange(120) % FOLDS, none, none)
    verdict = choose(noise, ["identity"], products=False)[0]["identity"]
    fresh = torch.randn(1000, len(FEATURES), generator=generator)
    sure = fit_verdict(values, answers, 1e-3)
    assert float((verdict.probability(fresh) - 0.5).abs().mean()) < 0.15
    assert float((sure.probability(fresh) - 0.5).abs().mean()) > 0.4  # what it would have been


def test_a_form_within_one_standard_error_is_taken_if_it_is_simpler():
    forms = [Form(False, 1.0), Form(False, 0.1), Form(True, 0.1)]
    losses = torch.tensor([[0.60, 0.62, 0.61, 0.63], [0.50, 0.54, 0.48, 0.52], [0.52, 0.48, 0.52, 0.48]])
    assert simplest(forms, losses) == forms[1]
    assert simplest(forms, losses + torch.tensor([[0.0], [0.05], [0.0]])) == forms[2]


def test_cross_validation_fits_on_the_other_folds():
    examples = made_up(helps=True, count=200)
    fitted = examples.of(examples.fold > 0)
    losses = cross_validate([Form(False, RIDGES[1])], fitted, "identity", 0.3)
    inside = fitted.fold == 2
    verdict = fit_verdict(fitted.values["identity", 0.3][~inside], fitted.answers[~inside], RIDGES[1], products=False)
    expected = log_loss(verdict.probability(fitted.values["identity", 0.3][inside]), fitted.answers[inside])
    assert losses.shape == (1, FOLDS - 1)
    assert float(losses[0, 1]) == pytest.approx(expected)


def test_a_verdict_without_products_has_no_weights_for_them():
    examples = made_up(helps=True, count=300)
    values = examples.values["identity", 0.3]
    plain = fit_verdict(values, examples.answers, 0.01, products=False)
    whole = fit_verdict(values, examples.answers, 0.01)
    count = 1 + len(FEATURES)
    assert not any(plain.weights[count:])
    assert all(whole.weights[count:])
    assert len(plain.weights) == len(whole.weights)


def test_the_calibration_error_by_hand():
    chances, answers = torch.tensor([0.1, 0.1, 0.9, 0.9]), torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert calibration_error(chances, answers) == pytest.approx((abs(0.2 - 1) + abs(1.8 - 2)) / 4)
    assert calibration_error(torch.tensor([1.0]), torch.tensor([1.0])) == 0
    numbers = measured(torch.tensor([0.2, 0.6, 0.7, 0.4]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert (numbers["auroc"], numbers["balanced_accuracy"], numbers["examples"]) == (0.75, 0.5, 4)


# the whole of it


def test_what_is_fitted_is_read_by_a_fresh_steerer(clip: Steerer, things: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    from steering.catalogue import calibration_folder

    (things / "hat" / "broken.png").write_bytes(b"no image")
    made = calibrate(clip, read_labelled(str(things)), quiet=True)
    assert [Path(name).name for name in made.card["data"]["unread"]] == ["broken.png"]
    counts = {key: made.card["data"][key] for key in ("images", "fitted_on", "held_out", "names")}
    assert counts == {"images": 77, "fitted_on": 61, "held_out": 16, "names": 11}
    assert made.images is not None
    assert made.images.shape == (61, clip.network.width)
    assert not any(form["products"] for form in made.card["forms"].values())  # of few images
    made.write(calibration_folder(clip.network.card["sha256"]))
    again = Steerer.load(clip.network.card["name"], device="cpu")
    assert again.verdicts == made.verdicts
    assert again.network.defaults == made.defaults
    torch.testing.assert_close(again.network.images, made.images.float())
    look = again.look("sample:cat", "a cat")
    assert look.verdict in ("present", "absent", "unsure")
    assert clip.look("sample:cat", "a cat").verdict is None
    repeat = calibrate(clip, read_labelled(str(things)), quiet=True)
    (things / "hat" / "broken.png").unlink()
    assert repeat.card["held_out"] == made.card["held_out"]


def test_fewer_images_can_be_asked_for_and_they_show_as_many_things(clip: Steerer, things: Path):
    made = calibrate(clip, read_labelled(str(things)), images=22, quiet=True)
    assert (made.card["data"]["images"], made.card["data"]["names"]) == (22, 11)
    assert made.images is None  # too few to tell what is usual


def test_two_things_are_enough_though_no_composite_can_be_made_of_them(clip: Steerer, tmp_path: Path):
    write_images(tmp_path, ("cat", "dog"), 10)
    write_images(tmp_path / "cat", (".hidden",), 1)
    (tmp_path / "0.png").write_bytes((tmp_path / "dog" / "0.png").read_bytes())
    labelled = read_labelled(str(tmp_path))
    assert labelled.notes == ("1 image without a name was left out",)
    made = calibrate(clip, labelled, quiet=True)
    numbers = made.card["held_out"]["identity"]["steered"]
    assert "composites" not in numbers
    assert numbers["all"]["examples"] == 8  # four images, each with a goal that is there and one that is not


def test_captions_that_the_model_would_cut_are_left_out(clip: Steerer, things: Path):
    labelled = read_labelled(str(things))
    texts = tuple("dog " * 60 if text == "a map" else text for text in labelled.texts)
    made = calibrate(clip, dataclasses.replace(labelled, texts=texts, are_captions=True), quiet=True)
    assert made.card["data"]["captions_too_long"] == 7
    assert made.card["data"]["captions"] == 10


def test_images_that_cannot_be_read_may_leave_too_few(clip: Steerer, things: Path):
    def broken(number: int) -> Image.Image:
        raise ImageError(f"{number}: is broken")

    labelled = dataclasses.replace(read_labelled(str(things)), open=broken)
    with pytest.raises(ValueError, match=r"got 0 names .* 77 could not be read, such as \d+: is broken"):
        calibrate(clip, labelled, quiet=True)


def test_a_classifier_is_refused(toy: Steerer, things: Path):
    with pytest.raises(ValueError, match=r"^model: got toy, expected a CLIP"):
        calibrate(toy, read_labelled(str(things)), quiet=True)


def test_an_interruption_leaves_what_was_there(tmp_path: Path, monkeypatch):
    count = len(FEATURES)
    verdict = Verdict((0.0,) * count, (1.0,) * count, (0.5,) * (1 + count + count * (count + 1) // 2))
    card = {"backbone_sha256": "abc", "numbers": 1}
    first = Calibration({"identity": verdict}, Defaults(0.1, 2), torch.zeros(3, 4).half(), card)
    first.write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"verdict.json", "steering.json", "calibration.json", "images.safetensors"}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    second = dataclasses.replace(first, defaults=Defaults(0.4, 2), images=None)
    with monkeypatch.context() as patch:
        patch.setattr("steering.calibrate_open.save_verdicts", interrupted)
        with pytest.raises(KeyboardInterrupt):
            second.write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    second.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"verdict.json", "steering.json", "calibration.json"}
    assert load_verdicts(tmp_path / "verdict.json", "abc") == {"identity": verdict}
