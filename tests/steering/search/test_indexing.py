"""A gallery and its images: kept in step, whatever happens to either."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steering import Gallery, GalleryError, ImageError, Network, Steerer
from steering.errors import UnavailableError
from steering.images import open_image
from steering.search import decode, indexing, table
from steering.search.engine import local_engine


def test_a_row_holds_what_the_first_pass_saw(gallery: Gallery, toy: Steerer, photos, contents, counts):
    paths = photos(3)
    assert counts(gallery.add(paths[0].parent, workers=0)) == {"new": 3}
    rows = contents(gallery)
    assert sorted(rows) == [str(path) for path in paths]
    row = rows[str(paths[1])]
    glance = toy.network.glance(toy.network.pixels(open_image(paths[1])))
    np.testing.assert_allclose(row["output"], glance.output[0], rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(row["evidence"], glance.places[0].sqrt(), atol=1e-3)
    assert np.linalg.norm(row["evidence"]) == pytest.approx(1, abs=2e-3)
    assert row["sees"] == toy.class_names[int(glance.places[0].argmax())]
    status = paths[1].stat()
    assert (row["size"], row["width"], row["height"]) == (status.st_size, 61, 50)
    assert int(row["modified"].value) == status.st_mtime_ns
    np.testing.assert_array_equal(gallery.store.pixels([str(paths[1])])[0].shape, (32, 32, 3))


def test_a_second_run_reads_nothing(gallery: Gallery, photos, monkeypatch: pytest.MonkeyPatch, contents, counts):
    folder = photos(4)[0].parent
    gallery.add(folder, workers=0)
    before = contents(gallery)
    monkeypatch.setattr("steering.search.decode.read_file", lambda path: pytest.fail(f"read {path}"))
    assert counts(gallery.add(folder, workers=0)) == {"unchanged": 4}
    assert contents(gallery) == before


def test_new_changed_renamed_touched_and_deleted_images(gallery: Gallery, photos, contents, counts, show):
    new, changed, renamed, touched, deleted, same = photos(6)
    new.rename(new.with_suffix(".later"))
    folder = new.parent
    gallery.add(folder, workers=0)
    before = contents(gallery)
    new.with_suffix(".later").rename(new)
    show(changed)
    moved = folder / "below" / "moved.png"
    moved.parent.mkdir()
    renamed.rename(moved)
    os.utime(touched, (1, 1))
    deleted.unlink()
    report = gallery.add(folder, workers=0)
    assert counts(report) == {"new": 1, "changed": 1, "renamed": 1, "deleted": 1, "unchanged": 2}
    rows = contents(gallery)
    assert sorted(rows) == sorted(str(path) for path in (new, changed, moved, touched, same))
    assert rows[str(changed)]["sha256"] != before[str(changed)]["sha256"]
    assert rows[str(moved)] == before[str(renamed)]
    assert rows[str(touched)].pop("modified").year == 1970
    before[str(touched)].pop("modified")
    assert rows[str(touched)] == before[str(touched)]
    assert rows[str(same)] == before[str(same)]
    assert counts(gallery.add(folder, workers=0)) == {"unchanged": 5}


def test_renamed_images_are_not_decoded(gallery: Gallery, photos, monkeypatch: pytest.MonkeyPatch, contents, counts):
    folder = photos(3)[0].parent
    gallery.add(folder, workers=0)
    folder.rename(folder.with_name("moved"))
    folder.mkdir()
    monkeypatch.setattr("steering.search.decode.open_image", lambda image: pytest.fail("decoded"))
    report = gallery.add([folder, folder.with_name("moved")], workers=0, prune=True)
    assert counts(report) == {"renamed": 3}
    assert all("/moved/" in name for name in contents(gallery))


def test_two_copies_of_a_vanished_image_both_get_its_row(gallery: Gallery, photos, contents, counts):
    (path,) = photos(1)
    gallery.add(path.parent, workers=0)
    shutil.copy(path, path.with_name("b.png"))
    path.rename(path.with_name("a.png"))
    assert counts(gallery.add(path.parent, workers=0)) == {"renamed": 2}
    assert sorted(Path(name).name for name in contents(gallery)) == ["a.png", "b.png"]


def test_a_folder_that_is_empty_now_keeps_its_images_until_told(gallery: Gallery, photos, counts):
    paths = photos(3)
    other = photos(2, folder="other")[0].parent
    folder = paths[0].parent
    gallery.add([folder, other], workers=0)
    for path in paths:
        path.unlink()
    report = gallery.add([folder, other], workers=0)
    assert counts(report) == {"unchanged": 2}
    assert report.kept == {str(folder): 3}
    assert len(gallery) == 5
    assert counts(gallery.add(folder, workers=0, prune=True)) == {"deleted": 3}
    assert len(gallery) == 2


def test_what_lies_below_a_folder_that_cannot_be_listed_is_kept(gallery: Gallery, photos, monkeypatch, counts):
    photos(2)
    shut = photos(2, folder="photos/shut", first=5)[0].parent
    gallery.add(shut.parent, workers=0)
    listed = os.scandir

    def scandir(path):
        if os.fspath(path) == str(shut):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    report = gallery.add(shut.parent, workers=0)
    assert counts(report) == {"unchanged": 2}
    assert list(report.unlisted) == [str(shut)]
    assert len(gallery) == 4


def test_bad_files_are_skipped_listed_not_read_again_and_taken_when_mended(
    gallery: Gallery, photos, tmp_path: Path, contents, counts, show
):
    good, bad = photos(2)
    bad.write_bytes(b"no image")
    report = gallery.add(good.parent, workers=0)
    assert counts(report) == {"new": 1, "skipped": 1}
    assert "is not an image" in report.skipped[str(bad)]
    assert gallery.skipped() == report.skipped
    again = gallery.add(good.parent, workers=0)
    assert again.skipped[str(bad)].startswith("is not an image")
    assert again.skipped[str(bad)].endswith("(as before; retry=True reads it again)")
    assert "is not an image" in gallery.add(good.parent, workers=0, retry=True).skipped[str(bad)]
    show(bad)
    assert counts(gallery.add(good.parent, workers=0)) == {"new": 1, "unchanged": 1}
    assert gallery.skipped() == {}
    good.write_bytes(b"")  # and the other way round
    report = gallery.add(good.parent, workers=0)
    assert report.skipped == {str(good): "is empty (0 bytes)"}
    assert list(contents(gallery)) == [str(bad)]
    good.unlink()
    gallery.add(good.parent, workers=0)
    assert gallery.skipped() == {}


def test_a_failure_that_may_pass_is_tried_again_and_costs_no_row(gallery: Gallery, photos, monkeypatch, counts):
    paths = photos(3)
    gallery.add(paths[0].parent, workers=0)
    new = photos(1, first=7)[0]
    os.utime(paths[0], (5, 5))
    read = decode.read_file

    def flaky(path):
        if os.fspath(path) in (str(paths[0]), str(new)):
            raise UnavailableError(f"{path}: cannot be read (Input/output error)")
        return read(path)

    monkeypatch.setattr(decode, "read_file", flaky)
    report = gallery.add(new.parent, workers=0)
    assert set(report.skipped.values()) == {"cannot be read (Input/output error)"}
    assert set(report.skipped) == {str(paths[0]), str(new)}
    assert len(gallery) == 3
    assert gallery.skipped() == {}
    monkeypatch.setattr(decode, "read_file", read)
    assert counts(gallery.add(new.parent, workers=0)) == {"new": 1, "unchanged": 3}


def test_links_to_a_disk_that_is_away_keep_their_rows(gallery: Gallery, photos, tmp_path: Path, counts):
    paths = photos(3)
    links = tmp_path / "links"
    links.mkdir()
    for path in paths:
        (links / path.name).symlink_to(path)
    gallery.add(links, workers=0)
    paths[0].parent.rename(tmp_path / "away")
    report = gallery.add(links, workers=0)
    assert counts(report) == {"skipped": 3}
    assert len(gallery) == 3
    (tmp_path / "away").rename(paths[0].parent)
    assert counts(gallery.add(links, workers=0)) == {"unchanged": 3}


@pytest.mark.parametrize("table", ["images", "skipped"])
def test_a_kill_between_the_commits_leaves_no_image_both_indexed_and_skipped(
    table: str, gallery: Gallery, photos, show, monkeypatch: pytest.MonkeyPatch
):
    turned_bad, turned_good = photos(2)
    turned_good.write_bytes(b"no image")
    folder = turned_bad.parent
    gallery.add(folder, workers=0)
    turned_bad.write_bytes(b"no image either")
    show(turned_good)

    class Killed(BaseException):
        pass

    def kill(rows):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(getattr(gallery.store, table), "upsert", kill)
        with pytest.raises(Killed):
            gallery.add(folder, workers=0)
    both = {row["path"] for row in gallery.images()} & set(gallery.skipped())
    assert both == set()
    gallery.add(folder, workers=0)
    assert [row["path"] for row in gallery.images()] == [str(turned_good)]
    assert list(gallery.skipped()) == [str(turned_bad)]


def test_things_that_are_no_images_are_skipped_whatever_they_are(gallery: Gallery, photos):
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature
    from torchvision.datasets import ImageFolder

    good, cut, later = photos(3, folder="all/photos")
    cut.write_bytes(cut.read_bytes()[:300])
    os.utime(good, (2**34, 2**34))  # the year 2514
    with Image.open(cut) as broken:
        pairs = [("none", None), ("tensor", object()), ("cut", broken), ("good", open_image(good))]
        report = gallery.add(pairs, workers=0)
    assert (report.new, set(report.skipped)) == (1, {"none", "tensor", "cut"})
    cells = [{"bytes": good.read_bytes(), "path": None}, None]
    data = Dataset.from_dict({"image": cells}, features=Features({"image": ImageFeature()}))
    report = gallery.add(data, workers=0)
    assert (report.new, list(report.skipped.values())) == (1, ["holds no image"])
    source = ImageFolder(str(good.parent.parent))
    later.unlink()
    report = gallery.add(source, workers=0)
    assert (report.new, len(report.skipped)) == (1, 2)
    with pytest.raises(ValueError, match="source: got several data sets, expected one: add each of train, test"):
        gallery.add({"train": data, "test": data})


def test_data_sets_of_one_builder_do_not_meet(gallery: Gallery, photos, counts):
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    cells = [{"bytes": path.read_bytes(), "path": None} for path in photos(4)]
    data = Dataset.from_dict({"image": cells}, features=Features({"image": ImageFeature()}))
    assert counts(gallery.add(data.select([0, 1]), workers=0)) == {"new": 2}
    assert counts(gallery.add(data.select([2, 3]), workers=0)) == {"new": 2}
    assert len(gallery) == 4


def test_a_folder_that_is_gone_is_forgotten_when_told(gallery: Gallery, photos, counts):
    folder = photos(2)[0].parent
    gallery.add(folder, workers=0)
    shutil.rmtree(folder)
    with pytest.raises(ImageError, match="no such file or folder"):
        gallery.add(folder, workers=0)
    assert counts(gallery.add(folder, workers=0, prune=True)) == {"deleted": 2}


def test_data_sets_and_pairs_are_indexed_and_not_decoded_again(gallery: Gallery, photos, monkeypatch, contents, counts):
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    cells = [{"bytes": path.read_bytes(), "path": None} for path in photos(3)]
    data = Dataset.from_dict({"image": cells}, features=Features({"image": ImageFeature()}))
    assert counts(gallery.add(data, workers=0)) == {"new": 3}
    assert counts(gallery.add([("sample", open_image("sample:cat"))], workers=0)) == {"new": 1}
    assert sorted(contents(gallery)) == [*(f"dataset-{data._fingerprint[:8]}/all#{row}" for row in range(3)), "sample"]
    monkeypatch.setattr("steering.search.decode.open_image", lambda image: pytest.fail("decoded"))
    assert counts(gallery.add(data, workers=0)) == {"unchanged": 3}


def test_the_order_and_the_size_of_batches_do_not_show(tmp_path: Path, toy: Steerer, photos, contents):
    folder = photos(9)[0].parent
    whole, parts = (Gallery.open(tmp_path / name, toy) for name in ("whole", "parts"))
    whole.add(folder, workers=2)
    for path in sorted(folder.iterdir(), reverse=True):
        parts.add(path, workers=0)
    assert contents(whole) == contents(parts)


def test_an_interruption_keeps_what_was_done(gallery: Gallery, photos, toy: Steerer, counts):
    folder = photos(8)[0].parent
    done = 0

    def stop(results, count, report):
        nonlocal done
        for item in results:
            yield item
            done += 1
            if done == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gallery.add(folder, engine=local_engine(toy.network, 0, batch=2), progress=stop)
    assert len(gallery) == 5
    assert counts(gallery.add(folder, workers=0)) == {"new": 3, "unchanged": 5}


KILLED = """
import sys, time
from steering import Gallery, Steerer
from steering.search import indexing
indexing.COMMIT_ROWS = 4
from steering.search.engine import local_engine
toy = Steerer.load(sys.argv[1], device="cpu")
gallery = Gallery.open(sys.argv[2], toy)
def tell(results, count, report):
    for item in results:
        yield item
        print("one", flush=True)
        time.sleep(0.02)  # so that a kill meets it at work
