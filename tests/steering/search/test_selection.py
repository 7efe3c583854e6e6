"""What is left out of an index, and that it is told."""

import shutil
from pathlib import Path

import pytest

from steering import Gallery
from steering.images import SUFFIXES
from steering.search.files import entries, scan
from steering.search.selection import APPLE_DOUBLES, HIDDEN_FILES, HIDDEN_FOLDERS, LEFT_OUT, UNREAD, Selection, advice


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def found(source: Path | list[Path], selection: Selection) -> list[str]:
    sources = source if isinstance(source, list) else [source]
    return [str(Path(entry.name).relative_to(sources[0])) for entry in scan(sources, selection)]


def test_kinds_that_are_not_read_are_counted_and_other_files_are_not(tmp_path: Path):
    make(tmp_path, "a.jpg", "b.TGA", "c.tga", "sub/d.PSD", "e.svg", "f.MOV", "g.txt", "h.json", "i.xmp", "j")
    make(tmp_path, ".k.tga", "@eaDir/l.tga")
    selection = Selection()
    assert found(tmp_path, selection) == ["a.jpg"]
    assert selection.passed_over == {".tga": 2, ".svg": 1, ".mov": 1, ".psd": 1}


def test_photographs_of_telephones_and_cameras_are_found(tmp_path: Path):
    make(tmp_path, "a.HEIC", "b.heif", "c.CR2", "d.cr3", "e.nef", "f.jxl", "g.avif", ".h.heic")
    assert found(tmp_path, Selection()) == ["a.HEIC", "b.heif", "c.CR2", "d.cr3", "e.nef", "f.jxl", "g.avif"]


def test_every_kind_that_is_not_read_has_advice():
    for suffix in (".tga", ".exr", ".psd", ".svg", ".pdf", ".mp4"):
        assert suffix in UNREAD
    assert not set(UNREAD) & set(SUFFIXES)
    assert advice(".tga").endswith("magick mogrify -format jpg *.tga")
    assert "{" not in "".join(map(advice, UNREAD))


def test_folders_of_other_programs_hidden_files_and_apple_doubles_are_left_out_and_counted(tmp_path: Path):
    make(tmp_path, "a.jpg", "._a.jpg", ".b.jpg", ".git/c.jpg", ".thumbnails/d.jpg")
    for name in LEFT_OUT:
        make(tmp_path, f"{name}/x.jpg", f"sub/{name}/y.jpg")
    selection = Selection()
    assert found(tmp_path, selection) == ["a.jpg"]
    assert selection.left_out == {
        APPLE_DOUBLES: 1,
        HIDDEN_FILES: 1,
        HIDDEN_FOLDERS: 2,
        **dict.fromkeys(LEFT_OUT, 2),
    }
    assert len(found(tmp_path, Selection(include_all=True))) == 5 + 2 * len(LEFT_OUT)


def test_a_folder_that_the_user_names_is_taken_whatever_its_name(tmp_path: Path):
    make(tmp_path, "node_modules/a.jpg", "node_modules/sub/b.jpg", ".hidden.jpg", ".dir/c.jpg")
    assert found(tmp_path / "node_modules", Selection()) == ["a.jpg", "sub/b.jpg"]
    sources = [tmp_path, tmp_path / "node_modules", tmp_path / ".hidden.jpg", tmp_path / ".dir"]
    assert found(sources, Selection()) == ["node_modules/a.jpg", "node_modules/sub/b.jpg", ".hidden.jpg", ".dir/c.jpg"]


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("*.gif", ["a.jpg", "drafts/b.jpg", "raw/drafts/d.jpg"]),
        ("drafts", ["a.jpg", "c.gif"]),
        ("drafts/", ["a.jpg", "c.gif"]),
        ("./drafts/*", ["a.jpg", "c.gif", "raw/drafts/d.jpg"]),
        ("raw/*", ["a.jpg", "c.gif", "drafts/b.jpg"]),
        ("[ac].*", ["drafts/b.jpg", "raw/drafts/d.jpg"]),
        ("*.GIF", ["a.jpg", "c.gif", "drafts/b.jpg", "raw/drafts/d.jpg"]),
    ],
)
def test_a_pattern_is_compared_with_names_and_with_paths_below_the_source(
    pattern: str, left: list[str], tmp_path: Path
):
    make(tmp_path, "a.jpg", "c.gif", "drafts/b.jpg", "raw/drafts/d.jpg")
    selection = Selection([pattern])
    assert found(tmp_path, selection) == left
    assert (selection.excluded[pattern] > 0) == (len(left) < 4)


