"""`steer search --preview`: what is written for a terminal is decoded again, and compared with the picture."""

import base64
import io
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steering.commands import terminal
from steering.commands.drawing import drawn
from steering.commands.options import GALLERY_VARIABLE
from steering.commands.terminal import Screen, chosen
from steering.images import open_image
from steering.search.thumbnails import fitted
from tests.commands import steer

ROOT = Path(__file__).resolve().parent.parent
LEVELS = (0, 95, 135, 175, 215, 255)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cat and a cup of coffee, and its gallery, which keeps no pixels: the files are shown."""
    home = tmp_path_factory.mktemp("home")
    (home / "photos").mkdir()
    for name in ("cat", "coffee"):
        open_image(f"sample:{name}").save(home / "photos" / f"{name}.png")
    line = ("index", home / "photos", "--quiet", "--workers", "0", "--gallery", home / "gallery", "--keep", "nothing")
    assert steer(*line) == 0
    return home


@pytest.fixture(autouse=True)
def _environment(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(GALLERY_VARIABLE, str(home / "gallery"))
    for name in ("TERM", "TERM_PROGRAM", "KITTY_WINDOW_ID", "COLORTERM", "LC_TERMINAL", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def shown(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What a search for a coffee writes for its first hit, below the hit's line."""
    capsys.readouterr()
    assert steer("search", "a coffee", "--top", "1", *options) == 0
    out = capsys.readouterr().out
    head, _, picture = out.partition("coffee.png  (600×400, sees espresso)\n")
    assert "“a coffee”: present (2 images" in head
    return picture


def expected(protocol: str) -> np.ndarray:
    """The coffee as it fits into the screen of 80 × 24."""
    cell = (1, 2) if protocol == "blocks" else (10, 20)
    box = terminal.MOST_COLUMNS * cell[0], 12 * cell[1]
    picture = open_image("sample:coffee")
    return np.asarray(picture.resize(fitted(picture.size, box), Image.Resampling.LANCZOS, reducing_gap=3.0))


def kitty(text: str) -> np.ndarray:
    """The picture in sequences of Kitty's graphics protocol."""
    sequences = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    keys = [dict(pair.split("=") for pair in head.split(",")) for head, _ in sequences]
    assert (keys[0]["a"], keys[0]["f"], keys[0]["q"], keys[0]["r"]) == ("T", "100", "2", "12")
    assert [key["m"] for key in keys] == ["1"] * (len(keys) - 1) + ["0"]
    assert {tuple(key) for key in keys[1:]} == {("q", "m")}
    assert max(len(data) for _, data in sequences) <= 4096
    assert all(len(data) % 4 == 0 for _, data in sequences)
    return png(base64.b64decode("".join(data for _, data in sequences), validate=True))


def iterm(text: str) -> np.ndarray:
    """The picture in an inline image of iTerm2."""
    match = re.fullmatch(
        r" *\x1b\]1337;File=inline=1;size=(\d+);height=12;preserveAspectRatio=1:([^\x07]*)\x07\n", text
    )
    assert match is not None
    data = base64.b64decode(match[2], validate=True)
    assert len(data) == int(match[1])
    return png(data)


def png(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture)


def sixel(text: str) -> np.ndarray:
    """The picture in sixels. No pixel may be painted twice or left out."""
    match = re.search(r'\x1bP0;1q"1;1;(\d+);(\d+)(.*)\x1b\\', text)
    assert match is not None
    wide, high = int(match[1]), int(match[2])
    pixels, painted = np.zeros((high, wide, 3)), np.zeros((high, wide), int)
    palette: dict[int, list[float]] = {}
    x = y = colour = 0
    for define, select_, count, run, plain, move in re.findall(
        r"#(\d+;2;\d+;\d+;\d+)|#(\d+)|!(\d+)([?-~])|([?-~])|([$-])", match[3]
    ):
        if define:
            number, _, *percent = map(int, define.split(";"))
            palette[number] = [part * 2.55 for part in percent]
        elif select_:
            colour = int(select_)
        elif move:
            x, y = 0, y + (6 if move == "-" else 0)
        else:
            columns = slice(x, x + int(count or 1))
            for bit in range(6):
                if (ord(run or plain) - 63) >> bit & 1:
                    pixels[y + bit, columns] = palette[colour]
                    painted[y + bit, columns] += 1
            x = columns.stop
    assert painted.min() == painted.max() == 1
    return pixels