gallery.add(sys.argv[3], engine=local_engine(toy.network, 0, batch=4), progress=tell)
"""


def start(toy_folder: Path, gallery: Path, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", KILLED, str(toy_folder), str(gallery), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_index_goes_on_and_ends_as_if_it_had_not_been_killed(
    tmp_path: Path, toy, toy_folder: Path, photos, contents
):
    folder = photos(40)[0].parent
    (folder / "bad.png").write_bytes(b"no image")
    for moment in (6, 9, 11):  # images after which the process is killed
        process = start(toy_folder, tmp_path / "killed", folder)
        assert process.stdout is not None
        with process, process.stdout:
            for _, _ in zip(range(moment), process.stdout, strict=False):
                pass
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    killed, whole = (Gallery.open(tmp_path / name, toy) for name in ("killed", "whole"))
    assert len(killed) > 0
    engine = local_engine(toy.network, 0, batch=4)
    report = killed.add(folder, engine=engine)
    assert report.unchanged > 0
    whole.add(folder, engine=engine)
    assert contents(killed) == contents(whole)
    assert set(killed.skipped()) == set(whole.skipped()) == {str(folder / "bad.png")}


def test_two_writers_of_the_same_images_leave_each_once(
    tmp_path: Path, toy, toy_folder: Path, photos, contents, counts
):
    folder = photos(30)[0].parent
    processes = [start(toy_folder, tmp_path / "gallery", folder) for _ in range(2)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    gallery = Gallery.open(tmp_path / "gallery", toy)
    assert len(contents(gallery)) == 30  # which fails on doubled names, too
    assert counts(gallery.add(folder, workers=0)) == {"unchanged": 30}


def test_a_reader_searches_while_images_are_written(gallery: Gallery, photos, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(indexing, "COMMIT_ROWS", 2)
    folder = photos(24)[0].parent
    gallery.add(sorted(folder.iterdir())[:2], workers=0)
    writer = threading.Thread(target=gallery.add, args=(folder,), kwargs={"workers": 0})
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(len(gallery.search("a cat", top=50)))
    writer.join()
    assert seen == sorted(seen)
    assert len(gallery.search("a cat", top=50)) == 24


def test_old_versions_are_dropped_and_fragments_joined(gallery: Gallery, photos, monkeypatch: pytest.MonkeyPatch):
    from datetime import timedelta

    monkeypatch.setattr(indexing, "COMMIT_ROWS", 2)
    monkeypatch.setattr(table, "KEEP_VERSIONS", timedelta(0))
    gallery.add(photos(20)[0].parent, workers=0)
    newest = gallery.store.images.now()
    assert len(newest.get_fragments()) == 1
    assert len(newest.versions()) == 1


def test_what_another_network_sees_is_kept_beside_it(gallery: Gallery, tmp_path: Path, toy: Steerer, photos):
    gallery.add(photos(1), workers=0)
    seen = toy.network
    card = {**seen.card, "sha256": "0123456789", "name": "other"}
    other = toy.with_network(Network(seen.model, card, seen.preprocessing, seen.defaults, seen.device))
    with pytest.raises(GalleryError, match=r"was made with toy \(.{8}\), not with other \(01234567\): `steer index"):
        Gallery.open(gallery.store.uri, other, create=False)
    beside = Gallery.open(gallery.store.uri, other)
    assert (len(gallery), len(beside)) == (1, 0)
    report = beside.add(photos(3)[0].parent, workers=0)
    assert (report.new, len(gallery)) == (3, 1)
    again = Gallery.open(gallery.store.uri, other, create=False)
    assert again.add(photos(3)[0].parent, workers=0).unchanged == 3
    assert Gallery.open(gallery.store.uri, toy, create=False).store.uri == gallery.store.uri


def test_what_is_no_gallery_is_told(tmp_path: Path, toy: Steerer):
    with pytest.raises(GalleryError, match="no gallery there; index images into it first"):
        Gallery.open(tmp_path / "none", toy, create=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(GalleryError, match="cannot be"):
        Gallery.open(tmp_path / "file" / "gallery", toy)
    Gallery.open(tmp_path / "broken", toy)
    for manifest in (tmp_path / "broken" / "images.lance" / "_versions").iterdir():
        manifest.write_bytes(b"x")
    with pytest.raises(GalleryError, match="broken"):
        Gallery.open(tmp_path / "broken", toy)


def test_a_gallery_without_pixels_reads_the_files_when_it_looks(tmp_path: Path, toy: Steerer, photos, contents):
    paths = photos(3)
    with_pixels = Gallery.open(tmp_path / "with", toy)
    without = Gallery.open(tmp_path / "without", toy, keep="nothing")
    for each in (with_pixels, without):
        each.add(paths, workers=0)
    assert without.store.card.side == 0
    assert {row["pixels"] for row in contents(without).values()} == {None}
    assert list(without.search("a cat")) == list(with_pixels.search("a cat"))
    paths[0].unlink()
    hits = without.search("a cat")
    gone = [hit for hit in hits if not hit.looked_at]
    assert [hit.path for hit in gone] == [str(paths[0])]
    assert hits[-1] == gone[0]


def test_a_full_disk_is_told(gallery: Gallery, photos, monkeypatch: pytest.MonkeyPatch):
    def full(builder, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["lance.dataset"].MergeInsertBuilder, "execute", full)
    with pytest.raises(GalleryError, match=r"cannot be written: .*No space left on device"):
        gallery.add(photos(1), workers=0)


def test_several_processes_make_one_gallery(tmp_path: Path, toy_folder: Path, toy, photos, contents):
    folders = [photos(3, folder=str(index), first=10 * index)[0].parent for index in range(3)]
    processes = [start(toy_folder, tmp_path / "gallery", folder) for folder in folders]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert len(contents(Gallery.open(tmp_path / "gallery", toy))) == 9


CAFE = b"caf\xe9.png"


@pytest.fixture(params=[b"photos", b"\xe9t\xe9"])
def odd_folder(request: pytest.FixtureRequest, tmp_path: Path, photos) -> bytes:
    """A folder of two images, one of a name that is not UTF-8; the folder's own name may not be, either."""
    folder = os.fsencode(tmp_path) + b"/all/" + request.param
    os.makedirs(folder)
    for path, name in zip(photos(2, folder="made"), (b"plain.png", CAFE), strict=True):
        shutil.move(path, os.path.join(folder, name))
    return folder


