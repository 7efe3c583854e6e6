"""`steer calibrate FOLDER --model clip:…`: fit the verdict of a CLIP on photographs whose words are known."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrm_base.checks import MOST_SEED
from steering.commands import options
from steering.errors import printable

FEW_IMAGES, FEW_NAMES = 200, 10
EPILOG = """\
FOLDER says what its images show in one of these ways:
  dog/1.jpg  fire_engine/2.jpg ...   folders that are named like it; _ is a space
  captions.txt                       lines of a file and its caption, with a tab or a comma between them
  1.jpg  1.txt ...                   a text file beside each image, with its caption
  train-*.parquet                    columns image and label, and classes.json with the names of the labels
  OWNER/NAME                         a data set of the hub, with the columns image and label

examples:
  steer calibrate labelled/ --model clip:ViT-B-32:laion2b_s34b_b79k
  steer calibrate labelled/ --model clip:FOLDER --dry-run         measure, and write nothing
  steer calibrate labelled/ --model clip:FOLDER --prior prior.safetensors     a verdict for a trained prior, too
  steer calibrate labelled/ --model clip:FOLDER --json > card.json

A fifth of the images is held out, and the numbers are those of this fifth. "balanced" is the share of right answers, as
the mean of what is there and of what is not. "calibration error" is the expected one, over 15 bins.
What was fitted before for the same weights is replaced when all is done; an interruption leaves it as it was. Then
`steer` and `steer search` give verdicts with this model. They are as good as the images are like yours: some hundred
images of some hundred things make good ones.
exit codes: 0 done, 2 wrong usage
"""


def make_parser() -> options.Parser:
    """The parser of `steer calibrate`."""
    usage = "steer calibrate FOLDER --model clip:NAME:TAG [options]"
    parser = options.Parser("calibrate", usage, "Fit the verdict of a CLIP on your own labelled photographs.", EPILOG)
    parser.add_argument("folder", metavar="FOLDER", help="labelled or captioned images; see below")
    options.add_model(parser)
    parser.add_argument("--prior", metavar="FILE", help="fit a verdict for this file of prior.train, too")
    options.add_printing(parser, "the card of what was fitted as one JSON object")
    parser.add_argument(
        "--images", type=options.whole(20), default=2000, metavar="N", help="images to look at, at most (default 2000)"
    )
    parser.add_argument(
        "--seed", type=options.whole(0, MOST_SEED), default=0, metavar="N", help="seed of what is drawn (default 0)"
    )
    parser.add_argument("--output", metavar="DIR", help="write to DIR instead of where `steer` reads it")
    parser.add_argument("--dry-run", action="store_true", help="measure, and write nothing")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run `steer calibrate` with these arguments. Returns the exit code; wrong usage raises SystemExit(2)."""
    parser = make_parser()
    given = parser.parse_args(argv)
    if given.dry_run and given.output:
        parser.error("--output: not used with --dry-run, which writes nothing")
    options.plain_streams()
    with parser.usage_errors():
        from steering.catalogue import calibration_folder, default_model, is_clip

        model = given.model or default_model()
        if not is_clip(model):
            raise ValueError(
                f"model: got {printable(model)!r}, expected a CLIP such as clip:NAME:TAG; the verdicts of other models "
                "are fitted by python -m steering.calibrate"
            )
        _check_packages()
        if given.output and Path(given.output).exists() and not Path(given.output).is_dir():
            raise ValueError(f"output: got {printable(given.output)}, expected a folder, not a file")
        from steering.calibrate_open import calibrate, check_enough
        from steering.labelled import read_labelled
        from steering.steerer import Steerer

        labelled = read_labelled(given.folder)
        check_enough(labelled)  # before the model is loaded
        steerer = Steerer.load(model, prior=given.prior, device=given.device)
        made = calibrate(steerer, labelled, images=given.images, seed=given.seed, quiet=given.quiet)
        folder = Path(given.output) if given.output else calibration_folder(str(made.card["backbone_sha256"]))
        if not given.dry_run:
            made.write(folder)
    if given.json:
        print(json.dumps({"folder": None if given.dry_run else str(folder), **made.card}, ensure_ascii=False))
    else:
        for line in _told(made.card):
            print(line)
        print("nothing was written (--dry-run)" if given.dry_run else f"kept in {printable(str(folder))}")
    if not given.quiet:
        for line in _notes(made.card):
            print(f"steer: {line}", file=sys.stderr)
    return 0


def _check_packages() -> None:
    from lrm_base.extras import install_command, missing_packages

    if missing_packages("sklearn"):
        raise ValueError(f"a calibration needs scikit-learn, not installed here: {install_command('train')}")


def _told(card: Mapping[str, Any]) -> Iterator[str]:
    """What was looked at, what was chosen, and what it is worth."""
    data = card["data"]
    kind = next(kind for kind in ("captions", "names") if kind in data)
    yield (
        f"{printable(str(data['source']))}: {data['images']:,} images of {data[kind]:,} {kind}; "
        f"{data['fitted_on']:,} to fit on, {data['held_out']:,} held out"
    )
    losses = ", ".join(f"{strength}: {loss:.4f}" for strength, loss in card["log_loss_by_strength"].items())
    yield f"strength {card['strength']:g}; log loss in cross-validation by strength: {losses}"
    for source, groups in card["held_out"].items():
        form = card["forms"][source]
        reads = "features and their products" if form["products"] else "features without products"
        yield f"verdict for goals by {source}: {reads}, ridge {form['ridge']:g}"
        heads = f"{'examples':>8} {'AUROC':>7} {'balanced':>9} {'calibration error':>18} {'log loss':>9}"
        yield f"  {'held out':<34} {heads}"
        for group in groups["steered"]:
            for way, word in (("steered", "with"), ("unsteered", "without")):
                found = groups[way][group]
                yield (
                    f"  {f'{group}, {word} steering':<34} {found['examples']:>8,} {found['auroc']:>7.3f} "
                    f"{found['balanced_accuracy']:>9.1%} {found['calibration_error']:>18.3f} {found['log_loss']:>9.3f}"
                )


def _notes(card: Mapping[str, Any]) -> Iterator[str]:
    """A line for each thing that a user should know of what was fitted."""
    data = card["data"]
    yield from data["notes"]
    if data["unread"]:
        name, reason = next(iter(data["unread"].items()))
        told = reason if reason.startswith(name) else f"{name}: {reason}"
        yield f"{len(data['unread'])} of the images could not be read, such as {printable(told)}"
    if data["captions_too_long"]:
        yield f"{data['captions_too_long']} images were left out: their captions are too long for this model"
    if not card["steering_helps"]:
        yield (
            "steering does not help these verdicts: in cross-validation no strength lowers the log loss by more than "
            f"its standard error; so the smallest strength, {card['strength']:g}, was kept"
        )
    if data["images"] < FEW_IMAGES:
        yield f"with fewer than {FEW_IMAGES} images the held-out numbers are rough, and verdicts are kept simple"
    if data.get("names", FEW_NAMES) < FEW_NAMES:
        yield f"with fewer than {FEW_NAMES} names the verdicts on other words are rough"
