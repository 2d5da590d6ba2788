"""Val images with the predictions of every model, and the labels, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from ultralytics.data.augment import LetterBox
from ultralytics.utils.ops import xywhr2xyxyxyxy
from ultralytics.utils.patches import imread
from ultralytics.utils.plotting import Annotator

from .compared_model import STUDENT, TEACHER
from .dense import UNLABELED, DensePrediction
from .matching import pairs
from .validation import Objects

CROWD = 10  # in an image with more boxes than this, only boxes that one model alone has are named
WIDTH, MAX_HEIGHT = 420, 1260  # of an image in a panel, in pixels
TITLE_HEIGHT, MARGIN = 34, 6  # of a panel's title, and between panels, in pixels
# Okabe and Ito's colours, which colour-blind readers can tell apart, in BGR
SHARED, UNSHARED, LABEL = (178, 114, 0), (0, 94, 213), (115, 158, 0)


def draw_boxes(
    file: str, labels: Objects, detections: Mapping[str, Objects], names: Mapping[int, str], min_conf: float
) -> np.ndarray:
    """Return an image with the boxes of each model, and with its labels, side by side.

    Boxes that teacher and model share (same class, IoU of at least 0.5) are blue, others orange. The teacher's
    boxes are compared with the student's. With more than `CROWD` boxes only orange ones are named.

    Args:
        file (str): Image file.
        labels (Objects): Its labels.
        detections (Mapping[str, Objects]): Detections by role; has teacher and student.
        names (Mapping[int, str]): Class names.
        min_conf (float): Lowest confidence of the detections that are drawn.

    Returns:
        (np.ndarray): Picture in BGR.
    """
    image = read_colour(file)
    drawn = {role: objects.confident(min_conf) for role, objects in detections.items()}
    panels = []
    for role, objects in drawn.items():
        other = drawn[STUDENT if role == TEACHER else TEACHER]
        shared = {i for i, _, _ in pairs(objects, other, same_class=True)}
        colours = [SHARED if i in shared else UNSHARED for i in range(len(objects.cls))]
        panels.append(box_panel(image, objects, colours, names, role, with_conf=True))
    panels.append(box_panel(image, labels, [LABEL] * len(labels.cls), names, "labels", with_conf=False))
    return in_a_row(panels)


def draw_dense(
    file: str,
    labels: DensePrediction,
    predictions: Mapping[str, DensePrediction],
    names: Mapping[int, str],
    task: str,
) -> np.ndarray:
    """Return an image with the prediction of each model, and with its labels, side by side.

    Args:
        file (str): Image file.
        labels (DensePrediction): Its labels.
        predictions (Mapping[str, DensePrediction]): Predictions by role.
        names (Mapping[int, str]): Class names.
        task (str): Their task: "classify", "semantic" or "depth".

    Returns:
        (np.ndarray): Picture in BGR.
    """
    image = read_colour(file)
    if task != "classify":  # maps have the image's shape after padding, or for depth after stretching
        image = LetterBox(labels.shape, auto=False, scaleup=True, scale_fill=task == "depth")(image=image)
    small, _ = _fit_panel(image)
    depths = _log_depths([labels, *predictions.values()]) if task == "depth" else (0.0, 1.0)
    panels = []
    for title, prediction in (*predictions.items(), ("labels", labels)):
        if task == "classify":
            best = int(prediction.values.argmax())
            text = names[best] if title == "labels" else f"{names[best]} {prediction.values[best]:.2f}"
            panels.append(titled(small, f"{title}: {text}"))
        else:
            panels.append(titled(_draw_map(small, prediction.values, task, depths), title))
    return in_a_row(panels)


def read_colour(file: str) -> np.ndarray:
    """Return an image file in BGR, shape (h, w, 3), whatever number of channels it has."""
    image = imread(file)
    if image is None:
        raise FileNotFoundError(file)
    return image if image.shape[2] == 3 else cv2.cvtColor(image[..., :1], cv2.COLOR_GRAY2BGR)


def titled(image: np.ndarray, title: str) -> np.ndarray:
    """Return an image with a title above it."""
    if image.shape[1] < WIDTH:  # a tall image
        image = cv2.copyMakeBorder(image, 0, 0, 0, WIDTH - image.shape[1], cv2.BORDER_CONSTANT, value=(255,) * 3)
    strip = np.full((TITLE_HEIGHT, image.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, title, (4, TITLE_HEIGHT - 11), cv2.FONT_HERSHEY_SIMPLEX, 0.62, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate((strip, image))


def in_a_row(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Return panels of one height side by side."""
    space = np.full((panels[0].shape[0], MARGIN, 3), 255, np.uint8)
    row = [part for panel in panels for part in (panel, space)][:-1]
    return np.concatenate(row, axis=1)


def box_panel(
    image: np.ndarray, objects: Objects, colours: Sequence[Any], names: Mapping[int, str], title: str, with_conf: bool
) -> np.ndarray:
    """Return an image of panel width with boxes and a title."""
    small, scale = _fit_panel(image)
    # Ultralytics takes another font if its default cannot write the example
    annotator = Annotator(small, line_width=2, font_size=10, example=str(list(names.values())))
    corners, count = _corners(objects) * scale, len(objects.cls)
    for i in reversed(range(count)):  # the most confident on top
        text = names[int(objects.cls[i])] + (f" {objects.conf[i]:.2f}" if with_conf else "")
        if count > CROWD and tuple(colours[i]) != UNSHARED:
            text = ""
        annotator.box_label(corners[i].tolist(), text, color=tuple(colours[i]))
    return titled(annotator.result(), f"{title} ({count})")


def _fit_panel(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Return an image resized to fit into a panel, and the scale."""
    scale = min(WIDTH / image.shape[1], MAX_HEIGHT / image.shape[0])
    size = [max(round(side * scale), 1) for side in image.shape[1::-1]]
    return np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA)), scale


def _corners(objects: Objects) -> np.ndarray:
    """Return boxes as four corners, shape (N, 4, 2)."""
    if objects.boxes.shape[1] == 5:
        return np.asarray(xywhr2xyxyxyxy(torch.from_numpy(objects.boxes)))
    x1, y1, x2, y2 = objects.boxes.T
    return np.stack([np.stack(p, -1) for p in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))], 1)


def _log_depths(predictions: Sequence[DensePrediction]) -> tuple[float, float]:
    """Return the logs of the smallest and the largest depth, so that all panels have the same colours."""
    values = np.concatenate([p.values.astype(np.float64).ravel() for p in predictions])
    known = values[values > 0]
    return (float(np.log(known.min())), float(np.log(known.max()))) if len(known) else (0.0, 1.0)


def _draw_map(image: np.ndarray, values: np.ndarray, task: str, log_depths: tuple[float, float]) -> np.ndarray:
    """Return a map of classes or depths over an image.

    Args:
        image (np.ndarray): Image in BGR.
        values (np.ndarray): The map, shape (h, w).
        task (str): "semantic" or "depth".
        log_depths (tuple[float, float]): Log-depths of the first and the last colour.
    """
    large = cv2.resize(values.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    if task == "semantic":
        annotator = Annotator(image.copy())
        annotator.semantic_mask(large.astype(np.int64), ignore_index=UNLABELED)
        return np.asarray(annotator.result())
    near, far = log_depths
    scaled = np.clip((np.log(np.maximum(large, 1e-6)) - near) / max(far - near, 1e-6), 0, 1)
    heat = cv2.applyColorMap((255 - scaled * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    heat[large <= 0] = 0
    return cv2.addWeighted(heat, 0.8, image, 0.2, 0)
