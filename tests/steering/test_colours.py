"""Colour profiles that files carry: applied, left alone where they are sRGB, ignored with a note where they are broken.

The profiles are written here, and what the pixels must become is calculated here, without LittleCMS.
"""

import struct
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from steering import colours
from steering.images import open_image

# columns: red, green, blue in XYZ under D50, as profiles hold them (Bruce Lindbloom's tables; Display P3 as Apple's)
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
ADOBE_GAMMA = 563 / 256
WHITE = np.array([0.9642, 1, 0.8249])  # D50
DULL_BLUE = (127, 128, 98)  # Lab in 8 bits: lightness 49.8, a 0, b -30


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", between: bytes = b"XYZ ") -> bytes:
    """An ICC profile of version 2.4 with these tags."""
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249),
        **tags,
    }
    place, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", place + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(
        ">I4sI4s4s4s12s4s", place + len(body), bytes(4), 0x02400000, kind, space, between, bytes(12), b"acsp"
    )
    header += bytes(68 - len(header)) + fixed(0.9642, 1, 0.8249)
    return header + bytes(128 - len(header)) + struct.pack(">I", len(tags)) + table + body


def curve(parameters: tuple[float, ...]) -> bytes:
    """A gamma, or sRGB's five parameters."""
    return b"para" + bytes(4) + struct.pack(">HH", 0 if len(parameters) == 1 else 3, 0) + fixed(*parameters)