def blocks(text: str) -> np.ndarray:
    """The picture in half blocks."""
    rows: list[list[tuple[int, ...]]] = []
    for line in text.rstrip("\n").split("\n"):
        assert line.endswith("\x1b[0m")
        upper, lower = [], []
        above = below = ()
        for style, character in re.findall(r"\x1b\[([\d;]*)m|(▀)", line):
            if character:
                upper.append(above)
                lower.append(below)
            else:
                numbers = [int(number) for number in style.split(";")]
                above, below = colour_of(numbers, 38), colour_of(numbers, 48)
        rows += [upper, *([lower] if any(lower) else [])]
    return np.array(rows)


def colour_of(numbers: list[int], ground: int) -> tuple[int, ...]:
    """The colour that a sequence of numbers sets for the foreground (38) or background (48)."""
    colours, rest = {}, list(numbers)
    while len(rest) > 1:
        length = 5 if rest[1] == 2 else 3
        colours[rest[0]], rest = rest[2:length], rest[length:]
    parts = colours.get(ground, [])
    if len(parts) != 1:
        return tuple(parts)
    code = parts[0] - 16
    return (
        (8 + 10 * (code - 216),) * 3 if code >= 216 else (LEVELS[code // 36], LEVELS[code // 6 % 6], LEVELS[code % 6])
    )


@pytest.mark.parametrize(("protocol", "decode"), [("kitty", kitty), ("iterm", iterm)])
def test_what_kitty_and_iterm_get_is_a_png_of_the_picture(protocol: str, decode: Callable, capsys):
    assert np.array_equal(decode(shown(capsys, "--preview", protocol)), expected(protocol))


def test_sixels_are_the_picture_in_a_palette(capsys):
    got, wanted = sixel(shown(capsys, "--preview=sixel")), expected("sixel")
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).mean() < 6


def test_blocks_have_the_colours_of_the_thumbnail(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLORTERM", "truecolor")
    assert np.array_equal(blocks(shown(capsys, "--preview", "blocks")), expected("blocks"))


def test_blocks_have_the_nearest_of_256_colours_where_there_are_no_more(capsys):
    text = shown(capsys, "--preview", "blocks")
    assert "8;2;" not in text
    greys = [(8 + 10 * step,) * 3 for step in range(24)]
    palette = np.array([(r, g, b) for r in LEVELS for g in LEVELS for b in LEVELS] + greys)
    distances = lambda pixels: ((pixels[:, :, None].astype(int) - palette) ** 2).sum(-1).min(-1)  # noqa: E731
    got, wanted = blocks(text), expected("blocks")
    assert got.shape == wanted.shape
    assert np.array_equal(((got - wanted.astype(int)) ** 2).sum(-1), distances(wanted))


@pytest.mark.parametrize(("wide", "high"), [(1, 1), (7, 13), (64, 6), (5, 12)])
def test_pictures_of_any_size_survive(wide: int, high: int):
    pixels = np.random.default_rng(0).integers(0, 256, (high, wide, 3), np.uint8)
    picture = Image.fromarray(pixels)
    assert np.array_equal(blocks(drawn(picture, Screen("blocks", (1, 2)))), pixels)
    assert sixel(drawn(picture, Screen("sixel"))).shape == pixels.shape


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1", "COLORTERM": "truecolor"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app", "LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "foot", "KITTY_WINDOW_ID": "1"}, "sixel"),
        ({"TERM": "xterm-sixel"}, "sixel"),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "tmux", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({"TERM": "screen-256color", "LC_TERMINAL": "iTerm2"}, "blocks"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "tmux", "LC_TERMINAL": "iTerm2"}, "blocks"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, "blocks"),
        ({"TERM": "linux"}, "blocks"),
    ],
)
def test_the_environment_tells_what_a_terminal_shows(environment: dict[str, str], protocol: str):
    assert chosen(environment) == protocol


