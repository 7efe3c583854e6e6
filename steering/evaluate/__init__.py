"""`steer evaluate`: what steering does and does not do, measured, and written into the README.

Parse, call, print; the measuring is in `steering.evaluate.bars`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EPILOG = """\
examples:
  steer evaluate --source ../shared/data/tiny_imagenet --photos ../shared/data/photos --output results.json
  steer evaluate --scenes 200 --images 1000                 a quick look, from the hub's Tiny ImageNet
  steer evaluate --from results.json --readme README.md     rewrite the README's table from stored results
"""


def main(argv: Sequence[str]) -> int:
    """Run `steer evaluate` with these arguments; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="steer evaluate",
        description="Measure steering on validation images.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="lrm_mini", help="a name, or a model's folder (default lrm_mini)")
    parser.add_argument("--prior", metavar="NAME", help="the model's own (default), or class-names")
    parser.add_argument("--device", help="cpu, cuda, … (default: what there is)")
    parser.add_argument("--source", default="zh-plus/tiny-imagenet", help="labelled images: a folder or a hub name")
    parser.add_argument("--photos", metavar="DIR", help="full-size photographs with photos.json (default: none)")
    parser.add_argument("--scenes", type=int, default=1000, metavar="N", help="of each kind (default 1000)")
    parser.add_argument("--images", type=int, metavar="N", help="single images (default: all)")
    parser.add_argument("--seed", type=int, default=1000, help="of the scenes (default 1000)")
    parser.add_argument("--output", metavar="FILE", help="write all numbers as JSON")
    parser.add_argument("--readme", metavar="FILE", help="rewrite the table between the markers in this file")
    parser.add_argument("--from", dest="stored", metavar="FILE", help="take stored numbers instead of measuring")
    given = parser.parse_args(argv)
    from steering.evaluate.report import around, rewrite, table

    try:
        if given.readme:
            around(given.readme)  # before an hour of measuring, not after it
        results = json.loads(Path(given.stored).read_text()) if given.stored else _measure(given)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if given.output:
        Path(given.output).write_text(json.dumps(results, indent=1) + "\n")
    if given.readme:
        rewrite(given.readme, results)
    print(table(results))
    return 0


def _measure(given: argparse.Namespace) -> dict[str, Any]:
    from steering import Steerer
    from steering.evaluate import bars

    steerer = Steerer.load(given.model, prior=given.prior, device=given.device)
    pixels, labels = bars.image_tensors(given.source, "valid", steerer.preprocessing.size)
    if given.images is not None:
        pixels, labels = pixels[: given.images], labels[: given.images]
    results: dict[str, Any] = {
        "model": steerer.card["name"],
        "backbone_sha256": steerer.card["sha256"],
        "prior": steerer.language.prior.source,
        "seed": given.seed,
        "strength": steerer.defaults.strength,
        "passes": steerer.defaults.passes,
        "single": bars.evaluate_single(steerer, pixels, labels),
        "scenes": bars.evaluate_composites(steerer, pixels, labels, given.scenes, given.seed),
        "words": bars.evaluate_words(steerer),
    }
    if given.photos:
        results["photographs"] = bars.evaluate_photos(steerer, given.photos, given.seed)
    return results
