"""Which pictures a terminal shows, and how large its cells are.

Unusual: the terminal is never asked. Its answer could be late, get lost, or end up in the next command line. The
environment tells what it is, and the system call TIOCGWINSZ tells its size. Inside tmux and screen the environment is
that of another terminal, so pictures are drawn in half blocks there.
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass

AUTO = "auto"
PROTOCOLS = ("kitty", "iterm", "sixel", "blocks")
CELL = (10, 20)  # pixels, where the terminal does not tell
MOST_COLUMNS, MOST_ROWS = 64, 16
INDENT = 5  # columns

_BY_TERM = {  # the beginning of $TERM, which each terminal sets itself
    "tmux": "blocks",
    "screen": "blocks",
    "xterm-kitty": "kitty",
    "xterm-ghostty": "kitty",
    "foot": "sixel",
    "mlterm": "sixel",
    "contour": "sixel",
    "yaft": "sixel",
}
_BY_PROGRAM = {"tmux": "blocks", "ghostty": "kitty", "iTerm.app": "iterm", "WezTerm": "iterm", "mintty": "iterm"}


@dataclass(frozen=True)
class Screen:
    """How pictures are drawn on a terminal.

    Attributes:
        protocol: one of `PROTOCOLS`.
        cell: width and height of a character in pixels. A half block is a pixel, so that (1, 2) is the cell of blocks.
        columns, rows: the most cells that a picture takes.
        true_colours: whether blocks have 24-bit colours; they have 256 colours otherwise.
    """

    protocol: str
    cell: tuple[int, int] = CELL
    columns: int = MOST_COLUMNS
    rows: int = MOST_ROWS
    true_colours: bool = True

    @property
    def box(self) -> tuple[int, int]:
        """Width and height in pixels into which a picture has to fit."""
        return self.columns * self.cell[0], self.rows * self.cell[1]


def screen(preview: str, environment: Mapping[str, str] = os.environ) -> Screen:
    """The screen of stdout.

    Args:
        preview: one of `PROTOCOLS`, or `AUTO`.

    Raises:
        ValueError: `preview` is `AUTO`, and stdout is no terminal, or one without colours.
    """
    protocol = preview
    if preview == AUTO:
        choices = f"or a protocol by its name: {', '.join(PROTOCOLS)}"
        if not sys.stdout.isatty():
            raise ValueError(f"preview: got an output that is no terminal, expected a terminal {choices}")
        if environment.get("TERM", "") in ("", "dumb"):
            raise ValueError(f"preview: got a terminal without colours ($TERM), expected one with colours {choices}")
        protocol = chosen(environment)
    wide, high = shutil.get_terminal_size()
    columns, rows = max(min(wide - INDENT - 1, MOST_COLUMNS), 8), max(min(high // 2, MOST_ROWS), 4)
    cell = (1, 2) if protocol == "blocks" else _cell()
    return Screen(protocol, cell, columns, rows, environment.get("COLORTERM", "").lower() in ("truecolor", "24bit"))


def chosen(environment: Mapping[str, str]) -> str:
    """The protocol of a terminal with this environment: one of `PROTOCOLS`."""
    term = environment.get("TERM", "")
    for beginning, protocol in _BY_TERM.items():
        if term.startswith(beginning):
            return protocol
    program = environment.get("TERM_PROGRAM", "")
    if program in _BY_PROGRAM:
        return _BY_PROGRAM[program]
    if environment.get("LC_TERMINAL") == "iTerm2":  # goes along with ssh
        return "iterm"
    if environment.get("KITTY_WINDOW_ID"):
        return "kitty"
    return "sixel" if "sixel" in term else "blocks"


def _cell() -> tuple[int, int]:
    """Width and height of a character in pixels, as the terminal told the system; `CELL` where it did not."""
    try:
        import fcntl
        import termios

        told = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
    except (ImportError, OSError, ValueError):  # Windows; no terminal
        return CELL
    rows, columns, wide, high = struct.unpack("HHHH", told)
    cell = (wide // columns, high // rows) if rows and columns else (0, 0)
    return cell if min(cell) > 1 else CELL