def test_files_whose_names_are_no_text_are_found_deleted_and_renamed(gallery: Gallery, odd_folder: bytes, counts):
    file = os.path.join(odd_folder, CAFE)
    assert counts(gallery.add(os.fsdecode(odd_folder), workers=0)) == {"new": 2}
    assert counts(gallery.add(os.fsdecode(odd_folder), workers=0)) == {"unchanged": 2}
    moved = os.path.join(odd_folder, b"\xff.png")
    os.rename(file, moved)
    assert counts(gallery.add(os.fsdecode(odd_folder), workers=0)) == {"renamed": 1, "unchanged": 1}
    assert os.fsdecode(moved) in {row["path"] for row in gallery.images()}
    os.remove(moved)
    assert counts(gallery.add(os.fsdecode(odd_folder), workers=0)) == {"deleted": 1, "unchanged": 1}
    assert [row["path"] for row in gallery.images()] == [os.path.join(os.fsdecode(odd_folder), "plain.png")]


def test_a_folder_of_any_name_is_kept_when_empty_and_pruned_when_told(gallery: Gallery, odd_folder: bytes, counts):
    folder = os.fsdecode(odd_folder)
    gallery.add(folder, workers=0)
    for name in os.listdir(odd_folder):
        os.remove(os.path.join(odd_folder, name))
    report = gallery.add(folder, workers=0)
    assert report.kept == {folder: 2}
    os.rmdir(odd_folder)
    assert counts(gallery.add(folder, workers=0, prune=True)) == {"deleted": 2}


