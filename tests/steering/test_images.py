"""Every kind of image that a user may name, and every kind that he may name by mistake."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from steering.errors import ImageError, printable
from steering.images import MAX_PIXELS, expand, open_image, sample_names

RAMP = np.linspace(0, 255, 12).astype(np.uint8).reshape(3, 4)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be of any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def refusal(source: object) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(source)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


# what is read


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp", "gif", "jp2", "jpg", "avif"])
def test_common_formats_open_as_rgb(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"red.{suffix}", Image.new("RGB", (20, 10), (250, 5, 5)))
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (20, 10))
    assert np.abs(np.asarray(image).astype(int) - (250, 5, 5)).max() <= 12
    assert "note" not in image.info


@pytest.mark.parametrize("name", sample_names())
def test_samples_need_no_file(name: str) -> None:
    image = open_image(name)
    assert image.mode == "RGB"
    assert np.asarray(image).std() > 20


def test_samples_are_the_photographs_of_scikit_image() -> None:
    skimage = pytest.importorskip("skimage.data")

    assert np.array_equal(open_image("sample:cat"), skimage.chelsea())
    assert np.array_equal(open_image("sample:coffee"), skimage.coffee())


def test_blended_sample_is_half_of_each() -> None:
    both = np.asarray(open_image("sample:cat|coffee")).astype(int)
    blend = np.asarray(open_image("sample:cat+coffee")).astype(int)
    side = both.shape[0]
    assert both.shape == (side, 2 * side, 3)
    assert np.abs((both[:, :side] + both[:, side:]) / 2 - blend).max() <= 1


def test_unknown_sample_names_the_choices() -> None:
    for name in ("sample:dog", "sample:", "sample:cat+dog", "sample:cat+coffee+cat"):
        message = refusal(name)
        assert name in message
        assert "sample:cat|coffee" in message


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("L", (40, 20))
    upright.paste(255, (0, 0, 20, 10))  # white in the left upper quarter
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that the tag takes back
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "turned.jpg", stored, exif=exif, quality=95)
    opened = open_image(path)
    assert opened.size == (40, 20)
    assert np.abs(np.asarray(opened.convert("L")).astype(int) - np.asarray(upright)).mean() < 3


def test_damaged_exif_does_not_spoil_the_photo(tmp_path: Path) -> None:
    path = save(tmp_path / "x.jpg", Image.new("RGB", (8, 8), "white"), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff\xff")
    assert open_image(path).size == (8, 8)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = save(tmp_path / "print.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=95)
    red, green, blue = np.asarray(open_image(path)).reshape(-1, 3).mean(0)
    assert red > 230
    assert max(green, blue) < 40


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_keep_their_tones(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"deep.{suffix}", Image.fromarray(RAMP.astype(np.uint16) * 257))
    opened = np.asarray(open_image(path))
    assert np.array_equal(opened[..., 0], RAMP)
    assert np.array_equal(opened[..., 1], RAMP)


def test_float_tiffs_are_scaled(tmp_path: Path) -> None:
    for factor in (1 / 255, 1.0):
        path = save(tmp_path / "float.tiff", Image.fromarray(RAMP.astype(np.float32) * factor))
        assert np.array_equal(np.asarray(open_image(path))[..., 0], RAMP)
    path = save(tmp_path / "heights.tiff", Image.fromarray(RAMP.astype(np.float32) * 10 - 500))
    assert np.asarray(open_image(path)).min() == 0
    assert np.asarray(open_image(path)).max() == 255


def test_float_tiff_with_nan_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "nan.tiff", Image.fromarray(np.full((2, 2), np.nan, np.float32)))
    assert "not finite" in refusal(path)


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    path = save(tmp_path / "fax.png", Image.fromarray(RAMP > 100))
    assert np.array_equal(np.asarray(open_image(path))[..., 0], np.where(RAMP > 100, 255, 0))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_put_on_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "clear.png"
    if mode == "P":
        image = Image.new("P", (4, 2), 1)
        image.putpalette([0, 0, 0, 200, 0, 0])
        image.paste(0, (0, 0, 2, 2))
        save(path, image, transparency=0)
    elif mode == "RGB":
        image = Image.new("RGB", (4, 2), (200, 0, 0))
        image.paste((1, 2, 3), (0, 0, 2, 2))
        save(path, image, transparency=(1, 2, 3))
    else:
        image = Image.new(mode, (4, 2), (200, 0, 0, 255) if mode == "RGBA" else (200, 255))
        image.paste((9, 9, 9, 0) if mode == "RGBA" else (9, 0), (0, 0, 2, 2))
        save(path, image)
    opened = open_image(path)
    assert opened.mode == "RGB"
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((3, 0))[0] == 200
    assert "white" in opened.info["note"]


def test_opaque_alpha_is_not_noted() -> None:
    assert "note" not in open_image(Image.new("RGBA", (2, 2), (1, 2, 3, 255))).info


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "green", "blue")]
    path = save(tmp_path / f"moving.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    opened = open_image(path)
    assert opened.getpixel((3, 3))[0] > 240
    assert "first" in opened.info["note"]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_an_animation_that_stands_at_a_frame_is_looked_at_there_and_stays_there(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "green", "blue")]
    path = save(tmp_path / f"moving.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    with Image.open(path) as moving:
        moving.seek(2)
        opened = open_image(moving)
        assert moving.tell() == 2
        assert opened.getpixel((3, 3))[2] > 240
        assert "number 3 is used" in opened.info["note"]


def test_a_suffix_may_lie(tmp_path: Path) -> None:
    save(tmp_path / "x.png", Image.new("RGB", (5, 5)))
    (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    assert open_image(tmp_path / "x.jpg").size == (5, 5)


def test_given_images_are_copied_not_changed() -> None:
    given_image = Image.new("RGB", (3, 3), "red")
    opened = open_image(given_image)
    opened.putpixel((0, 0), (0, 0, 0))
    assert given_image.getpixel((0, 0)) == (255, 0, 0)
    array = np.zeros((3, 3, 3), np.uint8)
    open_image(array).putpixel((0, 0), (9, 9, 9))
    assert array.max() == 0


@pytest.mark.parametrize(
    "array",
    [
        RAMP,
        RAMP[..., None],
        np.stack([RAMP] * 3, -1),
        RAMP.astype(np.uint16) * 257,
        RAMP / 255.0,
        np.float32(RAMP / 255),
    ],
    ids=["grey", "one channel", "rgb", "uint16", "float64", "float32"],
)
def test_arrays_are_images(array: np.ndarray) -> None:
    assert np.array_equal(np.asarray(open_image(array))[..., 0], RAMP)


@pytest.mark.parametrize(
    "array",
    [
        *(np.zeros(shape, np.uint8) for shape in [(3,), (3, 8, 8), (0, 4)]),
        *(np.zeros((2, 2), np.int64), np.full((2, 2), 2.0), np.full((2, 2), np.nan)),
    ],
)
def test_other_arrays_are_refused_with_what_was_got(array: np.ndarray) -> None:
    message = refusal(array)
    assert str(array.shape) in message
    assert "expected" in message


# what is refused


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere.jpg") == f"{tmp_path / 'nowhere.jpg'}: no such file"


def test_folder_is_refused(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)


def test_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    assert "empty" in refusal(tmp_path / "empty.jpg")


def test_text_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "letter.jpg").write_text("Dear network, please look for a dog." * 20)
    assert "is not an image" in refusal(tmp_path / "letter.jpg")


def test_postscript_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "x.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    assert "is not an image" in refusal(tmp_path / "x.eps")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "not a regular file" in refusal(tmp_path / "pipe.jpg")


def test_address_is_not_fetched() -> None:
    assert "download" in refusal("https://example.org/dog.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "gif", "bmp"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"half.{suffix}", open_image("sample:cat"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refusal(path).startswith(f"{path}: ")


@pytest.mark.parametrize("side", [10_001, 13_000, 60_000])
def test_decompression_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    assert side * side > MAX_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    assert "megapixels" in refusal(path)


def test_names_with_newlines_make_one_line(tmp_path: Path) -> None:
    assert "two\\nlines.jpg: no such file" in refusal(tmp_path / "two\nlines.jpg")


def test_names_that_are_not_utf8_open_and_print(tmp_path: Path) -> None:
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    try:
        Path(os.fsdecode(name)).write_bytes(save(tmp_path / "x.png", Image.new("L", (2, 2))).read_bytes())
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    (found,) = [f for f in expand([tmp_path]) if f.endswith("\udce9.png")]
    assert open_image(found).size == (2, 2)
    assert printable(found).endswith("caf\\xe9.png")
    assert printable(found).encode("utf-8")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_bytes_open_or_are_refused_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.resize(RAMP, (24, 24))).save(
        buffer, data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP"]))
    )
    spoilt = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "spoilt"
    path.write_bytes(spoilt)
    try:
        outcome = open_image(path).mode
    except ImageError as error:
        outcome = str(error)
    assert outcome == "RGB" or outcome.startswith(f"{path}: ")
    assert "\n" not in outcome


# which images a pattern names


@pytest.fixture
def album(tmp_path: Path) -> Path:
    (tmp_path / "deeper").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("b.JPG", "a.png", "deeper/c.webp", "notes.txt", ".hidden/d.png", "._e.png", "odd[1].png"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def names(found: list[str], root: Path) -> list[str]:
    return [Path(f).relative_to(root).as_posix() for f in found]


def test_folders_are_searched_recursively_and_sorted(album: Path) -> None:
    assert names(expand([album]), album) == ["a.png", "b.JPG", "odd[1].png", "deeper/c.webp"]


def test_globs_match_and_repeated_names_count_once(album: Path) -> None:
    assert names(expand([f"{album}/*.png", f"{album}/**/*.png", album / "a.png"]), album) == ["a.png", "odd[1].png"]


def test_names_with_brackets_are_files_first(album: Path) -> None:
    assert names(expand([album / "odd[1].png"]), album) == ["odd[1].png"]


def test_a_missing_plain_file_is_passed_on() -> None:
    assert expand(["gone.jpg", "sample:cat"]) == ["gone.jpg", "sample:cat"]


def test_nothing_matched_names_the_pattern(album: Path) -> None:
    with pytest.raises(ImageError, match=r"\*\.gif"):
        expand([f"{album}/*.gif"])
    with pytest.raises(ImageError, match="empty"):
        expand([album / "empty"])


def test_samples_are_read_without_importing_scikit_image() -> None:
    code = (
        "import sys; from steering.images import open_image; open_image('sample:cat'); print('skimage' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
