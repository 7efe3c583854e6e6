"""The report: one HTML file that holds every table and picture, and `RESULTS.md` with the same text.

Unusual: the page asks for nothing outside itself. Pictures are data: URIs, styles are inline, there is no script, and a
content security policy forbids the rest. The same results give the same bytes: neither file holds a date, and
pictures carry no mark of the program that drew them.
"""

from __future__ import annotations

import base64
import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from matplotlib.figure import Figure

from lrm_lab.writing import Section

RESOLUTIONS = (150, 110, 80, 55)  # dots an inch; the first one is used with which the page is small enough
MOST_BYTES = 15_000_000
FACTS = {
    "model": "model",
    "backbone_sha256": "backbone, SHA-256",
    "prior": "prior",
    "strength": "strength",
    "passes": "passes",
    "verdict": "verdict",
    "seed": "seed",
    "scenes": "scenes of each kind",
    "quick": "quick",
}
NUMBER = re.compile(r"[≥≤<>≈~±+−–-]?\s*\d")
NOTHING = {"", "-", "–", "—", "n/a"}
STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --muted: #5f5f66; --line: #d9d9de; --paper: #fff; --soft: #f4f4f7;
  --link: #0b5cad }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --muted: #a5a5ad; --line: #3a3a40; --paper: #161618; --soft: #222226; --link: #7db8f5 }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 64rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere }
h1, h2, h3, h4 { line-height: 1.25; margin: 2.2em 0 .6em }
h1 { margin-top: 0 }
h2 { border-top: 1px solid var(--line); padding-top: 1.1em }
a { color: var(--link) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; font-size: .9rem }
dt { color: var(--muted) }
dd { margin: 0 }
nav { margin: 1.5rem 0; padding: .8rem 1rem; background: var(--soft); border-radius: .5rem }
nav ul { margin: 0; padding-left: 1.1rem }
code, pre { font: .9em/1.45 ui-monospace, monospace }
pre { padding: .8rem; background: var(--soft); border-radius: .5rem }
pre, .scroll { overflow-x: auto; overflow-wrap: normal }
.scroll { margin: 1rem 0 }
table { border-collapse: collapse; font-size: .9rem }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th { color: var(--muted); font-weight: 600 }
th + th, td + td { padding-left: .8rem }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
figure { margin: 1.6rem 0 }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: .4rem }
figcaption { margin-top: .4rem; color: var(--muted); font-size: .9rem }
@media print { nav { display: none } body { max-width: none } figure, tr { break-inside: avoid } }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def write_page(path: str | Path, title: str, results: Mapping[str, Any], sections: Sequence[Section]) -> None:
    """Write the page.

    Args:
        results: the header shows those of its values that `FACTS` names.
        sections: Markdown, and the figures that follow it. A figure's caption is its label (`Figure.set_label`), or
            its name. HTML in the Markdown is shown as text, and its images are links: nothing is fetched.

    Raises:
        ValueError: the page would be larger than `MOST_BYTES` even at the lowest of `RESOLUTIONS`.
    """
    for dpi in RESOLUTIONS:
        page = _page(title, results, sections, dpi)
        if len(page) <= MOST_BYTES:
            Path(path).write_bytes(page)
            return
    raise ValueError(
        f"{path}: the page has {len(page) / 1e6:.1f} MB at {RESOLUTIONS[-1]} dots an inch, expected at most "
        f"{MOST_BYTES / 1e6:.0f}: give fewer or smaller pictures"
    )


def write_results_md(
    path: str | Path, sections: Sequence[Section], title: str = "Results", results: Mapping[str, Any] | None = None
) -> None:
    """Write the text of the same sections, without pictures, below a title and the facts of the page's header."""
    facts = [f"- {name}: {_code(value)}" for name, value in _facts(results or {})]
    parts = [f"# {_line(title)}", *(["\n".join(facts)] if facts else []), *(text.strip() for text, _ in sections)]
    Path(path).write_bytes(_encoded("\n\n".join(part for part in parts if part) + "\n"))


def _page(title: str, results: Mapping[str, Any], sections: Sequence[Section], dpi: int) -> bytes:
    markdown, used = _markdown(), set[str]()
    contents: list[tuple[int, str, str]] = []
    body = []
    for text, figures in sections:
        tokens = markdown.parse(text)
        contents += _anchor(tokens, used)
        _align(tokens)
        body.append(f"<section>\n{markdown.renderer.render(tokens, markdown.options, {})}")
        body += [_figure(name, figure, dpi) for name, figure in figures.items()]
        body.append("</section>")
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        "<header>",
        f"<h1>{html.escape(title)}</h1>",
        "<dl>",
        *(f"<dt>{name}</dt><dd><code>{html.escape(value)}</code></dd>" for name, value in _facts(results)),
        "</dl>",
        "</header>",
        *_contents(contents),
        "<main>",
        *body,
        "</main>",
        "</body>",
        "</html>",
    ]
    return _encoded("\n".join(lines) + "\n")


