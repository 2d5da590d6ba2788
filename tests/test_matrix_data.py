"""Data sets as people have them, with a teacher and with stored answers: what plain Ultralytics takes is taken."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from beside_plain import LIVE, PLAIN, STORED, differences, train
from conftest import NAMES, QUICK, STUDENT, TEACHER, draw_dataset, save_model
from PIL import Image
from ultralytics.data import converter
from ultralytics.utils import YAML

pytestmark = pytest.mark.nightly
TRAIN, VAL = "images/train", "images/val"


class Shapes:
    """A drawn data set, to be changed.

    Attributes:
        folder (Path): Its folder.
        data (Any): Value for `data=`.
        names (dict[int, str]): The teacher's class names.
        channels (int): Channels that the teacher reads.
        given (dict): Arguments of the training.
    """

    def __init__(self, folder: Path):
        self.folder, self.names, self.channels = folder, dict(NAMES), 3
        self.data: Any = draw_dataset(folder, 4)
        self.given: dict[str, Any] = {}

    def write(self, **changes: Any) -> None:
        """Change keys of data.yaml; None drops one."""
        content = {**YAML.load(self.folder / "data.yaml"), **changes}
        YAML.save(self.folder / "data.yaml", {k: v for k, v in content.items() if v is not None})

    def image(self, i: int = 0, split: str = "train") -> Path:
        """Return an image file."""
        return self.folder / "images" / split / f"{i}.png"

    def label(self, i: int = 0, split: str = "train") -> Path:
        """Return a label file."""
        return self.folder / "labels" / split / f"{i}.txt"

    def save_as(
        self, suffix: str, image: np.ndarray | Image.Image, i: int = 0, split: str = "train", **options: Any
    ) -> Path:
        """Write an image in place of the drawn one, in another format."""
        file = self.image(i, split).with_suffix(suffix)
        if file.suffix != ".png":
            self.image(i, split).unlink()
        if isinstance(image, np.ndarray):
            cv2.imwrite(str(file), image)
        else:
            image.save(file, **options)
        return file

    def pixels(self, i: int = 0, split: str = "train") -> np.ndarray:
        """Return the pixels of an image, BGR."""
        return cv2.imread(str(self.image(i, split)))

    def each(self) -> list[tuple[int, str]]:
        """Return number and split of every image."""
        return [(int(f.stem), f.parent.name) for f in sorted(self.folder.glob("images/*/*.png"))]


CASES: dict[str, Callable[[Shapes, pytest.MonkeyPatch], None]] = {}


def case(name: str) -> Callable:
    """Register a change of the data set."""
    return lambda change: CASES.setdefault(name, change)


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


# Images ---------------------------------------------------------------------------------------------------------------
@case("grayscale files")
def _grayscale(shapes, patch):
    for i, split in shapes.each():
        shapes.save_as(".png", cv2.cvtColor(shapes.pixels(i, split), cv2.COLOR_BGR2GRAY), i, split)


@case("16-bit")
def _deep(shapes, patch):
    for i, split in shapes.each():
        shapes.save_as(".png", shapes.pixels(i, split).astype(np.uint16) * 257, i, split)


@case("16-bit grayscale tiff")
def _deep_grey(shapes, patch):
    for i, split in shapes.each():
        grey = cv2.cvtColor(shapes.pixels(i, split), cv2.COLOR_BGR2GRAY)
        shapes.save_as(".tiff", grey.astype(np.uint16) * 257, i, split)


@case("alpha, palette, one bit, CMYK")
def _modes(shapes, patch):
    for i, (mode, suffix) in enumerate((("RGBA", ".png"), ("P", ".png"), ("1", ".png"), ("CMYK", ".jpg"))):
        shapes.save_as(suffix, Image.open(shapes.image(i)).convert("RGB").convert(mode), i)
    shapes.save_as(".png", Image.open(shapes.image(0, "val")).convert("RGBA"), 0, "val")


@case("EXIF-rotated")
def _exif(shapes, patch):
    for i, split in shapes.each():
        exif = Image.Exif()
        exif[0x0112] = (3, 6, 8, 5)[i]
        shapes.save_as(".jpg", Image.open(shapes.image(i, split)).resize((96, 48)), i, split, exif=exif)


@case("tiff, webp, bmp, jpeg, upper-case suffix")
def _formats(shapes, patch):
    for i, suffix in enumerate((".tif", ".webp", ".bmp", ".JPEG")):
        shapes.save_as(suffix, Image.open(shapes.image(i)), i)
    shapes.save_as(".webp", Image.open(shapes.image(0, "val")), 0, "val")


@case("1x1 image")
def _tiny(shapes, patch):
    shapes.save_as(".png", shapes.pixels()[:1, :1])


@case("10x10 image")
def _small(shapes, patch):
    shapes.save_as(".png", shapes.pixels()[:10, :10])


@case("2000x20 and 20x2000 images")
def _long(shapes, patch):
    shapes.save_as(".png", cv2.resize(shapes.pixels(0), (2000, 20)), 0)
    shapes.save_as(".png", cv2.resize(shapes.pixels(1), (20, 2000)), 1)
    shapes.save_as(".png", cv2.resize(shapes.pixels(0, "val"), (2000, 20)), 0, "val")


@case("long images, rect")
def _long_rect(shapes, patch):
    _long(shapes, patch)
    shapes.given["rect"] = True


@case("sizes of every kind")
def _sizes(shapes, patch):
    for (i, split), size in zip(shapes.each(), ((100, 37), (640, 480), (31, 64), (65, 63), (1000, 50), (12, 400))):
        shapes.save_as(".png", cv2.resize(shapes.pixels(i, split), size), i, split)


@case("corrupt images")
def _corrupt(shapes, patch):
    shapes.image(0).write_bytes(b"no image")
    shapes.image(1).write_bytes(b"")
    shapes.image(0, "val").write_bytes(b"no image")


@case("truncated images")
def _truncated(shapes, patch):
    file = shapes.save_as(".jpg", Image.open(shapes.image(0)), quality=100)
    file.write_bytes(file.read_bytes()[:-200])
    shapes.image(1).write_bytes(shapes.image(1).read_bytes()[:-50])


@case("half a png")
def _half(shapes, patch):
    content = shapes.image(1).read_bytes()
    shapes.image(1).write_bytes(content[: len(content) // 2])


@case("all images corrupt")
def _all_corrupt(shapes, patch):
    for i, split in shapes.each():
        shapes.image(i, split).write_bytes(b"no image")


@case("duplicate images")
def _duplicates(shapes, patch):
    for i in (1, 2):
        shutil.copy(shapes.image(0), shapes.image(i))
    shutil.copy(shapes.image(0), shapes.image(0, "val"))


@case("one image")
def _one(shapes, patch):
    for i in (1, 2, 3):
        shapes.image(i).unlink()
    shapes.image(1, "val").unlink()


@case("other files among the images")
def _others(shapes, patch):
    (shapes.folder / TRAIN / "notes.txt").write_text("hello")
    (shapes.folder / TRAIN / ".DS_Store").write_bytes(b"\0")
    (shapes.folder / TRAIN / "Thumbs.db").write_bytes(b"\0")
    (shapes.folder / TRAIN / "deeper").mkdir()
    shutil.move(shapes.image(0), shapes.folder / TRAIN / "deeper" / "0.png")


@case("cached as npy")
def _npy(shapes, patch):
    shapes.given["cache"] = "disk"
    np.save(shapes.image(0).with_suffix(".npy"), shapes.pixels(0))


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


@case("read-only folder")
def _read_only(shapes, patch):
    for path in (shapes.folder, *shapes.folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


# Channels -------------------------------------------------------------------------------------------------------------
@case("channels: 1")
def _grey(shapes, patch):
    shapes.write(channels=1)
    shapes.channels = 1


@case("channels: 1, grayscale files")
def _grey_files(shapes, patch):
    _grayscale(shapes, patch)
    _grey(shapes, patch)


@case("channels: 1, RGB teacher")
def _grey_student(shapes, patch):
    shapes.write(channels=1)


@case("channels: 6")
def _six(shapes, patch):
    for i, split in shapes.each():
        pages = np.concatenate((shapes.pixels(i, split), shapes.pixels(i, split)[::-1]), 2)
        cv2.imwritemulti(str(shapes.image(i, split).with_suffix(".tiff")), list(np.moveaxis(pages, 2, 0)))
        shapes.image(i, split).unlink()
    shapes.write(channels=6)
    shapes.channels = 6


@case("channels: 4")
def _four(shapes, patch):
    for i, split in shapes.each():
        shapes.save_as(".png", Image.open(shapes.image(i, split)).convert("RGBA"), i, split)
    shapes.write(channels=4)
    shapes.channels = 4


@case("channels: 6, images of 3")
def _wrong_channels(shapes, patch):
    shapes.write(channels=6)
    shapes.channels = 6


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
@pytest.fixture
def room(request):
    """Return a folder that other users may read too, and be another user than root in it: root may write anywhere."""
    folder = Path(tempfile.mkdtemp(prefix="matrix_"))
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o777)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("name", CASES)
def test_data_that_plain_ultralytics_takes_is_taken(name, room, monkeypatch):
    shapes = Shapes(room / "shapes")
    CASES[name](shapes, monkeypatch)
    teacher = save_model(room / "teacher.pt", TEACHER, shapes.names, shapes.channels)
    args = {**QUICK, "epochs": 1, "data": shapes.data, "project": str(room / "runs"), **shapes.given}
    root = name.startswith("read-only") and os.geteuid() == 0
    if root:
        room.chmod(0o777)
        os.seteuid(65534)
    try:
        plain, live, stored = (train(way, STUDENT, args, str(teacher)) for way in (PLAIN, LIVE, STORED))
    finally:
        if root:
            os.seteuid(0)
    answered = ("kd_cls", "kd_box")
    wrong = {LIVE: differences(plain, live, answered, answered), STORED: differences(plain, stored, answered)}
    print(f"\n| {name} | {f'refused: {plain.error}' if plain.error else 'taken'} | {wrong} |")
    assert not any(wrong.values())
