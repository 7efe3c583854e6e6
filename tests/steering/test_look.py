"""A look as a value: rankings, plain form for JSON, text, picture. Made by hand, on real photographs."""

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steering.images import open_image
from steering.look import Look

CLASS_NAMES = (
    "Egyptian cat",
    "espresso",
    "teapot",
    "an extraordinarily long name of a class, or of several",
    "lakeside",
)
KEYS = [
    "image",
    "query",
    "model",
    "prior",
    "verdict",
    "probability",
    "evidence",
    "goal",
    "before",
    "after",
    "seconds",
    "notes",
    "nearest",
]


def make(**changes: object) -> Look:
    values: dict[str, object] = {
        "image": "sample:cat",
        "query": "a cat",
        "model": "lrm_mini",
        "prior": "diffusion",
        "class_names": CLASS_NAMES,
        "picture": open_image("sample:cat"),
        "before": torch.tensor([1.0, 2.0, 0.0, 0.5, -1.0]),
        "after": torch.tensor([4.0, 2.0, 0.0, 0.5, -1.0]),
        "goal": torch.tensor([9.0, 0.0, 1.0, 0.0, 0.0]),
        "heatmap": torch.linspace(0, 1, 16).reshape(4, 4),
        "evidence": 2.31,
        "verdict": "present",
        "probability": 0.93,
        "seconds": 0.0812,
    }
    return Look(**(values | changes))  # type: ignore[arg-type]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def texts(look: Look, top: int = 5) -> list[str]:
    return [text.get_text() for ax in look.plot(top=top).axes for text in ax.texts]


def test_ranking_is_the_softmax_best_first() -> None:
    look = make()
    expected = look.before.softmax(0)
    assert [name for name, _ in look.ranking("before")] == [CLASS_NAMES[i] for i in (1, 0, 3, 2, 4)]
    assert [p for _, p in look.ranking("before", 2)] == pytest.approx([expected[1].item(), expected[0].item()])
    assert look.ranking("after", 1)[0][0] == look.ranking("goal", 1)[0][0] == "Egyptian cat"


def test_ranking_of_more_classes_than_there_are_gives_all() -> None:
    ranking = make().ranking("after", 99)
    assert len(ranking) == len(CLASS_NAMES)
    assert sum(p for _, p in ranking) == pytest.approx(1)


def test_wrong_ranking_names_the_choices() -> None:
    """Here the shape checker may object to the literal first; a user, without it, gets the ValueError."""
    with pytest.raises((ValueError, TypeError), match=r"(?s)before.*after.*goal"):
        make().ranking("during")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="top: got 0"):
        make().ranking("after", 0)


def test_half_precision_logits_rank_too() -> None:
    look = make(before=torch.zeros(5, dtype=torch.bfloat16), after=torch.eye(5, dtype=torch.bfloat16)[2])
    assert look.ranking("after", 1)[0][0] == "teapot"


def test_dict_has_the_documented_keys_in_order() -> None:
    plain = make().as_dict(top=2)
    assert list(plain) == KEYS
    assert plain["before"][0].keys() == {"name", "probability"}
    assert len(plain["before"]) == len(plain["after"]) == 2
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_dict_is_valid_json_whatever_the_name() -> None:
    look = make(image="two\nlines\udce9.jpg", query='say "cat" \udcff')
    written = json.dumps(look.as_dict(), ensure_ascii=False).encode("utf-8")
    assert json.loads(written)["image"] == "two\\nlines\\xe9.jpg"


def test_text_says_verdict_goal_and_both_rankings() -> None:
    text = str(make())
    assert 'sample:cat · "a cat"' in text
    assert "PRESENT" in text
    assert "0.93" in text
    assert "+2.31" in text
    assert "looked for: Egyptian cat" in text
    (first,) = [line for line in text.splitlines() if line.startswith("   1")]
    assert first.index("espresso") < first.index("→") < first.index("Egyptian cat")


def test_notes_are_lines_of_the_text_and_a_list_of_the_json() -> None:
    look = make(notes=("“red” is not looked at", "two\nlines"))
    assert look.as_dict()["notes"] == ["“red” is not looked at", "two\\nlines"]
    lines = str(look).splitlines()
    assert lines[3:5] == ["  note: “red” is not looked at", "  note: two\\nlines"]
    assert make().as_dict()["notes"] == []
    assert "note:" not in str(make())


def test_what_the_network_has_no_eyes_for_is_told_without_a_number() -> None:
    why = "“person” is not like any thing that this network knows; the nearest are “tabby” and “lion”"
    look = make(verdict="unknown", probability=None, notes=(why,), nearest=("tabby", "two\nlines"))
    assert str(look).splitlines()[1].startswith("  UNKNOWN · evidence +2.31 nats")
    assert f"  note: {why}" in str(look).splitlines()
    assert "probability" not in str(look)
    plain = json.loads(json.dumps(look.as_dict()))
    assert (plain["verdict"], plain["probability"], plain["nearest"]) == ("unknown", None, ["tabby", "two\\nlines"])
    assert "NOT CALIBRATED" in str(make(verdict=None, probability=None))