def test_without_a_terminal_a_protocol_must_be_named(capsys):
    assert steer("search", "a coffee", "--preview") == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == (
        "steer search: error: --preview: got an output that is no terminal, expected a terminal or a protocol by its "
        "name: kitty, iterm, sixel, blocks"
    )
    assert steer("search", "a coffee", "--preview=kity") == 2
    assert "invalid choice: 'kity'" in capsys.readouterr().err


def test_a_picture_has_its_place_in_no_form_for_programs(capsys):
    for form in ("--json", "--csv", "--paths", "-0"):
        assert steer("search", "a coffee", "--preview", "blocks", form) == 2
        assert "and --preview, expected one of them" in capsys.readouterr().err


def test_the_word_after_preview_is_the_query_unless_it_is_a_protocol(capsys):
    assert steer("search", "--preview", "blocks", "a coffee") == 0
    assert steer("search", "--preview=blocks", "kitty") == 1
    assert "“kitty”" in capsys.readouterr().out
    assert steer("search", "--preview", "a coffee") == 2
    assert "no terminal" in capsys.readouterr().err  # the query was understood


def test_images_can_be_looked_for_with_pictures_too(home: Path, capsys):
    steer("search", "--query-image", home / "photos" / "coffee.png", "--preview", "kitty", "--top", "2")
    out = capsys.readouterr().out
    assert out.count("\x1b_Ga=T") == 2
    assert np.array_equal(kitty(out[: out.index("  2  ")]), expected("kitty"))


def test_a_hit_whose_file_is_gone_is_shown_by_its_stored_pixels(tmp_path: Path, capsys):
    (tmp_path / "photos").mkdir()
    for name in ("coffee", "cat"):
        open_image(f"sample:{name}").save(tmp_path / "photos" / f"{name}.png")
    for keep in ("pixels", "nothing"):
        assert steer("index", tmp_path / "photos", "--gallery", tmp_path / keep, "--keep", keep, "--workers", "0") == 0
    (tmp_path / "photos" / "coffee.png").unlink()
    gone = ("--where", "path LIKE '%coffee%'", "--preview", "kitty", "--rerank", "0")
    capsys.readouterr()
    steer("search", "a coffee", "--gallery", tmp_path / "pixels", *gone)
    got, wanted = kitty(capsys.readouterr().out), expected("kitty")
    assert got.shape == wanted.shape
    assert 0 < np.abs(got.astype(int) - wanted).mean() < 20
    steer("search", "a coffee", "--gallery", tmp_path / "nothing", *gone)
    assert "     (no picture)\n" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("term", "begins"), [("xterm-kitty", b"\x1b_Ga=T"), ("xterm", b"\x1b[38;5;")])
def test_a_real_terminal_gets_what_it_shows_and_is_asked_nothing(term: str, begins: bytes):
    import fcntl
    import pty
    import struct
    import termios

    controller, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 800, 480))
    line = [sys.executable, str(ROOT / "steer_cli.py"), "search", "--preview", "a coffee", "--top", "1"]
    environment = {**os.environ, "TERM": term}
    process = subprocess.Popen(line, stdin=follower, stdout=follower, stderr=subprocess.PIPE, env=environment)
    os.close(follower)
    got, deadline = b"", time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([controller], [], [], 0.1)[0]:
            try:
                got += os.read(controller, 65536)
            except OSError:  # the other end was closed
                break
    _, err = process.communicate(timeout=30)
    os.close(controller)
    assert (process.returncode, err) == (0, b"")
    assert begins in got
    for question in (b"\x1b[c", b"\x1b[6n", b"\x1b[14t", b"\x1b[16t", b"a=q", b"\x1b[>"):
        assert question not in got
    if term == "xterm-kitty":
        assert np.array_equal(kitty(got.decode().replace("\r\n", "\n")), expected("kitty"))
