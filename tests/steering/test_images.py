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
from PIL import Image, ImageFile

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
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
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


# deep pixels


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def deep_png(values: np.ndarray, significant: int | None = None) -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write in colour."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    told = b"" if significant is None else chunk(b"sBIT", bytes([significant] * channels))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + told + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def deep(bits: int, channels: int = 1) -> np.ndarray:
    """Values that end at the largest of so many bits."""
    ramp = np.linspace(0, 2**bits - 1, 60).round().astype(np.uint16)
    return ramp.reshape(6, 10) if channels == 1 else ramp.reshape(4, 5, 3)


def as_eight(values: np.ndarray, bits: int) -> np.ndarray:
    return values.astype(float) * 255 / (2**bits - 1)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("suffix", ["png", "tiff", "array", "colour png", "colour array"])
def test_fewer_bits_in_sixteen_are_stretched_with_a_note(tmp_path: Path, bits: int, suffix: str) -> None:
    values = deep(bits, 3 if "colour" in suffix else 1)
    source: object = values
    if suffix == "colour png":
        source = deep_png(values)
    elif "array" not in suffix:
        source = save(tmp_path / f"deep.{suffix}", Image.fromarray(values))
    opened = open_image(source)  # type: ignore[arg-type]
    shown = np.asarray(opened).astype(float)
    expected = as_eight(values, bits) if values.ndim == 3 else as_eight(values, bits)[..., None]
    assert np.abs(shown - expected).max() <= 0.51
    assert opened.info["note"] == f"has values up to {2**bits - 1} of 65535: stretched as {bits} bits"


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_that_are_used_stay_as_they_were(channels: int) -> None:
    values = deep(16, channels)
    values[0, 0] = 1000
    for source in (values, deep_png(values)):
        opened = open_image(source)
        assert "note" not in opened.info
        shown = np.asarray(opened).astype(float)
        assert np.abs(shown - (values / 257 if channels == 3 else values[..., None] / 257)).max() <= 1


def test_a_png_tells_its_bits(tmp_path: Path) -> None:
    for channels in (1, 3):
        values = deep(12, channels) // 4  # a dark picture of 12 bits
        (tmp_path / "told.png").write_bytes(deep_png(values, 12))
        opened = open_image(tmp_path / "told.png")
        expected = as_eight(values, 12) if channels == 3 else as_eight(values, 12)[..., None]
        assert np.abs(np.asarray(opened) - expected).max() <= 0.51
        assert "note" not in opened.info
    full = open_image(deep_png(deep(16), 12))  # as the specification has it: 12 bits, scaled to 16
    assert np.abs(np.asarray(full)[..., 0] - as_eight(deep(16), 16)).max() <= 0.51


def test_a_tiff_tells_its_white(tmp_path: Path) -> None:
    for white in (4095, 1000, 65535):
        values = deep(9)
        path = save(tmp_path / "told.tiff", Image.fromarray(values), tiffinfo={281: white})
        opened = open_image(path)
        assert np.abs(np.asarray(opened)[..., 0] - values.astype(float) * 255 / white).max() <= 0.51
        assert "note" not in opened.info


def test_a_tiff_of_twelve_bits_a_sample_is_bright(tmp_path: Path) -> None:
    values = deep(12) // 2
    high, low = values[:, ::2].astype(int), values[:, 1::2].astype(int)
    packed = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], -1).astype(np.uint8).tobytes()
    tags = {256: 10, 257: 6, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 6, 279: len(packed)}
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags.items()
    )
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    padded = packed + bytes(-len(packed) % 2)
    (tmp_path / "twelve.tiff").write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(padded)) + padded + directory)
    opened = open_image(tmp_path / "twelve.tiff")
    assert np.abs(np.asarray(opened)[..., 0] - as_eight(values, 12)).max() <= 0.51


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_colour_tiff_of_fewer_bits_is_stretched(tmp_path: Path, byteorder: str, compression: str | None) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = deep(12, 3)
    path = tmp_path / "colour.tiff"
    tifffile.imwrite(path, values, photometric="rgb", byteorder=byteorder, compression=compression)
    opened = open_image(path)
    assert np.abs(np.asarray(opened) - as_eight(values, 12)).max() <= 0.51
    assert "stretched as 12 bits" in opened.info["note"]


