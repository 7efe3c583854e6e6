"""The report on words that were kept out of training."""

from __future__ import annotations

from typing import Any

from lrm_lab.imagenet_words import LISTS
from lrm_lab.writing import Row, Section, markdown_table, table_row

BARS = {LISTS.name: (0.85, 0.95)}
OTHER_BARS = (0.7, 0.9)


def sections(words: dict[str, Any]) -> list[Section]:
    """Does the model understand words that it was not trained on?"""
    lines = [
        "## What do words mean to it?",
        "",
        f"{words['words']} words were kept out of all training pairs. The goal's best class is right for "
        f"{words['top1']:.0%} of them, and one of its five best is right for {words['top5']:.0%}.",
    ]
    wrong = [(word, ", ".join(best)) for word, best in words["wrong"].items()]
    if wrong:
        lines += ["", markdown_table(("word that it got wrong", "understood as"), wrong)]
    return [("\n".join(lines), {})]


def rows(words: dict[str, Any]) -> list[Row]:
    """How often the goal's best class is right, and how often one of its five best is."""
    what = f"{words['words']} held-out words: goal's best class right / in five"
    best, five = BARS.get(words.get("list", ""), OTHER_BARS)
    met = words["top1"] >= best and words["top5"] >= five
    bar = f"≥ {100 * best:.0f} % / ≥ {100 * five:.0f} %"
    return [table_row(what, f"{words['top1']:.0%} / {words['top5']:.0%}", bar, met)]
