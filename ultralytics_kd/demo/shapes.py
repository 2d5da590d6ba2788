"""Draws the demo's detection data set: look-alike shapes on cluttered backgrounds, in the YOLO format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from ultralytics.utils import YAML

Outline = list[np.ndarray]  # closed contours with shape (N, 2), the outer one first, then its holes

MIN_VISIBLE = 0.35  # an object with a smaller visible share gets no label: it cannot be recognised
SIZE_RANGE = (0.12, 0.7)  # longer side of an object's box as a share of the image side
OBJECTS_PER_IMAGE = (2, 6)
SUBPIXEL_BITS = 4  # OpenCV takes contours in 1/16 pixel

__all__ = ("CLASS_NAMES", "SIZE_RANGE", "Scene", "draw_dataset", "draw_scene", "outline_box", "shape_outline")


def _polygon(corners: int, reach: float = 1.0, center: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Return the corners of a regular polygon."""
    angle = np.arange(corners) * (2 * np.pi / corners) + np.pi / 4
    return np.stack((np.cos(angle), np.sin(angle)), axis=1) * reach + center


def _disc(reach: float = 1.0, center: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Return a circle, as a polygon."""
    return _polygon(64, reach, center)


# Contours of each class: the outer one, then its holes. Three classes share each body and differ only in small holes,
# which are hard to see in small, blurred or covered objects. This leaves room for a stronger detector to be better, and
# its probabilities show how much the classes look alike.
SHAPES: dict[str, list[np.ndarray]] = {
    "disc": [_disc()],
    "washer": [_disc(), _disc(0.42)],
    "button": [_disc(), _disc(0.2, (-0.4, 0.0)), _disc(0.2, (0.4, 0.0))],
    "tile": [_polygon(4)],
    "frame": [_polygon(4), _polygon(4, 0.48)],
    "socket": [_polygon(4), _disc(0.18, (-0.34, 0.0)), _disc(0.18, (0.34, 0.0))],
}
CLASS_NAMES = tuple(SHAPES)


@dataclass(frozen=True)
class Scene:
    """One drawn image and its labels.

    Attributes:
        image (np.ndarray): Square BGR image, uint8.
        cls (np.ndarray): Class ids with shape (N,).
        boxes (np.ndarray): Boxes in pixels, xyxy, with shape (N, 4).
        outlines (list[Outline]): Outlines in pixels, from the bottom to the top object.
    """

    image: np.ndarray
    cls: np.ndarray
    boxes: np.ndarray
    outlines: list[Outline]


def shape_outline(name: str, center: np.ndarray, side: float, angle: float, aspect: float = 1.0) -> Outline:
    """Return the outline of a class's shape, placed in an image.

    Args:
        name (str): One of `CLASS_NAMES`.
        center (np.ndarray): Centre of the shape's box in pixels, xy.
        side (float): Longer side of the shape's box in pixels.
        angle (float): Rotation in radians.
        aspect (float): Stretch along one axis of the shape, before the rotation.

    Returns:
        (Outline): Closed contours in pixels, the outer one first.
    """
    c, s = np.cos(angle), np.sin(angle)
    transform = np.array([[c, -s], [s, c]]) @ np.diag([1.0, aspect])
    contours = [contour @ transform.T for contour in SHAPES[name]]
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    return [(contour - (low + high) / 2) * (side / (high - low).max()) + center for contour in contours]


def outline_box(outline: Outline) -> np.ndarray:
    """Return the tight box around an outline, xyxy in pixels."""
    return np.concatenate((outline[0].min(axis=0), outline[0].max(axis=0)))


def _subpixel(outline: Outline) -> Outline:
    """Return an outline in OpenCV's fixed-point coordinates, which count from the centre of the first pixel."""
    return [np.round((contour - 0.5) * (1 << SUBPIXEL_BITS)).astype(np.int32) for contour in outline]


def _fill_mask(outline: Outline, size: int) -> np.ndarray:
    """Return the share of each pixel that an outline covers, in a square image."""
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, _subpixel(outline), 255, cv2.LINE_AA, SUBPIXEL_BITS)
    return mask.astype(np.float32) / 255


def _blend(image: np.ndarray, mask: np.ndarray, color: np.ndarray) -> None:
    """Blend a colour (or an image of colours) into the image in place; the mask is its opacity, 0 to 1."""
    image += mask[..., None] * (color.astype(np.float32) - image)


