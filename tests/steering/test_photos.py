"""Files as telephones and cameras write them: HEIC, AVIF, camera RAW, JPEG XL. Every file is written here."""

import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401  (registers itself)
import pytest
import rawpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

import steer_cli
from steering import jpeg_xl, photos
from steering.errors import ImageError, UnavailableError
from steering.images import open_image

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = 80, 48


def scene(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Dark, with a red corner at the upper left: any turn shows."""
    image = Image.new("RGB", (width, height), (20, 40, 60))
    image.paste((230, 30, 20), (0, 0, width // 2, height // 2))
    return image


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """What a stored image looks like upright, by EXIF's orientation."""
    moves = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    return image if orientation == 1 else image.transpose(Image.Transpose(moves[orientation]))


def told(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def close(opened: Image.Image, wanted: Image.Image, most: float = 8) -> bool:
    return opened.size == wanted.size and bool(
        np.abs(np.asarray(opened).astype(int) - np.asarray(wanted)).mean() < most
    )


def heic(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, **options)
    return stream.getvalue()


def avif(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "AVIF", **options)
    return stream.getvalue()


def jpeg(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


def jxl(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JXL", **options)
    return stream.getvalue()


def packed_jpeg(folder: Path, data: bytes) -> bytes:
    """A JPEG XL that holds a JPEG file without loss."""
    (folder / "packed.jpg").write_bytes(data)
    stream = io.BytesIO()
    with Image.open(folder / "packed.jpg") as image:
        image.save(stream, "JXL", lossless_jpeg=True)
    return stream.getvalue()


def without_box(data: bytes, name: bytes) -> bytes:
    place, kept = 0, b""
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        length = length or len(data) - place
        kept += b"" if kind == name else data[place : place + length]
        place += length
    return kept


BYTE, TEXT, SHORT, LONG, RATIO, SIGNED = 1, 2, 3, 4, 5, 10  # types of TIFF
LETTERS = {BYTE: "B", TEXT: "B", SHORT: "H", LONG: "I", RATIO: "I", SIGNED: "i"}
Tags = dict[int, tuple[int, list[int]]]


def directory(tags: Tags, place: int, order: str) -> bytes:
    """A directory of TIFF that stands at `place`, with its values after it."""
    entries, values = struct.pack(f"{order}H", len(tags)), b""
    behind = place + 2 + 12 * len(tags) + 4
    for tag, (kind, numbers) in sorted(tags.items()):
        data = struct.pack(f"{order}{len(numbers)}{LETTERS[kind]}", *numbers)
        count = len(numbers) // 2 if kind in (RATIO, SIGNED) else len(numbers)
        field = data.ljust(4, b"\0")
        if len(data) > 4:
            field = struct.pack(f"{order}I", behind + len(values))
            values += data + bytes(len(data) % 2)
        entries += struct.pack(f"{order}HHI", tag, kind, count) + field
    return entries + bytes(4) + values


def dng(
    image: Image.Image, orientation: int = 1, preview: bytes | None = None, order: str = "<", colours: bool = True
) -> bytes:
    """A DNG of 16 bits, uncompressed, mosaic RGGB or grey. With a preview it stands in a directory below the first."""
    light = ((np.asarray(image) / 255.0) ** 2.2 * 65535).round()
    mosaic = light[..., 1].astype(f"{order}u2")
    mosaic[0::2, 0::2], mosaic[1::2, 1::2] = light[0::2, 0::2, 0], light[1::2, 1::2, 2]
    width, height = image.size
    raw: Tags = {254: (LONG, [0]), 256: (LONG, [width]), 257: (LONG, [height]), 258: (SHORT, [16]), 259: (SHORT, [1])}
    raw |= {262: (SHORT, [32803]), 273: (LONG, [0]), 277: (SHORT, [1]), 278: (LONG, [height]), 284: (SHORT, [1])}
    raw |= {279: (LONG, [mosaic.nbytes]), 33421: (SHORT, [2, 2]), 33422: (BYTE, [0, 1, 1, 2])}
    if not colours:
        raw = {tag: value for tag, value in raw.items() if tag < 30_000} | {262: (SHORT, [34892])}
        mosaic[:] = light[..., 1]
    raw |= {50714: (SHORT, [0]), 50717: (LONG, [65535])}
    matrix = [32405, -15371, -4985, -9693, 18760, 416, 556, -2040, 10572]  # from XYZ to linear sRGB: a camera of sRGB
    first: Tags = {271: (TEXT, list(b"Test\0")), 272: (TEXT, list(b"Camera\0")), 274: (SHORT, [orientation])}
    first |= {50706: (BYTE, [1, 4, 0, 0]), 50707: (BYTE, [1, 1, 0, 0]), 50708: (TEXT, list(b"Test Camera\0"))}
    first |= {50721: (SIGNED, [part for value in matrix for part in (value, 10_000)]), 50778: (SHORT, [21])}
    first |= {50728: (RATIO, [9505, 10_000, 1, 1, 10_891, 10_000])}
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    if preview is None:
        first |= raw
        first[273] = (LONG, [8 + len(directory(first, 8, order))])
        return start + directory(first, 8, order) + mosaic.tobytes()
    wide, high = Image.open(io.BytesIO(preview)).size
    first |= {254: (LONG, [1]), 256: (LONG, [wide]), 257: (LONG, [high]), 258: (SHORT, [8, 8, 8]), 259: (SHORT, [7])}
    first |= {262: (SHORT, [6]), 273: (LONG, [0]), 277: (SHORT, [3]), 278: (LONG, [high]), 279: (LONG, [len(preview)])}
    first |= {330: (LONG, [0])}
    below = 8 + len(directory(first, 8, order))
    pixels = below + len(directory(raw, below, order))
    first[330], first[273] = (LONG, [below]), (LONG, [pixels])
    raw[273] = (LONG, [pixels + len(preview) + len(preview) % 2])
    padded = preview + bytes(len(preview) % 2)
    return start + directory(first, 8, order) + directory(raw, below, order) + padded + mosaic.tobytes()


def refusal(source: object) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(source)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


# HEIC


def test_heic_opens_from_a_file_and_from_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.heic").write_bytes(heic(scene()))
    for source in (tmp_path / "x.heic", heic(scene())):
        opened = open_image(source)
        assert opened.mode == "RGB"
        assert close(opened, scene())
        assert "note" not in opened.info


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_that_is_turned_twice_in_the_file_is_turned_once(orientation: int) -> None:
    data = heic(scene(), exif=told(orientation))  # the box `irot` or `imir`, and EXIF
    assert pillow_heif.open_heif(data).info["exif"] is not None
    assert close(open_image(data), turned(scene(), orientation))


def test_exif_alone_does_not_turn_heic() -> None:
    data = heic(scene(), exif=told(6))
    place = data.index(b"irot") + 4
    assert data[place] == 3  # 270 degrees anticlockwise
    data = data[:place] + b"\0" + data[place + 1 :]
    assert close(open_image(data), scene())  # as the standard has it: EXIF only informs


def test_heic_in_grey_with_opacity_and_in_ten_bits_opens() -> None:
    assert close(open_image(heic(scene().convert("L"))), scene().convert("L").convert("RGB"))
    clear = scene().convert("RGBA")
    clear.paste((0, 0, 0, 0), (40, 24, 80, 48))
    opened = open_image(heic(clear))
    assert opened.getpixel((70, 40)) == (255, 255, 255)
    assert opened.info["note"] == "is partly transparent: put on white"
    deep = np.asarray(scene()).astype(np.uint16) * 257
    data = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", (WIDTH, HEIGHT), deep.tobytes()).save(data)
    assert close(open_image(data.getvalue()), scene())


def test_of_several_images_in_heic_the_primary_one_is_taken() -> None:
    several = pillow_heif.from_pillow(Image.new("RGB", (64, 64), "blue"))
    several.add_from_pillow(scene())
    stream = io.BytesIO()
    several.save(stream, primary_index=1)
    opened = open_image(stream.getvalue())
    assert close(opened, scene())
    assert "note" not in opened.info


def test_colours_of_heic_that_are_not_converted_are_told() -> None:
    wide = heic(scene(), color_primaries=12, transfer_characteristics=13)
    assert open_image(wide).info["note"] == "has colours of a wide gamut: taken for sRGB"
    dynamic = heic(scene(), color_primaries=9, transfer_characteristics=16)
    assert open_image(dynamic).info["note"] == "has HDR colours: taken for sRGB"


# AVIF


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_once(orientation: int) -> None:
    data = avif(scene(), exif=told(orientation))
    assert close(open_image(data), turned(scene(), orientation))


def test_avif_is_not_taken_for_heic() -> None:
    data = avif(scene())
    for brand in (b"avif", b"mif1"):
        renamed = data[:8] + brand + data[12:]
        assert photos.kind_of(renamed) is None
        assert close(open_image(renamed), scene())


# camera RAW


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("order", ["<", ">"])
def test_of_raw_the_embedded_preview_is_taken_upright(orientation: int, order: str) -> None:
    data = dng(Image.new("RGB", (WIDTH, HEIGHT), "white"), orientation, jpeg(scene()), order)
    opened = open_image(data)
    assert close(opened, turned(scene(), orientation))
    assert "note" not in opened.info


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_preview_that_tells_its_orientation_is_turned_once(orientation: int) -> None:
    data = dng(scene(), orientation, jpeg(scene(), exif=told(orientation)))
    assert close(open_image(data), turned(scene(), orientation))


def test_a_preview_that_stands_upright_already_is_not_laid_down() -> None:
    upright = turned(scene(), 6)
    for exif in (told(6), told(1)):  # of the photograph, copied; or right
        assert close(open_image(dng(scene(), 6, jpeg(upright, exif=exif))), upright)
    assert close(open_image(dng(scene(), 6, jpeg(scene(), exif=told(1)))), upright)  # lying, though it says upright


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_raw_without_a_preview_is_developed_at_half_its_size(orientation: int) -> None:
    opened = open_image(dng(scene(), orientation))
    wanted = turned(scene(WIDTH // 2, HEIGHT // 2), orientation)
    assert opened.size == wanted.size
    got, right = (np.asarray(image, float)[..., 0] for image in (opened, wanted))
    assert np.corrcoef(got.ravel(), right.ravel())[0, 1] > 0.95
    assert opened.info["note"] == "holds no preview: developed at half its size"


def test_raw_of_a_camera_that_sees_no_colours_is_developed() -> None:
    opened = np.asarray(open_image(dng(scene().convert("L").convert("RGB"), colours=False)), float)
    assert (opened == opened[..., :1]).all()
    wanted = np.asarray(scene(opened.shape[1], opened.shape[0]).convert("L"), float)
    assert np.corrcoef(opened[..., 0].ravel(), wanted.ravel())[0, 1] > 0.95


def test_a_tiny_or_damaged_preview_does_not_serve() -> None:
    small = dng(scene(), 1, jpeg(scene(16, 10)))
    opened = open_image(small)
    assert opened.size == (WIDTH // 2, HEIGHT // 2)
    assert opened.info["note"] == "has a small preview (16 × 10): developed at half its size"
    data = bytearray(dng(scene(), 1, jpeg(scene())))
    place = data.index(b"\xff\xd8\xff") + 20
    data[place : place + 500] = bytes(500)
    opened = open_image(bytes(data))
    assert opened.size == (WIDTH // 2, HEIGHT // 2)
    assert "preview" in opened.info["note"]


def test_a_large_photograph_is_not_developed_for_a_preview_of_640_pixels() -> None:
    wide = scene(2600, 1400)
    assert open_image(dng(wide, 1, jpeg(scene(960, 640)))).size == (960, 640)
    assert open_image(dng(wide, 1, jpeg(scene(957, 638)))).size == (1300, 700)


def test_raw_is_told_by_its_content_not_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(dng(scene()))
    assert "developed" in open_image(tmp_path / "x.tif").info["note"]
    scene().save(tmp_path / "y.tif")
    (tmp_path / "y.tif").rename(tmp_path / "y.dng")
    assert np.array_equal(np.asarray(open_image(tmp_path / "y.dng")), np.asarray(scene()))


@pytest.mark.parametrize(
    "start",
    [
        *(b"FUJIFILMCCD-RAW 0201", b"IIU\0\x18\0\0\0", b"IIRO\x08\0\0\0", b"MMOR\0\0\0\x08", b"\0MRM\0\0\0\0", b"FOVb"),
        *(b"\0\0\0\x18ftypcrx \0\0\0\1", b"II*\0\x10\0\0\0CR\2\0", b"II\x1a\0\0\0HEAPCCDR", b"II*\0\x08\0\0\0IIII"),
    ],
)
def test_kinds_of_raw_are_known_by_their_first_bytes(start: bytes) -> None:
    data = start + bytes(100)
    assert photos.kind_of(data) is photos.RAW
    assert refusal(data).startswith("image: is damaged (")


# JPEG XL


def test_jpeg_xl_opens_and_its_exif_does_not_turn_it(tmp_path: Path) -> None:
    (tmp_path / "x.jxl").write_bytes(jxl(scene(), exif=told(6)))
    for source in (tmp_path / "x.jxl", jxl(scene(), use_container=True), jxl(scene().convert("RGBA"), lossless=True)):
        assert close(open_image(source), scene())  # the codestream says that it is upright


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_within_jpeg_xl_is_turned_once(tmp_path: Path, orientation: int) -> None:
    data = packed_jpeg(tmp_path, jpeg(scene(), exif=told(orientation)))
    assert b"jbrd" in data
    assert close(open_image(data), turned(scene(), orientation))
    pixels = without_box(data, b"jbrd")  # it cannot be unpacked any more: the codestream tells its orientation
    assert close(open_image(pixels), turned(scene(), orientation))


@pytest.mark.parametrize(
    "size", [(8, 8), (256, 256), (80, 48), (64, 8), (40, 40), (12, 10), (44, 33), (3, 2), (16, 9), (50, 40), (2, 1)]
)
@pytest.mark.parametrize("container", [False, True])
def test_the_size_of_jpeg_xl_is_read_before_its_pixels(size: tuple[int, int], container: bool) -> None:
    for width, height in (size, size[::-1], (size[0] * 37, size[1] * 3)):
        data = jxl(Image.new("L", (width, height)), use_container=container, effort=1)
        assert jpeg_xl.size_of(io.BytesIO(data)) == (width, height)


# colour profiles; test_colours.py calculates what they do


def swapped() -> bytes:
    """A profile like sRGB whose red is green, and whose green is red."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return data.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")


def test_every_kind_honours_its_profile(tmp_path: Path) -> None:
    red, green, blue = scene().split()
    wanted = Image.merge("RGB", (green, red, blue))
    photo = jpeg(scene(), icc_profile=swapped())
    packed = packed_jpeg(tmp_path, photo)
    for data in (
        *(heic(scene(), icc_profile=swapped()), avif(scene(), icc_profile=swapped()), photo),
        *(dng(scene(), 1, photo), packed, without_box(packed, b"jbrd")),
    ):
        assert close(open_image(data), wanted)


# limits, which hold for every kind

WRITERS: dict[str, Callable[[Image.Image], bytes]] = {
    "heic": heic,
    "avif": avif,
    "dng": dng,
    "dng with a preview": lambda image: dng(image, 1, jpeg(image)),
    "jxl": jxl,
}


@pytest.mark.parametrize("kind", ["heic", "avif", "dng", "jxl"])
def test_too_many_pixels_are_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = WRITERS[kind](scene())
    monkeypatch.setattr("steering.decoding.MAX_PIXELS", WIDTH * HEIGHT // 5)
    assert "megapixels" in refusal(data)


def test_a_preview_of_too_many_pixels_is_shrunk_and_a_huge_mosaic_is_not_developed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("steering.decoding.MAX_PIXELS", WIDTH * HEIGHT // 4)
    opened = open_image(dng(scene(), 1, jpeg(scene())))
    assert opened.size == (WIDTH // 2, HEIGHT // 2)
    assert "shrunk to 1/2" in opened.info["note"]
    monkeypatch.setattr("steering.decoding.MAX_BUFFERED", WIDTH * HEIGHT - 1)
    assert "megapixels" in refusal(dng(scene()))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_was_cut_off_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    data = WRITERS[kind](open_image("sample:cat").resize((320, 200)))
    path = tmp_path / "cut"
    begun = data.index(b"\xff\xd8\xff") if kind == "dng with a preview" else len(data) // 2
    for cut in (begun // 2, begun, begun + 2000 if kind == "dng with a preview" else len(data) - 9):
        path.write_bytes(data[:cut])
        assert refusal(path).startswith(f"{path}: is ")
    if kind == "dng with a preview":
        path.write_bytes(data[: len(data) // 2])
        assert open_image(path).size == (320, 200)  # the preview is whole


@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_bytes_open_or_are_refused(kind: str, data: st.DataObject) -> None:
    spoilt = bytearray(WRITERS[kind](scene()))
    for _ in range(data.draw(st.integers(1, 8))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    try:
        outcome = open_image(bytes(spoilt)).mode
    except ImageError as error:
        outcome = str(error)
    assert outcome == "RGB" or outcome.startswith("image: ")
    assert "\n" not in outcome


# where packages are missing

BLOCKED = """
import sys
for name in ("pillow_heif", "rawpy", "pillow_jxl"):
    sys.modules[name] = None
import steer_cli
sys.exit(steer_cli.main(sys.argv[1:]))
"""


def without_packages(*arguments: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment(home))


def environment(home: Path) -> dict[str, str]:
    return os.environ | {"STEER_GALLERY": str(home / "gallery"), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("name", "kind", "package", "extra"),
    [
        ("x.heic", "HEIC", "pillow-heif", "photos"),
        ("x.dng", "camera RAW", "rawpy", "photos"),
        ("x.jxl", "JPEG XL", "pillow-jxl-plugin", "jxl"),
    ],
)
def test_without_the_package_one_line_names_file_kind_and_command(
    tmp_path: Path, name: str, kind: str, package: str, extra: str
) -> None:
    path = tmp_path / name
    path.write_bytes(WRITERS[path.suffix[1:]](scene()))
    done = without_packages("--query", "a cat", path, home=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"{path}: is {kind}, which needs {package}: " in line
    assert "pip install" in line
    assert line.rstrip("'\"").endswith(f"[{extra}]")
    assert done.stdout == ""


def test_index_counts_by_kind_what_needs_packages_and_reads_it_once_they_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    cat = open_image("sample:cat").resize((96, 64))
    cat.save(folder / "a.jpg")
    for number in range(3):
        (folder / f"{number}.HEIC").write_bytes(heic(cat.rotate(90 * number, expand=True)))
    (folder / "b.nef").write_bytes(dng(cat, 1, jpeg(cat)))
    cat.save(folder / "named.jpg", "JPEG", quality=40)
    (folder / "named.jpg").rename(folder / "named.heic")  # a JPEG: it needs no package
    done = without_packages("index", folder, "--workers", "0", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 images (2 new" in done.stdout
    assert "4 skipped" in done.stdout
    lines = [line for line in done.stderr.splitlines() if "not read" in line]
    assert lines[0].startswith("steer: .heic: 3 files are not read; each is HEIC, which needs pillow-heif: ")
    assert lines[1].startswith("steer: .nef: 1 file is not read; each is camera RAW, which needs rawpy: ")
    assert "skipped" not in done.stderr
    monkeypatch.setenv("STEER_GALLERY", str(tmp_path / "gallery"))
    assert steer_cli.main(["index", str(folder), "--workers", "0", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["new"], report["unchanged"], report["skipped"]) == (4, 2, [])
    done = without_packages("index", folder, "--workers", "0", home=tmp_path)
    assert "6 images (0 new, 0 changed, 0 renamed, 0 deleted" in done.stdout  # nothing is forgotten


def test_a_package_that_is_missing_may_come_another_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(UnavailableError, match="needs rawpy"):
        open_image(dng(scene()))


def test_a_photograph_of_a_telephone_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "photo.heic"
    path.write_bytes(heic(open_image("sample:cat"), exif=told(1)))
    assert steer_cli.main(["--query", "a cat", str(path)]) == 0
    assert f'{path} · "a cat"' in capsys.readouterr().out


def test_packages_are_imported_only_when_such_a_file_is_met(tmp_path: Path) -> None:
    scene().save(tmp_path / "x.jpg")
    scene().save(tmp_path / "x.tif")
    (tmp_path / "x.heic").write_bytes(heic(scene()))
    (tmp_path / "x.dng").write_bytes(dng(scene()))
    code = """
import sys
from PIL import Image
from steering.images import open_image
def there(): return [name for name in ("pillow_heif", "rawpy", "pillow_jxl", "PIL.ImageCms") if name in sys.modules]
for name in ("x.jpg", "x.tif"): open_image(sys.argv[1] + "/" + name)
print(there())
Image.init()
before = dict(Image.OPEN), dict(Image.EXTENSION)
for name in ("x.heic", "x.dng"): open_image(sys.argv[1] + "/" + name)
print(there(), before == (Image.OPEN, Image.EXTENSION))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines() == ["[]", "['pillow_heif', 'rawpy'] True"]


def test_rawpy_opens_what_is_written_here() -> None:
    with rawpy.imread(io.BytesIO(dng(scene(), 6, jpeg(scene())))) as photo:
        assert (photo.sizes.raw_width, photo.sizes.raw_height, photo.sizes.flip) == (WIDTH, HEIGHT, 6)
        assert photo.extract_thumb().format == rawpy.ThumbFormat.JPEG
