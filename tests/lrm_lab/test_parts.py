"""The list of parts and the commands agree, and help is printed without anything heavy."""

import subprocess
import sys

import pytest

from lrm_lab.commands import ALL, COMMANDS, TRIPLETS, Asked
from lrm_lab.parts import PARTS, parts_of


def test_the_commands_are_those_of_the_parts():
    assert [*dict.fromkeys(part.command for part in PARTS)] == [
        name for name in COMMANDS if name not in (ALL, TRIPLETS)
    ]
    assert parts_of(ALL) == PARTS
    for command in COMMANDS:
        if command not in (ALL, TRIPLETS):
            assert parts_of(command) == tuple(part for part in PARTS if part.command == command)


def test_parts_have_names_of_their_own_and_need_what_can_be_asked_for():
    assert len({part.name for part in PARTS}) == len(PARTS)
    for part in PARTS:
        assert part.is_possible(Asked()) == (part.needs is None)
        if part.needs is not None:
            assert part.is_possible(Asked(**{part.needs: "folder"}))
            assert f"--{part.needs} " in part.arguments


def test_a_part_for_which_a_model_lacks_something_is_not_for_all():
    others = {part.name for part in PARTS if not part.is_for_all}
    assert others == {"ladder", "unknown", "names", "above", "photographs", "brain", "encoding"}


def test_a_command_that_measures_nothing_is_refused_with_the_choices():
    for command in ("everything", TRIPLETS):
        with pytest.raises(ValueError, match=f"what: got {command!r}, expected all, composites, search"):
            parts_of(command)


def test_the_commands_are_known_without_anything_heavy():
    code = "import sys, lrm_lab.commands; print([m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
