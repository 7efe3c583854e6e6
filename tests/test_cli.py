"""`steer` as a user types it, against the embedded model: what is printed, what is written, which exit code."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import steering
from steering.catalogue import DEFAULT_MODEL, MODEL_VARIABLE
from steering.commands import COMMANDS
from steering.images import open_image
from tests.commands import steer

KEYS = ["image", "query", "model", "prior", "verdict", "probability", "evidence"]
KEYS += ["goal", "before", "after", "seconds", "notes", "nearest"]
ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "steer_cli.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def objects(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    open_image("sample:coffee").save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


# what it answers


def test_a_sample_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert steer("--query", "a cat", "sample:cat") == 0
    out, err = capsys.readouterr()
    assert 'sample:cat · "a cat"' in out
    assert "before" in out
    assert "after" in out
    assert any(verdict in out for verdict in ("PRESENT", "ABSENT", "UNSURE"))
    assert err == ""


def test_json_is_one_object_a_line_with_the_documented_keys(capsys: pytest.CaptureFixture[str], photo: Path) -> None:
    images, queries = ["sample:cat", str(photo)], ["a cat", "an espresso"]
    assert steer("--json", "--top", "3", "-q", queries[0], *images, "-q", queries[1]) == 0
    answers = objects(capsys.readouterr().out)
    assert [(a["image"], a["query"]) for a in answers] == [(i, q) for i in images for q in queries]
    for answer in answers:
        assert list(answer) == KEYS
        assert answer["verdict"] in ("present", "absent", "unsure")
        assert 0 <= answer["probability"] <= 1
        assert len(answer["before"]) == len(answer["after"]) == 3
        probabilities = [entry["probability"] for entry in answer["after"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert answer["seconds"] > 0


def test_before_does_not_depend_on_the_query_and_after_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert steer("--json", "-q", "a cat", "-q", "an espresso", "sample:cat+coffee") == 0
    cat, espresso = objects(capsys.readouterr().out)
    assert cat["before"] == espresso["before"]
    assert cat["after"] != espresso["after"]


def test_goals_need_no_words(capsys: pytest.CaptureFixture[str], photo: Path) -> None:
    arguments = ["--prototype", "tabby", "--query-image", str(photo), "sample:cat", "--json"]
    assert steer(*arguments, "--prior", "class-names", "-q", "a cat") == 0
    answers = objects(capsys.readouterr().out)
    assert [(a["query"], a["prior"]) for a in answers] == [
        ("a cat", "class-names"),
        ("tabby", "prototype"),
        (str(photo), "image"),
    ]
    assert all(a["verdict"] in ("present", "absent", "unsure") for a in answers)


def test_the_only_query_being_unknown_has_an_exit_code_of_its_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert steer("--json", "-q", "a person", "sample:cat", "sample:coffee", "-o", tmp_path) == 3
    answers = objects(capsys.readouterr().out)
    assert [(a["verdict"], a["probability"], len(a["nearest"])) for a in answers] == [("unknown", None, 3)] * 2
    assert all(Path(a["picture"]).is_file() for a in answers)
    assert steer("-q", "a cat - a person", "sample:cat") == 3
    out, err = capsys.readouterr()
    assert "  UNKNOWN · evidence" in out
    assert "; the nearest are “" in out
    assert err == ""
    assert steer("-q", "a person", "-q", "a cat", "sample:cat") == 0
    assert steer("-q", "a person", "sample:cat", "sample:nothing") == 1
    assert steer("-q", "a person", "sample:nothing", "sample:cat") == 1


def test_same_seed_same_answer(capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for _ in range(2):
        assert steer("--json", "--seed", "7", "-q", "a cat", "sample:cat") == 0
        (answer,) = objects(capsys.readouterr().out)
        answers.append({key: value for key, value in answer.items() if key != "seconds"})
    assert answers[0] == answers[1]


def test_strength_zero_cannot_steer_and_pairs_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert steer("--json", "--strength", "0", "-q", "a cat", "-q", "an espresso", "sample:cat+coffee") == 0
    cat, espresso = objects(capsys.readouterr().out)
    assert cat["after"] == espresso["after"]
    assert steer("--json", "--strength", "0.5,1.5", "--passes", "3", "-q", "a cat", "sample:cat+coffee") == 0
    assert objects(capsys.readouterr().out)[0]["after"] != cat["after"]


def test_output_writes_a_picture_for_each_image_and_query(tmp_path: Path, photo: Path) -> None:
    folder = tmp_path / "new" / "looks"
    twin = tmp_path / "twin"
    twin.mkdir()
    Image.open(photo).save(twin / "photo.jpg")
    assert steer("-q", "a/cat?", "-q", "an espresso", photo, twin, "sample:cat|coffee", "-o", folder, "--json") == 0
    written = sorted(path.name for path in folder.iterdir())
    assert written == [
        *("photo--a-cat-2.png", "photo--a-cat.png", "photo--an-espresso-2.png", "photo--an-espresso.png"),
        *("sample-cat-coffee--a-cat.png", "sample-cat-coffee--an-espresso.png"),
    ]
    for path in folder.iterdir():
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 20


def test_picture_names_fit_any_file_system(tmp_path: Path) -> None:
    assert steer("-q", "猫" * 3 + " " + "é" * 8, "sample:cat", "-o", tmp_path) == 3
    long_name = tmp_path / ("x" * 200 + ".png")
    Image.new("RGB", (8, 8)).save(long_name)
    assert steer("-q", "a cat", long_name, "-o", tmp_path / "looks") == 0
    (path,) = (tmp_path / "looks").iterdir()
    assert path.name == "x" * 100 + "--a-cat.png"


def test_a_picture_has_a_name_even_where_the_query_gives_none(tmp_path: Path, toy: "steering.Steerer") -> None:
    from steering.commands.look import Pictures

    look = dataclasses.replace(toy.look("sample:cat", "a cat"), image="..", query="..")
    assert Pictures(str(tmp_path)).path(look) == str(tmp_path / "image--query.png")


def test_class_names_are_listed(capsys: pytest.CaptureFixture[str], steerer: object) -> None:
    assert steer("--list-classes") == 0
    assert tuple(capsys.readouterr().out.splitlines()) == steerer.class_names  # type: ignore[attr-defined]


def test_help_is_a_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert steer("help") == 0
    assert "steer --query" in capsys.readouterr().out
    assert steer("help", "search") == 0
    assert "Search a gallery" in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_every_command_tells_the_version(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("-V", "--version"):
        assert steer(*command, option) == 0
        assert capsys.readouterr().out == f"steer {steering.__version__}\n"


def test_a_misspelt_command_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert steer("serach", "a dog") == 2
    assert "'serach' is no command and no file; did you mean `steer search`?" in capsys.readouterr().err
    assert steer("photo.jpg") == 2
    assert 'nothing to look for: add --query "a dog"' in capsys.readouterr().err


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "steering", "--version"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == f"steer {steering.__version__}\n"


def test_version_is_the_package_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert steer("--version") == 0
    assert capsys.readouterr().out == f"steer {steering.__version__}\n"


# images that fail, while the others go on


def test_failed_images_are_named_and_the_others_go_on(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, letter, half = tmp_path / "empty.jpg", tmp_path / "letter.png", tmp_path / "half.jpg"
    empty.touch()
    letter.write_text("Dear network")
    half.write_bytes(photo.read_bytes()[:5000])
    gone = tmp_path / "gone\nagain.jpg"
    assert steer("--json", "-q", "a cup", gone, empty, "sample:dog", letter, half, photo) == 1
    out, err = capsys.readouterr()
    assert [answer["image"] for answer in objects(out)] == [str(photo)]
    lines = err.splitlines()
    assert len(lines) == 5
    for line, name in zip(
        lines, ("gone\\nagain.jpg", "empty.jpg", "sample:dog", "letter.png", "half.jpg"), strict=True
    ):
        assert line.startswith("steer: ")
        assert name in line


def test_an_animation_is_looked_at_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert steer("--json", "-q", "a cat", tmp_path / "moving.gif") == 0
    assert "moving.gif: has several frames: the first is used" in capsys.readouterr().err
    assert steer("--json", "--quiet", "-q", "a cat", tmp_path / "moving.gif") == 0
    assert capsys.readouterr().err == ""


def test_names_that_are_not_utf8_give_valid_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9\n.png")))
    try:
        Image.new("RGB", (8, 8)).save(path)
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert steer("--json", "-q", "a cat", tmp_path, "-o", tmp_path / "looks") == 0
    (answer,) = objects(capsys.readouterr().out)
    assert answer["image"].endswith("caf\\xe9\\n.png")
    assert answer["image"].encode("utf-8")


def test_a_picture_that_cannot_be_written_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sample-cat--a-cat.png").mkdir()
    assert steer("--json", "-q", "a cat", "sample:cat", "-o", tmp_path) == 1
    out, err = capsys.readouterr()
    assert len(objects(out)) == 1
    assert "sample-cat--a-cat.png: not written" in err


# wrong usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to look for"),
        (["sample:cat"], "nothing to look for"),
        (["-q", "a cat"], "no images"),
        (["--prototype", "teapots", "sample:cat"], "choices: teapot"),
        (["--query-image", "nothing.jpg", "sample:cat"], "nothing.jpg"),
        (["-q", "a cat", "sample:cat", "--prior", "ridge"], "choices: diffusion, class-names"),
        (["-q", "a cat", "sample:cat", "--text", "ViT-B-16:openai"], "has its own text encoder"),
        (["-q", "  ", "sample:cat"], "got an empty query"),
        (["-q", "word " * 300, "sample:cat"], "token"),
        (["-q", "a cat", "sample:cat", "--model", "nobody"], f"or one of {DEFAULT_MODEL}"),
        (["-q", "a cat", "sample:cat", "--device", "toaster"], "toaster"),
        (["-q", "a cat", "sample:cat", "--top", "0"], "from 1 to"),
        (["-q", "a cat", "sample:cat", "--passes", "1"], "from 2 to 100"),
        (["-q", "a cat", "sample:cat", "--seed", "-1"], "--seed"),
        (["-q", "a cat", "sample:cat", "--strength", "strong"], "got 'strong'; expected a number"),
        (["-q", "a cat", "sample:cat", "--strength", "1,2,3"], "got '1,2,3'"),
        (["-q", "a cat", "sample:cat", "--strength", "nan"], "got 'nan'"),
        (["-q", "a cat", "sample:cat", "--strenght", "1"], "--strenght"),
        (["-q", "a cat", "nothing-*.jpg"], "nothing-*.jpg: this pattern matches nothing"),
        (["-q", "a cat", "sample:cat", "--output", __file__], "--output"),
    ],
)
def test_wrong_usage_exits_2_with_one_clear_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert steer(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_bad_query_is_told_before_any_image_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert steer("--json", "-q", "a cat", "-q", "word " * 300, "sample:cat") == 2
    assert capsys.readouterr().out == ""


# as a process of its own


def test_help_shows_examples_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, steer_cli\n"
        "try: steer_cli.main(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'PIL', 'matplotlib', 'tqdm', 'lance', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert 'steer --query "a cat" sample:cat' in done.stdout
    assert "3 the network has no eyes for the only query" in done.stdout


def test_it_runs_from_another_folder_without_a_word_on_stderr(tmp_path: Path) -> None:
    done = run("-q", "a cat", "sample:cat", "sample:coffee", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count('"a cat"') == 2


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals and pipes")
def test_an_interrupt_and_a_closed_pipe_end_without_a_traceback() -> None:
    images = ["sample:cat", *(f"missing-{i}.jpg" for i in range(3000)), "sample:coffee"]
    command = [sys.executable, str(ROOT / "steer_cli.py"), "-q", "a cat", *images]
    for interrupt, code in ((True, 130), (False, 141)):
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()  # the first look is taken; the next errors fill their pipe, and wait
            if interrupt:
                process.send_signal(signal.SIGINT)
            else:
                process.stdout.close()
            errors = process.stderr.read()
        assert process.returncode == code
        assert "Traceback" not in errors


# what users met


@pytest.mark.parametrize("query", ["-a dog", "-dog", "-1:a cat", "-owl", "-quail", "-horse", "- a cat"])
@pytest.mark.parametrize("option", ["-q", "--query"])
def test_a_query_may_begin_with_a_dash(query: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = steer("--json", option, query, "sample:cat")
    (answer,) = objects(capsys.readouterr().out)
    assert answer["query"] == query
    assert code == (3 if answer["verdict"] == "unknown" else 0)


@pytest.mark.parametrize("query", ["-a dog", "-dog", "-1:a cat", "-horse", "-Very large dog"])
def test_a_query_of_a_search_may_begin_with_a_dash(query: str) -> None:
    from steering.commands.search import make_parser

    assert make_parser().parse_args(["--top", "3", query, "--all"]).query == [query]
    assert make_parser().parse_args(["--", query]).query == [query]


def test_dashes_that_belong_to_options_stay_options(capsys: pytest.CaptureFixture[str]) -> None:
    from steering.commands.look import make_parser

    given = make_parser().parse_intermixed_args(["-ofolder", "-q", "a dog", "x.jpg", "--seed", "5", "-qa cat"])
    assert (given.output, given.queries, given.images, given.seed) == ("folder", ["a dog", "a cat"], ["x.jpg"], 5)
    assert steer("sample:cat", "--query", "--dogs") == 2
    assert "a value that begins with dashes is joined to its option: --query=VALUE" in capsys.readouterr().err
    assert steer("sample:cat", "--query", "--json") == 2
    assert "expected one argument" in capsys.readouterr().err
    assert make_parser().parse_intermixed_args(["--query=--dogs", "x.jpg"]).queries == ["--dogs"]


def test_a_picture_of_another_image_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "looks"
    for name, sample in (("a", "sample:cat"), ("b", "sample:coffee")):
        (tmp_path / name).mkdir()
        open_image(sample).save(tmp_path / name / "img.jpg")
    written = []
    for name in ("a", "b", "b", "a"):
        assert steer("--json", "-q", "a dog", tmp_path / name / "img.jpg", "-o", folder) == 0
        written.append(objects(capsys.readouterr().out)[0]["picture"])
    first, second = str(folder / "img--a-dog.png"), str(folder / "img--a-dog-2.png")
    assert written == [first, second, second, first]
    assert sorted(map(str, folder.iterdir())) == sorted([first, second])
    assert str(tmp_path).encode() not in Path(first).read_bytes()  # where the image is, is nobody's business
    mine = folder / "sample-cat--a-dog.png"
    mine.write_bytes(b"not a picture of ours")
    assert steer("-q", "a dog", "sample:cat", "-o", folder) == 0
    assert f"picture: {folder / 'sample-cat--a-dog-2.png'}" in capsys.readouterr().out
    assert mine.read_bytes() == b"not a picture of ours"


def test_a_class_that_does_not_exist_tells_what_is_near_and_how_to_list_all(
    capsys: pytest.CaptureFixture[str], toy_folder: Path
) -> None:
    assert steer("--prototype", "teapots", "sample:cat") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--prototype: got 'teapots'" in error
    assert "choices: teapot" in error
    assert "steer --list-classes" in error
    assert steer("--model", toy_folder, "--prototype", "zebra", "sample:cat") == 2
    assert f"steer --model {toy_folder} --list-classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "count", "name"), [([], 200, "teapot"), (["--model", "alexnet_lrm3"], 1000, "tench")]
)
def test_classes_are_listed_without_torch(options: list[str], count: int, name: str) -> None:
    code = (
        "import sys, steer_cli\n"
        f"assert steer_cli.main({[*options, '--list-classes']}) == 0\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'PIL', 'open_clip'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == count
    assert name in done.stdout.splitlines()


def test_the_variable_chooses_the_model_and_a_wrong_one_is_named(
    capsys: pytest.CaptureFixture[str], toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODEL_VARIABLE, str(toy_folder))
    assert steer("--json", "-q", "a cat", "sample:cat") == 0
    assert objects(capsys.readouterr().out)[0]["model"] == "toy"
    assert steer("--prototype", "zebra", "sample:cat") == 2
    assert "(all names: steer --list-classes)" in capsys.readouterr().err
    monkeypatch.setenv(MODEL_VARIABLE, "nobody")
    for arguments in (["-q", "a cat", "sample:cat"], ["--list-classes"], ["index", str(toy_folder)]):
        assert steer(*arguments) == 2
        assert "error: $STEER_MODEL: got 'nobody', expected a folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["index"], ["search"], ["evaluate"]])
def test_help_tells_the_default_model(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert steer(*command, "--help") == 0
    assert f"(default: $STEER_MODEL, or {DEFAULT_MODEL})" in " ".join(capsys.readouterr().out.split())


def test_the_listed_classes_are_those_of_the_models(capsys: pytest.CaptureFixture[str], toy_folder: Path) -> None:
    from lrm_base.imagenet import imagenet_names
    from lrm_core.published_backbones import WEIGHTS
    from steering.catalogue import PUBLISHED_MODELS, class_names

    assert tuple(WEIGHTS) == PUBLISHED_MODELS
    assert class_names("alexnet_lrm1") == imagenet_names()
    assert class_names(toy_folder)[:2] == ("cat", "beagle")
    assert steer("--model", "nobody", "--list-classes") == 2
    assert "--model: got 'nobody', expected a folder" in capsys.readouterr().err


def test_half_precision_answers_alike(capsys: pytest.CaptureFixture[str]) -> None:
    chances = []
    for dtype in ("float32", "bfloat16"):
        assert steer("--json", "--dtype", dtype, "-q", "a cat", "sample:cat") == 0
        chances.append(objects(capsys.readouterr().out)[0]["probability"])
    assert abs(chances[0] - chances[1]) <= 0.02
    assert steer("--dtype", "int8", "-q", "a cat", "sample:cat") == 2
    assert "bfloat16" in capsys.readouterr().err


def test_a_missing_package_is_told_with_a_command_that_installs_it_here(capsys: pytest.CaptureFixture[str]) -> None:
    from lrm_base.extras import install_command
    from steering.commands.index import make_parser

    with pytest.raises(SystemExit), make_parser().usage_errors(extra="ray"):
        raise ModuleNotFoundError("No module named 'ray'")
    assert capsys.readouterr().err.rstrip().endswith(f"this command needs more packages: {install_command('ray')}")
