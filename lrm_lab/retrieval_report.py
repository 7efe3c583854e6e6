"""The report on searching crowded scenes."""

from __future__ import annotations

from typing import Any

from lrm_lab.retrieval import DEPTHS
from lrm_lab.writing import Row, Section, bounds, markdown_table, percent, signed, table_row
from steering.search.gallery import RERANK

WAYS = {
    "output": "first pass, its output",
    "class": "first pass, the class itself (no words)",
    "places": "first pass, by places (the first stage)",
    "unsteered": "verdict fitted without steering, all images",
    "zero_shot": "the text encoder's own image tower",
    **{f"steered {depth}": f"**looking at the {depth} nearest**" for depth in DEPTHS},
    "prototype": f"looking at the {RERANK} nearest, goals by mean outputs",
    "oracle": f"oracle: the {RERANK} nearest in the right order",
}

COSINE = {"places": "cosine of text and image (the first stage)", "class": "cosine with the names, as a softmax"}


def sections(measured: dict[str, Any]) -> list[Section]:
    """Does looking find what is in crowded scenes?"""
    return [(section(measured), {})]


def section(measured: dict[str, Any]) -> str:
    """How well looking ranks, and how often it says that a goal is shown."""
    ways, against, best = measured["ways"], measured["against"], measured["best_of_output"]
    own, places = ways[f"steered {RERANK}"], against["places"]
    by_cosine = measured.get("first_stage") == "cosine"
    first_stage = "Most of this gain needs no goal: the first pass read place by place reaches"
    if by_cosine:
        first_stage = "The first stage of a search, the cosine of text and image, reaches"
    sentences = [
        f"A gallery of {measured['scenes']:,} scenes of two to four objects was searched for {measured['queries']} "
        f"classes by name. Each class is in {measured['shown_by']:.0f} scenes on average.",
        f"Looking at the {RERANK} nearest scenes gives a mean average precision (mAP) of {own['mAP']:.3f}. That is "
        f"{100 * against[best]['relative']:+.0f} % relative to the best ranking by the first pass's output "
        f"({ways[best]['mAP']:.3f}).",
        f"{first_stage} {ways['places']['mAP']:.3f} alone. Looking adds "
        f"{signed(places['difference'], places['interval'], 1, 3)} to that.",
    ]
    if (unaided := against.get("unsteered")) is not None:
        sentences.append(
            "A verdict that was fitted on the first pass alone can be asked of every image. Compared with it, looking "
            f"changes the mAP by {signed(unaided['difference'], unaided['interval'], 1, 3)}."
        )
    names = {**WAYS, **(COSINE if by_cosine else {})}
    ranked = [
        (names[name], f"{entry['mAP']:.3f} {bounds(entry['mAP_interval'], 1, 3)}", percent(entry["P@1"]))
        for name, entry in sorted(ways.items(), key=lambda pair: list(WAYS).index(pair[0]))
    ]
    present = measured["present"]
    said = [
        ("queries for which the gallery is said to show it", percent(present["present"])),
        ("… and the first hit does", percent(present["present_rightly"])),
        ("the same without a right image: said to show it", percent(present["false"])),
        ("the same without a right image: a hit of the page looks like it alone", percent(present["false_alone"])),
        (
            "hits of the pages that look like it alone: right, of how many; expected",
            f"{present['images_right']} of {present['images_said']}; {present['images_expected']:.0f}",
        ),
    ]
    lines = [
        "## Does looking find what is in crowded scenes?",
        "",
        " ".join(sentences),
        "",
        markdown_table(("ranked by", "mAP", "first hit is right"), ranked),
        "",
        f"Some of {RERANK} looks would always find something by chance. So the answer of a gallery reads all looks "
        "together, and a few that are drawn at random. To see how often looking is wrong, every search was made again "
        "without the images that show the class:",
        "",
        markdown_table(("what a search says", "measured"), said),
    ]
    return "\n".join(lines)


def rows(measured: dict[str, Any]) -> list[Row]:
    """mAP against the first pass, what looking adds to places, and how often an image is wrongly said to show it."""
    ways, best, places = measured["ways"], measured["best_of_output"], measured["against"]["places"]
    own, gain = ways[f"steered {RERANK}"]["mAP"], measured["against"][best]["relative"]
    added = signed(places["difference"], places["interval"], 1, 3)
    present = measured["present"]
    is_cosine = measured.get("first_stage") == "cosine"
    first_stage = "the cosine of text and image alone" if is_cosine else "places alone, without a goal"
    what = (
        f"search of {measured['scenes']:,} crowded scenes, mAP: first pass's output / looking at the {RERANK} nearest"
    )
    return [
        table_row(what, f"{ways[best]['mAP']:.3f} / {own:.3f} = {100 * gain:+.0f} %", "≥ +25 %", gain >= 0.25),
        table_row(
            f"… by {first_stage} (what looking adds)",
            f"{ways['places']['mAP']:.3f} ({added})",
            "> 0",
            places["difference"] > 0,
        ),
        table_row(
            "… queries without a right image for which the gallery is said to show it",
            f"{percent(present['false'])} (a hit alone: {percent(present['false_alone'])})",
            "≤ 5 %",
            present["false"] <= 0.05,
        ),
    ]
