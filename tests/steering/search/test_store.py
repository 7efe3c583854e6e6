"""The store by itself: its index, its filters, its first moments."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from steering import GalleryError
from steering.search import store
from steering.search.store import GalleryCard, Store, image_schema


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
    found = made.nearest(query, 10)
    assert len(set(found["path"].to_pylist()) & set(exact["path"].to_pylist())) >= 8
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
