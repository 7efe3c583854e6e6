"""`steer index` and `steer search` as a user types them, against the embedded model."""

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
import torch
from PIL import Image

from steering.commands import search
from steering.commands.options import GALLERY_VARIABLE
from steering.goals import Goal
from steering.images import open_image
from steering.search.hits import Hit, Hits
from steering.search.odds import Prevalence
from tests.commands import steer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cat, a cup, both, and a file that is no image; its gallery; $STEER_GALLERY of the tests."""
    home = tmp_path_factory.mktemp("home")
    (home / "photos" / "2024").mkdir(parents=True)
    open_image("sample:cat").save(home / "photos" / "cat.jpg")
    open_image("sample:coffee").save(home / "photos" / "2024" / "coffee.png")
    open_image("sample:cat|coffee").save(home / "photos" / "both.webp")
    (home / "photos" / "broken.jpg").write_bytes(b"no image")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(GALLERY_VARIABLE, str(home / "gallery"))
        assert steer("index", home / "photos", "--quiet", "--workers", "1") == 0
    return home


@pytest.fixture(autouse=True)
def _default_gallery(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(GALLERY_VARIABLE, str(home / "gallery"))


def test_indexing_tells_what_it_did_and_what_it_skipped(home: Path, tmp_path: Path, capsys):
    assert steer("index", home / "photos", "--gallery", tmp_path / "g", "--workers", "0") == 0
    out, err = capsys.readouterr()
    assert f"{tmp_path / 'g'}: 3 images (3 new, 0 changed, 0 renamed, 0 deleted, 0 unchanged; 1 skipped)" in out
    assert "images/s" in out
    assert f"steer: skipped {home / 'photos' / 'broken.jpg'}: is not an image of a kind that is read" in err
    assert steer("index", home / "photos", "--gallery", tmp_path / "g", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["found"], report["unchanged"], report["images"]) == (4, 3, 3)
    assert [Path(item["path"]).name for item in report["skipped"]] == ["broken.jpg"]


def test_what_is_there_is_found_first_and_the_exit_code_says_so(capsys):
    assert steer("search", "a cup of coffee") in (0, 1)
    assert steer("search", "a coffee", "--top", "2") == 0
    out, err = capsys.readouterr()
    assert "“a coffee”:" in out
    assert "“a coffee”: present (3 images, 3 looked at" in out
    assert "of the hits below look" in out
    assert "expected to be right. In all, about " in out
    assert "present" in out
    assert "coffee.png  (600×400, sees" in out
    assert err == ""


def test_that_nothing_is_sure_is_an_answer_with_an_exit_code_of_its_own(capsys):
    assert steer("search", "a suspension bridge") == 1
    out = capsys.readouterr().out
    assert "“a suspension bridge”: unsure whether any image shows it (3 images" in out
    assert "None of the hits below looks like it alone. If any image shows it, at most " in out
    assert steer("search", "a coffee", "--where", "width > 5000") == 1
    assert "There is no image to search for “a coffee”." in capsys.readouterr().out


STRANGE = "“person” is not like any thing that this network knows; the nearest are “"
NO_EYES = "This network has no eyes for it"


@pytest.mark.parametrize("query", ["a person", "a coffee - a person", "- a person"])
def test_words_that_the_network_has_no_eyes_for_rank_nothing(query: str, capsys):
    assert steer("search", query) == 3
    out, err = capsys.readouterr()
    told, note = out.splitlines()[0], out.splitlines()[-1]
    assert told.startswith(f"“{query}”: unknown. {NO_EYES}: nothing was ranked; --anyway ranks all the same (3 images")
    assert note.startswith(f"  note: {STRANGE}")
    assert "coffee.png" not in out
    assert err == ""
    assert steer("search", query, "--json") == 3
    answer = json.loads(capsys.readouterr().out)
    assert (answer["answer"], answer["hits"], answer["prevalence"], answer["looked_at"]) == ("unknown", [], None, 0)
    assert (len(answer["nearest"]), answer["images"]) == (3, 3)


def test_programs_get_no_paths_by_words_that_are_unknown(capsys):
    assert steer("search", "a person", "--paths") == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"steer: “a person”: unknown. {NO_EYES}")
    assert STRANGE in err
    assert steer("search", "a person", "--print0", "--quiet") == 3
    assert capsys.readouterr() == ("", "")


def test_unknown_words_rank_anyway_where_that_is_asked_for(tmp_path: Path, capsys):
    sheet = tmp_path / "sheet.png"
    assert steer("search", "a person", "--anyway", "--contact-sheet", sheet) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"“a person”: unknown. {NO_EYES}: the hits are guesses (3 images, 3 looked at")
    assert out.count(STRANGE) == 1
    assert " present " not in out
    assert " absent " not in out
    assert "coffee.png  (600×400, sees" in out
    assert sheet.stat().st_size > 10_000
    assert steer("search", "a person", "--anyway", "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["answer"], answer["prevalence"], answer["present"], len(answer["hits"])) == ("unknown", None, 0, 3)
    for hit in answer["hits"]:
        assert (hit["verdict"], hit["alone"], hit["probability"]) == ("unknown", None, None)
    assert steer("search", "a person", "--anyway", "--threshold", "0.9") == 2
    assert "--threshold: got 0.9, but lrm_mini has no eyes for 'a person'" in capsys.readouterr().err
    assert steer("search", "a coffee", "--anyway", "--top", "2") == 0


@pytest.mark.parametrize(
    "option", [("--threshold", "0.9"), ("--rerank", "0"), ("--where", "width > 0"), ("--where", "width > 5000")]
)
def test_that_a_word_is_unknown_is_told_once_whatever_the_options_are(option: tuple[str, str], capsys):
    assert steer("search", "a person", *option) == 3
    assert capsys.readouterr().out.count(STRANGE) == 1
    if option[0] != "--threshold":
        assert steer("search", "a person", "--anyway", *option) == 1
        assert capsys.readouterr().out.count(STRANGE) == 1


def hits_of(images: int, *alone: float, seen: Prevalence) -> Hits:
    goal = Goal("a cat", torch.zeros(3), "diffusion")
    hits = [
        Hit("cat.jpg", 1, 0.5, 9, 9, "tabby", True, 1.0, chance, "present" if chance >= 0.8 else "unsure", chance)
        for chance in alone
    ]
    return Hits(hits, goal, images, images, seen, 0.1)


def test_the_answer_is_a_whole_sentence_where_no_hit_looks_like_it_alone():
    answer = search.told(hits_of(3000, 0.79, seen=Prevalence(0.3, 0.1, 0.6, 4.0, "present")))
    assert "\n  None of the hits below looks like it alone. In all, about 30 % of the images show it" in answer


def test_what_shows_it_is_no_less_than_one_image():
    unsure = search.told(hits_of(10, 0.4, seen=Prevalence(0.01, 0.0, 0.047, 0.5, "unsure")))
    assert "If any image shows it, at most 10 % do." in unsure
    present = search.told(hits_of(10, 0.9, seen=Prevalence(0.12, 0.01, 0.3, 9.0, "present")))
    assert "about 12 % of the images show it (10 % to 30 %)" in present


def test_no_bound_is_told_where_there_is_none():
    answer = search.told(hits_of(4, 0.7, seen=Prevalence(0.4, 0.0, 1.0, 2.0, "unsure")))
    assert "How many show it cannot be told." in answer
    assert "100 %" not in answer


def test_json_holds_everything_that_is_known_of_a_hit(home: Path, capsys):
    assert steer("search", "a coffee", "--json", "--top", "2") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["query"], answer["images"], answer["looked_at"]) == ("a coffee", 3, 3)
    assert answer["answer"] == "present"
    assert 0 <= answer["prevalence"]["low"] <= answer["prevalence"]["share"] <= answer["prevalence"]["high"] <= 1
    assert answer["notes"] == []
    assert len(answer["hits"]) == 2
    first = answer["hits"][0]
    assert first["path"] == str(home / "photos" / "2024" / "coffee.png")
    assert (first["rank"], first["verdict"], first["looked_at"]) == (1, "present", True)
    assert set(first) == {
        *("path", "rank", "score", "width", "height", "sees"),
        *("looked_at", "evidence", "alone", "verdict", "probability", "copies", "gone"),
    }


def test_paths_are_for_other_programs(home: Path, capfd):
    assert steer("search", "a coffee", "--threshold", "0.5", "--paths") == 0
    assert str(home / "photos" / "2024" / "coffee.png") in capfd.readouterr().out.splitlines()
    assert steer("search", "a coffee", "--threshold", "1", "--paths") == 1
    assert capfd.readouterr().out == ""
    assert steer("search", "a coffee", "--print0") == 0
    assert str(home / "photos" / "cat.jpg") in capfd.readouterr().out.split("\0")


def test_hits_whose_files_are_gone_are_marked_and_no_path_of_theirs_is_printed(tmp_path: Path, capfd):
    photos, place = tmp_path / "photos", tmp_path / "g"
    photos.mkdir()
    for name in ("cat", "coffee"):
        open_image(f"sample:{name}").save(photos / f"{name}.png")
    assert steer("index", photos, "--gallery", place, "--workers", "0", "--quiet") == 0
    (photos / "coffee.png").unlink()
    capfd.readouterr()
    assert steer("search", "a coffee", "--gallery", place) in (0, 1)
    out = capfd.readouterr().out
    assert "file is gone" in next(line for line in out.splitlines() if "coffee.png" in line)
    assert "1 hit whose file is gone; `steer index` of their folder forgets them" in out
    steer("search", "a coffee", "--gallery", place, "--paths")
    out, err = capfd.readouterr()
    assert out == f"{photos / 'cat.png'}\n"
    assert "1 hit whose file is gone; left out" in err
    steer("search", "a coffee", "--gallery", place, "--json")
    assert [hit["gone"] for hit in json.loads(capfd.readouterr().out)["hits"]] == [True, False]


def test_filters_terms_and_images_are_taken(home: Path, capsys):
    assert steer("search", "a coffee - a cat", "--where", "path LIKE '%/2024/%'", "--json") in (0, 1)
    answer = json.loads(capsys.readouterr().out)
    assert (answer["images"], answer["query"]) == (1, "a coffee - a cat")
    steer("search", "--query-image", home / "photos" / "cat.jpg", "--json", "--rerank", "0")
    answer = json.loads(capsys.readouterr().out)
    assert answer["looked_at"] == 0
    assert Path(answer["hits"][0]["path"]).name == "cat.jpg"


def found(capsys: pytest.CaptureFixture[str], *arguments: str | os.PathLike) -> dict:
    """The JSON of a search for a coffee, all of it, with the names of the files relative to the photos."""
    capsys.readouterr()
    assert steer("search", "a coffee", "--json", "--top", "50", *arguments) in (0, 1)
    return json.loads(capsys.readouterr().out)


def names(answer: dict) -> set[str]:
    return {Path(hit["path"]).name for hit in answer["hits"]}


def test_a_folder_is_searched_alone(home: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    photos = home / "photos"
    assert names(found(capsys, "--folder", photos)) == {"cat.jpg", "coffee.png", "both.webp"}
    for folder in (photos / "2024", f"{photos}/2024/", f"{photos}/../photos/2024//"):
        answer = found(capsys, "--folder", folder)
        assert (answer["images"], names(answer)) == (1, {"coffee.png"})
    monkeypatch.chdir(photos)
    assert names(found(capsys, "--folder", "2024")) == {"coffee.png"}
    assert names(found(capsys, "--folder", "..", "--where", "width < 600")) == {"cat.jpg"}
    assert names(found(capsys, "--folder", "2024", "--folder", ".", "--where", "width > 500 OR width < 3")) == {
        "coffee.png",
        "both.webp",
    }
    assert names(found(capsys, "--folder", ".", "--where", "width > 500 -- all but the cat")) == {
        "coffee.png",
        "both.webp",
    }
    assert steer("search", "--query-image", "cat.jpg", "--folder", "2024", "--json") in (0, 1)
    assert names(json.loads(capsys.readouterr().out)) == {"coffee.png"}


@pytest.mark.parametrize("missing", ["elsewhere", "photos/20", "photos/cat.jpg", "photos/2024/coffee.png/"])
def test_a_folder_without_an_image_of_the_gallery_is_wrong_usage(missing: str, home: Path, capsys):
    assert steer("search", "a coffee", "--folder", home / "photos", "--folder", f"{home}/{missing}") == 2
    out, err = capsys.readouterr()
    path = os.path.abspath(f"{home}/{missing}")
    assert out == ""
    assert err.splitlines()[-1] == (
        f"steer search: error: --folder: got '{home}/{missing}', expected a folder that holds images of the gallery; "
        f"none lies below {path}, and all of its files lie below {home}/photos"
    )


STRANGE_NAMES = ["o'k", "50%", "a_b", "axb", 'x"y', "ünï", "a\\b", "sp ace", "*", "\x1b[1m", "\udcff"]


def test_the_names_of_folders_are_taken_as_they_are(tmp_path: Path, capsys):
    photos = tmp_path / "photos"
    picture = tmp_path / "cat.png"
    open_image("sample:cat").save(picture)
    for name in STRANGE_NAMES:
        (photos / name / "in").mkdir(parents=True)
        (photos / f"{name}2").mkdir()
        shutil.copy(picture, photos / name / "in" / "cat.png")
        shutil.copy(picture, photos / f"{name}2" / "cat.png")
    assert steer("index", photos, "--gallery", tmp_path / "g", "--workers", "0", "--quiet") == 0
    for name in STRANGE_NAMES:
        answer = found(capsys, "--gallery", tmp_path / "g", "--rerank", "0", "--all", "--folder", photos / name)
        assert [hit["path"] for hit in answer["hits"]] == [str(photos / name / "in" / "cat.png")]


def test_the_answer_for_a_folder_is_that_of_a_gallery_of_its_own(tmp_path: Path, capsys):
    """The images that are drawn at random come from the folder, too."""
    photos = tmp_path / "photos"
    for folder, sample in (("cats", "cat"), ("cups", "coffee")):
        (photos / folder).mkdir(parents=True)
        picture = open_image(f"sample:{sample}")
        for number in range(12):
            picture.crop((number * 12, 0, number * 12 + 200, 280)).save(photos / folder / f"{number}.png")
    assert steer("index", photos, "--gallery", tmp_path / "g", "--workers", "0", "--quiet") == 0
    assert steer("index", photos / "cats", "--gallery", tmp_path / "cats", "--workers", "0", "--quiet") == 0
    few = ("--rerank", "2", "--all")  # two of the nearest, and some that are drawn
    inside = found(capsys, "--gallery", tmp_path / "g", "--folder", photos / "cats", *few)
    alone, everywhere = (found(capsys, "--gallery", tmp_path / name, *few) for name in ("cats", "g"))
    assert 2 < inside["looked_at"] < inside["images"] == 12
    assert {Path(hit["path"]).parent.name for hit in inside["hits"]} == {"cats"}
    for answer in (inside, alone):
        answer.pop("seconds")
    assert inside == alone
    assert everywhere["images"] == 24
    assert everywhere["prevalence"] != inside["prevalence"]


@pytest.mark.parametrize(
    "options", [("-0",), ("--paths", "-0"), ("--print0",), ("-0", "--paths"), ("--paths", "--print0")]
)
def test_a_zero_is_for_xargs(options: tuple[str, ...], home: Path, capfdbinary):
    assert steer("search", *options, "a coffee", "--top", "2") == 0
    paths = capfdbinary.readouterr().out.split(b"\0")
    assert paths[0] == os.fsencode(home / "photos" / "2024" / "coffee.png")
    assert (len(paths), paths[-1]) == (3, b"")


def test_a_query_may_begin_with_a_weight_or_a_dash_beside_the_zero(capsys):
    assert steer("search", "-1:a cat", "--json") in (0, 1)
    assert json.loads(capsys.readouterr().out)["query"] == "-1:a cat"
    assert steer("search", "-a cat", "-0", "--quiet") in (0, 1)


def test_csv_has_the_numbers_of_json_and_the_facts_of_the_files(home: Path, capfdbinary):
    assert steer("search", "a coffee", "--json", "--top", "2") == 0
    hits = json.loads(capfdbinary.readouterr().out)["hits"]
    assert steer("search", "a coffee", "--csv", "--top", "2") == 0
    out, err = capfdbinary.readouterr()
    assert (out.count(b"\r\n"), out.count(b"\n"), err) == (3, 3, b"")
    header, *lines = out.decode().split("\r\n")
    assert header == (
        "path,rank,verdict,alone,probability,evidence,score,looked_at,width,height,sees,size,modified,sha256,copies,gone"
    )
    assert lines[-1] == ""
    for row, hit in zip(csv.DictReader(io.StringIO(out.decode(), newline="")), hits, strict=True):
        for key in ("rank", "alone", "probability", "evidence", "score", "width", "height"):
            assert float(row[key]) == hit[key]
        for key in ("path", "verdict", "sees"):
            assert row[key] == hit[key]
        assert (row["looked_at"], row["gone"], row["copies"]) == ("true", "false", "0")
        content = Path(hit["path"]).read_bytes()
        assert (int(row["size"]), row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        seconds = datetime.fromisoformat(row["modified"]).timestamp()
        assert abs(seconds - os.stat(hit["path"]).st_mtime) < 2e-6


def test_csv_quotes_what_needs_it_and_leaves_empty_what_is_unknown(tmp_path: Path, capfdbinary):
    photos = tmp_path / "photos"
    photos.mkdir()
    paths = [photos / name for name in ('a,"b".png', "line\nbreak.png", "\udcff.png")]
    for number, path in enumerate(paths):
        open_image("sample:cat").crop((0, 0, 200 + 50 * number, 200)).save(path)
    assert steer("index", photos, "--gallery", tmp_path / "g", "--workers", "0", "--quiet") == 0
    capfdbinary.readouterr()
    assert steer("search", "a cat", "--gallery", tmp_path / "g", "--csv", "--rerank", "0") == 0
    out = os.fsdecode(capfdbinary.readouterr().out)
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    assert {row["path"] for row in rows} == set(map(str, paths))
    assert {(row["verdict"], row["alone"], row["probability"], row["looked_at"]) for row in rows} == {
        ("", "", "", "false")
    }
    assert steer("search", "a person", "--gallery", tmp_path / "g", "--csv") == 3
    out, err = capfdbinary.readouterr()
    assert out.count(b"\r\n") == 1
    assert NO_EYES.encode() in err


def test_several_images_are_one_goal_as_in_a_query(home: Path, capsys):
    cat, cup = home / "photos" / "cat.jpg", home / "photos" / "2024" / "coffee.png"
    assert steer("search", "--query-image", cat, "--query-image", cup, "--json") in (0, 1)
    images = json.loads(capsys.readouterr().out)
    assert steer("search", f"image:{cat} + image:{cup}", "--json") in (0, 1)
    words = json.loads(capsys.readouterr().out)
    for answer in (images, words):
        answer.pop("seconds")
    assert images == words
    assert Path(images["hits"][0]["path"]).name == "both.webp"
    assert steer("search", "--query-image", cat, "--query-image", home / "no.jpg") == 2
    assert "no.jpg: no such file" in capsys.readouterr().err


def test_an_image_whose_name_looks_like_arithmetic_is_taken(home: Path, tmp_path: Path, capsys):
    for name in ("a + b.jpg", "c - d.jpg"):
        shutil.copy(home / "photos" / "cat.jpg", tmp_path / name)
    line = ("--query-image", tmp_path / "a + b.jpg", "--query-image", tmp_path / "c - d.jpg")
    assert steer("search", *line, "--json") in (0, 1)
    assert Path(json.loads(capsys.readouterr().out)["hits"][0]["path"]).name == "cat.jpg"


def test_the_contact_sheet_is_drawn(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    sheet = tmp_path / "sheet.png"
    assert steer("search", "a coffee", "--contact-sheet", sheet, "--open") == 0
    assert opened == [sheet.as_uri()]
    with Image.open(sheet) as picture:
        assert picture.width > 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search"], "expected one thing to look for"),
        (["search", "a", "dog"], 'put the words in quotes: steer search "a dog"'),
        (["search", "a cat", "--query-image", "x.jpg"], "expected one thing to look for"),
        (["search", "a cat", "--gallery", "/nowhere/at/all"], "no gallery there; `steer index FOLDER"),
        (["search", "a cat", "--where", "widht > 3"], "--where"),
        (["search", "a cat", "--threshold", "7"], "--threshold: got '7'; expected a probability"),
        (["search", "a cat", "--top", "0"], "expected a whole number from 1 to 1,000,000,000"),
        (["search", "a cat", "--top", "99999999999999999999"], "expected a whole number from 1"),
        (["search", "--query-image", ""], "no such file"),
        (["search", "cat + - dog"], "a term is empty"),
        (["search", "--query-image", "nowhere.jpg"], "nowhere.jpg: no such file"),
        (["search", "a cat", "--contact-sheet", "/nowhere/x.png"], "no such folder"),
        (["search", "a cat", "--csv", "--json"], "got --json and --csv, expected one of them"),
        (["search", "a cat", "--csv", "-0"], "got --paths and --csv, expected one of them"),
        (["search", "a cat", "--json", "--paths"], "got --json and --paths, expected one of them"),
        (["search", "a cat", "--folder", ""], "--folder: got '', expected a folder that holds images of the gallery"),
        (["search", "a cat", "--folder", ".", "--where", "widht > 3"], "--where: got 'widht > 3'"),
        (["index"], "the following arguments are required: FOLDER"),
        (["index", "phtos"], "phtos: no such file or folder"),
        (["index", ".", "--address", "auto"], "--address: expected --engine ray"),
        (["index", ".", "--gallery", "/proc/nowhere"], "a gallery cannot be made there"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments: list[str], message: str, capsys):
    assert steer(*arguments) == 2
    assert message in capsys.readouterr().err


def test_help_shows_examples_at_once():
    for name in ("index", "search", "evaluate"):
        line = [sys.executable, "-X", "importtime", str(ROOT / "steer_cli.py"), name, "--help"]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        assert "examples:" in done.stdout
        assert "torch" not in done.stderr
        assert "lance" not in done.stderr


def test_help_works_where_the_default_gallery_has_a_percent_sign(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv(GALLERY_VARIABLE, "/tmp/50%s off")
    for name in ("index", "search"):
        assert steer(name, "--help") == 0
        assert "/tmp/50%s off" in " ".join(capsys.readouterr().out.split())


def test_errors_of_the_library_speak_of_options():
    parser = search.make_parser()
    assert parser.translate("rerank: got -1, expected more") == "--rerank: got -1, expected more"
    assert parser.translate("query_image: got 3") == "--query-image: got 3"
    assert parser.translate("colour: got red") == "colour: got red"
    assert parser.translate("gallery: no such file or folder") == "gallery: no such file or folder"  # a folder's name
    assert (
        parser.translate("top: got 3 with `rerank` 0, see `nothing`") == "--top: got 3 with --rerank 0, see `nothing`"
    )
    assert parser.translate("failed before (json=True tells more)") == "failed before (--json tells more)"
    assert parser.translate("x.jpg: no such file") == "x.jpg: no such file"


def test_a_reader_that_goes_away_is_no_defect():
    line = [sys.executable, str(ROOT / "steer_cli.py"), "search", "a coffee"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 141
    assert "Traceback" not in errors


def test_a_defect_has_an_exit_code_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(search, "run", lambda arguments: [][0])
    assert steer("search", "a cat") == 70
    assert "IndexError" in capsys.readouterr().err


def test_an_interrupt_keeps_what_was_done(home: Path, tmp_path: Path):
    for number in range(400):
        open_image("sample:cat").crop((number % 90, 0, 300, 200)).save(tmp_path / f"{number}.png")
    line = [
        sys.executable,
        str(ROOT / "steer_cli.py"),
        "index",
        str(tmp_path),
        "--gallery",
        str(tmp_path / "g"),
        "--json",
    ]
    code = "import sys, steer_cli, steering.search.indexing as i; i.COMMIT_ROWS = 1; "
    code += "sys.exit(steer_cli.main(sys.argv[1:]))"
    process = subprocess.Popen(
        [line[0], "-c", code, *line[2:]],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    from steering.errors import GalleryError
    from steering.search.store import Store

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if Store.open(tmp_path / "g").count():
                break
        except GalleryError:
            pass
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert err.decode().endswith("steer: interrupted\n")
    assert 0 < Store.open(tmp_path / "g").count() < 400
