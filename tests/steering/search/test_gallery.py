"""Search: candidates by the first pass, looked at, ranked, judged; and everything that reads a gallery."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lrm_base.frame import Frame
from steering import Gallery, GalleryError, ImageError, QueryError, Steerer
from steering.algebra import combine_goals
from steering.goals import Goal
from steering.images import open_image
from steering.search.hits import direction
from steering.search.odds import corrected, prevalence


@pytest.fixture
def filled(gallery: Gallery, photos) -> Gallery:
    gallery.add(photos(12)[0].parent, workers=0)
    return gallery


def test_the_first_stage_ranks_by_the_cosine_of_class_evidence_and_goal(filled: Gallery, contents):
    hits = filled.search("a cat", top=12, rerank=0)
    query = direction(filled.steerer.network, filled.goal("a cat"))
    expected = {
        path: float(np.dot(row["evidence"], query) / np.linalg.norm(row["evidence"]))
        for path, row in contents(filled).items()
    }
    np.testing.assert_allclose([hit.score for hit in hits], [expected[hit.path] for hit in hits], atol=1e-5)
    np.testing.assert_allclose([hit.score for hit in hits], sorted(expected.values(), reverse=True), atol=1e-5)
    assert [hit.rank for hit in hits] == list(range(1, 13))
    assert not any(hit.looked_at for hit in hits)
    assert {hit.probability for hit in hits} == {None}


def test_the_second_stage_says_what_a_look_at_each_file_says(filled: Gallery, toy: Steerer):
    hits = filled.search("a cat", top=12)
    looks = {hit.path: toy.look(hit.path, "a cat") for hit in hits}
    assert all(hit.looked_at for hit in hits)
    for hit in hits:
        assert hit.alone == pytest.approx(looks[hit.path].probability, abs=2e-3)
        assert hit.evidence == pytest.approx(looks[hit.path].evidence, abs=2e-2)
    alone = np.array([hit.alone for hit in hits])
    assert (np.diff(alone) <= 0).all()
    again = prevalence(alone, np.ones(12), np.zeros(12, int))
    assert (hits.prevalence.share, hits.prevalence.factor) == pytest.approx((again.share, again.factor), rel=1e-4)
    np.testing.assert_allclose([hit.probability for hit in hits], corrected(alone, hits.prevalence), rtol=1e-6)
    for hit in hits:
        assert hit.verdict == toy.verdicts["diffusion"].answer(hit.alone)
    assert hits.present == [hit for hit in hits if hit.alone >= 0.8]
    assert hits.expected == pytest.approx(sum(hit.probability for hit in hits.present))


def test_only_the_nearest_are_looked_at_and_the_rest_follow_in_order(filled: Gallery):
    first = filled.search("a cat", top=12, rerank=0)
    hits = filled.search("a cat", top=12, rerank=2)
    assert (hits.images, hits.looked_at, len(hits)) == (12, 8, 12)  # two that are nearest, two of each of three strata
    looked = {hit.path for hit in hits if hit.looked_at}
    assert {hit.path for hit in first[:2]} < looked
    assert [hit.looked_at for hit in hits] == [True] * 8 + [False] * 4
    assert [hit.path for hit in hits[8:]] == [hit.path for hit in first if hit.path not in looked]
    assert filled.search("a cat", top=12, rerank=5).looked_at == 12  # so few images are all looked at


def test_a_condition_narrows_the_gallery(filled: Gallery):
    hits = filled.search("a cat", top=50, where="width >= 65 AND path LIKE '%/photos/%'")
    assert hits.images == 7
    assert {hit.width for hit in hits} == {65, 66, 67, 68, 69, 70, 71}
    assert not filled.search("a cat", where="width > 1000")
    sees = {row["sees"] for row in filled.images()}
    assert sees <= set(filled.steerer.class_names)
    assert all(row["width"] == 61 for row in filled.images("width = 61"))


@pytest.mark.parametrize("where", ["widht > 3", "width > > 3", "", "width", "width > $1", "nonsense("])
def test_a_condition_that_cannot_be_understood_is_told(filled: Gallery, where: str):
    with pytest.raises(GalleryError, match="where"):
        filled.search("a cat", where=where)


def test_a_threshold_drops_hits_and_wrong_settings_are_told(filled: Gallery):
    everything = filled.search("a cat", top=12)
    middle = everything[5].probability
    assert len(filled.search("a cat", top=12, threshold=middle)) == sum(h.probability >= middle for h in everything)
    for wrong in ({"top": 0}, {"rerank": -1}, {"threshold": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            filled.search("a cat", **wrong)
    with pytest.raises(QueryError, match=r"goal 'mine': got shape \(3,\), expected \(6,\) for toy"):
        filled.search(Goal("mine", torch.zeros(3), "image"))
    with pytest.raises(QueryError):
        filled.search("   ")


WRONG = """
import sys
import numpy as np
import torch
from steering import Gallery, Steerer
from steering.search.engine import local_engine
toy = Steerer.load(sys.argv[1], device="cpu")
gallery = Gallery.open(sys.argv[2], toy, create=False)
hit = gallery.search("a cat")[0]
numbers = (float("nan"), 2.5, True, -1, "3", 10**30)
settings = ("top", "rerank", "passes", "seed")
calls = [(n, value, lambda v, n=n: gallery.search("a cat", **{n: v})) for n in settings for value in numbers]
calls += [("page", value, lambda v: gallery.stream("a cat", page=v)) for value in numbers]
calls += [("workers", value, lambda v: gallery.add([], workers=v)) for value in numbers]
calls += [("batch", value, lambda v: local_engine(toy.network, 0, v)) for value in numbers]
calls += [("threshold", value, lambda v: gallery.search("a cat", threshold=v)) for value in (*numbers, float("inf"))]
calls += [("where", value, lambda v: gallery.search("a cat", where=v)) for value in (3, b"width > 1", "", ["width"])]
for value in (torch.zeros(6), None, ["a cat"], 3, b"a cat", np.zeros(6)):
    for ask in (gallery.search, gallery.stream, gallery.goal, lambda v: gallery.look(hit, v)):
        calls.append(("query", value, ask))
