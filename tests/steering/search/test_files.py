"""Which images are found, and under which names."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from steering import ImageError
from steering.search.files import ESCAPE, Entry, Unreadable, entries, file_of, is_below, scan, to_key, to_path


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "PNG")
    return path


@given(st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name))
def test_any_path_becomes_a_key_that_can_be_stored_and_comes_back(name: bytes):
    path = os.fsdecode(name)
    key = to_key(path)
    key.encode()
    assert to_path(key) == path


@given(st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, categories=None), max_size=12))
def test_any_other_name_becomes_a_key_too(name: str):
    key = to_key(name)
    key.encode()
    assert "\0" not in key
    assert to_path(key) == name


@given(st.text("\x1a\0dce9\udce9\ud800", max_size=9), st.text("\x1a\0dce9\udce9\ud800", max_size=9))
def test_keys_differ_where_names_do_and_follow_them_part_by_part(one: str, other: str):
    assert (to_key(one) == to_key(other)) == (one == other)
    assert to_key(f"{one}/{other}") == f"{to_key(one)}/{to_key(other)}"


def test_names_that_are_text_are_their_own_keys_unless_they_hold_the_escape():
    assert to_key("/a/ü\n'b%41.jpg") == "/a/ü\n'b%41.jpg"
    assert to_key(f"a{ESCAPE}dce9") != f"a{ESCAPE}dce9"
    assert to_key(os.fsdecode(b"/a/\xff.jpg")) == f"/a/{ESCAPE}dcff.jpg"


def test_files_of_any_name_lie_below_their_folders():
    folder = os.fsdecode(b"/photos/\xe9t\xe9")
    for path in ("/photos/a.jpg", os.fsdecode(b"/photos/caf\xe9.jpg"), f"{folder}/a.jpg"):
        assert is_below(to_key(path), [to_key("/photos")])
        assert is_below(to_key(path), [to_key(folder)]) == path.startswith(folder)


def test_a_folder_gives_its_images_sorted_absolute_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("b/2.png", "b/10.JPG", "a.webp", ".hidden.png", ".dir/c.png", "notes.txt"):
        touch(tmp_path / name)
    monkeypatch.chdir(tmp_path.parent)
    listed = list(scan([tmp_path.name, tmp_path / "b"]))
    assert [entry.name for entry in listed] == [str(tmp_path / n) for n in ("a.webp", "b/10.JPG", "b/2.png")]
    first = listed[0]
    assert isinstance(first, Entry)
    status = (tmp_path / "a.webp").stat()
    assert (first.size, first.modified) == (status.st_size, status.st_mtime_ns)


def test_what_is_no_file_is_told(tmp_path: Path):
    (tmp_path / "folder.jpg").mkdir()
    touch(tmp_path / "folder.jpg" / "inside.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    listed = {Path(entry.name).name: entry for entry in scan([tmp_path])}
    assert set(listed) == {"folder.jpg", "inside.png", "dangling.png", "pipe.jpg"}
    reasons = {n: e.reason for n, e in listed.items() if isinstance(e, Unreadable)}
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
    assert isinstance(first, Entry)
    assert isinstance(second, Entry)
    assert (first.name, first.content) == (f"dataset-{data._fingerprint[:8]}/all#0", picture.read_bytes())
    assert (second.name, second.content) == (f"dataset-{data._fingerprint[:8]}/all#1", str(picture))
    (pair,) = entries([("mine", Image.new("RGB", (4, 4)))])
    assert pair.name == "mine"
    with pytest.raises(ValueError, match="no image column among n"):
        list(entries(Dataset.from_dict({"n": [1]})))
    with pytest.raises(ValueError, match="source: got int among its items, expected files or"):
        list(entries([3]))
    with pytest.raises(ValueError, match="source: got int, expected a folder"):
        entries(3)


def test_a_name_without_a_file_has_none(tmp_path: Path):
    assert file_of("dataset-1234/all#0") is None
    assert file_of(str(touch(tmp_path / "a.png"))) == str(tmp_path / "a.png")
