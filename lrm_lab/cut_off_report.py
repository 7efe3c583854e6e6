"""The report on where a search ends."""

from __future__ import annotations

from typing import Any

from lrm_lab.cut_off import ORACLE, SCORES, SEARCH
from lrm_lab.writing import Section, against_zero, bounds, markdown_table, percent, signed

FIRST_STAGES = {"cosine": "the cosine of text and image", "places": "the first stage's score"}


def sections(measured: dict[str, Any]) -> list[Section]:
    """Does a search end where relevance ends?"""
    ways, against, first = measured["ways"], measured["against"], FIRST_STAGES[measured["first_stage"]]
    names = {
        SEARCH: "**the search itself**",
        SCORES[0]: f"one threshold on {first}",
        SCORES[1]: "one threshold on the log-odds of the goal, first pass",
        SCORES[2]: "one threshold on the log-odds of the goal, after looking",
        ORACLE: f"oracle: each query's own best threshold on {first}",
    }
    gain = against[SCORES[0]]
    verb = against_zero(gain["interval"], "is better than", "is worse than", "is level with")
    sentences = [
        f"A gallery of {measured['images']} images was searched for {measured['queries']} names that some of them show "
        f"({measured['shown_by']:.1f} images each on average), and for {measured['queries_of_nothing']} other names. "
        "A search calls some hits relevant, and ends there. It is compared with the best single threshold for "
        "all queries. That is chosen on half of the queries and measured on the other half, both ways round.",
        f"By the mean F1 over queries, the search {verb} one threshold on {first} "
        f"({signed(gain['mean_f1'], gain['interval'], 1, 3)}).",
    ]
    if not measured["calibrated"]:
        sentences.append("The model is not calibrated: its search ends by a guess (`steering.cutoff`).")
    rows = [(what, *_row(ways[name])) for name, what in names.items()]
    head = ("called relevant by", "precision", "recall", "F1", "mean F1 over queries", "other names: no hits")
    lines = ["## Does a search end where relevance ends?", "", " ".join(sentences), "", markdown_table(head, rows)]
    return [("\n".join(lines), {})]


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    return (
        *("–" if entry[key] is None else percent(entry[key]) for key in ("precision", "recall")),
        f"{entry['f1']:.3f} {bounds(entry['f1_interval'], 1, 3)}",
        f"{entry['mean_f1']:.3f} {bounds(entry['mean_f1_interval'], 1, 3)}",
        "–" if entry["silent"] is None else percent(entry["silent"]),
    )
