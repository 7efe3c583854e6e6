"""`steer --query "a dog" photo.jpg`: look at images for what is named."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lrm_base.checks import MOST_PASSES
from steering.commands import COMMANDS, options
from steering.commands.starting import quick_start

if TYPE_CHECKING:
    from steering.goals import Goal
    from steering.look import Look
    from steering.steerer import Steerer

SHELLS = ("bash", "zsh", "tcsh")
MARK = "Look"  # keyword of the text in a picture that tells which image and query it shows
Writer = Callable[[str, Any], Any]  # takes a text and the stream that it goes to

EPILOG = """\
images are files, folders (searched recursively), globs, or samples that need no file:
  sample:cat  sample:coffee  'sample:cat+coffee' (a 50/50 blend)  'sample:cat|coffee' (side by side)

examples:
  steer --query "a cat" sample:cat
  steer --query "a dog" --query "a bicycle" photos/ --output looks/
  steer --query "a dog" 'photos/**/*.jpg' --json > looks.jsonl
  steer --prototype tabby --query-image goal.jpg photos/           goals without words
  steer --query "a dog" --prior class-names photo.jpg              a prior that needs no training
  steer --query "a dog" --model alexnet_lrm3 photo.jpg             a published ImageNet model and its prior
  steer --query "a dog - grass" --query "2:a dog + a cat" photo.jpg    arithmetic; image:FILE is a term, too
  steer --query "a red car" --model clip:ViT-B-32:laion2b_s34b_b79k photo.jpg    any words, with a CLIP
  steer --query "a cat" --against "a dog, a fox, grass" --model clip:FOLDER photo.jpg
  steer --list-classes

complete options with the Tab key:
  eval "$(steer --print-completion bash)"        in ~/.bashrc; zsh: the same in ~/.zshrc after compinit; tcsh, too

other commands:
  steer index photos/      index folders; see steer index --help
  steer search "a dog"     search them by looking; see steer search --help
  steer calibrate photos/  fit the verdicts of a CLIP; see steer calibrate --help
  steer evaluate all       measure what steering does; see steer evaluate --help

