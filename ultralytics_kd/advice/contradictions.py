"""Training images on which a teacher and the labels contradict each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl

from ..files import as_utf8
from ..report.dense import DensePrediction, difference
from ..report.matching import overlaps, pairs
from ..report.pictures import SHARED, UNSHARED, box_panel, draw_dense, in_a_row, read_colour
from ..report.validation import Objects, ValidationResult

# A label is seen if the teacher has a box on it with this confidence or more, of whatever class; or one that counts
SEEN = 0.1
MIN_IOU = 0.5
KINDS = {"extra": "teacher's boxes without a label", "missed": "labels that it does not see", "swapped": "other class"}


def find_contradictions(
    result: ValidationResult,
    task: str,
    names: Mapping[int, str],
    min_conf: float,
    taught: set[int],
    original: Callable[[str], str] = str,
) -> dict[str, Any]:
    """Return all images on which a teacher contradicts the labels, most first, and how often it does so.

    Args:
        result (ValidationResult): Its predictions on training images.
        task (str): Its task.
        names (Mapping[int, str]): Class names of the data.
        min_conf (float): Confidence from which on a detection, or a class of an image, counts.
        taught (set[int]): Classes that the teacher knows. It misses no label of others, but may take one for its own.
        original (Callable): Returns the data set's own file of an image.

    Returns:
        (dict): "images", the number of images looked at, and "rows" with "file", "original" and "weight", most first.
            With boxes, the rows and the dict have counts of `KINDS`. The dict then also has "labels", the number of
            labels of `taught` classes; "confident", the number of labels of any class with a box that counts on them;
            and "swaps", how often one class was taken for another.
    """
    if result.labels:
        found = _of_boxes(result, names, min_conf, taught)
    else:
        rows = [
            {"file": file, "weight": distance, "same": same}
            for file, prediction in result.predictions.items()
            for distance, same in [_difference(prediction, result.truth[file], task)]
            if _counts(prediction.values, distance, same, task, min_conf)
        ]
        found = {"images": len(result.predictions), "rows": rows}
    named = [{**row, "original": original(row["file"])} for row in found["rows"]]
    return found | {"rows": sorted(named, key=lambda row: (-row["weight"], row["original"]))}


def _difference(prediction: DensePrediction, truth: DensePrediction, task: str) -> tuple[float, float]:
    """Return how much a prediction and the labels differ; maps of depth may be of different sizes."""
    if prediction.values.shape != truth.values.shape:
        side = truth.values.shape[::-1]
        values = cv2.resize(prediction.values.astype(np.float32), side, interpolation=cv2.INTER_NEAREST)
        prediction = DensePrediction(values, prediction.shape)
    return difference(prediction, truth, task, truth)


def _counts(values: np.ndarray, distance: float, same: float, task: str, min_conf: float) -> bool:
    """Return whether a prediction contradicts its labels: a classifier must be confident of another class."""
    return bool(same < 1 and values.max() >= min_conf) if task == "classify" else distance > 0


def _of_boxes(result: ValidationResult, names: Mapping[int, str], min_conf: float, taught: set[int]) -> dict[str, Any]:
    """Return the contradictions of a detector, its rows in the order of the images."""
    rows: list[dict[str, Any]] = []
    swaps: Counter[tuple[str, str]] = Counter()
    labels_count = confident = 0
    for file, labels in result.labels.items():
        labels_count += len(labels.of(sorted(taught)).cls)
        found = contradict(result.objects[file], labels, min_conf, taught)
        confident += found["paired"]
        swaps.update((names[int(labels.cls[i])], names[int(found["boxes"].cls[j])]) for i, j in found["swapped"])
        row = {"file": file, "weight": found["weight"], **{kind: len(found[kind]) for kind in KINDS}}
        if any(row[kind] for kind in KINDS):
            rows.append(row)
    return {
        "images": len(result.labels),
        "labels": labels_count,
        "confident": confident,
        **{kind: sum(row[kind] for row in rows) for kind in KINDS},
        "swaps": [{"label": a, "teacher": b, "count": n} for (a, b), n in swaps.most_common()],
        "rows": rows,
    }


def contradict(detections: Objects, labels: Objects, min_conf: float, taught: set[int]) -> dict[str, Any]:
    """Return where the detections in an image contradict its labels.

    Args:
        detections (Objects): All of the teacher's detections.
        labels (Objects): The labels.
        min_conf (float): Confidence from which on a detection counts.
        taught (set[int]): Classes that the teacher knows; it cannot miss labels of others.

    Returns:
        (dict): "boxes", the detections that count; "extra", indices of those on no label; "missed", indices of labels
            that no detection is on, not even one of little confidence; "swapped", pairs of label and detection of
            another class, unless a detection that counts has the label's class and is on it too; "paired", the number
            of labels with a detection that counts; "weight", the summed confidence of extra and swapped detections,
            plus 1 minus the best confidence on each missed label.
    """
    boxes = detections.confident(min_conf)
    paired = pairs(labels, boxes, MIN_IOU)
    on = overlaps(labels, boxes) >= MIN_IOU
    right = (on & (labels.cls[:, None] == boxes.cls)).any(1)  # a box of another class may fit such a label better
    swapped = [(i, j) for i, j, _ in paired if not right[i]]
    extra = np.flatnonzero(~on.any(0)).tolist()
    weak = detections.confident(min(0.01, min_conf))
    touching = overlaps(labels, weak) >= MIN_IOU
    seen = np.where(touching, weak.conf[None], 0).max(1, initial=0) if len(labels.cls) else np.zeros(0)
    missed = np.flatnonzero((seen < least_seen(min_conf)) & np.isin(labels.cls, list(taught))).tolist()
    weight = float(boxes.conf[extra].sum() + sum(boxes.conf[j] for _, j in swapped) + (1 - seen[missed]).sum())
    return {
        "boxes": boxes,
        "extra": extra,
        "missed": missed,
        "swapped": swapped,
        "paired": len(paired),
        "weight": weight,
    }


def least_seen(min_conf: float) -> float:
    """Return the confidence from which on a detection sees a label; one that counts does so.

    Args:
        min_conf (float): Confidence from which on a detection counts.
    """
    return min(SEEN, min_conf)


def write_list(found: Mapping[str, list[dict[str, Any]]], file: Path) -> None:
    """Write the images to look at, those of each teacher with most contradiction first.

    Args:
        found (Mapping[str, list]): The rows that `find_contradictions` returned, by teacher.
        file (Path): A CSV.
    """
    table = [
        {
            "teacher": as_utf8(teacher),
            "image": as_utf8(row["original"]),
            **{k: v for k, v in row.items() if k not in {"file", "original"}},
        }
        for teacher, rows in found.items()
        for row in rows
    ]
    empty: dict[str, list[str]] = {"teacher": [], "image": [], "weight": []}
    (pl.DataFrame(table) if table else pl.DataFrame(empty)).write_csv(file, float_precision=4)


def draw(
    result: ValidationResult, file: str, task: str, names: Mapping[int, str], min_conf: float, taught: set[int]
) -> np.ndarray:
    """Return an image with the teacher's boxes and the labels side by side, contradictions in another colour.

    Args:
        result (ValidationResult): The teacher's predictions.
        file (str): The image.
        task (str): Task of the teacher.
        names (Mapping[int, str]): Class names of the data.
        min_conf (float): Confidence from which on a detection counts.
        taught (set[int]): Classes that the teacher knows.

    Returns:
        (np.ndarray): Picture in BGR.
    """
    if not result.labels:
        return draw_dense(file, result.truth[file], {"teacher": result.predictions[file]}, names, task)
    labels = result.labels[file]
    found = contradict(result.objects[file], labels, min_conf, taught)
    wrong_boxes = {*found["extra"], *(j for _, j in found["swapped"])}
    wrong_labels = {*found["missed"], *(i for i, _ in found["swapped"])}
    image = read_colour(file)

    def panel(objects: Objects, wrong: set[int], title: str, with_conf: bool) -> np.ndarray:
        """Return the image with some boxes."""
        colours = [UNSHARED if i in wrong else SHARED for i in range(len(objects.cls))]
        return box_panel(image, objects, colours, names, title, with_conf)

    return in_a_row([panel(found["boxes"], wrong_boxes, "teacher", True), panel(labels, wrong_labels, "labels", False)])
