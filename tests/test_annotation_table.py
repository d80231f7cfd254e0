"""COCO files as arrays: the quick and the patient way say the same, and so does a kept table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxseg.errors import DataError
from boxseg.train import annotation_table
from boxseg.train.annotation_table import (
    AnnotationTable,
    Texts,
    from_arrays,
    read_table,
    to_arrays,
)

FILE = Path("train.json")
POLYGON = [[1, 1, 5, 1, 5, 5.5]]


def content() -> dict[str, Any]:
    """Two images and three objects, with what files from the world have beside the needed."""
    return {
        "info": {"year": 2026, "images": [1, 2]},
        "images": [
            {"id": 7, "file_name": "bär 🐻.png", "height": 4, "width": 6.0, "licence": None},
            {"id": 3, "file_name": "b.png", "depth_file_name": "d/b.png"},
        ],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 2, "bbox": [1, 2.5, 3, 4]},
            {"image_id": 7, "category_id": 9, "bbox": [0, 0, 1e3, 1], "iscrowd": 1},
            {"id": "x", "image_id": 3, "category_id": 2, "bbox": [1, 2, 3, 4], "difficult": True},
        ],
        "categories": [{"id": 9, "name": "Ω"}, {"id": 2, "name": "b", "supercategory": "c"}],
    }


def table_of(values: object, *, with_masks: bool = False) -> AnnotationTable:
    return read_table(FILE, json.dumps(values).encode(), with_masks=with_masks)


def assert_equal(one: AnnotationTable, other: AnnotationTable) -> None:
    first, second = to_arrays(one), to_arrays(other)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)
        assert values.dtype == second[name].dtype


def test_a_file_becomes_arrays_in_its_own_order() -> None:
    table = table_of(content())
    assert table.image_ids.tolist() == [7, 3]
    assert list(table.file_names) == ["bär 🐻.png", "b.png"]
    assert list(table.depth_names) == ["", "d/b.png"]
    np.testing.assert_array_equal(table.sizes, [[4, 6], [np.nan, np.nan]])
    assert table.owners.tolist() == [3, 7, 3]
    assert table.labels.tolist() == [2, 9, 2]
    assert table.boxes.tolist() == [[1, 2.5, 3, 4], [0, 0, 1000, 1], [1, 2, 3, 4]]
    assert table.unjudged.tolist() == [False, True, True]
    assert list(table.category_names) == ["Ω", "b"]
    assert table.place(0) == "train.json: annotations[0] (id 1, image 3)"
    assert table.place(1) == "train.json: annotations[1] (id None, image 7)"


def test_both_ways_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = table_of(content())
    monkeypatch.setattr(annotation_table, "_decode", lambda *_, **__: None)
    assert_equal(table_of(content()), quick)


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("images", "note", float("nan")),  # Python reads NaN, the standard does not know it
        ("annotations", "iscrowd", "no"),
        ("images", "depth_file_name", 0),
    ],
)
def test_what_the_standard_does_not_know_is_borne(key: str, name: str, value: object) -> None:
    values = content()
    values[key][0][name] = value
    assert annotation_table._decode(FILE, json.dumps(values).encode(), with_masks=False) is None
    table = table_of(values)
    assert table.unjudged.tolist() == [name == "iscrowd", True, True]
    assert table.boxes.shape == (3, 4)


def test_a_stated_size_that_is_no_number_fits_no_image() -> None:
    values = content()
    values["images"][0]["height"] = "4"
    assert table_of(values).sizes[0].tolist() == [-1, 6]


def test_files_without_objects_are_tables_too() -> None:
    table = table_of({**content(), "annotations": []})
    assert table.boxes.shape == (0, 4)
    assert_equal(from_arrays(FILE, to_arrays(table)), table)


@pytest.mark.parametrize("patient", [False, True])
def test_masks_come_as_the_file_writes_them(monkeypatch: pytest.MonkeyPatch, patient: bool) -> None:
    values = content()
    values["annotations"][0]["segmentation"] = POLYGON
    values["annotations"][1]["segmentation"] = {"size": [4, 6], "counts": "0"}
    if patient:
        monkeypatch.setattr(annotation_table, "_decode", lambda *_, **__: None)
    table = table_of(values, with_masks=True)
    assert table.segmentation(0) == POLYGON
    assert table.segmentation(1) == {"size": [4, 6], "counts": "0"}
    with pytest.raises(DataError, match=r"annotations\[2\].*'segmentation' is missing"):
        table.segmentation(2)


def test_texts_come_back_one_by_one_and_chosen() -> None:
    words = ["", "aß", "🐻", "", "lone \ud800", "z"]
    texts = Texts.of(words)
    assert list(texts) == words
    assert [texts[index] for index in range(6)] == words
    assert list(texts.take(np.array([5, 1, 0]))) == ["z", "aß", ""]
    assert list(Texts.of([])) == []


def test_a_kept_table_is_the_table() -> None:
    table = table_of(content())
    assert_equal(from_arrays(FILE, to_arrays(table)), table)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("boxes", None),
        ("boxes", np.zeros((3, 4), np.float32)),
        ("boxes", np.zeros((3, 5))),
        ("labels", np.zeros(2, np.int64)),
        ("file_names.ends", np.array([3, 2], np.int64)),
        ("file_names.ends", np.array([1, 900], np.int64)),
        ("file_names.letters", np.array([{}], object)),
    ],
)
def test_arrays_that_are_no_table_are_refused(name: str, value: Any) -> None:
    arrays = to_arrays(table_of(content()))
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value
    with pytest.raises(ValueError, match=r"."):
        from_arrays(FILE, arrays)
