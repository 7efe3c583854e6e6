"""What the commands share: argument types, common options, and errors in the words of the command line.

Errors of the library begin with the name of an argument ("strength: got …") or name a switch ("retry=True"). Here they
become the options that a user types ("--strength: got …", "--retry").

Unusual: a query may begin with a dash ("-a dog"), though argparse takes such a word for an option. A word of several
letters behind a single dash that is no option is taken as it stands. An option that may stand alone takes the next word
only if it is one of its choices: in `--preview "a dog"`, the words are the query.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lrm_base.checks import MOST_SEED, MOST_STRENGTH
from lrm_base.extras import install_command
from steering import __version__
from steering.catalogue import DEFAULT_MODEL, MODEL_VARIABLE, PUBLISHED_MODELS
from steering.errors import GalleryError

if TYPE_CHECKING:
    from steering.search.store import Store

MOST = 1_000_000_000
GALLERY_VARIABLE = "STEER_GALLERY"
TEMPLATES = ("none", "simple", "imagenet")  # as in prior.templates, which imports torch
MODEL_DEFAULT = f"default: ${MODEL_VARIABLE}, or {DEFAULT_MODEL}"
_ARGUMENT = re.compile(r"^(\w+): (?=got |expected |its )")  # a file may be called like an argument
_SWITCH = re.compile(r"\b(\w+)=True\b")
_NAMED = re.compile(r"`(\w+)`")
ALIASES = {"class_name": "--prototype", "stored": "--from"}


class Parser(argparse.ArgumentParser):
    """A parser whose help keeps the layout of its epilog. Options cannot be abbreviated."""

    def __init__(self, command: str, usage: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=f"steer {command}".strip(),
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("-V", "--version", action="version", version=f"steer {__version__}")

    def parse_known_args(  # type: ignore[override]  # argparse has overloads here
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse does it, but a value may begin with a dash."""
        return super().parse_known_args(self._joined(sys.argv[1:] if args is None else args), namespace)

    def _joined(self, words: Sequence[str]) -> list[str]:
        """The same arguments, where "--query", "-a dog" became "--query=-a dog"; "--preview" has its value, too."""
        joined: list[str] = []
        rest = iter(words)
        for word in rest:
            option = self._option_string_actions.get(word)
            if word == "--":
                return [*joined, word, *rest]
            if option is not None and option.nargs == "?":
                value = next(rest, None)
                chosen = value is not None and value in (option.choices or ())
                joined.append(f"{word}={value if chosen else option.const}")
                return joined if value is None else [*joined, *self._joined([*([] if chosen else [value]), *rest])]
            value = next(rest, None) if option is not None and option.nargs is None else None
            if option is None or value is None:
                joined.append(word)
            elif re.match("-[^-]", value) and value not in self._option_string_actions:
                joined.append(f"{option.option_strings[-1]}={value}")
            elif value == "--" or value in self._option_string_actions:  # the value was forgotten: argparse tells
                return [*joined, word, *self._joined([value, *rest])]
            else:
                joined += [word, value]
        return joined

    def _parse_optional(self, arg_string: str) -> Any:  # argparse's own name: None stands for "no option"
        if re.match(r"-[^-]*\w\W*\w", arg_string) and not self._is_options(arg_string):
            return None
        return super()._parse_optional(arg_string)

    def _is_options(self, word: str) -> bool:
        """Whether a word behind a single dash is an option, several of one letter, or one with its value."""
        if word in self._option_string_actions:
            return True
        for letter in word[1:]:
            option = self._option_string_actions.get(f"-{letter}")
            if option is None or option.nargs != 0:
                return option is not None
        return True

    def error(self, message: str) -> NoReturn:
        """One line and exit code 2. Tells how a value that begins with dashes is given."""
        if message.endswith("expected one argument"):
            option = message.removeprefix("argument ").partition(":")[0].rpartition("/")[2]
            message = f"{message}; a value that begins with dashes is joined to its option: {option}=VALUE"
        super().error(message)

    def translate(self, message: str) -> str:
        """An error of the library in the words of these options."""
        options = self._option_string_actions

        def option(name: str) -> str | None:
            spelled = ALIASES.get(name, f"--{name.replace('_', '-')}")
            return spelled if spelled in options else None

        for pattern in (_SWITCH, _NAMED):
            message = pattern.sub(lambda match: option(match[1]) or match[0], message)
        return _ARGUMENT.sub(lambda match: f"{option(match[1]) or match[1]}: ", message)

    @contextlib.contextmanager
    def usage_errors(self, extra: str | None = None) -> Iterator[None]:
        """Turn what a user got wrong into one line and exit code 2.

        Args:
            extra: name of the optional dependencies that the command needs. The error about a missing package names it.
        """
        try:
            yield
        except ModuleNotFoundError as error:
            if extra is None:
                raise
            self.error(f"{error}; this command needs more packages: {install_command(extra)}")
        except (BrokenPipeError, KeyboardInterrupt):
            raise
        except (ValueError, OSError) as error:
            self.error(self.translate(str(error)))


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """The type of an option that takes a whole number."""

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if least <= int(text) <= most:
                return int(text)
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number from {least} to {most:,}")

    return parse


