"""The command line, run in this process."""

import os

import steer_cli


def steer(*arguments: str | os.PathLike) -> int:
    """The exit code of `steer`; wrong usage raises SystemExit, as in any argparse program."""
    try:
        return steer_cli.main([os.fspath(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