def matrix_profile(matrix: np.ndarray, parameters: tuple[float, ...]) -> bytes:
    columns = {name: b"XYZ " + bytes(4) + fixed(*matrix[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return profile(b"RGB ", columns | {name: curve(parameters) for name in (b"rTRC", b"gTRC", b"bTRC")})


def grey_profile(gamma: float) -> bytes:
    return profile(b"GRAY", {b"kTRC": curve((gamma,))})


def ink_profile() -> bytes:
    """CMYK by a table of its 16 corners: cyan is a dull blue, key is black, all else white. No formula says so."""
    corners = [(0, 128, 128) if corner & 1 else DULL_BLUE if corner & 8 else (255, 128, 128) for corner in range(16)]
    identity = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += identity * 4 + bytes(value for corner in corners for value in corner) + identity * 3
    return profile(b"CMYK", {b"A2B0": table}, b"prtr", b"Lab ")


def linear(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def shown(values: np.ndarray) -> np.ndarray:
    """Linear light as sRGB of 8 bits."""
    values = values.clip(0, 1)
    return (np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055) * 255).round()


def expected(pixels: np.ndarray, matrix: np.ndarray, gamma: float | None) -> np.ndarray:
    values = pixels / 255
    light = linear(values) if gamma is None else values**gamma
    return shown(light @ (np.linalg.inv(SRGB) @ matrix).T)


P3 = matrix_profile(DISPLAY_P3, SRGB_CURVE)
ADOBE = matrix_profile(ADOBE_RGB, (ADOBE_GAMMA,))
PATCHES = (
    np.array([[[200, 60, 40], [60, 180, 70]], [[50, 70, 190], [128, 128, 128]]], np.uint8).repeat(16, 0).repeat(16, 1)
)


def middles(image: Image.Image) -> np.ndarray:
    """The colours in the middle of the four patches: what codecs do at edges does not count."""
    return np.asarray(image).astype(int)[8::16, 8::16]


@pytest.mark.parametrize(("carried", "matrix", "gamma"), [(P3, DISPLAY_P3, None), (ADOBE, ADOBE_RGB, ADOBE_GAMMA)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp", "avif", "heic"])
def test_a_profile_becomes_srgb(
    tmp_path: Path, suffix: str, carried: bytes, matrix: np.ndarray, gamma: float | None
) -> None:
    image, path = Image.fromarray(PATCHES), tmp_path / f"wide.{suffix}"
    if suffix == "heic":
        pillow_heif.from_pillow(image).save(path, quality=-1, chroma=444, icc_profile=carried)
    else:
        exact = {"jpg": {"quality": 100, "subsampling": 0}, "avif": {"quality": 100, "subsampling": "4:4:4"}}
        image.save(path, icc_profile=carried, **exact.get(suffix, {"lossless": True} if suffix == "webp" else {}))
    opened = open_image(path)
    wanted = expected(PATCHES, matrix, gamma)[8::16, 8::16]
    assert np.abs(middles(opened) - wanted).max() <= 3
    assert np.abs(wanted - PATCHES[8::16, 8::16]).max() >= 20  # without the profile this test would fail
    assert "note" not in opened.info


def test_a_profile_that_is_srgb_changes_no_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for carried in (
        matrix_profile(SRGB, SRGB_CURVE),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ):
        image = Image.fromarray(pixels)
        image.info["icc_profile"] = carried
        assert np.array_equal(np.asarray(open_image(image)), pixels)
        assert colours.to_srgb(image, carried)[0] is image


def test_near_srgb_is_not_srgb() -> None:
    pixels = np.full((4, 4, 3), 12, np.uint8)
    image = Image.fromarray(pixels)
    image.info["icc_profile"] = matrix_profile(SRGB, (2.2,))
    assert np.abs(np.asarray(open_image(image)).astype(int) - expected(pixels, SRGB, 2.2)).max() <= 1
    assert np.asarray(open_image(image)).max() < 8


def test_opacity_and_palettes_keep_theirs(tmp_path: Path) -> None:
    wanted = expected(PATCHES, DISPLAY_P3, None)
    clear = Image.fromarray(PATCHES).convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 4, 4))
    palette = Image.fromarray(PATCHES).quantize(4)
    keyed = Image.fromarray(PATCHES)
    for name, image, options in (
        ("rgba", clear, {}),
        ("p", palette, {}),
        ("key", keyed, {"transparency": (200, 60, 40)}),
    ):
        image.save(tmp_path / f"{name}.png", icc_profile=P3, **options)
        opened = np.asarray(open_image(tmp_path / f"{name}.png")).astype(int)
        assert np.abs(opened[20:, 20:] - wanted[20:, 20:]).max() <= 2
        if name != "p":
            assert (opened[:4, :4] == 255).all()


def test_grey_profiles_are_applied_to_grey_with_and_without_opacity() -> None:
    ramp = np.arange(256, dtype=np.uint8)[None]
    wanted = shown((ramp / 255) ** 1.8)
    for mode in ("L", "LA"):
        image = Image.fromarray(ramp).convert(mode)
        image.info["icc_profile"] = grey_profile(1.8)
        opened = np.asarray(open_image(image)).astype(int)
        assert np.abs(opened - wanted[..., None]).max() <= 2
    assert np.abs(wanted - ramp).max() > 15


def test_grey_with_a_profile_of_colours_is_read_as_equal_channels() -> None:
    ramp = np.arange(256, dtype=np.uint8)[None]
    image = Image.fromarray(ramp)
    image.info["icc_profile"] = ADOBE
    wanted = expected(np.stack([ramp] * 3, -1), ADOBE_RGB, ADOBE_GAMMA)
    assert np.abs(np.asarray(open_image(image)).astype(int) - wanted).max() <= 2


def from_lab(lightness: float, a: float, b: float) -> np.ndarray:
    middle = (lightness + 16) / 116
    roots = np.array([middle + a / 500, middle, middle - b / 200])
    light = np.where(roots > 6 / 29, roots**3, 3 * (6 / 29) ** 2 * (roots - 4 / 29)) * WHITE
    return shown(np.linalg.inv(SRGB) @ light)


@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_cmyk_is_read_by_its_profile(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"print.{suffix}"
    blue = from_lab(DULL_BLUE[0] / 2.55, DULL_BLUE[1] - 128, DULL_BLUE[2] - 128)
    for ink, wanted in (((255, 0, 0, 0), blue), ((0, 255, 0, 0), (255, 255, 255)), ((0, 0, 0, 255), (0, 0, 0))):
        Image.new("CMYK", (16, 16), ink).save(path, icc_profile=ink_profile())
        assert np.abs(np.asarray(open_image(path))[8, 8].astype(int) - wanted).max() <= 5
    Image.new("CMYK", (16, 16), (0, 255, 0, 0)).save(path)
    assert np.asarray(open_image(path))[8, 8, 1] < 100  # without a profile, magenta


def test_sixteen_bits_of_grey_are_read_by_their_profile(tmp_path: Path) -> None:
    ramp = (np.arange(256, dtype=np.uint16) * 257)[None]
    Image.fromarray(ramp).save(tmp_path / "deep.tiff", icc_profile=grey_profile(1.8))
    opened = np.asarray(open_image(tmp_path / "deep.tiff"))[..., 0].astype(int)
    assert np.abs(opened - shown((ramp / 65535) ** 1.8)).max() <= 2


@pytest.mark.parametrize("carried", [b"no profile at all", P3[:200], P3[:128] + b"\xff" * 400, profile(b"6CLR", {})])
def test_a_broken_profile_is_ignored_with_a_note(tmp_path: Path, carried: bytes) -> None:
    Image.fromarray(PATCHES).save(tmp_path / "broken.png", icc_profile=carried)
    opened = open_image(tmp_path / "broken.png")
    assert np.array_equal(np.asarray(opened), PATCHES)
    assert opened.info["note"] == "has a colour profile that cannot be read: ignored"


def test_a_profile_of_another_kind_is_ignored_with_a_note() -> None:
    for mode, carried in (("RGB", ink_profile()), ("CMYK", P3), ("RGB", grey_profile(1.8))):
        image = Image.new(mode, (4, 4))
        image.info["icc_profile"] = carried
        opened = open_image(image)
        assert opened.info["note"] == "has a colour profile of another kind than its pixels: ignored"
        assert np.array_equal(np.asarray(opened), np.asarray(image.convert("RGB")))


def test_a_result_carries_no_profile_so_that_it_is_not_applied_twice(tmp_path: Path) -> None:
    Image.fromarray(PATCHES).save(tmp_path / "wide.png", icc_profile=P3)
    once = open_image(tmp_path / "wide.png")
    assert np.array_equal(np.asarray(open_image(once)), np.asarray(once))