def number(least: float, most: float, name: str = "a number") -> Callable[[str], float]:
    """The type of an option that takes a number in a range."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if least <= float(text) <= most:
                return float(text)
        raise argparse.ArgumentTypeError(f"got {text!r}; expected {name} from {least:g} to {most:g}")

    return parse


probability = number(0.0, 1.0, "a probability")


def strength(text: str) -> float | tuple[float, float]:
    """The type of `--strength`: a number, or two as negative,positive."""
    with contextlib.suppress(ValueError):
        numbers = [float(part) for part in text.split(",")]
        if all(math.isfinite(n) and 0 <= n <= MOST_STRENGTH for n in numbers) and len(numbers) in (1, 2):
            return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])
    raise argparse.ArgumentTypeError(
        f"got {text!r}; expected a number from 0 to {MOST_STRENGTH:g}, or two as negative,positive"
    )


def words(text: str) -> str:
    """The type of a query."""
    if not text.strip():
        raise argparse.ArgumentTypeError("got an empty query; expected words, for example 'a dog'")
    return text


def add_model(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the options for the model and its device."""
    parser.add_argument(
        "--model",
        help=f"a name or a model's folder ({MODEL_DEFAULT}); a CLIP, which takes any words: clip:NAME:TAG, "
        f"clip:NAME:FILE or clip:FOLDER; or a published model: {', '.join(PUBLISHED_MODELS)}",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, … (default: cuda, then mps, then cpu)")


def add_language(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the options for how words become goals."""
    parser.add_argument(
        "--prior",
        metavar="NAME",
        help="what turns words into goals: the model's own (default; of a CLIP the text embedding itself, identity), "
        "class-names (needs no training), a file of prior.train, or for a CLIP a list of names, FILE.txt",
    )
    parser.add_argument(
        "--templates",
        choices=TEMPLATES,
        default="none",
        help="sentences that the words for a CLIP are put into and averaged over: none (default), seven, or eighty",
    )
    parser.add_argument(
        "--text",
        metavar="NAME:FILE",
        help="text encoder of a published model; OpenAI's CLIP from a file: ViT-B-16-quickgelu:FILE",
    )
    parser.add_argument(
        "--seed", type=whole(0, MOST_SEED), default=0, metavar="N", help="seed of the prior's sampling (default 0)"
    )


def add_gallery(parser: argparse.ArgumentParser) -> None:
    """Add the option for where the gallery is."""
    place = default_gallery().replace("%", "%%")  # argparse formats help texts
    parser.add_argument(
        "--gallery",
        metavar="DIR",
        help=f"folder or address of the gallery (default: ${GALLERY_VARIABLE}, or {place})",
    )


def add_printing(parser: argparse.ArgumentParser, json_help: str) -> None:
    """Add the options for what is printed."""
    parser.add_argument("--json", action="store_true", help=json_help)
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no notes, errors only")


def default_gallery() -> str:
    """Where a gallery is unless told otherwise: $STEER_GALLERY, or a folder among the user's data."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return os.environ.get(GALLERY_VARIABLE) or str(Path(data) / "steer" / "gallery")


def open_store(place: str) -> Store:
    """The tables of the gallery in a place, without a network.

    Raises:
        GalleryError: there is none; the message names the command that makes one. Or it is damaged.
    """
    from steering.search.store import Store

    try:
        return Store.open(place)
    except GalleryError as error:
        makes_one = f"`steer index FOLDER --gallery {place}` makes one"
        raise GalleryError(str(error).replace("index images into it first", makes_one)) from None


def write_paths(paths: Iterable[str], *, nul: bool) -> None:
    """Write paths to stdout as the bytes that they are, a line break or a NUL after each."""
    sys.stdout.flush()
    for path in paths:
        sys.stdout.buffer.write(os.fsencode(path) + (b"\0" if nul else b"\n"))
    sys.stdout.buffer.flush()


def plain_streams() -> None:
    """Let stdout and stderr escape what the terminal's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
