"""What `steer index` and `steer duplicates` tell a user, against the embedded model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from steering.commands.options import GALLERY_VARIABLE
from steering.images import open_image
from steering.search.selection import LEFT_OUT
from tests.commands import steer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(GALLERY_VARIABLE, str(tmp_path / "gallery"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a cat, the cat once more, a smaller cat, and a cup of coffee."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    cat = open_image("sample:cat")
    cat.save(folder / "cat.png")
    shutil.copy(folder / "cat.png", folder / "sub" / "copy.png")
    cat.resize((225, 150)).save(folder / "small.png")
    open_image("sample:coffee").save(folder / "coffee.jpg")
    return folder


def index(*arguments: str | os.PathLike) -> int:
    return steer("index", *arguments, "--workers", "0")


def test_a_renamed_folder_is_told_as_renamed_and_doubles_nothing(photos: Path, capsys):
    assert index(photos) == 0
    pictures = photos.rename(photos.with_name("pictures"))
    capsys.readouterr()
    assert index(pictures) == 0
    assert "4 images (0 new, 0 changed, 4 renamed, 0 deleted, 0 unchanged; 0 skipped)" in capsys.readouterr().out


def test_a_folder_that_is_gone_is_forgotten_by_prune_and_a_misspelt_one_is_an_error(photos: Path, capsys):
    assert index(photos) == 0
    shutil.rmtree(photos)
    assert index(photos) == 2
    assert "no such file or folder; the gallery knows 4 files there, which --prune forgets" in capsys.readouterr().err
    assert index(photos.with_name("phtos"), "--prune") == 2
    assert capsys.readouterr().err.endswith("phtos: no such file or folder\n")
    assert index(photos, "--prune") == 0
    out, err = capsys.readouterr()
    assert "0 images (0 new, 0 changed, 0 renamed, 4 deleted, 0 unchanged; 0 skipped)" in out
    assert f"steer: {photos}: is gone; 4 images were forgotten\n" in err


def test_prune_without_a_gallery_is_an_error_like_any_misspelt_folder(tmp_path: Path, capsys):
    assert index(tmp_path / "phtos", "--prune") == 2
    assert "phtos: no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "gallery").exists()


def test_what_is_not_indexed_is_told_by_its_kind(photos: Path, tmp_path: Path, capsys):
    for name in ("a.TGA", "b.tga", "c.PSD", "d.txt", "._e.jpg"):
        (photos / name).write_bytes(b"x")
    (photos / "@eaDir").mkdir()
    shutil.copy(photos / "cat.png", photos / "@eaDir")
    (tmp_path / "elsewhere").mkdir()
    (photos / "link").symlink_to(tmp_path / "elsewhere")
    assert index(photos, "--exclude", "*.jpg", "--exclude", "*.gif") == 0
    out, err = capsys.readouterr()
    assert "3 images (3 new" in out
    for line in (
        ".tga: 2 files are not read; convert them to JPEG, for example with: magick mogrify -format jpg *.tga",
        ".psd: 1 file is not read; export them as JPEG or PNG, for example with: magick FILE.psd[0] FILE.png",
        "left out: 1 × @eaDir (--include-all takes them)",
        "--exclude '*.jpg' left out 2 files and folders",  # the AppleDouble file, too
        "--exclude '*.gif' matched nothing",
        f"{photos}/link: is a linked folder and was not followed; name it each time, too, to index it",
    ):
        assert f"steer: {line}\n" in err
    assert ".txt" not in err
    assert index(photos, "--json", "--include-all") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["passed_over"], report["linked"]) == ({".tga": 2, ".psd": 1}, [f"{photos}/link"])
    assert (report["left_out"], report["new"]) == ({}, 2)
    assert [Path(item["path"]).name for item in report["skipped"]] == ["._e.jpg"]


def test_at_most_twenty_skipped_files_are_listed(photos: Path, capsys):
    for number in range(23):
        (photos / f"bad{number:02d}.jpg").write_bytes(b"no image")
    assert index(photos) == 0
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("steer: skipped ") for line in lines) == 20
    assert lines[-1] == "steer: … and 3 more (--json lists all)"
    assert index(photos, "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_at_most_ten_notes_are_listed(tmp_path: Path, capsys):
    (tmp_path / "photos").mkdir()
    for number in range(12):
        picture = open_image("sample:cat").resize((40 + number, 40)).convert("RGBA")
        picture.putalpha(100)
        picture.save(tmp_path / "photos" / f"{number:02d}.png")
    assert index(tmp_path / "photos") == 0
    err = capsys.readouterr().err
    assert err.count("is partly transparent") == 10
    assert "steer: … and 2 more (--json lists all)\n" in err


def test_nothing_indexed_is_exit_code_1_with_what_is_read(tmp_path: Path, photos: Path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.tga").write_bytes(b"x")
    assert index(empty) == 1
    out, err = capsys.readouterr()
    assert "0 images" in out
    assert ".tga: 1 file is not read" in err
    assert "steer: nothing was indexed; files that are read end with .avif" in err
    assert index(empty, "--json", "--quiet") == 1
    assert json.loads(capsys.readouterr().out)["found"] == 0
    (empty / "bad.jpg").write_bytes(b"no image")
    assert index(empty) == 1  # all that there is was skipped
    assert index(photos) == 0
    assert index(photos) == 0  # nothing new, which is no failure
    for name in ("cat.png", "small.png", "coffee.jpg", "sub/copy.png"):
        (photos / name).unlink()
    assert index(photos) == 0  # it is empty now, and its images were kept
    assert "4 images of it were kept (--prune forgets them)" in capsys.readouterr().err


def test_the_help_tells_the_rules(capsys):
    assert steer("index", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in (*LEFT_OUT, "--exclude", "--include-all", "1 nothing was indexed"):
        assert word in text
    assert steer("index", ".", "--exclude", "") == 2
    assert "--exclude: got '', expected a pattern such as" in capsys.readouterr().err


def test_duplicates_are_listed_the_biggest_group_first_and_the_best_image_first(photos: Path, capsys):
    (photos / "sub" / "coffee.jpg").write_bytes((photos / "coffee.jpg").read_bytes())
    assert index(photos) == 0
    capsys.readouterr()
    assert steer("duplicates") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("group")] == ["group 1: 3 images", "group 2: 2 images"]
    assert lines[1].startswith(f"  {photos}/cat.png  (451×300, ")
    assert lines[3].startswith(f"  {photos}/small.png  (225×150, ")
    assert lines[-1].startswith("2 groups, 5 of 5 images the same to the eye; 3 more than needed, ")
    assert steer("duplicates", "--exact", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["duplicates"], told["exact"]) == (5, 2, True)
    assert [[Path(image["path"]).name for image in group] for group in told["groups"]] == [
        ["cat.png", "copy.png"],
        ["coffee.jpg", "coffee.jpg"],
    ]


def test_the_image_to_keep_is_one_whose_file_is_there(photos: Path, capfdbinary):
    assert index(photos) == 0
    (photos / "cat.png").unlink()
    (photos / "sub" / "copy.png").unlink()
    capfdbinary.readouterr()
    assert steer("duplicates", "--omit-first", "--print0") == 0
    paths = capfdbinary.readouterr().out.split(b"\0")
    assert paths == [os.fsencode(photos / "cat.png"), os.fsencode(photos / "sub" / "copy.png"), b""]
    assert steer("duplicates", "--paths") == 0
    lines = capfdbinary.readouterr().out.splitlines()
    assert lines == [os.fsencode(photos / "small.png"), *paths[:2], b""]
    assert steer("duplicates") == 0
    assert b", file is gone)" in capfdbinary.readouterr().out


def test_exit_codes_of_duplicates_are_those_of_grep(photos: Path, capsys):
    assert index(photos / "coffee.jpg") == 0
    capsys.readouterr()
    assert steer("duplicates") == 1
    assert capsys.readouterr().out == "No two of 1 images are the same to the eye.\n"
    assert steer("duplicates", "--gallery", photos / "none") == 2
    assert "no gallery there; `steer index FOLDER" in capsys.readouterr().err
    assert steer("duplicates", "--json", "--paths") == 2


def test_duplicates_load_no_network(photos: Path):
    assert index(photos) == 0
    code = "import sys, steer_cli; code = steer_cli.main(['duplicates']); print('torch' in sys.modules); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
