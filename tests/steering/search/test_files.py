"""Which images are found, and under which names."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from steering import ImageError
from steering.search.files import ESCAPE, Found, Unreadable, entries, file_of, is_below, scan, to_path, to_text


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "PNG")
    return path


@given(st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name))
def test_any_name_becomes_text_that_can_be_stored_and_comes_back(name: bytes):
    path = os.fsdecode(name)
    text = to_text(path)
    text.encode()
    assert to_path(text) == path


def test_names_that_are_text_stay_as_they_are_unless_they_look_like_the_escape():
    assert to_text("/a/ü\n'b.jpg") == "/a/ü\n'b.jpg"
    assert to_text(f"{ESCAPE}%41") != f"{ESCAPE}%41"
    assert to_path(to_text(f"{ESCAPE}%41")) == f"{ESCAPE}%41"
    assert to_text(os.fsdecode(b"/a/\xff.jpg")) == f"{ESCAPE}/a/%FF.jpg"


def test_a_folder_gives_its_images_sorted_absolute_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("b/2.png", "b/10.JPG", "a.webp", ".hidden.png", ".dir/c.png", "notes.txt"):
        touch(tmp_path / name)
    monkeypatch.chdir(tmp_path.parent)
    found = list(scan([tmp_path.name, tmp_path / "b"]))
    assert [entry.name for entry in found] == [str(tmp_path / n) for n in ("a.webp", "b/10.JPG", "b/2.png")]
    first = found[0]
    assert isinstance(first, Found)
    status = (tmp_path / "a.webp").stat()
    assert (first.size, first.modified) == (status.st_size, status.st_mtime_ns)


def test_what_is_no_file_is_told(tmp_path: Path):
    (tmp_path / "folder.jpg").mkdir()
    touch(tmp_path / "folder.jpg" / "inside.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = {Path(entry.name).name: entry for entry in scan([tmp_path])}
    assert set(found) == {"folder.jpg", "inside.png", "dangling.png", "pipe.jpg"}
    reasons = {n: e.reason for n, e in found.items() if isinstance(e, Unreadable)}
    assert reasons == {
        "folder.jpg": "is a folder, not an image",
        "dangling.png": "cannot be read (No such file or directory)",
        "pipe.jpg": "is not a regular file",
    }


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(ImageError, match="phtos: no such file or folder"):
        list(scan([tmp_path / "phtos"]))


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path / "shut" / "a.png")
    listed = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)  # as root everything can be listed
    (entry,) = scan([tmp_path])
    assert isinstance(entry, Unreadable)
    assert (entry.kind, entry.reason) == ("folder", "folder cannot be listed (Permission denied)")


def test_below_is_by_whole_names():
    assert is_below("/a/b/c.png", ["/x", "/a/b"])
    assert is_below("/a/b", ["/a/b"])
    assert not is_below("/a/bc.png", ["/a/b"])
    assert is_below("/a.png", ["/"])


def test_image_folders_data_sets_and_pairs_can_be_indexed(tmp_path: Path):
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature
    from torchvision.datasets import ImageFolder

    picture = touch(tmp_path / "cats" / "a.png")
    assert [entry.name for entry in entries(ImageFolder(str(tmp_path)))] == [str(picture)]
    cells = [{"bytes": picture.read_bytes(), "path": None}, {"bytes": None, "path": str(picture)}]
    data = Dataset.from_dict({"image": cells}, features=Features({"image": ImageFeature()}))
    first, second = entries(data)
    assert isinstance(first, Found)
    assert isinstance(second, Found)
    assert (first.name, first.content) == (f"dataset-{data._fingerprint[:8]}/all#0", picture.read_bytes())
    assert (second.name, second.content) == (f"dataset-{data._fingerprint[:8]}/all#1", str(picture))
    (pair,) = entries([("mine", Image.new("RGB", (4, 4)))])
    assert pair.name == "mine"
    with pytest.raises(ValueError, match="no image column among n"):
        list(entries(Dataset.from_dict({"n": [1]})))
    with pytest.raises(ValueError, match="expected files or"):
        list(entries([3]))
    with pytest.raises(ValueError, match="expected a folder"):
        entries(3)


def test_a_name_without_a_file_has_none(tmp_path: Path):
    assert file_of("dataset-1234/all#0") is None
    assert file_of(str(touch(tmp_path / "a.png"))) == str(tmp_path / "a.png")