def test_integers_of_32_bits_and_floats_are_stretched_too(tmp_path: Path) -> None:
    values = deep(12)
    for kind in (np.int32, np.float32):
        opened = open_image(save(tmp_path / "deep.tiff", Image.fromarray(values.astype(kind))))
        assert np.abs(np.asarray(opened)[..., 0] - as_eight(values, 12)).max() <= 0.51
        assert "stretched as 12 bits" in opened.info["note"]
    opened = open_image(save(tmp_path / "faint.tiff", Image.fromarray((values / 65535).astype(np.float32))))
    assert np.abs(np.asarray(opened)[..., 0] - as_eight(values, 12)).max() <= 0.51
    assert opened.info["note"] == "has values from 0 to 0.0624857: stretched"
    opened = open_image(save(tmp_path / "wide.tiff", Image.fromarray(values.astype(np.int32) * 1000)))
    assert np.abs(np.asarray(opened)[..., 0] - as_eight(values, 12)).max() <= 0.51


@pytest.mark.parametrize("channels", [2, 4])
def test_deep_colours_with_opacity_are_stretched(channels: int) -> None:
    colours = deep(12, 3)[..., : channels - 1]
    values = np.concatenate([colours, np.full((4, 5, 1), 65535, np.uint16)], -1)
    shown = np.asarray(open_image(deep_png(values))).astype(float)
    tolerance = 0.51 if channels == 4 else 17  # of grey with opacity Pillow gives the upper bytes alone
    assert np.abs(shown - as_eight(colours, 12)).max() <= tolerance


def test_a_black_picture_of_sixteen_bits_stays_black() -> None:
    opened = open_image(np.zeros((4, 4), np.uint16))
    assert np.asarray(opened).max() == 0
    assert "note" not in opened.info


def test_a_pgm_that_tells_its_largest_value_is_not_stretched_twice(tmp_path: Path) -> None:
    values = deep(12) // 8
    (tmp_path / "dark.pgm").write_bytes(b"P5 10 6 4095\n" + values.astype(">u2").tobytes())
    opened = open_image(tmp_path / "dark.pgm")
    assert np.abs(np.asarray(opened)[..., 0] - as_eight(values, 12)).max() <= 1
    assert "note" not in opened.info


# huge files


