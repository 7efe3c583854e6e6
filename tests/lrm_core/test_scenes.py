"""Composite scenes: what lies in each box is the object of its label, and the generator decides everything else."""

import pytest
import torch
import torch.nn.functional as F

from lrm_core.scenes import KINDS, NUM_OBJECTS, SQUARES, compose, presence, random_scenes, random_squares

SIZE = 16


def images(kind, count=5):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(count, NUM_OBJECTS[kind], 3, SIZE, SIZE, generator=generator)
    return pixels, torch.arange(count * NUM_OBJECTS[kind]).reshape(count, -1)


def inside(scenes, scene, place):
    left, top, right, bottom = (round(v * SIZE) for v in scenes.boxes[scene, place].tolist())
    return scenes.pixels[scene, :, top:bottom, left:right]


def made(kind, seed=0, **options):
    pixels, labels = images(kind)
    squares = random_squares(kind, len(pixels), torch.Generator().manual_seed(seed))
    return pixels, compose(kind, pixels, labels, squares, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_size_range_and_labels(kind):
    _, scenes = made(kind)
    assert scenes.pixels.shape == (5, 3, SIZE, SIZE)
    assert 0 <= scenes.pixels.min() <= scenes.pixels.max() <= 1
    assert torch.equal(scenes.labels, images(kind)[1])
    assert scenes.boxes.shape == (5, NUM_OBJECTS[kind], 4)
    assert (scenes.boxes[..., 2:] > scenes.boxes[..., :2]).all()
    assert scenes.kind == kind


def test_a_single_image_is_left_as_it_is():
    pixels, scenes = made("single")
    assert torch.equal(scenes.pixels, pixels[:, 0])


def test_a_blend_is_the_mean_and_both_fill_the_canvas():
    pixels, scenes = made("blend")
    torch.testing.assert_close(scenes.pixels, (pixels[:, 0] + pixels[:, 1]) / 2)
    assert scenes.boxes.eq(torch.tensor([0.0, 0.0, 1.0, 1.0])).all()


def test_side_by_side_shows_the_middle_half_of_each_pixel_for_pixel():
    pixels, scenes = made("side")
    middle = pixels[..., SIZE // 4 : SIZE // 4 + SIZE // 2]
    for scene in range(5):
        for place in (0, 1):
            assert torch.equal(inside(scenes, scene, place), middle[scene, place])


def test_side_by_side_squashed_shows_each_image_whole():
    pixels, scenes = made("side", squash=True)
    for place in (0, 1):
        small = F.avg_pool2d(pixels[:, place], (1, 2))
        torch.testing.assert_close(torch.stack([inside(scenes, i, place) for i in range(5)]), small)


def test_a_grid_shows_four_images_at_half_size_in_reading_order():
    pixels, scenes = made("grid")
    assert scenes.boxes[0, :, :2].tolist() == [[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [0.5, 0.5]]
    for scene in range(5):
        for place in range(4):
            torch.testing.assert_close(inside(scenes, scene, place), F.avg_pool2d(pixels[scene, place], 2))


def test_an_inset_lies_pixel_for_pixel_in_its_box_and_the_background_everywhere_else():
    pixels, scenes = made("inset")
    for scene in range(5):
        patch = inside(scenes, scene, 1)
        small = F.interpolate(pixels[scene : scene + 1, 1], patch.shape[-2:], mode="bilinear", antialias=True)[0]
        assert torch.equal(patch, small)
        outside = scenes.pixels[scene] != pixels[scene, 0]
        left, top, right, bottom = (round(v * SIZE) for v in scenes.boxes[scene, 1].tolist())
        outside[:, top:bottom, left:right] = False
        assert not outside.any()
        assert scenes.boxes[scene, 0].tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["inset", "cutmix"])
def test_insets_vary_in_size_and_place_within_the_canvas(kind):
    pixels, labels = images(kind, 400)
    squares = random_squares(kind, 400, torch.Generator().manual_seed(0))
    boxes = compose(kind, pixels, labels, squares).boxes[:, 1]
    sides = boxes[:, 2:] - boxes[:, :2]
    assert torch.equal(sides[:, 0], sides[:, 1])
    low, high = SQUARES[kind]
    assert ((squares[:, 2] - squares[:, 0]) >= low - 1e-4).all()
    assert ((squares[:, 2] - squares[:, 0]) <= high + 1e-4).all()
    assert (sides.min().item(), sides.max().item()) == (low, round(high * SIZE) / SIZE)
    assert boxes.min() == 0
    assert boxes.max() == 1
    assert torch.equal(boxes * SIZE, (boxes * SIZE).round())
    assert (boxes - squares).abs().max() <= 1 / SIZE


def test_a_square_that_rounding_would_push_over_the_edge_stays_on_the_canvas():
    pixels, labels = images("cutmix", 1)
    scenes = compose("cutmix", pixels, labels, torch.tensor([[0.4063, 0.0, 1.0, 0.5937]]))  # 9.499 px from 6.501
    left, top, right, bottom = (scenes.boxes[0, 1] * SIZE).tolist()
    assert (left, top, right, bottom) == (7, 0, 16, 9)
    scenes = compose("cutmix", pixels, labels, torch.tensor([[0.4065, 0.0, 1.0, 0.5938]]))
    assert scenes.boxes.max() <= 1
    assert scenes.boxes.min() >= 0


def test_the_second_image_of_a_cutmix_shows_in_its_own_place_and_the_first_everywhere_else():
    pixels, scenes = made("cutmix")
    for scene in range(5):
        left, top, right, bottom = (round(v * SIZE) for v in scenes.boxes[scene, 1].tolist())
        expected = pixels[scene, 0].clone()
        expected[:, top:bottom, left:right] = pixels[scene, 1, :, top:bottom, left:right]
        assert torch.equal(scenes.pixels[scene], expected)
        assert (bottom - top) == (right - left) >= SIZE // 2
        assert scenes.boxes[scene, 0].tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_only_kinds_that_paste_need_squares_and_say_so(kind):
    pixels, labels = images(kind)
    squares = random_squares(kind, 5, torch.Generator().manual_seed(0))
    assert (squares is not None) == (kind in ("inset", "cutmix"))
    if squares is None:
        assert compose(kind, pixels, labels).kind == kind
    else:
        assert squares.shape == (5, 4)
        with pytest.raises(ValueError, match=rf"squares: got none, expected \(b, 4\) for the second image of {kind}"):
            compose(kind, pixels, labels)


@pytest.mark.parametrize("kind", ["inset", "cutmix"])
def test_the_inputs_are_not_written_to(kind):
    pixels, labels = images(kind)
    squares = random_squares(kind, 5, torch.Generator().manual_seed(0))
    before, places = pixels.clone(), squares.clone()
    compose(kind, pixels, labels, squares)
    assert torch.equal(pixels, before)
    assert torch.equal(squares, places)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_generator_gives_the_same_scenes(kind):
    pixels, labels = torch.rand(20, 3, SIZE, SIZE), torch.arange(20)

    def draw(seed):
        return random_scenes(kind, 6, pixels, labels, torch.Generator().manual_seed(seed))

    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.labels, again.labels)
    assert torch.equal(first.boxes, again.boxes)
    assert not torch.equal(first.labels, other.labels)


def test_side_by_side_is_sometimes_squashed_and_sometimes_cropped():
    pixels, labels = torch.rand(2, 3, SIZE, SIZE), torch.arange(2)
    looks = set()
    for seed in range(12):
        scenes = random_scenes("side", 1, pixels, labels, torch.Generator().manual_seed(seed))
        middle = pixels[scenes.labels[0, 0], :, :, SIZE // 4 : SIZE // 4 + SIZE // 2]
        looks.add(torch.equal(inside(scenes, 0, 0), middle))
    assert looks == {True, False}


def test_an_unknown_kind_and_a_wrong_number_of_images_raise():
    pixels, labels = images("blend")
    with pytest.raises(ValueError, match="no kind of scene 'mosaic'; choices: single, blend, side, cutmix, inset"):
        compose("mosaic", pixels, labels)
    with pytest.raises(ValueError, match="images: got 2 images a scene, expected 4 for grid"):
        compose("grid", pixels, labels)


def test_presence_marks_each_class_of_a_scene_once():
    assert presence(torch.tensor([[0, 2], [1, 1]]), 4).tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]]
