"""Draws predictions of several detectors side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from ultralytics import YOLO
from ultralytics.utils.patches import imread, imwrite
from ultralytics.utils.plotting import Annotator, colors


def draw_comparison(
    weights: Mapping[str, str | Path], images: Path, file: Path, imgsz: int, rows: int = 5, tile: int = 320
) -> Path:
    """Save a grid of images, one row each: labels in the first column, then the predictions of each detector.

    Args:
        weights (Mapping[str, str | Path]): Path of a checkpoint by the title of its column. All know the same classes.
        images (Path): Folder of images, beside a folder of labels.
        file (Path): Image to write.
        imgsz (int): Image size of the predictions in pixels.
        rows (int): Number of images.
        tile (int): Side of a drawn image in pixels.

    Returns:
        (Path): The written file.
    """
    files = sorted(images.glob("*.png"))[:rows]
    columns: dict[str, list[np.ndarray]] = {"labels": []}
    for title, path in weights.items():
        results = YOLO(path).predict([str(f) for f in files], imgsz=imgsz, conf=0.3, verbose=False)
        columns["labels"] = columns["labels"] or [_draw_labels(f, r.names, tile) for f, r in zip(files, results)]
        columns[title] = [
            _draw_boxes(f, r.boxes.xyxyn.cpu().numpy(), r.boxes.cls.tolist(), r.names, tile)
            for f, r in zip(files, results)
        ]
    grid = [np.concatenate([_draw_title(title, tile), *tiles]) for title, tiles in columns.items()]
    imwrite(str(file), np.concatenate(grid, axis=1))
    return file


def _draw_labels(file: Path, names: Mapping[int, str], tile: int) -> np.ndarray:
    """Return an image with its labels."""
    text = (file.parents[2] / "labels" / file.parent.name / f"{file.stem}.txt").read_text(encoding="utf-8")
    rows = np.array([line.split() for line in text.splitlines()], dtype=float).reshape(-1, 5)
    xyxy = np.concatenate((rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2), axis=1)
    return _draw_boxes(file, xyxy, rows[:, 0].tolist(), names, tile)


def _draw_boxes(file: Path, xyxyn: np.ndarray, cls: list[float], names: Mapping[int, str], tile: int) -> np.ndarray:
    """Return an image at tile size with boxes, given as fractions of the image side, and class names."""
    image = cv2.resize(imread(str(file)), (tile, tile), interpolation=cv2.INTER_CUBIC)
    annotator = Annotator(image, line_width=2, font_size=12)
    for box, c in zip(xyxyn * tile, cls):
        annotator.box_label(box, names[int(c)], color=colors(int(c), bgr=True))
    return cv2.copyMakeBorder(annotator.result()[2:-2, 2:-2], 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def _draw_title(text: str, width: int, height: int = 36) -> np.ndarray:
    """Return a white strip with the title of a column."""
    strip = np.full((height, width, 3), 255, np.uint8)
    cv2.putText(strip, text, (8, height - 12), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return strip