@pytest.mark.parametrize("suffix", ["jpg", "jp2"])
def test_a_huge_photograph_is_shrunk_while_it_is_decoded(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cat = open_image("sample:cat").resize((640, 480))
    path = save(tmp_path / f"huge.{suffix}", cat)
    monkeypatch.setattr("steering.decoding.MAX_PIXELS", 640 * 480 // 4)
    for error_of_pillow in (10**6, 640 * 480 // 8):  # below and above the size at which Pillow refuses to open
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", error_of_pillow)
        for source in (path, path.read_bytes()):
            opened = open_image(source)
            assert opened.size == (320, 240)
            assert np.abs(np.asarray(opened).astype(int) - np.asarray(cat.reduce(2))).mean() < 4
            assert opened.info["note"] == "has 0 megapixels (640 × 480): shrunk to 1/2 while it was read"


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "bmp"])
def test_a_huge_file_of_another_format_stays_refused(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / f"huge.{suffix}", Image.new("RGB", (640, 480)))
    monkeypatch.setattr("steering.decoding.MAX_PIXELS", 640 * 480 // 4)
    assert "megapixels" in refusal(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 640 * 480 // 8)
    assert "megapixels" in refusal(path)


def test_a_photograph_of_more_than_a_hundred_megapixels_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "huge.jpg", Image.new("L", (14_000, 14_000), 200), quality=20)
    opened = open_image(path)
    assert opened.size == (7_000, 7_000)
    assert opened.info["note"] == "has 196 megapixels (14000 × 14000): shrunk to 1/2 while it was read"
    assert abs(opened.getpixel((6_999, 6_999))[0] - 200) <= 2


def test_there_is_a_limit_even_for_jpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = Image.new("RGB", (640, 480))
    plain, progressive = save(tmp_path / "p.jpg", photo), save(tmp_path / "q.jpg", photo, progressive=True)
    monkeypatch.setattr("steering.decoding.MAX_PIXELS", 640 * 480 // 4)
    monkeypatch.setattr("steering.decoding.MAX_BUFFERED", 640 * 480 - 1)
    assert open_image(plain).size == (320, 240)
    assert "megapixels" in refusal(progressive)
    monkeypatch.setattr("steering.decoding.MAX_SHRUNK", 640 * 480 - 1)
    assert "megapixels" in refusal(plain)
    monkeypatch.setattr("steering.decoding.MAX_SHRUNK", 10**9)
    monkeypatch.setattr("steering.decoding.MAX_PIXELS", 640 * 480 // 100)  # no scale is enough
    assert "megapixels" in refusal(plain)


# files without their last bytes


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}])
def test_a_jpeg_without_its_last_bytes_is_read_as_far_as_it_goes(tmp_path: Path, options: dict) -> None:
    cat = open_image("sample:cat")
    path = save(tmp_path / "whole.jpg", cat, **options)
    data = path.read_bytes()
    whole = np.asarray(open_image(path)).astype(int)
    for share in (0.99, 0.75):
        path.write_bytes(data[: int(share * len(data))])
        for source in (path, path.read_bytes()):
            opened = open_image(source)
            assert opened.size == cat.size
            assert opened.info["note"].startswith("lacks its last bytes")
            upper = np.abs(np.asarray(opened).astype(int) - whole)[: cat.height // 2]
            assert upper.mean() < (12 if options.get("progressive") else 0.01)
    path.write_bytes(data[: len(data) // (40 if options.get("progressive") else 3)])
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "I;16"])
def test_a_png_without_its_last_bytes_is_read_as_far_as_it_goes(tmp_path: Path, mode: str) -> None:
    cat = open_image("sample:cat")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(cat.convert("L")).astype(np.uint16) * 257)
    else:
        image = cat.convert(mode)
    path = save(tmp_path / "whole.png", image)
    data = path.read_bytes()
    whole = np.asarray(open_image(path))
    path.write_bytes(data[: int(0.8 * len(data))])
    opened = open_image(path)
    assert np.array_equal(np.asarray(opened)[: cat.height // 2], whole[: cat.height // 2])
    missing = int(opened.info["note"].removeprefix("lacks its last bytes: the lower ").partition(" %")[0])
    assert 5 <= missing <= 45
    assert len(np.unique(np.asarray(opened)[-int(cat.height * (missing - 1) / 100) :])) <= 3
    path.write_bytes(data[: int(0.3 * len(data))])
    assert "damaged" in refusal(path)


def test_a_mended_file_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "turned.jpg", open_image("sample:cat"), exif=exif)
    path.write_bytes(path.read_bytes()[:-2000])
    opened = open_image(path)
    assert opened.size == open_image("sample:cat").size[::-1]
    assert "lacks its last bytes" in opened.info["note"]


def test_reading_a_cut_file_leaves_the_switches_of_pillow_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "cut.jpg", open_image("sample:cat"))
    path.write_bytes(path.read_bytes()[:-2000])
    open_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_a_pil_image_of_premultiplied_grey_is_read():
    picture = open_image(Image.new("LA", (4, 4), (0, 128)).convert("La"))
    assert np.abs(np.asarray(picture, int) - 127).max() <= 1
