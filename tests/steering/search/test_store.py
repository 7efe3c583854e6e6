"""The store by itself: its index, its filters, its first moments."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from steering import GalleryError
from steering.search import store
from steering.search.files import to_key
from steering.search.schema import GalleryCard, image_schema
from steering.search.store import Store


def fill(place: str, classes: int, rows: int) -> tuple[Store, np.ndarray]:
    """A gallery of random evidence, and it."""
    made = Store.open(place, GalleryCard("made up", "", classes, 0))
    rng = np.random.default_rng(0)
    evidence = np.sqrt(rng.dirichlet(np.full(classes, 0.2), rows)).astype(np.float16)
    schema = image_schema(classes)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(evidence.ravel()), type=schema.field("evidence").type)
    columns = {name: pa.nulls(rows, schema.field(name).type) for name in schema.names}
    columns |= {"path": pa.array([f"/{i:06d}.jpg" for i in range(rows)]), "evidence": vectors, "output": vectors}
    made.images.upsert(pa.table(columns | {"width": pa.array(np.arange(rows), pa.int32())}, schema=schema))
    return made, evidence.astype(np.float32)


@pytest.mark.parametrize("classes", [6, 16])  # RaBitQ takes multiples of 8 only
def test_a_large_gallery_is_indexed_and_finds_what_exact_search_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int
):
    monkeypatch.setattr(store, "INDEX_FROM", 3000)
    made, evidence = fill(str(tmp_path / "g"), classes, 3000)
    made.finish()
    assert len(made.images.now().describe_indices()) == 1
    query = np.eye(classes, dtype=np.float32)[2]
    exact = made.nearest(query, 10, exact=True)
    best = evidence @ query / np.linalg.norm(evidence, axis=1)
    np.testing.assert_allclose(exact["score"].to_numpy(), np.sort(best)[::-1][:10], atol=1e-3)
    near = made.nearest(query, 10)
    assert len(set(near["path"].to_pylist()) & set(exact["path"].to_pylist())) >= 8
    assert len(made.nearest(query, 2500)) == 2500  # more than the index is asked for
    assert len(made.nearest(query, 5, "width < 7")) == 5
    made.finish()  # nothing new: nothing to do
    assert len(made.images.now().describe_indices()) == 1


def test_rows_that_came_after_the_index_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store, "INDEX_FROM", 1000)
    made, _ = fill(str(tmp_path / "g"), 8, 1000)
    made.finish()
    (row,) = made.rows(["/000003.jpg"], image_schema(8).names)
    query = np.zeros(8, np.float32)
    query[5] = 1
    schema = image_schema(8)
    table = pa.Table.from_pylist([{**row, "path": "/late.jpg", "evidence": query.astype(np.float16)}], schema=schema)
    made.images.upsert(table)
    assert made.nearest(query, 1)["path"].to_pylist() == ["/late.jpg"]


def test_the_last_of_a_name_in_one_batch_counts(tmp_path: Path):
    made, _ = fill(str(tmp_path / "g"), 8, 5)
    (row,) = made.rows(["/000003.jpg"], image_schema(8).names)
    twice = [{**row, "path": "/new.jpg", "width": width} for width in (1, 2)]
    made.images.upsert(pa.Table.from_pylist(twice, schema=image_schema(8)))
    assert made.rows(["/new.jpg"], ("path", "width")) == [{"path": "/new.jpg", "width": 2}]


def test_the_card_is_there_from_the_first_moment_and_stays(tmp_path: Path):
    made, _ = fill(str(tmp_path / "g"), 8, 5)
    made.finish()
    assert Store.open(tmp_path / "g").card == GalleryCard("made up", "", 8, 0)
    assert Store.open(f"file://{tmp_path}/g").card.classes == 8
    other = tmp_path / "other" / "images.lance"
    import lance

    lance.write_dataset(pa.table({"x": [1]}), str(other))
    with pytest.raises(GalleryError, match="is not a gallery"):
        Store.open(tmp_path / "other")


def test_a_gallery_of_an_older_version_is_told_in_one_line(tmp_path: Path):
    for made_by, age in ((1, "an older"), (3, "a newer")):
        folder = tmp_path / str(made_by)
        with pytest.raises(GalleryError) as told:
            Store.open(folder, GalleryCard("made up", "", 8, 0, format=made_by))
        assert str(told.value) == (
            f"{folder}: this gallery was made by {age} version of this program (format {made_by}, expected 2); index "
            "the images anew into another folder, or delete this one before"
        )


def delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def overwrite(path: Path) -> None:
    path.write_bytes(b"\1" * path.stat().st_size)


def make_unreadable(path: Path) -> None:
    delete(path)
    path.mkdir()  # a folder cannot be read as a file, not even by root


OPERATIONS = {
    "count by a condition": lambda made: made.count("width > 1"),
    "names": lambda made: list(made.known()),
    "rows": lambda made: made.rows(["/000001.jpg"], ("path", "width")),
    "nearest": lambda made: made.nearest(np.ones(8, np.float32), 3),
    "nearest by a condition": lambda made: made.nearest(np.ones(8, np.float32), 3, "width > 1"),
    "upsert": lambda made: made.images.upsert(_row()),
    "delete": lambda made: made.images.delete(["/000001.jpg"]),
    "tidy": lambda made: made.tidy(),
}


def _row() -> pa.Table:
    schema = image_schema(8)
    columns = {name: pa.nulls(1, schema.field(name).type) for name in schema.names}
    return pa.table(columns | {"path": pa.array(["/000001.jpg"])}, schema=schema)


@pytest.mark.parametrize("harm", [delete, cut, empty, overwrite, make_unreadable])
def test_a_damaged_data_file_is_named_whatever_is_done(tmp_path: Path, harm):
    folder = tmp_path / "it's, a gallery"
    made, _ = fill(str(folder), 8, 5)
    made.images.upsert(_row())  # a second fragment, without which there is nothing to join
    newest = {f.path for part in made.images.now().get_fragments() for f in part.data_files()}
    file = next(path for path in (folder / "images.lance" / "data").iterdir() if path.name in newest)
    harm(file)
    for name, operation in OPERATIONS.items():
        with pytest.raises(GalleryError) as told:
            operation(Store.open(folder))
        assert str(told.value) == (
            f"{folder}: a file of the gallery is missing or damaged (images.lance/data/{file.name}); index the images "
            "anew into another folder"
        ), name


@pytest.mark.parametrize("harm", [delete, cut, empty, overwrite, make_unreadable])
def test_a_damaged_manifest_is_named_and_no_gallery_is_made_over_it(tmp_path: Path, harm):
    made, _ = fill(str(tmp_path), 8, 5)
    manifests = list((tmp_path / "images.lance" / "_versions").iterdir())
    for manifest in manifests:
        harm(manifest)
    for card in (None, made.card):
        with pytest.raises(GalleryError, match=r"is missing or damaged \(images\.lance/_versions[\w./]*\); index"):
            Store.open(tmp_path, card)


@pytest.mark.parametrize("lost", ["images.lance/_versions", "skipped.lance/_versions", "skipped.lance"])
def test_missing_folders_are_named(tmp_path: Path, lost: str):
    fill(str(tmp_path), 8, 5)
    shutil.rmtree(tmp_path / lost)
    with pytest.raises(GalleryError, match=f"missing or damaged \\({lost}"):
        list(Store.open(tmp_path).known())


def test_a_damaged_index_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store, "INDEX_FROM", 1000)
    made, _ = fill(str(tmp_path), 8, 1000)
    made.finish()
    for file in tmp_path.glob("images.lance/_indices/*/*"):
        empty(file)
    with pytest.raises(GalleryError, match=r"missing or damaged \(images\.lance/_indices/"):
        Store.open(tmp_path).nearest(np.ones(8, np.float32), 3)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "caf\udce9"])
def test_no_name_harms_the_messages_of_lance(tmp_path: Path, name: str):
    made, _ = fill(str(tmp_path), 8, 2)
    rows = made.images.now().to_table()
    made.images.upsert(rows.set_column(0, rows.schema.field(0), pa.array([to_key(name), "b"])))
    assert made.count(f"path = '{name}'") == 1
    with pytest.raises(GalleryError, match="where: got"):
        list(made.images.batches(("path",), "cast(path AS int) > 3"))


@pytest.mark.parametrize("where", ["", "  ", 3])
def test_a_condition_is_text(tmp_path: Path, where):
    made, _ = fill(str(tmp_path), 8, 2)
    with pytest.raises((GalleryError, TypeError), match="where"):
        made.count(where)


def test_rows_are_written_and_others_deleted_in_one_commit(tmp_path: Path):
    made, _ = fill(str(tmp_path / "g"), 8, 6)
    awkward = '/it\'s a "name" -- %.jpg'
    (row,) = made.rows(["/000003.jpg"], image_schema(8).names)
    table = pa.Table.from_pylist([{**row, "path": awkward}], schema=image_schema(8))
    before = made.images.now().version
    made.images.upsert(table, without=["/000003.jpg", "/000004.jpg", "/none.jpg"])
    assert made.images.now().version == before + 1
    names = [name for batch in made.images.batches(("path",)) for name in batch["path"].to_pylist()]
    assert sorted(names) == ["/000000.jpg", "/000001.jpg", "/000002.jpg", "/000005.jpg", awkward]
    made.images.upsert(made_again(made, awkward), without=[awkward])
    assert made.count() == 6


def made_again(made: Store, name: str) -> pa.Table:
    """The row of a name, twice: under the same name, which stays, and under another."""
    (row,) = made.rows([name], image_schema(8).names)
    return pa.Table.from_pylist([row, {**row, "path": "/new.jpg"}], schema=image_schema(8))
