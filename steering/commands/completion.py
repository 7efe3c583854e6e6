"""`steer --print-completion bash`: a script with which a shell completes the options of all commands, made by shtab."""

from __future__ import annotations

import argparse
from importlib import import_module

from steering.commands import COMMANDS

KINDS = {"DIR": "directory", "FOLDER": "file", "IMAGE": "file", "FILE": "file", "CSV": "file", "NPZ": "file"}


def script(shell: str) -> str:
    """The script for a shell: `bash`, `zsh` or `tcsh`."""
    import shtab

    completed: str = shtab.complete(combined(), shell)
    return completed.replace("complete -o bashdefault -F", "complete -o bashdefault -o default -F")  # images are files


def combined() -> argparse.ArgumentParser:
    """One parser with the options of `steer` and of every command. It serves for completion alone."""
    look = import_module("steering.commands.look").make_parser(takes_images=False)
    everything = argparse.ArgumentParser("steer", add_help=False, parents=[_completed(look)], allow_abbrev=False)
    commands = everything.add_subparsers(parser_class=argparse.ArgumentParser)
    for name in COMMANDS:
        parser = _completed(import_module(f"steering.commands.{name}").make_parser())
        commands.add_parser(name, help=parser.description, add_help=False, parents=[parser])
    return everything


def _completed(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The same parser, whose options tell which of them take a file or a folder."""
    import shtab

    known = {"file": shtab.FILE, "directory": shtab.DIRECTORY}
    for action in parser._actions:
        if isinstance(action.metavar, str) and action.metavar in KINDS:
            action.complete = known[KINDS[action.metavar]]  # type: ignore[attr-defined]
    return parser
