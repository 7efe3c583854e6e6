"""The report on the ladder of ways from words to goals."""

from __future__ import annotations

from typing import Any

from lrm_lab.ladder import ORACLE
from lrm_lab.writing import Section, markdown_table, percent

NAMES = {
    "class-names": "class names, untrained",
    "ridge": "ridge regression",
    "one-shot": "network, one shot",
    "meaning": "memberships",
    "diffusion": "diffusion prior",
    ORACLE: "oracle: mean output of what is meant",
}


def sections(ladder: dict[str, Any]) -> list[Section]:
    """Which way from words to goals is best?"""
    rungs = ladder["rungs"]
    rows = []
    for name in sorted(rungs, key=lambda name: list(NAMES).index(name) if name in NAMES else len(NAMES)):
        entry, own = rungs[name], " (used by default)" if name == ladder["own"] else ""
        rows.append(
            (
                f"{NAMES.get(name, name)}{own}",
                percent(entry["R@1"]),
                percent(entry["R@5"]),
                f"{entry['cosine']:.2f}",
                f"{entry['spread']:.2f}",
                f"{entry['presence_auroc']:.3f}",
                "–" if entry["milliseconds"] is None else f"{entry['milliseconds']:.1f}",
            )
        )
    head = ("goal by", "R@1", "R@5", "cosine", "spread", "presence, AUROC", "ms")
    lines = [
        "## Which way from words to goals is best?",
        "",
        f"{ladder['words']} words that were kept out of all training. R@1 and R@5: the best class is right, one of the "
        "five best is. Cosine: with the oracle's goal, both without the mean over classes. Spread: how far the goals "
        "of different words lie apart, as a share of the oracle's. Presence: on "
        f"{ladder['scenes']} blends, how well the goal's support after steering by it tells a word for what is there "
        "from a word for what is not. Time is for one goal, once the text is embedded.",
        "",
        markdown_table(head, rows),
    ]
    return [("\n".join(lines), {})]