exit codes: 0 done, 1 some images failed, 2 wrong usage, 3 the network has no eyes for the only query (UNKNOWN)
"""


def make_parser(*, takes_images: bool = True) -> options.Parser:
    """The parser of `steer` without a command's name. Without images it has the options alone."""
    description = "Look for what you name: a network's ranking of each image, before and after words steer it."
    parser = options.Parser("", 'steer --query "a dog" [options] IMAGE [IMAGE ...]', description, EPILOG)
    if takes_images:
        parser.add_argument("images", nargs="*", metavar="IMAGE", help="a file, folder, glob or sample")
    parser.add_argument(
        *("-q", "--query"),
        action="append",
        type=options.words,
        default=[],
        metavar="WORDS",
        dest="queries",
        help="what to look for; may be given several times",
    )
    parser.add_argument(
        "--prototype",
        action="append",
        type=options.words,
        default=[],
        metavar="CLASS",
        dest="prototypes",
        help="look for a class by its mean output instead of by words; may be given several times",
    )
    parser.add_argument(
        "--query-image",
        action="append",
        default=[],
        metavar="IMAGE",
        dest="query_images",
        help="look for what another image shows; may be given several times",
    )
    parser.add_argument("-o", "--output", metavar="DIR", help="write a picture for each image and query into DIR")
    parser.add_argument("--top", type=options.whole(1), default=5, metavar="N", help="classes to show (default 5)")
    options.add_printing(parser, "one JSON object a line instead of tables")
    parser.add_argument("--list-classes", action="store_true", help="print the names that the model tells apart")
    parser.add_argument(
        "--print-completion", choices=SHELLS, help="print a script that completes the options of all commands, and end"
    )
    steering = parser.add_argument_group("steering")
    options.add_model(steering)
    options.add_language(steering)
    steering.add_argument(
        "--against",
        type=options.words,
        metavar="WORDS",
        help="of a CLIP: set the query against these, joined by commas, instead of a bank of common things",
    )
    steering.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="numbers that the network computes with (default float32)",
    )
    steering.add_argument(
        "--strength",
        type=options.strength,
        metavar="S",
        help="gain of the steered feedback: one number, or negative,positive",
    )
    steering.add_argument(
        "--passes", type=options.whole(2, MOST_PASSES), metavar="N", help="passes over an image; the first is unsteered"
    )
    steering.add_argument(
        "--detail",
        type=options.number(0.5, 4.0),
        default=1.0,
        metavar="X",
        help="see photographs X times as large, 0.5 to 4; small things count, it takes X² times as long (default 1)",
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Run `steer` with these arguments. Returns the exit code; wrong usage raises SystemExit(2)."""
    parser = make_parser()
    given = parser.parse_intermixed_args(argv)
    if given.print_completion:
        from steering.commands.completion import script

        print(script(given.print_completion))
        return 0
    if given.list_classes:
        return _list_classes(parser, given.model)
    if not (given.queries or given.prototypes or given.query_images):
        parser.error(f"nothing to look for: {_missing_query(given.images)}")
    if not given.images:
        parser.error("no images: name files, folders, globs, or a sample such as sample:cat")
    options.plain_streams()
    with parser.usage_errors(), quick_start():
        from steering.images import expand

        images = expand(given.images)
        if given.output is not None:
            try:
                os.makedirs(given.output, exist_ok=True)
            except OSError as error:
                parser.error(f"--output {given.output}: {error.strerror}")

        from steering.steerer import Steerer

        loaded = {name: getattr(given, name) for name in ("prior", "text", "templates", "device", "dtype", "detail")}
        steerer = Steerer.load(given.model, **loaded)
        if given.against is not None:
            steerer = steerer.against(given.against.split(","))
        goals: list[Any] = []  # a query that cannot be understood is reported before the first image
        goals += [steerer.goal(query, seed=given.seed) for query in given.queries]
        goals += [_prototype(steerer, name, given.model) for name in given.prototypes]
        goals += [steerer.image_goal(image, passes=given.passes) for image in given.query_images]

    from steering.errors import ImageError, printable

    failed = unknown = False
    pictures = None if given.output is None else Pictures(given.output)
    with _progress(images, quiet=given.quiet) as (numbered, write):
        for image in numbered:
            try:
                looks = steerer.look_many(image, goals, strength=given.strength, passes=given.passes, seed=given.seed)
            except ImageError as error:
                write(f"steer: {error}", sys.stderr)
                failed = True
                continue
            except ValueError as error:
                parser.error(parser.translate(str(error)))
            note = looks[0].picture.info.get("note")
            if note and not given.quiet:
                write(f"steer: {printable(image)}: {note}", sys.stderr)
            unknown = len(looks) == 1 and looks[0].verdict == "unknown"
            for look in looks:
                picture: dict[str, str] = {}
                if pictures is not None:
                    path = pictures.path(look)
                    try:
                        pictures.draw(look, path, given.top)
                        picture["picture"] = printable(path)
                    except OSError as error:
                        write(f"steer: {printable(path)}: not written ({error.strerror or error})", sys.stderr)
                        failed = True
                if given.json:
                    write(json.dumps({**look.as_dict(given.top), **picture}), sys.stdout)
                else:
                    drawn = "".join(f"  picture: {name}\n" for name in picture.values())
                    write(f"{look.text(given.top)}\n{drawn}", sys.stdout)
    return 1 if failed else 3 if unknown else 0


def _list_classes(parser: options.Parser, model: str | None) -> int:
    options.plain_streams()
    with parser.usage_errors():
        from steering.catalogue import class_names

        print("\n".join(class_names(model)), flush=True)
    return 0


def _prototype(steerer: Steerer, name: str, model: str | None) -> Goal:
    """The goal of a class. The error for a name that does not exist tells how to see all names."""
    from steering.errors import QueryError

    try:
        return steerer.prototype_goal(name)
    except QueryError as error:
        if steerer.prototypes is None:
            raise
        chosen = "" if model is None else f"--model {shlex.quote(model)} "
        raise QueryError(f"{error} (all names: steer {chosen}--list-classes)") from None


def _missing_query(images: Sequence[str]) -> str:
    """What to do where nothing was asked for. A first word may be a misspelt command."""
    near = difflib.get_close_matches(images[0], COMMANDS, n=1) if images else []
    if near and not os.path.exists(images[0]):
        return f"{images[0]!r} is no command and no file; did you mean `steer {near[0]}`?"
    return 'add --query "a dog", --prototype or --query-image'


@contextlib.contextmanager
def _progress(images: list[str], quiet: bool) -> Iterator[tuple[Iterable[str], Writer]]:
    """The images, with a bar if there are many and a terminal shows it, and how to print without tearing that bar."""
    if quiet or len(images) < 2 or not sys.stderr.isatty():
        yield images, lambda text, stream: print(text, file=stream, flush=True)
        return
    from tqdm import tqdm

    with tqdm(images, unit="image", file=sys.stderr, leave=False, dynamic_ncols=True) as bar:
        yield bar, lambda text, stream: (tqdm.write(text, file=stream), stream.flush())


class Pictures:
    """The pictures of looks in a folder. Any file system takes their names.

    A picture keeps a mark of its image and query. No name comes twice in a run. A later run writes over a picture of
    the same image and query, and over no other file.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self.used = folder, set[str]()

    def path(self, look: Look) -> str:
        """Where the picture of a look goes."""
        stem = os.path.splitext(os.path.basename(look.image))[0]
        base = f"{_slug(stem) or 'image'}--{_slug(look.query) or 'query'}"
        name, number = base, 2
        while name.lower() in self.used or self._is_another(name, look):
            name, number = f"{base}-{number}", number + 1
        self.used.add(name.lower())
        return os.path.join(self.folder, f"{name}.png")

    def _is_another(self, name: str, look: Look) -> bool:
        """Whether a file has the name that is not the picture of this image and query."""
        path = os.path.join(self.folder, f"{name}.png")
        if not os.path.isfile(path):
            return False
        from PIL import Image

        try:
            with Image.open(path, formats=("PNG",)) as picture:
                return picture.info.get(MARK) != _mark(look)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return True

    def draw(self, look: Look, path: str, top: int) -> None:
        """Write the picture of a look. Raises OSError."""
        look.plot(None, top).savefig(path, metadata={MARK: _mark(look)})


def _mark(look: Look) -> str:
    """What tells one image and query from others, without telling where the image is."""
    import hashlib

    image = look.image if look.image.startswith("sample:") else os.path.abspath(look.image)
    return hashlib.sha256("\0".join((image, look.query)).encode("utf-8", "surrogateescape")).hexdigest()


def _slug(words: str) -> str:
    plain = re.sub(r"[^\w.+-]+", "-", words.encode("utf-8", "replace").decode()).strip("-.")
    return plain.encode()[:100].decode("utf-8", "ignore")  # file systems count bytes, and allow 255