def test_text_stays_narrow_and_its_columns_align() -> None:
    lines = make().text(top=5).splitlines()[4:]
    assert max(map(len, lines)) <= 90
    assert len({len(line) for line in lines[1:]}) == 1


def test_a_look_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().verdict = "absent"  # type: ignore[misc]


def test_shapes_are_checked_in_tests() -> None:
    """Proves that the tests run with jaxtyping's hook: without it this would pass silently."""
    with pytest.raises(TypeError, match="after"):
        make(after=torch.zeros(4))


def test_plot_shows_photo_heatmap_and_both_bars(tmp_path: Path) -> None:
    look = make(query="a kitten")
    figure = look.plot(tmp_path / "look.png")
    assert pixels(tmp_path / "look.png").shape[1] > 1000
    photo, overlay = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    assert np.array_equal(photo, np.asarray(look.picture))
    assert overlay.shape == photo.shape
    shown = texts(look)
    assert {"“a kitten”", "present, 93%", "espresso", "Egyptian cat", "sample:cat"} <= set(shown)
    assert f"{look.after.softmax(0)[0]:.1%}" in shown


def test_heatmap_colours_the_photo_where_it_is_hot() -> None:
    heat = torch.zeros(8, 8)
    heat[:, :4] = 1
    overlay = [ax.images[0].get_array() for ax in make(heatmap=heat).plot().axes if ax.images][1]
    saturation = np.ptp(np.asarray(overlay), axis=2)
    assert saturation[:, :150].mean() > 0.3
    assert saturation[:, -150:].max() < 0.02


def test_what_is_not_believed_is_drawn_faintly_and_not_called_found() -> None:
    saturations = {}
    for verdict, probability, caption in (
        ("present", 0.93, "where steering found it"),
        ("unsure", 0.5, "where it may be"),
        ("absent", 0.05, "not found"),
        ("unknown", None, "no eyes for it"),
        (None, None, "where steering found it"),
    ):
        look = make(verdict=verdict, probability=probability)
        assert caption in texts(look)
        overlay = [ax.images[0].get_array() for ax in look.plot().axes if ax.images][1]
        saturations[verdict] = float(np.ptp(np.asarray(overlay), axis=2).mean())
    assert saturations["absent"] < 0.3 * saturations["unsure"] < 0.3 * saturations["present"]
    assert saturations[None] == saturations["present"]
    assert saturations["unknown"] == 0
    shown = texts(make(verdict="unknown", probability=None, is_complement=True))
    assert {"unknown", "no eyes for it"} <= set(shown)
    assert "not calibrated" in texts(make(verdict=None, probability=None))


def test_what_was_looked_for_is_drawn_however_low_it_ranks() -> None:
    goal = torch.tensor([0.0, 0.0, 9.0, 0.0, 0.0])
    shown = texts(make(goal=goal, after=torch.tensor([4.0, 2.0, -9.0, 0.5, -1.0])), top=1)
    assert CLASS_NAMES[2] in shown


def test_plot_leaves_pyplot_alone() -> None:
    import matplotlib.pyplot as plt

    make().plot()
    assert plt.get_fignums() == []


def test_plot_keeps_classes_that_steering_pushed_out() -> None:
    shown = texts(make(), top=1)
    assert "espresso" in shown
    assert "teapot" not in shown


def test_plot_reads_no_tex_and_survives_foreign_letters(tmp_path: Path) -> None:
    look = make(query="$\\frac{1}$ 猫 \ud83d", image="$x_$\n.jpg", class_names=("$a", *CLASS_NAMES[1:]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look.plot(tmp_path / "look.png")
    assert pixels(tmp_path / "look.png").std() > 10


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (5000, 4000), (64, 64)])
def test_no_two_texts_overlap_at_any_size_of_photo(size: tuple[int, int]) -> None:
    look = make(
        picture=open_image("sample:coffee").resize(size),
        image="folder/" * 40 + "photo.jpg",
        query="where is the " + "very " * 30 + "small cat?",
        class_names=tuple(f"{i} {'a long name of a class ' * 4}" for i in range(5)),
    )
    figure = look.plot(top=5)
    figure.canvas.draw()
    boxes = [t.get_window_extent() for ax in figure.axes for t in ax.texts if t.get_text()]
    boxes += [ax.get_window_extent() for ax in figure.axes if ax.images]
    width, height = figure.bbox.size
    for number, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
        assert not any(box.padded(-1).overlaps(other.padded(-1)) for other in boxes[number + 1 :])