fine = {("top", 10**30), ("rerank", 10**30), ("page", 10**30)}  # as many as there are
for name, value, call in calls:
    try:
        call(value)
    except ValueError as error:
        print(type(error).__name__, str(error).startswith(f"{name}: got "), len(str(error).splitlines()), flush=True)
    else:
        assert isinstance(value, int) and (name, value) in fine, (name, value)
        print("fine")
"""


def test_numbers_and_queries_of_other_kinds_are_refused_in_one_line(filled: Gallery, toy_folder: Path):
    command = [sys.executable, "-c", WRONG, str(toy_folder), filled.store.uri]  # without the checks of types in tests
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines.count("fine") == 3
    assert lines.count("QueryError True 1") == 24
    assert lines.count("GalleryError True 1") == 4
    assert lines.count("ValueError True 1") == len(lines) - 31 == 46


def test_a_goal_of_another_width_is_refused_everywhere(filled: Gallery):
    hit, goal = filled.search("a cat")[0], Goal("mine", torch.zeros(3), "image")
    for ask in (filled.search, filled.stream, filled.goal, lambda query: filled.look(hit, query)):
        with pytest.raises(QueryError, match=r"goal 'mine': got shape \(3,\), expected \(6,\) for toy"):
            ask(goal)


def test_what_to_keep_is_one_of_three(tmp_path: Path, toy_folder: Path, toy: Steerer):
    keep: Any = "pixel"
    with pytest.raises((ValueError, TypeError), match="keep"):
        Gallery.open(tmp_path / "new", toy, keep=keep)


def test_images_and_terms_are_queries_too(filled: Gallery, toy: Steerer):
    photo = filled.search("a cat")[0].path
    hits = filled.search(toy.image_goal(photo))
    assert hits.prevalence is None  # no verdict on such goals: ranked by support
    assert all(hit.evidence is not None and hit.probability is None for hit in hits)
    assert {hit.verdict for hit in hits} == {None}
    both = filled.search("a cat - a teapot", top=12)
    alone = {hit.path: hit.alone for hit in filled.search("a cat", top=12)}
    tea = {hit.path: hit.alone for hit in filled.search("a teapot", top=12)}
    for hit in both:
        assert hit.alone == pytest.approx(alone[hit.path] * (1 - tea[hit.path]), rel=1e-3)


def test_an_empty_gallery_answers_that_there_is_nothing(gallery: Gallery):
    hits = gallery.search("a cat")
    assert (list(hits), hits.images, hits.looked_at) == ([], 0, 0)
    assert list(gallery.stream("a cat")) == []
    assert gallery.duplicates(near=True) == []


def test_a_stream_gives_every_image_once_page_by_page(filled: Gallery):
    hits = list(filled.stream("a cat", page=5))
    assert [hit.rank for hit in hits] == list(range(1, 13))
    assert len({hit.path for hit in hits}) == 12
    first = [hit.path for hit in filled.search("a cat", top=12, rerank=0)]
    for page in (slice(0, 5), slice(5, 10), slice(10, 12)):
        assert {hit.path for hit in hits[page]} == set(first[page])
        alone = [hit.alone for hit in hits[page]]
        assert alone == sorted(alone, reverse=True)
    assert all(hit.probability == hit.alone for hit in hits)
    assert len(list(filled.stream("a cat", where="width = 61"))) == 1


def strange(gallery: Gallery) -> Goal:
    """The goal for a cat, as if the network had no eyes for it."""
    return Goal("a cta", gallery.goal("a cat").vector, "diffusion", unfamiliar="“cta” is no word", nearest=("cat",))


def test_words_that_the_network_has_no_eyes_for_rank_nothing(filled: Gallery):
    goal = strange(filled)
    for query in (goal, combine_goals([(1.0, filled.goal("a lemon")), (-1.0, goal)], "a lemon - a cta")):
        hits = filled.search(query, threshold=0.5)
        assert (list(hits), hits.answer, hits.images, hits.looked_at, hits.prevalence) == ([], "unknown", 12, 0, None)
        assert (hits.present, hits.expected, hits.notes[-1]) == ([], 0.0, "“cta” is no word")
        plain = json.loads(json.dumps(hits.as_dict()))
        assert (plain["answer"], plain["hits"], plain["nearest"]) == ("unknown", [], ["cat"])
        with pytest.raises(QueryError, match="“cta” is no word; anyway=True ranks all the same"):
            filled.stream(query)
    with pytest.raises(GalleryError):
        filled.search(goal, where="nonsense = 1")


def test_words_without_eyes_rank_anyway_without_a_number(filled: Gallery):
    goal, same = strange(filled), filled.search("a cat", top=12)
    hits = filled.search(goal, top=12, anyway=True)
    assert (hits.answer, hits.prevalence, hits.looked_at) == ("unknown", None, 12)
    assert [hit.path for hit in hits] == [hit.path for hit in same]
    assert [hit.evidence for hit in hits] == [hit.evidence for hit in same]
    streamed = list(filled.stream(goal, anyway=True, page=5))
    assert [hit.path for hit in streamed] == [hit.path for hit in filled.stream("a cat", page=5)]
    for hit in (*hits, *streamed):
        assert (hit.verdict, hit.alone, hit.probability) == ("unknown", None, None)
    assert {hit.verdict for hit in filled.search(goal, rerank=0, anyway=True)} == {None}
    with pytest.raises(ValueError, match=r"threshold: got 0\.5, but toy has no eyes for 'a cta'"):
        filled.search(goal, threshold=0.5, anyway=True)


def test_a_gallery_of_a_model_without_a_verdict_ranks_by_evidence_whatever_the_words_are(filled: Gallery, toy: Steerer):
    bare = Gallery(filled.store, toy.with_network(toy.network))
    hits = bare.search(strange(filled))
    assert (len(hits), hits.answer, hits[0].verdict) == (10, None, None)
    assert len(list(bare.stream(strange(filled)))) == 12


def test_threads_find_what_one_finds(filled: Gallery):
    queries = ["a cat", "a beagle", "a lemon", "a teapot"] * 4
    alone = [list(filled.search(query)) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        assert [list(hits) for hits in pool.map(filled.search, queries)] == alone


def test_a_hit_can_be_looked_at_whole_even_when_its_file_is_gone(filled: Gallery, toy: Steerer):
    hit = filled.search("a cat")[0]
    at_file = filled.look(hit, "a cat")
    assert at_file.picture.size == (hit.width, hit.height)
    Path(hit.path).unlink()
    from_pixels = filled.look(hit, "a cat")
    assert from_pixels.image == hit.path
    assert from_pixels.picture.width / from_pixels.picture.height == pytest.approx(hit.width / hit.height, abs=0.02)
    assert from_pixels.heatmap.shape == at_file.heatmap.shape
    filled.store.images.delete([hit.path])
    with pytest.raises(ImageError, match="the file is gone, and its pixels are not stored"):
        filled.look(hit, "a cat")


def test_names_that_were_given_are_no_files(gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    open_image("sample:coffee").save("mine.jpg")
    gallery.add([("mine.jpg", open_image("sample:cat").resize((90, 60)))], workers=0)
    (hit,) = gallery.search("a cat")
    assert gallery.look(hit, "a cat").picture.size != open_image("mine.jpg").size


def test_an_image_that_changes_is_another_query(filled: Gallery, tmp_path: Path):
    query = tmp_path / "q.png"
    vectors = []
    for sample in ("sample:cat", "sample:coffee"):
        open_image(sample).save(query)
        vectors.append(filled.goal(f"image:{query} + a cat").vector)
    assert not torch.allclose(*vectors)


def test_goals_of_goals_have_an_answer(filled: Gallery, toy: Steerer):
    inner = toy.goal("a cat - a teapot")
    hits = filled.search(combine_goals([(1.0, inner), (1.0, toy.goal("a lemon"))], "both"))
    assert hits[0].verdict is not None
    with pytest.raises(ValueError, match="page: got 0"):
        filled.stream("a cat", page=0)


def test_without_a_look_nothing_is_judged(filled: Gallery, toy: Steerer):
    hits = filled.search("a cat", rerank=0)
    assert hits.prevalence is None
    with pytest.raises(ValueError, match="threshold"):
        filled.search("a cat", rerank=0, threshold=0.5)
    with pytest.raises(ValueError, match="no calibrated verdict for goals by 'image'"):
        filled.search(toy.image_goal("sample:cat"), threshold=0.5)


def test_flat_images_of_one_colour_are_duplicates_whatever_else_is_flat(gallery: Gallery, tmp_path: Path):
    (tmp_path / "flat").mkdir()
    for name, colour, size in (("a", 0, 100), ("b", 255, 100), ("c", 255, 150), ("d", 1, 90)):
        Image.new("L", (size, size), colour).save(tmp_path / "flat" / f"{name}.png")
    gallery.add(tmp_path / "flat", workers=0)
    near = [[Path(path).stem for path in group] for group in gallery.duplicates(near=True)]
    assert near == [["a", "d"], ["b", "c"]]


def test_palettes_count_as_content():
    from steering.search.decode import Decoded, Task, read
    from steering.search.files import Entry

    pictures = [
        Image.new("RGB", (8, 8), colour).convert("P", palette=Image.Palette.ADAPTIVE) for colour in ("red", "blue")
    ]
    seen = [read(Task(Entry("x", 0, 0, picture)), Frame(8)) for picture in pictures]
    assert all(isinstance(item, Decoded) for item in seen)
    assert seen[0].sha256 != seen[1].sha256


def test_duplicates_are_found_by_content_and_by_look(gallery: Gallery, tmp_path: Path):
    cat, coffee = open_image("sample:cat"), open_image("sample:coffee")
    folder = tmp_path / "many"
    folder.mkdir()
    cat.save(folder / "cat.png")
    (folder / "copy.png").write_bytes((folder / "cat.png").read_bytes())
    cat.resize((200, 133)).save(folder / "small.jpg", quality=80)
    coffee.save(folder / "coffee.png")
    cat.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    gallery.add(folder, workers=0)
    names = [[Path(path).name for path in group] for group in gallery.duplicates()]
    assert names == [["cat.png", "copy.png"]]
    near = [[Path(path).name for path in group] for group in gallery.duplicates(near=True)]
    assert near == [["cat.png", "copy.png", "small.jpg"]]


def test_names_that_are_no_text_are_searched_and_found(gallery: Gallery, tmp_path: Path):
    import os

    names = [b"new\nline.png", b"caf\xe9.png", 'it\'s "ü".png'.encode()]
    for name in names:
        open_image("sample:cat").resize((40, 40)).save(os.fsencode(tmp_path) + b"/" + name, "PNG")
    gallery.add(tmp_path, workers=0)
    hits = gallery.search("a cat", fold=False)
    assert {os.fsencode(os.path.basename(hit.path)) for hit in hits} == set(names)
    assert all(hit.looked_at for hit in hits)
    for hit in hits:
        assert gallery.look(hit, "a cat").picture.size == (40, 40)
        assert json.loads(json.dumps(hit.as_dict()))["path"] == hit.path


def test_a_stored_first_pass_is_taken_instead_of_pixels(
    tmp_path: Path, toy: Steerer, photos, monkeypatch: pytest.MonkeyPatch
):
    folder = photos(6)[0].parent
    plain, fast = (Gallery.open(tmp_path / keep, toy, keep=keep) for keep in ("pixels", "first-pass"))
    for each in (plain, fast):
        each.add(folder, workers=0)
    looked = {hit.path: hit for hit in plain.search("a cat - a teapot", top=6)}
    monkeypatch.setattr(fast.store, "pixels", lambda names: [] if not names else pytest.fail("pixels were read"))
    for hit in fast.search("a cat - a teapot", top=6):
        assert hit.alone == pytest.approx(looked[hit.path].alone, abs=5e-3)
        assert hit.evidence == pytest.approx(looked[hit.path].evidence, abs=5e-2)


def test_what_is_kept_is_settled_when_a_gallery_is_made(filled: Gallery, toy: Steerer):
    assert len(Gallery.open(filled.store.uri, toy, keep="pixels")) == 12
    with pytest.raises(GalleryError, match=r"keep: got .first-pass., but .* keeps pixels of each image"):
        Gallery.open(filled.store.uri, toy, keep="first-pass")


def test_vectors_are_those_of_the_first_pass(filled: Gallery, toy: Steerer):
    ((names, outputs, evidence),) = filled.vectors()
    assert len(names) == len(outputs) == len(evidence) == 12
    glance = toy.network.glance(toy.network.pixels(open_image(names[3])))
    np.testing.assert_allclose(outputs[3], glance.output[0], rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(evidence[3], glance.places[0], atol=2e-3)
    np.testing.assert_allclose(evidence.sum(1), 1, atol=5e-3)


def test_the_contact_sheet_shows_every_hit(filled: Gallery, tmp_path: Path):
    from steering.search.sheet import contact_sheet

    hits = filled.search("a cat", top=7)
    Path(hits[2].path).unlink()
    figure = contact_sheet(filled, hits, "a cat")
    figure.savefig(tmp_path / "sheet.png")
    assert len(figure.axes) == 7
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert words[0].startswith(f"1 {hits[0].verdict}")
    assert all(len(axes.images) == 1 for axes in figure.axes)
    contact_sheet(filled, filled.search("a cat", where="width > 1000"), "a cat").savefig(tmp_path / "empty.png")


def test_images_that_are_the_same_to_the_eye_are_one_hit(gallery: Gallery, tmp_path: Path, photos):
    folder = photos(4)[0].parent
    cat = open_image("sample:cat").resize((80, 54))
    for number in range(40):
        cat.save(folder / f"copy-{number:02d}.jpg", quality=60 + number)
    gallery.add(folder, workers=0)
    hits = gallery.search("a cat", top=10)
    assert len(hits) == 5
    (many,) = [hit for hit in hits if hit.copies]
    names = {Path(path).name for path in (many.path, *many.copies)}
    assert names == {f"copy-{number:02d}.jpg" for number in range(40)}
    assert (hits.images, hits.looked_at) == (44, 5)
    unfolded = gallery.search("a cat", top=44, fold=False)
    assert (len(unfolded), unfolded.looked_at) == (44, 44)
    assert not any(hit.copies for hit in unfolded)
    share = unfolded.prevalence.share
    assert hits.prevalence.share == pytest.approx(share, abs=0.1)  # one look speaks for all forty


def test_more_distinct_candidates_are_sought_behind_many_copies(gallery: Gallery, tmp_path: Path, photos):
    folder = photos(12)[0].parent
    cat = open_image("sample:cat").resize((80, 54))
    for number in range(60):
        cat.save(folder / f"copy-{number:02d}.jpg", quality=30 + number)
    gallery.add(folder, workers=0)
    hits = gallery.search("a cat", top=13, rerank=4)
    assert len(hits) == 13
    assert sum(1 + len(hit.copies) for hit in hits) == 72


def test_a_hit_whose_file_is_gone_is_marked(filled: Gallery):
    first = filled.search("a cat")[0]
    assert not first.gone
    Path(first.path).unlink()
    again = filled.search("a cat")
    assert [hit.gone for hit in again] == [hit.path == first.path for hit in again]


def test_of_copies_one_whose_file_is_there_stands_for_all(gallery: Gallery, photos):
    paths = photos(3)
    copy = paths[0].with_name("copy.png")
    copy.write_bytes(paths[0].read_bytes())
    gallery.add(copy.parent, workers=0)
    pair = {str(copy), str(paths[0])}
    first = next(hit for hit in gallery.search("a cat") if hit.copies)
    assert {first.path, *first.copies} == pair
    Path(first.path).unlink()
    left = next(hit for hit in gallery.search("a cat") if hit.copies)
    assert (left.path, left.copies, left.gone) == (first.copies[0], (first.path,), False)


def test_what_is_looked_at_of_many_images_is_drawn_from_all_of_them(
    gallery: Gallery, photos, monkeypatch: pytest.MonkeyPatch
):
    from steering.search import candidates

    gallery.add(photos(60)[0].parent, workers=0)
    monkeypatch.setattr(candidates, "ALL", 10)
    monkeypatch.setattr(candidates, "MOST_BY_INDEX", 12)
    settings = {"looks": 8, "top": 5, "fold": False, "seed": 1}
    towards = np.ones(6, np.float32) / 6**0.5
    for where, total in ((None, 60), ("width > 65", 48)):
        assert gallery.store.count(where) == total
        chosen = candidates.choose(gallery.store, towards, total, where=where, **settings)
        looked = [*chosen.nearest, *chosen.drawn]
        names = {candidate.row["path"] for candidate in looked}
        assert len(names) == len(looked) > 12
        assert sum(candidate.weight for candidate in looked) == pytest.approx(total)
        assert [c.row["path"] for c in chosen.nearest] == [
            row["path"] for row in gallery.store.nearest(towards, 8, where).to_pylist()
        ]
        far = [c for c in chosen.drawn if c.stratum == max(c.stratum for c in chosen.drawn)]
        scores = {row["path"]: row["score"] for row in gallery.store.nearest(towards, total, where).to_pylist()}
        for candidate in far:
            assert candidate.row["score"] == pytest.approx(scores[candidate.row["path"]], abs=1e-3)


def test_a_complement_is_sought_from_the_other_end(filled: Gallery):
    cats, others = (filled.search(query, top=12, fold=False) for query in ("a cat", "not a cat"))
    assert others.goal.is_complement
    alone = {hit.path: hit.alone for hit in cats}
    for hit in others:
        assert hit.alone == pytest.approx(1 - alone[hit.path], abs=1e-4)
    assert [hit.alone for hit in others] == sorted((hit.alone for hit in others), reverse=True)
    nearest = filled.search("not a cat", top=12, rerank=0)
    assert [hit.path for hit in nearest] == [hit.path for hit in filled.search("a cat", top=12, rerank=0)][::-1]