def test_a_folder_of_any_name_that_is_renamed_keeps_its_rows(gallery: Gallery, odd_folder: bytes, counts):
    above = os.path.dirname(odd_folder)
    gallery.add(os.fsdecode(above), workers=0)
    os.rename(odd_folder, os.path.join(above, b"\xfcber"))
    assert counts(gallery.add(os.fsdecode(above), workers=0)) == {"renamed": 2}
    assert {os.path.dirname(row["path"]) for row in gallery.images()} == {os.fsdecode(above) + "/\udcfcber"}


def test_a_folder_of_any_name_that_cannot_be_listed_keeps_its_images(
    gallery: Gallery, odd_folder: bytes, monkeypatch: pytest.MonkeyPatch
):
    above, listed = os.path.dirname(odd_folder), os.scandir
    gallery.add(os.fsdecode(above), workers=0)

    def scandir(path):
        if os.fsencode(path) == odd_folder:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    report = gallery.add(os.fsdecode(above), workers=0, prune=True)
    assert report.unlisted == {os.fsdecode(odd_folder): "folder cannot be listed (Permission denied)"}
    assert len(gallery) == 2


def test_paths_come_out_wherever_a_gallery_names_images(gallery: Gallery, odd_folder: bytes, photos):
    file = os.fsdecode(os.path.join(odd_folder, CAFE))
    copy, bad = (os.fsdecode(os.path.join(odd_folder, name)) for name in (b"copy\xe9.png", b"bad\xe9.png"))
    shutil.copy(file, copy)
    Path(bad).write_bytes(b"no image")
    report = gallery.add(os.fsdecode(odd_folder), workers=0)
    assert list(report.skipped) == list(gallery.skipped()) == [bad]
    assert report.as_dict()["skipped"][0]["path"] == bad
    assert gallery.duplicates() == gallery.duplicates(near=True)[:1] == [[file, copy]]
    ((paths, _, _),) = gallery.vectors()
    assert (
        set(paths)
        == {row["path"] for row in gallery.images()}
        == {hit.path for hit in gallery.search("a cat", fold=False)}
    )
    assert {hit.path for hit in gallery.stream("a cat")} == set(paths)
    assert len(list(gallery.images(f"path LIKE '{os.fsdecode(odd_folder)}/%'"))) == 3
    assert [row["path"] for row in gallery.images(f"path = '{file}'")] == [file]
    assert gallery.look(gallery.search("a cat", where=f"path = '{file}'")[0], "a cat").image == file


