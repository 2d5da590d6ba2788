"""Draws data sets for every task from the demo's scenes, in the formats that Ultralytics reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ultralytics.utils import YAML

from .shapes import CLASS_NAMES, Scene, draw_dataset, draw_scene

# Keypoints: the extreme points of an object as they appear in the image, and its middle
POINTS = ("top", "right", "bottom", "left", "middle")
FLIPPED = (0, 3, 2, 1, 4)  # index of each keypoint in the mirrored image
NEAR, FAR = 1.0, 12.0  # metres: the nearest object of a depth scene, and the farthest wall
OUTLINE_POINTS = 32

__all__ = ("draw_task_dataset",)


def draw_task_dataset(root: Path, task: str, train_images: int, val_images: int, size: int, seed: int = 0) -> Path:
    """Draw a data set for a task.

    Args:
        root (Path): Folder to write to.
        task (str): "detect", "segment", "pose", "obb", "classify", "semantic" or "depth".
        train_images (int): Number of training images.
        val_images (int): Number of validation images.
        size (int): Side of the images in pixels.
        seed (int): The same seed draws the same data set.

    Returns:
        (Path): Value for `data=`: the data.yaml, or the folder of a classification.
    """
    if task == "detect":
        return draw_dataset(root, train_images, val_images, size, seed)
    for stream, (split, count) in enumerate((("train", train_images), ("val", val_images))):
        for i in range(count):
            rng = np.random.default_rng((seed, stream, i))
            WRITERS[task](root, split, f"{i:05}", rng, size)
    if task == "classify":
        return root
    names = {0: "depth"} if task == "depth" else dict(enumerate(CLASS_NAMES))
    data: dict[str, Any] = {"path": str(root.resolve()), "train": "images/train", "val": "images/val", "names": names}
    if task == "pose":
        data |= {"kpt_shape": [len(POINTS), 3], "flip_idx": list(FLIPPED)}
    if task == "depth":
        data |= {"nc": 1, "depth_scale": 1000}
    YAML.save(root / "data.yaml", data)
    return root / "data.yaml"


def _write(file: Path, content: np.ndarray | str) -> None:
    """Write an image or a text, and make its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        file.write_text(content, encoding="utf-8")
    else:
        cv2.imwrite(str(file), content)


def _label_writer(rows: Callable[[Scene], list[np.ndarray]]) -> Callable[..., None]:
    """Return a function that writes a scene and its label file: a line with class and numbers for each object."""

    def write(root: Path, split: str, name: str, rng: np.random.Generator, size: int) -> None:
        """Draw and write one image."""
        scene = draw_scene(rng, size)
        _write(root / "images" / split / f"{name}.png", scene.image)
        lines = [f"{c} {' '.join(f'{v:.6f}' for v in row)}\n" for c, row in zip(scene.cls, rows(scene))]
        _write(root / "labels" / split / f"{name}.txt", "".join(lines))

    return write


def _polygons(scene: Scene) -> list[np.ndarray]:
    """Return the outer contour of every object as fractions of the image."""
    size = scene.image.shape[0]
    return [_thin(outline[0] / size).clip(0, 1).reshape(-1) for outline in scene.outlines]


def _thin(contour: np.ndarray) -> np.ndarray:
    """Return a contour with every n-th point only, if it has more than `OUTLINE_POINTS`."""
    return contour if len(contour) <= OUTLINE_POINTS else contour[:: len(contour) // OUTLINE_POINTS]


def _rotated_boxes(scene: Scene) -> list[np.ndarray]:
    """Return the corners of the smallest rotated box around every object as fractions of the image."""
    size = scene.image.shape[0]
    boxes = [cv2.boxPoints(cv2.minAreaRect(outline[0].astype(np.float32))) for outline in scene.outlines]
    return [(corners / size).clip(0, 1).reshape(-1) for corners in boxes]


def _keypoints(scene: Scene) -> list[np.ndarray]:
    """Return box and keypoints of every object as fractions of the image; all keypoints are marked visible."""
    size, rows = scene.image.shape[0], []
    for box, outline in zip(scene.boxes / size, scene.outlines):
        contour = outline[0] / size
        x, y = contour.T
        ends = [contour[i] for i in (y.argmin(), x.argmax(), y.argmax(), x.argmin())]
        points = np.array([*ends, contour.mean(0)]).clip(0, 1)
        low, high = box[:2], box[2:]
        visible = np.full((len(points), 1), 2.0)
        rows.append(np.concatenate(((low + high) / 2, high - low, np.concatenate((points, visible), 1).reshape(-1))))
    return rows


def _write_classified(root: Path, split: str, name: str, rng: np.random.Generator, size: int) -> None:
    """Draw one object and write its image to the folder of its class."""
    scene = draw_scene(rng, size, (1, 1))
    _write(root / split / CLASS_NAMES[scene.cls[0]] / f"{name}.png", scene.image)


def _write_depth(root: Path, split: str, name: str, rng: np.random.Generator, size: int) -> None:
    """Draw balls on a floor in front of a wall, with haze that grows with distance, and write image and depth.

    Height and tilt of the camera, the wall and the balls are random in every image. So the position of a pixel does not
    predict its depth. With the same floor in all images, the mean depth of the training images would score a delta1 of
    0.88.
    """
    wall, height, horizon = rng.uniform(FAR / 3, FAR), rng.uniform(0.5, 1.5), rng.uniform(0.05, 0.6) * size
    below = np.arange(size, dtype=np.float32)[:, None] + 0.5 - horizon  # rows below the horizon; focal length = size
    floor = height * size / below.clip(min=1e-3)
    depth = np.repeat(floor.clip(NEAR / 2, wall).astype(np.float32), size, axis=1)
    across = (np.arange(size, dtype=np.float32)[None] - size / 2) * depth / size  # metres
    image = np.tile(rng.uniform(60, 190, 3).astype(np.float32), (size, size, 1))
    image[(floor > wall)[:, 0]] = rng.uniform(60, 190, 3)
    tiles = np.sin(across * rng.uniform(3, 6)) * np.sin(depth * rng.uniform(3, 6))  # on the wall too, as boards
    image += (tiles * rng.uniform(10, 30))[..., None]
    for distance in np.sort(rng.uniform(NEAR, wall, int(rng.integers(2, 6))))[::-1]:  # the nearest is painted last
        radius = size * rng.uniform(0.3, 0.45) / distance
        x, y = rng.uniform(0.1, 0.9) * size, horizon + height * size / distance - radius  # it stands on the floor
        inside = (np.arange(size)[None] - x) ** 2 + (np.arange(size)[:, None] - y) ** 2 < radius**2
        image[inside] = rng.uniform(20, 235, 3)
        depth[inside] = distance
    haze = np.exp(-depth / FAR * 1.2)[..., None]
    image = image * haze + 200 * (1 - haze) + rng.normal(0, 4, image.shape)
    _write(root / "images" / split / f"{name}.png", image.clip(0, 255).astype(np.uint8))
    _write(root / "depth" / split / f"{name}.png", (depth * 1000).astype(np.uint16))


WRITERS: dict[str, Callable[..., None]] = {
    "segment": _label_writer(_polygons),
    "pose": _label_writer(_keypoints),
    "obb": _label_writer(_rotated_boxes),
    "semantic": _label_writer(_polygons),
    "classify": _write_classified,
    "depth": _write_depth,
}
