"""Images that are found under another name: their rows move, and nothing doubles."""

import os
import shutil
from pathlib import Path

import pytest

from steering import Gallery, ImageError
from steering.images import open_image
from steering.search import indexing
from steering.search.files import is_gone, to_key


def names(gallery: Gallery) -> list[str]:
    return sorted(row["path"] for row in gallery.images())


def test_a_folder_that_was_renamed_moves_its_rows_and_is_not_decoded(
    gallery: Gallery, photos, contents, counts, monkeypatch: pytest.MonkeyPatch
):
    folder = photos(4)[0].parent
    gallery.add(folder, workers=0)
    before = contents(gallery)
    monkeypatch.setattr("steering.search.decode.open_image", lambda image: pytest.fail("decoded"))
    monkeypatch.setattr(indexing, "COMMIT_ROWS", 2)  # several commits
    pictures = folder.rename(folder.with_name("pictures"))
    report = gallery.add(pictures, workers=0)
    assert counts(report) == {"renamed": 4}
    assert report.images == 4
    assert contents(gallery) == {str(pictures / Path(name).name): row for name, row in before.items()}
    assert counts(gallery.add(pictures, workers=0)) == {"unchanged": 4}


def test_a_copy_whose_old_file_is_there_is_a_second_image(gallery: Gallery, photos, tmp_path: Path, counts):
    folder = photos(2)[0].parent
    gallery.add(folder, workers=0)
    shutil.copytree(folder, tmp_path / "copy")
    assert counts(gallery.add(tmp_path / "copy", workers=0)) == {"new": 2}
    assert len(gallery) == 4


def test_doubles_in_a_renamed_folder_all_move(gallery: Gallery, photos, counts):
    (path,) = photos(1)
    for name in ("b.png", "c.png"):
        shutil.copy(path, path.with_name(name))
    gallery.add(path.parent, workers=0)
    pictures = path.parent.rename(path.parent.with_name("pictures"))
    shutil.copy(pictures / "c.png", pictures / "d.png")  # one more than there were
    assert counts(gallery.add(pictures, workers=0)) == {"renamed": 4}
    assert names(gallery) == [str(pictures / name) for name in ("0000.png", "b.png", "c.png", "d.png")]


def test_more_copies_than_one_commit_holds_are_made_of_a_row_that_moved(
    gallery: Gallery, photos, counts, monkeypatch: pytest.MonkeyPatch
):
    (path,) = photos(1)
    gallery.add(path.parent, workers=0)
    pictures = path.parent.rename(path.parent.with_name("pictures"))
    for name in "abcde":
        shutil.copy(pictures / path.name, pictures / f"{name}.png")
    monkeypatch.setattr(indexing, "COMMIT_ROWS", 2)
    assert counts(gallery.add(pictures, workers=0)) == {"renamed": 6}
    assert names(gallery) == sorted(str(file) for file in pictures.iterdir())


def test_a_run_that_is_interrupted_leaves_no_image_under_two_names(
    gallery: Gallery, photos, counts, monkeypatch: pytest.MonkeyPatch
):
    folder = photos(6)[0].parent
    gallery.add(folder, workers=0)
    pictures = folder.rename(folder.with_name("pictures"))
    monkeypatch.setattr(indexing, "COMMIT_ROWS", 2)
    upsert, calls = gallery.store.images.upsert, []

    def killed(rows, without=()):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(rows))
        upsert(rows, without)

    with monkeypatch.context() as patch:
        patch.setattr(gallery.store.images, "upsert", killed)
        with pytest.raises(KeyboardInterrupt):
            gallery.add(pictures, workers=0)
    assert calls == [2, 2]
    assert sorted(Path(name).name for name in names(gallery)) == [f"{index:04d}.png" for index in range(6)]
    assert counts(gallery.add(pictures, workers=0)) == {"renamed": 2, "unchanged": 4}


def test_what_is_on_a_disk_that_is_away_moves_only_if_it_is_found_elsewhere(
    gallery: Gallery, photos, tmp_path: Path, counts
):
    paths = photos(3, folder="disk")
    gallery.add(paths[0].parent, workers=0)
    (tmp_path / "local").mkdir()
    shutil.copy(paths[1], tmp_path / "local")
    paths[0].parent.rename(tmp_path / "away")
    paths[0].parent.mkdir()  # where the disk is mounted otherwise
    report = gallery.add([paths[0].parent, tmp_path / "local"], workers=0)
    assert counts(report) == {"renamed": 1}
    assert report.kept == {str(paths[0].parent): 2}
    assert names(gallery) == [str(paths[0]), str(paths[2]), str(tmp_path / "local" / paths[1].name)]


def test_names_that_were_given_are_never_taken_for_gone(gallery: Gallery, photos, counts):
    (path,) = photos(1)
    content = path.read_bytes()
    gallery.add([("mine", content), ("/absolute/but/given", content)], workers=0)
    assert counts(gallery.add(path.parent, workers=0)) == {"new": 1}
    assert names(gallery) == ["/absolute/but/given", str(path), "mine"]


def test_a_folder_that_is_gone_is_forgotten_with_its_number_and_a_misspelt_one_is_an_error(
    gallery: Gallery, photos, counts
):
    folder = photos(3)[0].parent
    (folder / "bad.png").write_bytes(b"no image")
    gallery.add(folder, workers=0)
    shutil.rmtree(folder)
    with pytest.raises(ImageError, match="the gallery knows 4 files there, which prune=True forgets"):
        gallery.add(folder, workers=0)
    with pytest.raises(ImageError, match=r"phtos: no such file or folder$"):
        gallery.add(folder.with_name("phtos"), workers=0, prune=True)
    assert len(gallery) == 3
    report = gallery.add(folder, workers=0, prune=True)
    assert counts(report) == {"deleted": 3}
    assert report.forgotten == report.as_dict()["forgotten"] == {str(folder): 3}
    assert gallery.skipped() == {}


def test_gone_is_a_file_that_is_not_there(tmp_path: Path):
    there = tmp_path / "a\x1ab.png"
    there.write_bytes(b"x")
    assert not is_gone(to_key(str(there)))
    assert not is_gone(to_key(str(tmp_path)))
    assert is_gone(to_key(str(tmp_path / "b.png")))
    assert is_gone(to_key(str(there / "below.png")))  # a file where a folder was
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    assert is_gone(str(tmp_path / "link.png"))
    for name in ("mine", "dataset-1234/all#0", "s3://bucket/a.png", "/" + "x" * 300, to_key("/a\0b")):
        assert not is_gone(name)


def test_a_moved_row_is_that_of_the_image_that_is_there(gallery: Gallery, photos, show, counts):
    """An image of the same size but of other content takes over nothing."""
    path, other = photos(2)
    size = max(path.stat().st_size, other.stat().st_size) + 10
    for each in (path, other):
        each.write_bytes(each.read_bytes().ljust(size, b"\0"))
    gallery.add(path, workers=0)
    path.unlink()
    assert counts(gallery.add(other, workers=0)) == {"new": 1}
    assert names(gallery) == sorted([str(path), str(other)])
    assert open_image(other).size == (61, 50)


def test_an_image_that_is_touched_while_another_moves_keeps_its_row(gallery: Gallery, photos, counts):
    stays, moves = photos(2)
    gallery.add(stays.parent, workers=0)
    os.utime(stays, (7, 7))
    moves.rename(moves.with_name("z.png"))
    assert counts(gallery.add(stays.parent, workers=0)) == {"renamed": 1, "unchanged": 1}
    assert names(gallery) == [str(stays), str(moves.with_name("z.png"))]
