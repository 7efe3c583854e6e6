"""`steer index` and `steer search` as a user types them, against the embedded model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import steer_cli
from steering.commands import search
from steering.commands.options import GALLERY_VARIABLE
from steering.goals import Goal
from steering.images import open_image
from steering.search.hits import Hit, Hits
from steering.search.odds import Prevalence

ROOT = Path(__file__).resolve().parent.parent


def steer(*arguments: str | os.PathLike) -> int:
    try:
        return steer_cli.main([os.fspath(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


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