def _noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Return smooth noise of zero mean with a grain of `size / cells` pixels, with shape (size, size, 1)."""
    grid = rng.normal(size=(cells, cells)).astype(np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_LINEAR)[..., None]


def _ramp(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a linear gradient in a random direction, within -1 to 1, with shape (size, size, 1)."""
    direction = rng.uniform(0, 2 * np.pi)
    steps = np.linspace(-0.7, 0.7, size, dtype=np.float32)
    return (steps * np.cos(direction) + steps[:, None] * np.sin(direction))[..., None].astype(np.float32)


def _contrasting(rng: np.random.Generator, color: np.ndarray) -> np.ndarray:
    """Return a random colour that differs from a given one, often only a little."""
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    return np.clip(color + direction * rng.uniform(60, 160), 5, 250)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a float BGR background: a base colour with a gradient, stripes and noise at several scales."""
    image = np.tile(rng.uniform(60, 190, 3).astype(np.float32), (size, size, 1))
    image += _ramp(rng, size) * rng.uniform(0, 35)
    if rng.random() < 0.5:
        image += np.sin(_ramp(rng, size) * rng.uniform(20, 90)) * rng.uniform(4, 14)
    for cells, strength in ((4, 16), (13, 10), (size // 3, 7)):
        image += _noise(rng, size, cells) * (rng.uniform(0.2, 1, 3) * strength).astype(np.float32)
    return image


def _add_clutter(rng: np.random.Generator, image: np.ndarray, count: int) -> None:
    """Draw unlabelled strokes, arcs, blobs and triangles over the image in place."""
    size = image.shape[0]
    for _ in range(count):
        first_point, second_point = rng.uniform(0, size, (2, 2))
        start = (int(first_point[0]), int(first_point[1]))
        mask = np.zeros((size, size), np.uint8)
        kind = rng.choice(("stroke", "arc", "blob", "triangle"))
        if kind == "stroke":
            end = (int(second_point[0]), int(second_point[1]))
            cv2.line(mask, start, end, 255, int(rng.integers(1, 4)), cv2.LINE_AA)
        elif kind == "arc":
            axes = rng.uniform(0.05, 0.25, 2) * size
            first, sweep = rng.uniform(0, 360), rng.uniform(60, 200)
            reach = (int(axes[0]), int(axes[1]))
            cv2.ellipse(mask, start, reach, rng.uniform(0, 180), first, first + sweep, 255, 2, cv2.LINE_AA)
        elif kind == "triangle":
            corners = first_point + rng.uniform(-0.15, 0.15, (3, 2)) * size
            cv2.fillPoly(mask, _subpixel([corners]), 255, cv2.LINE_AA, SUBPIXEL_BITS)
        else:  # a blob fades out at its rim, a disc does not
            x, y = np.arange(size) - first_point[0], np.arange(size)[:, None] - first_point[1]
            mask = 255 * np.exp(-(x**2 + y**2) / (2 * (rng.uniform(0.03, 0.12) * size) ** 2))
        _blend(image, mask.astype(np.float32) * (0.85 / 255), _contrasting(rng, image.mean(axis=(0, 1))))


def _typical_color(rng: np.random.Generator, name: str) -> np.ndarray:
    """Return a typical colour of a class; hues of neighbouring classes overlap, so that colour is only a hint."""
    hue = (CLASS_NAMES.index(name) * 180 / len(CLASS_NAMES) + rng.normal(0, 12)) % 180
    pixel = np.array([[[hue, rng.uniform(90, 220), rng.uniform(110, 250)]]]).astype(np.uint8)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float64)


def _paint(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, outline: Outline, name: str) -> None:
    """Paint one object into the image in place, with shading, grain and sometimes a rim."""
    size = image.shape[0]
    color = _typical_color(rng, name)
    _blend(
        image, mask, color + _ramp(rng, size) * rng.uniform(0, 45) + _noise(rng, size, size // 5) * rng.uniform(0, 12)
    )
    if rng.random() < 0.5:
        rim = np.zeros((size, size), np.uint8)
        cv2.polylines(rim, _subpixel(outline), True, 255, 1, cv2.LINE_AA, SUBPIXEL_BITS)
        inside = mask * (rim.astype(np.float32) / 255)  # a rim beyond the outline would make the box too tight
        _blend(image, inside * rng.uniform(0.3, 0.9), _contrasting(rng, color))


def _degrade(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Return the image as uint8, as from a poor camera: blurred, noisy, with other contrast and brightness."""
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9))
    mean = image.mean()
    image = (image - mean) * rng.uniform(0.65, 1.15) + mean + rng.uniform(-30, 30)
    image += rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(1, 7)
    return np.clip(image, 0, 255).astype(np.uint8)


