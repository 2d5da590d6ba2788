"""Descriptions, files and folders of data sets as people have them, with a teacher and with stored answers."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from changed_data import Cases, Shapes, wrong_with
from conftest import NAMES
from ultralytics.data import converter

TRAIN, VAL = "images/train", "images/val"
NOBODY = 65534

pytestmark = pytest.mark.nightly
case = Cases()


# data.yaml ------------------------------------------------------------------------------------------------------------
@case("as drawn")
def _as_drawn(shapes, patch):
    pass


@case("no path")
def _no_path(shapes, patch):
    shapes.write(path=None)


@case("relative path")
def _relative_path(shapes, patch):
    patch.chdir(shapes.folder.parent)
    shapes.write(path=shapes.folder.name)


@case("relative data")
def _relative_data(shapes, patch):
    patch.chdir(shapes.folder)
    shapes.write(path=None)
    shapes.data = "data.yaml"


@case("data as a Path")
def _data_path(shapes, patch):
    shapes.data = Path(shapes.data)


@case("data as a folder")
def _data_folder(shapes, patch):
    shapes.data = str(shapes.folder)


@case("data without a suffix")
def _data_stem(shapes, patch):
    patch.chdir(shapes.folder)
    shapes.data = "data"


@case("absolute splits")
def _absolute_splits(shapes, patch):
    shapes.write(path=None, train=str(shapes.folder / TRAIN), val=str(shapes.folder / VAL))


@case("validation instead of val")
def _validation(shapes, patch):
    shapes.write(val=None, validation=VAL)


@case("val=train")
def _val_train(shapes, patch):
    shapes.write(val=TRAIN)


@case("list of folders")
def _list_of_folders(shapes, patch):
    shapes.write(train=[TRAIN, VAL], val=[VAL])


@case("txt files")
def _txt(shapes, patch):
    (shapes.folder / "train.txt").write_text("".join(f"./images/train/{i}.png\n" for i in range(3)))
    (shapes.folder / "more.txt").write_text("\ufeff" + str(shapes.image(3)) + "\n", encoding="utf-8")
    shapes.write(train=["train.txt", "more.txt"])


@case("txt file and folder, an image twice")
def _txt_and_folder(shapes, patch):
    (shapes.folder / "train.txt").write_text("./images/train/0.png\n")
    shapes.write(train=["train.txt", TRAIN])


@case("one image file")
def _one_file(shapes, patch):
    (shapes.folder / "one.txt").write_text("./images/train/0.png")
    shapes.write(train="one.txt", val="one.txt")


@case("names as a list")
def _names_list(shapes, patch):
    shapes.write(names=list(NAMES.values()))


@case("nc beside names")
def _nc(shapes, patch):
    shapes.write(nc=3)


@case("nc without names")
def _nc_only(shapes, patch):
    shapes.write(names=None, nc=3)
    shapes.names = {i: f"class_{i}" for i in range(3)}


@case("names with a gap")
def _gap(shapes, patch):
    shapes.write(names={0: "disc", 1: "box", 3: "bar"})


@case("unknown keys")
def _unknown_keys(shapes, patch):
    shapes.write(author="me", license="none", roboflow={"version": 3})


@case("ndjson")
def _ndjson(shapes, patch):
    pytest.importorskip("aiohttp")
    patch.setattr(converter, "DATASETS_DIR", shapes.folder.parent / "converted")
    lines: list[dict] = [{"type": "dataset", "task": "detect", "path": shapes.folder.name, "class_names": NAMES}]
    for i, split in shapes.each():
        boxes = [[float(v) for v in line.split()] for line in shapes.label(i, split).read_text().splitlines()]
        boxes = [[int(box[0]), *box[1:]] for box in boxes]
        lines.append({"type": "image", "file": f"{i}.png", "split": split, "annotations": {"boxes": boxes}})
    file = shapes.folder.parent / "shapes.ndjson"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    shapes.data = file


@case("zip file")
def _zip(shapes, patch):
    patch.setattr("ultralytics.data.utils.DATASETS_DIR", shapes.folder.parent / "unzipped")
    shapes.write(path=None)
    shapes.data = shutil.make_archive(
        str(shapes.folder.parent / "packed"), "zip", shapes.folder.parent, shapes.folder.name
    )


# Files and folders ----------------------------------------------------------------------------------------------------
@case("unicode and spaces")
def _unicode(shapes, patch):
    for i, split in shapes.each():
        shapes.image(i, split).rename(shapes.folder / "images" / split / f"{i} ünï çødé 图像 (1) [a] 😀.png")
        shapes.label(i, split).rename(shapes.folder / "labels" / split / f"{i} ünï çødé 图像 (1) [a] 😀.txt")
    folder = shapes.folder.parent / "my dätä 数据 [x] #1 100% 'q'"
    shapes.folder.rename(folder)
    shapes.folder, shapes.data = folder, folder / "data.yaml"
    shapes.write(path=str(folder))


@case("unicode run folder")
def _unicode_run(shapes, patch):
    shapes.given["project"] = str(shapes.folder.parent / "rüns 运行 😀")


@case("symlinks")
def _symlinks(shapes, patch):
    kept = shapes.folder.parent / "kept"
    shutil.move(shapes.folder / VAL, kept / "val")
    (shapes.folder / VAL).symlink_to(kept / "val")
    for i in range(4):
        shutil.move(shapes.image(i), kept / f"{i}.png")
        shapes.image(i).symlink_to(kept / f"{i}.png")


@case("broken symlink")
def _broken_symlink(shapes, patch):
    shapes.image(0).unlink()
    shapes.image(0).symlink_to(shapes.folder / "nowhere.png")


@case("linked data set")
def _linked(shapes, patch):
    link = shapes.folder.parent / "link"
    link.symlink_to(shapes.folder)
    shapes.write(path=str(link))
    shapes.data = link / "data.yaml"


# Every case -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", case)
def test_data_that_plain_ultralytics_takes_is_taken(name, tmp_path, monkeypatch):
    shapes = Shapes(tmp_path / "shapes")
    case[name](shapes, monkeypatch)
    assert not wrong_with(shapes, name)


def test_a_data_set_that_cannot_be_written_to_is_taken():
    room = Path(tempfile.mkdtemp())
    shapes = Shapes(room / "shapes")
    room.chmod(0o777)
    for path in (shapes.folder, *shapes.folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    if root:  # who may write anywhere
        os.seteuid(NOBODY)
    try:
        wrong = wrong_with(shapes, "read-only folder")
        written = list(shapes.folder.rglob("*.cache"))
    finally:
        if root:
            os.seteuid(0)
        for path in (shapes.folder, *shapes.folder.rglob("*")):
            path.chmod(0o777)
        shutil.rmtree(room)
    assert not wrong and not written