def _encoded(text: str) -> bytes:
    """The text in UTF-8. Bytes of file names that are not valid text become escapes."""
    return text.encode("utf-8", "backslashreplace")


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The facts of the header. Values that are missing or false are left out, such as `quick` of a full run."""
    there = {key: results[key] for key in FACTS if results.get(key) is not None and results[key] is not False}
    return [(FACTS[key], str(value)) for key, value in there.items()]


def _line(text: str) -> str:
    return " ".join(text.split())


def _code(value: str) -> str:
    """A code span that is not ended by backticks inside it (CommonMark 6.1)."""
    value = _line(value)
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", value)), default=0))
    space = " " if value.startswith("`") or value.endswith("`") else ""
    return f"{ticks}{space}{value}{space}{ticks}"


def _markdown() -> MarkdownIt:
    """CommonMark and tables, without HTML and without images."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")

    def table_open(*_: Any) -> str:
        return '<div class="scroll" tabindex="0"><table>\n'

    def table_close(*_: Any) -> str:
        return "</table></div>\n"

    markdown.renderer.rules |= {"table_open": table_open, "table_close": table_close}  # type: ignore[attr-defined]
    return markdown


def _anchor(tokens: Sequence[Token], used: set[str]) -> list[tuple[int, str, str]]:
    """Give every heading an id of its own. Returns (level, id, words) of each."""
    headings = []
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            words = _words(inline)
            anchor = _unused(re.sub(r"[^\w]+", "-", words.lower()).strip("-") or "section", used)
            opening.attrSet("id", anchor)
            headings.append((int(opening.tag[1:]), anchor, words))
    return headings


def _words(inline: Token) -> str:
    return "".join(child.content for child in inline.children or ())


def _unused(anchor: str, used: set[str]) -> str:
    candidate, count = anchor, 1
    while candidate in used:
        count += 1
        candidate = f"{anchor}-{count}"
    used.add(candidate)
    return candidate


def _contents(entries: Sequence[tuple[int, str, str]]) -> list[str]:
    """The table of contents: headings of the first three levels, the lower ones indented."""
    if not entries:
        return []
    top = min(level for level, _, _ in entries)
    items = [
        f'<li style="margin-left: {level - top}rem"><a href="#{html.escape(anchor)}">{html.escape(words)}</a></li>'
        for level, anchor, words in entries
        if level <= 3
    ]
    return ['<nav aria-label="Contents">', "<ul>", *items, "</ul>", "</nav>"]


def _align(tokens: Sequence[Token]) -> None:
    """Align a column to the right if all its cells begin with a number, or if the Markdown aligns it to the right."""
    columns: list[list[tuple[Token, Token]]] = []  # (cell, its content) of each column, the head first
    place = 0
    for cell, content in zip(tokens, [*tokens[1:], *tokens[-1:]], strict=True):  # the last may close a table
        if cell.type == "table_open":
            columns = []
        elif cell.type == "tr_open":
            place = 0
        elif cell.type in ("th_open", "td_open"):
            if place == len(columns):
                columns.append([])
            columns[place].append((cell, content))
            place += 1
        elif cell.type == "table_close":
            for column in columns:
                _align_column(column)


def _align_column(column: Sequence[tuple[Token, Token]]) -> None:
    style = column[0][0].attrGet("style")
    values = [_words(content).strip() for cell, content in column if cell.type == "td_open"]
    values = [value for value in values if value not in NOTHING]
    numeric = bool(values) and all(NUMBER.match(value) for value in values)
    if style == "text-align:right" or (style is None and numeric):
        for cell, _ in column:
            cell.attrs.pop("style", None)
            cell.attrSet("class", "number")


def _figure(name: str, figure: Figure, dpi: int) -> str:
    words = html.escape(str(figure.get_label()) or name.replace("_", " "))
    source = base64.b64encode(_drawn(figure, dpi)).decode("ascii")
    width = round(figure.get_figwidth() * 96)  # CSS: 96 pixels an inch
    return (
        f'<figure>\n<img alt="{words}" width="{width}" src="data:image/png;base64,{source}">\n'
        f"<figcaption>{words}</figcaption>\n</figure>"
    )


def _drawn(figure: Figure, dpi: int) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # drawn as boxes
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