def draw_scene(
    rng: np.random.Generator,
    size: int,
    objects: tuple[int, int] = OBJECTS_PER_IMAGE,
    classes: Sequence[str] = CLASS_NAMES,
) -> Scene:
    """Draw one image with its labels.

    Objects lie inside the image. A box spans the whole object, also where another one covers a part of it.

    Args:
        rng (np.random.Generator): Source of every random choice.
        size (int): Side of the image in pixels.
        objects (tuple[int, int]): Smallest and largest number of objects.
        classes (Sequence[str]): Classes to draw, of `CLASS_NAMES`; a class id is an index of it.

    Returns:
        (Scene): The image, and the labels of its visible objects.
    """
    image = _background(rng, size)
    _add_clutter(rng, image, int(rng.integers(2, 7)))
    cls, outlines, masks = [], [], []
    for _ in range(rng.integers(objects[0], objects[1] + 1)):
        cls.append(int(rng.integers(len(classes))))
        name = classes[cls[-1]]
        side = np.exp(rng.uniform(*np.log(SIZE_RANGE))) * size
        center = rng.uniform(side / 2, size - side / 2, 2)
        outlines.append(shape_outline(name, center, side, rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1)))
        masks.append(_fill_mask(outlines[-1], size))
        _paint(rng, image, masks[-1], outlines[-1], name)
    _add_clutter(rng, image, int(rng.integers(0, 3)))

    uncovered, visible = np.ones_like(masks[0]), []
    for mask in reversed(masks):  # the last one painted lies on top
        visible.append((mask * uncovered).sum() / mask.sum() >= MIN_VISIBLE)
        uncovered *= 1 - mask
    keep = np.array(visible[::-1])
    kept = [outline for outline, seen in zip(outlines, keep) if seen]
    return Scene(_degrade(rng, image), np.array(cls)[keep], np.array([outline_box(o) for o in outlines])[keep], kept)


def _label_lines(scene: Scene) -> str:
    """Return a scene's labels as the text of a YOLO label file."""
    low, high = scene.boxes[:, :2], scene.boxes[:, 2:]
    xywh = np.concatenate(((low + high) / 2, high - low), axis=1) / scene.image.shape[0]
    return "".join(f"{c} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for c, (x, y, w, h) in zip(scene.cls, xywh))


def draw_dataset(
    root: Path,
    train_images: int,
    val_images: int,
    size: int,
    seed: int = 0,
    classes: Sequence[str] = CLASS_NAMES,
) -> Path:
    """Draw a data set and write it in the YOLO format.

    Args:
        root (Path): Folder to write `images/`, `labels/` and `data.yaml` to.
        train_images (int): Number of training images.
        val_images (int): Number of validation images.
        size (int): Side of the images in pixels.
        seed (int): The same seed draws the same data set.
        classes (Sequence[str]): Classes to draw, of `CLASS_NAMES`. A few classes that look different are learnt sooner.

    Returns:
        (Path): The data set's `data.yaml`.
    """
    for stream, (split, count) in enumerate((("train", train_images), ("val", val_images))):
        images, labels = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            # Each image has its own generator: drawing more images changes neither these nor the other split
            scene = draw_scene(np.random.default_rng((seed, stream, i)), size, classes=classes)
            cv2.imwrite(str(images / f"{i:05}.png"), scene.image)
            (labels / f"{i:05}.txt").write_text(_label_lines(scene), encoding="utf-8")
        for file in (*images.glob("*.png"), *labels.glob("*.txt")):  # of a larger set that was drawn there before
            if file.stem.isdigit() and int(file.stem) >= count:
                file.unlink()
    data = {
        "path": str(root.resolve()),
        "train": "images/train",
        "val": "images/val",
        "names": dict(enumerate(classes)),
    }
    YAML.save(root / "data.yaml", data)
    return root / "data.yaml"