def test_a_pattern_may_be_an_absolute_path_and_leaves_out_files_that_are_given_too(tmp_path: Path):
    make(tmp_path, "a.jpg", "sub/b.jpg", "c.gif")
    assert found(tmp_path, Selection(f"{tmp_path}/sub")) == ["a.jpg", "c.gif"]
    assert found([tmp_path, tmp_path / "c.gif"], Selection(["*.gif"])) == ["a.jpg", "sub/b.jpg"]
    pairs = [("mine.gif", b""), ("yours.jpg", b"")]
    assert [entry.name for entry in entries(pairs, Selection("*.gif"))] == ["yours.jpg"]
    assert list(entries([str(tmp_path / "c.gif")], Selection("*.gif"))) == []


def test_an_empty_pattern_is_an_error():
    with pytest.raises(ValueError, match=r"^exclude: got ' ', expected a pattern such as"):
        Selection(["*.gif", " "])


def test_linked_folders_are_told_unless_they_lead_into_the_source(tmp_path: Path):
    photos = make(tmp_path / "photos", "a.jpg", "sub/b.jpg")
    make(tmp_path / "elsewhere", "c.jpg")
    (photos / "link").symlink_to(tmp_path / "elsewhere")
    (photos / "inner").symlink_to(photos / "sub")
    selection = Selection()
    assert found(photos, selection) == ["a.jpg", "sub/b.jpg"]
    assert selection.linked == [str(photos / "link")]
    assert found(photos / "link", Selection()) == ["c.jpg"]
    selection = Selection()
    list(scan([photos, tmp_path / "elsewhere"], selection))
    assert selection.linked == []


def test_overlapping_sources_are_counted_once(tmp_path: Path):
    make(tmp_path, "sub/a.tga", "sub/@eaDir/b.jpg")
    selection = Selection()
    list(scan([tmp_path, tmp_path / "sub"], selection))
    assert (selection.passed_over, selection.left_out) == ({".tga": 1}, {"@eaDir": 1})


def test_rules_are_known_without_looking_at_the_disk():
    selection = Selection(["drafts"])
    assert selection.rules_out("/p/sub/drafts/a.jpg", "/p")
    assert selection.rules_out("/p/@eaDir/sub/a.jpg", "/p")
    assert selection.rules_out("/p/.a.jpg", "/p")
    assert not selection.rules_out("/p/@eaDir/sub/a.jpg", "/p/@eaDir")
    assert not selection.rules_out("/drafts/a.jpg", "/drafts")
    assert not selection.rules_out("/p/@eaDir.jpg", "/p")
    assert not selection.rules_out("/a.jpg", "/")
    assert selection.left_out == {}


def test_images_that_are_excluded_now_are_removed_from_the_gallery(gallery: Gallery, photos, counts):
    photos(2)
    folder = photos(1, folder="photos/thumbs", first=5)[0].parent.parent
    assert counts(gallery.add(folder, workers=0, include_all=True)) == {"new": 3}
    report = gallery.add(folder, workers=0)
    assert counts(report) == {"deleted": 1, "unchanged": 2}
    assert report.left_out == {"thumbs": 1}
    report = gallery.add(folder, workers=0, exclude="*.png")  # all of them, which is no disk that is away
    assert counts(report) == {"deleted": 2}
    assert (report.kept, report.excluded) == ({}, {"*.png": 2})
    shutil.rmtree(folder / "thumbs")
    report = gallery.add(folder, workers=0, exclude=["nothing", "*.gif"])
    assert report.as_dict()["excluded"] == {"nothing": 0, "*.gif": 0}
