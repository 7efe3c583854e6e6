"""A thousand files as the world has them: damaged, mislabelled, odd. None is fatal, every one is accounted for."""

import os
import random
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from steering import Gallery
from steering.images import open_image

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "TIFF": "tif", "BMP": "bmp", "PPM": "ppm"}
WHOLE = ("cmyk", "sixteen", "palette", "animated", "rotated", "mislabelled", "unreadable", "name")
BROKEN = ("truncated", "flipped", "empty", "text", "headless", "folder", "dangling", "pipe")


def files(folder: Path, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Makes `count` of them; yields the kind and the name of each."""
    chance = random.Random(seed)
    cat = open_image("sample:cat").resize((60, 40))
    for number in range(count):
        kind = chance.choice((*WHOLE, *BROKEN, "truncated", "flipped"))
        form = chance.choice(tuple(FORMATS))
        picture = cat.rotate(number % 360)
        options: dict = {}
        stem, suffix = f"{number:04d}".encode(), f".{FORMATS[form]}".encode()
        if kind == "cmyk":
            picture, form, suffix = picture.convert("CMYK"), "JPEG", b".jpg"
        elif kind == "sixteen":
            picture, form, suffix = picture.convert("L").convert("I;16"), "PNG", b".png"
        elif kind == "palette":
            picture, form, suffix = picture.convert("P"), "PNG", b".PNG"
        elif kind == "animated":
            form, suffix = "GIF", b".gif"
            options = {"save_all": True, "append_images": [picture.rotate(90), picture.rotate(180)]}
        elif kind == "rotated":
            exif = Image.Exif()
            exif[0x0112] = chance.randint(1, 8)
            form, suffix, options = "JPEG", b".jpg", {"exif": exif}
        elif kind == "mislabelled":
            suffix = f".{chance.choice(tuple(FORMATS.values()))}".encode()
        elif kind == "name":
            stem += chance.choice((b"new\nline", b"caf\xe9\xff", "ü'\"😀".encode(), b"%41 ;--", b"\\x\t\r"))
        stream = BytesIO()
        picture.save(stream, form, **options)
        data = bytearray(stream.getvalue())
        if kind == "truncated":
            data = data[: chance.randrange(1, len(data))]
        elif kind == "flipped":
            for _ in range(chance.randint(1, 20)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == "empty":
            data = bytearray()
        elif kind == "text":
            data = bytearray(b"<html>404 not found</html>")
        elif kind == "headless":
            data = data[chance.randrange(1, 20) :]
        path = os.fsencode(folder) + b"/" + stem + suffix
        if kind == "folder":
            os.mkdir(path)
        elif kind == "dangling":
            os.symlink(b"/nowhere/at/all", path)
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            with open(path, "wb") as file:
                file.write(data)
            if kind == "unreadable":  # which root reads all the same
                os.chmod(path, 0)
        yield kind, path


@pytest.mark.timeout(300)
def test_a_thousand_odd_files_are_all_accounted_for(gallery: Gallery, tmp_path: Path, counts, contents):
    folder = tmp_path / "odd"
    folder.mkdir()
    made = {os.fsdecode(path): kind for kind, path in files(folder, 1000, seed=0)}
    bomb = folder / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    report = gallery.add(folder, workers=2)
    assert report.found == 1001
    total = counts(report)
    assert total["new"] + total["skipped"] == 1001
    from steering.search.files import to_path

    indexed = {to_path(name) for name in contents(gallery)}
    skipped = report.skipped
    remembered = set(gallery.skipped())
    assert set(skipped) - remembered == {path for path, kind in made.items() if kind == "dangling"}  # may come back
    assert indexed.isdisjoint(skipped)
    assert indexed | set(skipped) == {*made, str(bomb)}
    assert "megapixels" in skipped[str(bomb)]
    for path, kind in made.items():
        if kind in WHOLE and (kind != "unreadable" or os.access(path, os.R_OK)):
            assert path in indexed, (kind, path, skipped[path])
        if kind in ("empty", "text", "folder", "dangling", "pipe"):
            assert path in skipped
    assert all(reason and reason.isprintable() for reason in skipped.values())
    again = counts(gallery.add(folder, workers=2))
    assert again == {"unchanged": len(indexed), "skipped": len(skipped)}
    assert len(gallery.search("a cat", top=5)) == 5