def test_of_a_name_that_comes_twice_the_last_image_counts(gallery: Gallery, contents, counts):
    one, other = (open_image(name).resize((50, 40)) for name in ("sample:cat", "sample:coffee"))
    assert counts(gallery.add([("a", one), ("b", one), ("a", other)], workers=0)) == {"new": 2}
    assert len(gallery) == 2
    rows = contents(gallery)
    assert rows["a"]["sha256"] != rows["b"]["sha256"]
    assert counts(gallery.add([("a", other), ("b", other), ("b", one)], workers=0)) == {"unchanged": 2}
    assert contents(gallery) == rows
    assert counts(gallery.add([("a", other), ("a", one), ("a", one)], workers=0)) == {"changed": 1}
    assert contents(gallery)["a"]["sha256"] == rows["b"]["sha256"]


def test_of_a_name_that_comes_twice_only_the_last_image_is_skipped_or_indexed(gallery: Gallery, counts):
    picture = open_image("sample:cat").resize((50, 40))
    report = gallery.add((pair for pair in [("a", picture), ("b", b"no image"), ("b", picture), ("a", b"")]), workers=0)
    assert counts(report) == {"new": 1, "skipped": 1}
    assert list(report.skipped) == list(gallery.skipped()) == ["a"]
    assert [row["path"] for row in gallery.images()] == ["b"]


