"""Labels and class names as people have them, with a teacher and with stored answers."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
from changed_data import Cases, Shapes, wrong_with
from conftest import NAMES

pytestmark = pytest.mark.nightly
case = Cases()


# Labels ---------------------------------------------------------------------------------------------------------------
@case("empty and missing labels")
def _missing_labels(shapes, patch):
    shapes.label(0).write_text("")
    shapes.label(1).unlink()
    shapes.label(2).write_text("\n\n")
    shapes.label(0, "val").unlink()


@case("a training set without objects")
def _no_objects(shapes, patch):
    for i in range(4):
        shapes.label(i).write_text("")


@case("no label folder")
def _no_labels(shapes, patch):
    shutil.rmtree(shapes.folder / "labels")


@case("a val set without objects")
def _val_no_objects(shapes, patch):
    for i in range(2):
        shapes.label(i, "val").write_text("")


@case("polygons")
def _polygons(shapes, patch):
    for i, split in shapes.each():
        shapes.label(i, split).write_text("0 0.2 0.2 0.6 0.2 0.6 0.7\n1 0.5 0.5 0.9 0.5 0.9 0.9 0.5 0.9")


@case("polygons, copy-paste")
def _copy_paste(shapes, patch):
    _polygons(shapes, patch)
    shapes.given |= {"copy_paste": 1.0, "degrees": 30.0}


@case("polygons beside boxes")
def _mixed(shapes, patch):
    _polygons(shapes, patch)
    shapes.label(0).write_text("0 0.2 0.2 0.6 0.2 0.6 0.7\n1 0.5 0.5 0.3 0.3")
    shapes.label(1).write_text("1 0.5 0.5 0.3 0.3")


@case("corrupt labels")
def _corrupt_labels(shapes, patch):
    shapes.label(0).write_text("0 0.5 0.5 1.5 0.2")
    shapes.label(1).write_text("zero 0.5 0.5 0.2 0.2")
    shapes.label(2).write_text("7 0.5 0.5 0.2 0.2")
    shapes.label(0, "val").write_text("0 0.5")


@case("duplicate, empty and huge boxes")
def _odd_boxes(shapes, patch):
    shapes.label(0).write_text("0 0.5 0.5 0.2 0.2\n" * 3 + "1 0.5 0.5 0 0\n2 0.5 0.5 1 1\n1 0.99 0.5 0.5 0.5\n")


@case("300 objects in an image")
def _many(shapes, patch):
    rng = np.random.default_rng(0)
    shapes.label(0).write_text(
        "".join(f"{i % 3} {x:.4f} {y:.4f} 0.05 0.05\n" for i, (x, y) in enumerate(rng.uniform(0.1, 0.9, (300, 2))))
    )


@case("Windows line ends, tabs, byte-order mark")
def _line_ends(shapes, patch):
    for i, split in shapes.each():
        text = "\ufeff" + shapes.label(i, split).read_text().replace(" ", "\t").replace("\n", "\r\n")
        shapes.label(i, split).write_bytes(text.encode())


# Classes --------------------------------------------------------------------------------------------------------------
def _named(shapes: Shapes, names: Any, teacher: dict | None = None) -> None:
    shapes.write(names=names)
    shapes.names = teacher or (names if isinstance(names, dict) else dict(enumerate(names)))


@case("1,000 classes")
def _thousand(shapes, patch):
    _named(shapes, {i: f"thing {i}" for i in range(1000)})


@case("1,000 classes, teacher of 3")
def _thousand_of_three(shapes, patch):
    _named(shapes, {**NAMES, **{i: f"thing {i}" for i in range(3, 1000)}}, NAMES)


@case("one class")
def _one_class(shapes, patch):
    for i, split in shapes.each():
        shapes.label(i, split).write_text("0 0.5 0.5 0.3 0.3")
    _named(shapes, {0: "disc"})


@case("colons, quotes, emoji, digits")
def _odd_names(shapes, patch):
    _named(shapes, {0: "a: \"b\" 'c', {d} [e] #f %g", 1: "😀 图", 2: "3"})


@case("names that YAML reads as other types")
def _typed_names(shapes, patch):
    text = (shapes.folder / "data.yaml").read_text().partition("names:")[0]
    (shapes.folder / "data.yaml").write_text(text + "names: [1, 2.5, yes]\n")
    shapes.names = {0: 1, 1: 2.5, 2: True}


@case("names null and dates")
def _null_names(shapes, patch):
    text = (shapes.folder / "data.yaml").read_text().partition("names:")[0]
    (shapes.folder / "data.yaml").write_text(text + "names: [null, 2024-01-01, '']\n")
    shapes.names = {0: None, 1: "2024-01-01", 2: ""}


@case("duplicate names")
def _duplicate_names(shapes, patch):
    _named(shapes, ["thing", "thing", "bar"])


@case("duplicate names, teacher of others")
def _duplicate_names_other(shapes, patch):
    _named(shapes, ["disc", "disc", "bar"], NAMES)


@case("names that differ in case and spaces")
def _similar_names(shapes, patch):
    _named(shapes, ["Disc", " disc", "DISC "], {0: "Disc", 1: " disc", 2: "DISC "})


@case("very long names")
def _long_names(shapes, patch):
    _named(shapes, ["x" * 5000, "y" * 300, "bar"])


# Every case -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", case)
def test_data_that_plain_ultralytics_takes_is_taken(name, tmp_path, monkeypatch):
    shapes = Shapes(tmp_path / "shapes")
    case[name](shapes, monkeypatch)
    assert not wrong_with(shapes, name)
