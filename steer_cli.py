"""`steer`: look for what is named, from the command line. Parse, call, print: nothing else.

Unusual: everything heavy is imported after the arguments are understood, so that `--help` and mistakes answer at once.
Exit codes: 0 done, 1 some images failed or nothing found, 2 usage, 3 a defect, 130 interrupted, 141 the reader of the
output went away.
"""

import argparse
import contextlib
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steering.look import Look

Writer = Callable[[str, Any], Any]  # a text and the stream that it goes to

__version__ = "0.1.0"

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
  steer --list-classes
  steer --query "a dog - grass" --query "2:a dog + a cat" photo.jpg    terms; image:FILE is one, too
  steer index --help                             index folders, then
  steer search "a dog"                           search them by looking
  steer evaluate --help                          measure it

exit codes: 0 done, 1 some images failed, 2 usage
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `steer` with these arguments, those of the process by default; returns the exit code.

    Raises SystemExit(2) for wrong usage, as argparse does.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["evaluate"]:
            from steering.evaluate import main as evaluate

            return evaluate(arguments[1:]) or 0
        if arguments[:1] in (["index"], ["search"]):
            from steering.search import command

            return getattr(command, arguments[0])(arguments[1:])
        return _run(arguments)
    except KeyboardInterrupt:
        print("steer: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # what is left in the buffer goes nowhere, silently
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception:  # a defect must not look like "nothing found" or "some images failed", which are 1
        traceback.print_exc()
        return 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="steer",
        usage='steer --query "a dog" [options] IMAGE [IMAGE ...]',
        description="Looks for what you name: a network's ranking of each image, before and after words steer it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="a file, folder, glob or sample")
    parser.add_argument(
        *("-q", "--query"),
        action="append",
        type=_query,
        default=[],
        metavar="WORDS",
        dest="queries",
        help="what to look for; may be given several times",
    )
    parser.add_argument(
        "--prototype",
        action="append",
        type=_query,
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
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of tables")
    parser.add_argument("--top", type=_whole(1), default=5, metavar="N", help="classes to show (default 5)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no notes, errors only")
    parser.add_argument("--list-classes", action="store_true", help="print the names that the model tells apart")
    parser.add_argument("--version", action="version", version=f"steer {__version__}")
    steering = parser.add_argument_group("steering")
    steering.add_argument(
        "--model",
        default="lrm_mini",
        help="lrm_mini (default), a model's folder, or a published model: alexnet_lrm1, alexnet_lrm2, alexnet_lrm3",
    )
    steering.add_argument(
        "--prior",
        metavar="NAME",
        help="what turns words into goals: the model's own (default), class-names (needs no training), or a file of "
        "prior.train",
    )
    steering.add_argument(
        "--text",
        metavar="NAME:FILE",
        help="text encoder of a published model; OpenAI's CLIP from a file: ViT-B-16-quickgelu:FILE",
    )
    steering.add_argument(
        "--strength", type=_strength, metavar="S", help="gain of the steered feedback: one number, or negative,positive"
    )
    steering.add_argument("--passes", type=_whole(2), metavar="N", help="passes over an image, the first is unsteered")
    steering.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: what there is)")
    steering.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="of the prior's sampling (default 0)")
    return parser


def _run(arguments: list[str]) -> int:
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    if not options.list_classes and not (options.queries or options.prototypes or options.query_images):
        parser.error('nothing to look for: add --query "a dog", --prototype or --query-image')
    if not options.list_classes and not options.images:
        parser.error("no images: name files, folders, globs, or a sample such as sample:cat")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        from steering.images import expand

        images = expand(options.images)
        if options.output is not None:
            try:
                os.makedirs(options.output, exist_ok=True)
            except OSError as error:
                parser.error(f"--output {options.output}: {error.strerror}")

        from steering import Steerer

        steerer = Steerer.load(options.model, prior=options.prior, text=options.text, device=options.device)
        if options.list_classes:
            print("\n".join(steerer.class_names), flush=True)
            return 0
        for query in options.queries:  # what cannot be understood is told before the first image
            steerer.goal(query, seed=options.seed)
        goals = [*options.queries, *map(steerer.prototype_goal, options.prototypes)]
        goals += [steerer.image_goal(image, passes=options.passes) for image in options.query_images]
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(str(error))

    from steering.errors import ImageError, printable

    settings = {"strength": options.strength, "passes": options.passes, "seed": options.seed}
    failed = False
    file_names = _FileNames()
    with _progress(images, quiet=options.quiet) as (numbered, write):
        for image in numbered:
            try:
                looks = steerer.look_many(image, goals, **settings)
            except ImageError as error:
                write(f"steer: {error}", sys.stderr)
                failed = True
                continue
            except ValueError as error:
                parser.error(str(error))
            note = looks[0].picture.info.get("note")
            if note and not options.quiet:
                write(f"steer: {printable(image)}: {note}", sys.stderr)
            for look in looks:
                write(
                    json.dumps(look.as_dict(options.top)) if options.json else look.text(options.top) + "\n", sys.stdout
                )
                if options.output is None:
                    continue
                path = os.path.join(options.output, file_names.unused(look))
                try:
                    look.plot(path, options.top)
                except OSError as error:
                    write(f"steer: {printable(path)}: not written ({error.strerror or error})", sys.stderr)
                    failed = True
    return 1 if failed else 0


@contextlib.contextmanager
def _progress(images: list[str], quiet: bool) -> Iterator[tuple[Iterable[str], Writer]]:
    """The images, with a bar for many of them on a terminal, and how to print without tearing that bar."""
    if quiet or len(images) < 2 or not sys.stderr.isatty():
        yield images, lambda text, stream: print(text, file=stream, flush=True)
        return
    from tqdm import tqdm

    with tqdm(images, unit="image", file=sys.stderr, leave=False, dynamic_ncols=True) as bar:
        yield bar, lambda text, stream: (tqdm.write(text, file=stream), stream.flush())


class _FileNames:
    """Names of pictures that any file system takes, none of them twice in a run."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def unused(self, look: "Look") -> str:
        stem = os.path.splitext(os.path.basename(look.image))[0]
        base = f"{_slug(stem) or 'image'}--{_slug(look.query) or 'query'}"
        name, number = base, 2
        while name.lower() in self.used:
            name, number = f"{base}-{number}", number + 1
        self.used.add(name.lower())
        return f"{name}.png"


def _slug(words: str) -> str:
    plain = re.sub(r"[^\w.+-]+", "-", words.encode("utf-8", "replace").decode()).strip("-.")
    return plain.encode()[:100].decode("utf-8", "ignore")  # file systems count bytes, and allow 255


def _query(words: str) -> str:
    if not words.strip():
        raise argparse.ArgumentTypeError("got an empty query; expected words, for example 'a dog'")
    return words


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if int(text) >= least:
                return int(text)
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number of at least {least}")

    return parse


def _strength(text: str) -> float | tuple[float, float]:
    with contextlib.suppress(ValueError):
        numbers = [float(part) for part in text.split(",")]
        if all(math.isfinite(n) and n >= 0 for n in numbers) and len(numbers) in (1, 2):
            return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])
    raise argparse.ArgumentTypeError(f"got {text!r}; expected a number, or two as negative,positive, none below 0")


if __name__ == "__main__":
    sys.exit(main())