def test_a_file_that_is_named_twice_is_indexed_once(gallery: Gallery, photos, counts, monkeypatch: pytest.MonkeyPatch):
    paths = photos(3)
    report = gallery.add([paths[0], paths[0].parent, str(paths[1])], workers=0)
    assert counts(report) == {"new": 3}
    assert report.found == 3


def test_a_gallery_whose_file_is_missing_is_told_by_every_operation(gallery: Gallery, photos, toy: Steerer):
    folder = photos(4)[0].parent
    (folder / "bad.png").write_bytes(b"no image")
    gallery.add(folder, workers=0)
    for data in (Path(gallery.store.uri) / "images.lance" / "data").iterdir():
        data.unlink()
    again = Gallery.open(gallery.store.uri, toy)
    operations = [
        lambda: again.add(folder, workers=0),
        lambda: again.search("a cat"),
        lambda: again.search("a cat", where="width > 1"),
        lambda: list(again.stream("a cat")),
        lambda: list(again.images()),
        lambda: list(again.vectors("width > 1")),
        lambda: again.duplicates(),
    ]
    for operation in operations:
        with pytest.raises(
            GalleryError, match=r"gallery is missing or damaged \(images\.lance/data/\w+\.lance\)"
        ) as told:
            operation()
        assert ".rs:" not in str(told.value)
        assert "\n" not in str(told.value)
    for data in (Path(gallery.store.uri) / "skipped.lance" / "data").iterdir():
        data.unlink()
    with pytest.raises(GalleryError, match=r"gallery is missing or damaged \(skipped\.lance/data/"):
        again.skipped()


def test_what_is_unusual_about_an_image_is_told_when_it_is_read(gallery: Gallery, photos, counts):
    plain, clear = photos(2)
    picture = open_image(clear).convert("RGBA")
    picture.putalpha(99)
    picture.save(clear)
    report = gallery.add(plain.parent, workers=0)
    assert counts(report) == {"new": 2}
    note = open_image(clear).info["note"]
    assert report.notes == {str(clear): note}
    assert report.as_dict()["notes"] == [{"path": str(clear), "note": note}]
    assert gallery.add([("a", clear.read_bytes()), ("a", plain.read_bytes())], workers=0).notes == {}
