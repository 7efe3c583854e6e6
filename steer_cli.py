"""`steer`: steer vision with words, from the command line. This file finds the command; `steering.commands` runs it.

Unusual: everything heavy is imported after the arguments are understood, so that `--help` and mistakes answer at once.

Exit codes: 0 done, 1 some images failed or nothing was found, 2 wrong usage, 3 the network has no eyes for the words,
70 a defect of this program, 130 interrupted, 141 the reader of the output went away.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

LOOK = "look"  # what `steer` does without the name of a command
DEFECT = 70  # EX_SOFTWARE of sysexits.h


def main(argv: Sequence[str] | None = None) -> int:
    """Run `steer` with these arguments, those of the process by default. Returns the exit code.

    Raises:
        SystemExit: with code 2 for wrong usage, as argparse does.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["help"]:  # `steer help search` is `steer search --help`
        arguments = [*arguments[1:2], "--help"]
    try:
        from steering.commands import COMMANDS

        name, rest = (arguments[0], arguments[1:]) if arguments[:1] and arguments[0] in COMMANDS else (LOOK, arguments)
        return import_module(f"steering.commands.{name}").run(rest)
    except KeyboardInterrupt:
        print("steer: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # what is left in the buffer goes nowhere, silently
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ImportError as error:
        if type(error).__name__ != "ShadowedError":  # its class may not be importable: the package may be hidden
            traceback.print_exc()
            return DEFECT
        print(f"steer: {error}", file=sys.stderr)
        return 2
    except Exception:  # a defect must not look like "nothing found" or "some images failed", which are 1
        traceback.print_exc()
        return DEFECT


if __name__ == "__main__":
    sys.exit(main())
