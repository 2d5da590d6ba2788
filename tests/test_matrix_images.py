"""Images as people have them, with a teacher and with stored answers."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
from changed_data import Cases, Shapes, wrong_with
from PIL import Image

TRAIN = "images/train"

pytestmark = pytest.mark.nightly
case = Cases()


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


# Every case -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", case)
def test_data_that_plain_ultralytics_takes_is_taken(name, tmp_path, monkeypatch):
    shapes = Shapes(tmp_path / "shapes")
    case[name](shapes, monkeypatch)
    assert not wrong_with(shapes, name)
