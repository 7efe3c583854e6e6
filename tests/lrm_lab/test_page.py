"""The report asks for nothing outside itself, runs nothing, and is the same for the same results."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

pytest.importorskip("markdown_it", reason="needs the extra `evaluate`")

from lrm_lab import page
from lrm_lab.page import FACTS, write_page, write_results_md

RESULTS = {
    "model": "toy",
    "backbone_sha256": "abc",
    "prior": "diffusion",
    "strength": [1.0, 2.0],
    "passes": 3,
    "verdict": "fitted",
    "seed": 0,
    "scenes": 60,
    "quick": True,
    "other": "not a fact",
}
HOSTILE = """## Words <script>alert(1)</script>

<img src="https://example.org/pixel.png" onerror="alert(2)"> <b>bold</b>

<iframe src="https://example.org"></iframe>

![alt words](https://example.org/picture.png) and [a link](https://example.org/page) and [bad](javascript:alert(3))
"""


class Read(HTMLParser):
    """Every tag with its attributes, and the text below each kind of tag."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        for tag in set(self.open):
            self.text[tag][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def read(tmp_path):
    def written(*sections, title="Results", results=RESULTS):
        path = tmp_path / "page.html"
        write_page(path, title, results, [s if isinstance(s, tuple) else (s, {}) for s in sections])
        return Read(path.read_text(encoding="utf-8"))

    return written


def noise(label="", seed=0):
    """A figure that hardly compresses."""
    figure = Figure(figsize=(3, 2))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.imshow(np.random.default_rng(seed).random((300, 450)), aspect="auto", interpolation="nearest")
    figure.set_label(label)
    return figure


def picture(attributes):
    kind, _, data = attributes["src"].partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_the_page_fetches_nothing_and_runs_nothing(read):
    found = read((HOSTILE, {"noise": noise()}))
    assert not {"script", "iframe", "object", "embed", "b", "form", "base", "meta-refresh"} & {t for t, _ in found.tags}
    for tag, attributes in found.tags:
        assert not any(name.startswith("on") or name in ("srcset", "poster") for name in attributes)
        if tag == "a":
            assert attributes["href"].startswith(("https://example.org/", "#"))
        else:
            assert attributes.get("src", "data:").startswith("data:")
            assert attributes.get("href", "data:").startswith("data:")
    assert not re.search(r"url\(|@import", "".join(found.text["style"]))
    (policy,) = [m["content"] for m in found.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "script-src" not in rules


def test_html_in_markdown_is_text_and_images_are_links(read):
    found = read(HOSTILE)
    assert found.text["h2"] == ["Words <script>alert(1)</script>"]
    shown = "".join(found.text["main"])
    for words in ('<img src="https://example.org/pixel.png" onerror="alert(2)"> <b>bold</b>', "<iframe", "javascript:"):
        assert words in shown
    assert not found.all("img")
    links = [a["href"] for a in found.all("a") if not a["href"].startswith("#")]
    assert links == ["https://example.org/picture.png", "https://example.org/page"]


def test_the_same_results_give_the_same_bytes(tmp_path):
    pages = []
    for name in ("a.html", "b.html"):
        write_page(tmp_path / name, "Results", RESULTS, [("# One\n", {"noise": noise(), "n": noise(seed=1)})])
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]
    write_page(tmp_path / "c.html", "Results", RESULTS, [("# One\n", {"noise": noise(seed=2), "n": noise(seed=1)})])
    assert (tmp_path / "c.html").read_bytes() != pages[0]


def test_the_header_holds_the_facts_that_are_there(read):
    found = read("text")
    assert found.text["dt"] == list(FACTS.values())
    assert found.text["dd"] == ["toy", "abc", "diffusion", "[1.0, 2.0]", "3", "fitted", "0", "60", "True"]
    found = read("text", results={"seed": 0, "prior": "a<b>&c", "model": None, "quick": False}, title="<i>A & B</i>")
    assert (found.text["dt"], found.text["dd"]) == (["prior", "seed"], ["a<b>&c", "0"])
    assert found.text["title"] == found.text["h1"] == ["<i>A & B</i>"]


def test_pictures_have_captions_and_their_own_size(read):
    wide = Figure(figsize=(6, 1), facecolor=(1.0, 0.0, 0.2))
    found = read(("text", {"two_words": noise(), "other": noise('A label with <"signs">'), "wide": wide}))
    captions = ["two words", 'A label with <"signs">', "wide"]
    assert found.text["figcaption"] == [attributes["alt"] for attributes in found.all("img")] == captions
    assert [attributes["width"] for attributes in found.all("img")] == ["288", "288", "576"]
    assert [picture(attributes).size for attributes in found.all("img")] == [(450, 300), (450, 300), (900, 150)]
    assert picture(found.all("img")[2]).convert("RGB").getpixel((5, 5)) == (255, 0, 51)
    assert "Software" not in picture(found.all("img")[0]).info


def test_letters_without_a_glyph_disturb_nobody(read):
    figure = Figure(figsize=(1, 1))
    figure.suptitle("見る \U0001f9e0")
    assert len(read(("text", {"figure": figure})).all("img")) == 1


def test_a_page_that_is_too_large_steps_down_and_is_refused_at_last(tmp_path, monkeypatch):
    path = tmp_path / "page.html"

    def size():
        write_page(path, "Results", {}, [("text", {"noise": noise()})])
        return path.stat().st_size, picture(Read(path.read_text()).all("img")[0]).width

    sizes = [size()]
    for dpi in page.RESOLUTIONS[1:]:
        monkeypatch.setattr(page, "MOST_BYTES", sizes[-1][0] - 1)
        sizes.append(size())
        assert sizes[-1][0] < sizes[-2][0]
        assert sizes[-1][1] == 3 * dpi
    monkeypatch.setattr(page, "MOST_BYTES", sizes[-1][0] - 1)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"at 55 dots an inch, expected at most .* fewer or smaller pictures"):
        size()
    assert path.read_bytes() == before


def test_every_heading_has_an_address_of_its_own_in_the_contents(read):
    text = "# Same\n\n## Same\n\n### same-2\n\n#### deep\n\n## `code` & *more*\n\n## !?\n"
    found = read(text, "## Same\n")
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(set(ids)) == len(ids) == 7
    nav = [(a["href"], words) for a, words in zip(found.all("a"), found.text["a"], strict=True)]
    assert [href for href, _ in nav] == [f"#{anchor}" for anchor in ids if anchor != "deep"]
    assert [words for _, words in nav] == ["Same", "Same", "same-2", "code & more", "!?", "Same"]
    indents = [attributes["style"] for attributes in found.all("li")]
    assert indents[:3] == [f"margin-left: {depth}rem" for depth in (0, 1, 2)]
    assert not read("no heading").all("nav")


TABLE = """
| name | number | mixed | signed | given | middle | empty |
| --- | --- | --- | --- | ---: | :---: | --- |
| a | 1.0 | 1 | −0.5 | x | 1 | – |
| b | – | no | **+2 %** | y | 2 | - |
| c | 12 of 20 | 3 | ≥ 40 % | z | 3 | n/a |
"""


def test_numbers_stand_to_the_right(read):
    found = read(TABLE)  # the table ends its section
    right = [attributes.get("class") == "number" for attributes in found.all("th")]
    assert right == [False, True, False, True, True, False, False]
    assert [attributes.get("class") == "number" for attributes in found.all("td")] == 3 * right
    assert {attributes.get("style") for attributes in found.all("td")} == {None, "text-align:center"}


def test_the_text_is_kept_as_markdown_below_the_facts(tmp_path):
    path = tmp_path / "RESULTS.md"
    write_results_md(
        path, [("\n## One\n\ntext\n\n", {"noise": noise()}), ("", {}), ("## Two", {})], "A\ntitle", RESULTS
    )
    head, _, rest = path.read_text(encoding="utf-8").partition("\n\n")
    facts, _, rest = rest.partition("\n\n")
    assert head == "# A title"
    assert facts.splitlines()[:2] == ["- model: `toy`", "- backbone, SHA-256: `abc`"]
    assert facts.splitlines()[-2:] == ["- scenes of each kind: `60`", "- quick: `True`"]
    assert rest == "## One\n\ntext\n\n## Two\n"
    write_results_md(path, [("text", {})])
    assert path.read_text() == "# Results\n\ntext\n"


@pytest.mark.parametrize("value", ["a `b` c", "`", "``a` b", "ends with `", "two\nlines"])
def test_backticks_in_a_fact_do_not_end_its_code(tmp_path, value):
    write_results_md(tmp_path / "r.md", [], results={"prior": value})
    line = (tmp_path / "r.md").read_text().splitlines()[-1]
    shown = Read(page._markdown().render(line))
    assert shown.text["li"] == [f"prior: {' '.join(value.split())}"]
    assert shown.text["code"] == [" ".join(value.split())]


def test_names_that_are_no_text_do_not_stop_the_report(read, tmp_path):
    broken = b"photo\xff.png".decode("utf-8", "surrogateescape")
    assert "\\udcff" in read(f"## {broken}", results={"prior": broken}).text["h2"][0]
    write_results_md(tmp_path / "r.md", [(broken, {})])
    assert "photo\\udcff.png" in (tmp_path / "r.md").read_text(encoding="utf-8")
