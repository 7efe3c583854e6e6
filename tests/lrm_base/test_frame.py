"""In which shape a photograph is seen."""

import pytest

from lrm_base.frame import LONGEST, STEP, Frame


def test_a_square_takes_every_photograph():
    for size in ((1, 1), (640, 480), (20, 4000)):
        assert Frame(96).shape(*size) == (96, 96)


@pytest.mark.parametrize(
    ("width", "height", "shape"),
    [
        (320, 320, (320, 320)),
        (640, 480, (320, 416)),
        (480, 640, (416, 320)),
        (4000, 3000, (320, 416)),
        (300, 299, (320, 320)),
        (1920, 1080, (320, 576)),
        (20, 400, (960, 320)),  # a strip of 20:1 is seen as one of 3:1
        (100_000, 1, (320, 960)),
        (1, 1, (320, 320)),
    ],
)
def test_a_photograph_keeps_its_aspect_in_steps(width: int, height: int, shape: tuple[int, int]):
    assert Frame(320, keeps_aspect=True).shape(width, height) == shape


def test_sides_are_whole_steps_and_the_aspect_is_nearly_that_of_the_photograph():
    frame = Frame(320, keeps_aspect=True)
    for width in range(300, 1000, 7):
        rows, columns = frame.shape(width, 300)
        assert rows == 320
        assert columns % STEP == 0
        if width <= LONGEST * 300:
            assert columns / rows == pytest.approx(width / 300, abs=STEP / 2 / 320 + 1e-9)
