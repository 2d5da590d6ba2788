"""Predictions of models without boxes: class probabilities of images, and classes or depths of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from .datasets import distinct

SIDE = 96  # pixels along the longer side of a kept map, so that a val set fits into memory
MAX_RATIO = 1.25  # largest ratio of two depths that agree, as in delta1
UNLABELED = 255  # Ultralytics' class of pixels without a label


@dataclass
class DensePrediction:
    """A prediction for one image, or its labels in the same form.

    Attributes:
        values (np.ndarray): Class probabilities, shape (nc,); or a map of `SIDE` pixels along its longer side, shape
            (h, w): classes, or depths in metres with 0 where there is none.
        shape (tuple[int, int]): Height and width of the image as the model read it, in pixels.
    """

    values: np.ndarray
    shape: tuple[int, int]


def recording_dense_validator(validator: Any, task: str) -> Any:
    """Return a validator that also keeps predictions and labels, reduced in size.

    Args:
        validator (type[BaseValidator]): The task's validator.
        task (str): "classify", "semantic" or "depth".

    Returns:
        (type[BaseValidator]): A subclass; `kept` and `truth` of its objects are predictions and labels by file.
    """

    class RecordingValidator(validator):
        """Keeps predictions and labels of every image."""

        def init_metrics(self, model: Any) -> None:
            """Start with no images."""
            super().init_metrics(model)
            self.kept: dict[str, DensePrediction] = {}
            self.truth: dict[str, DensePrediction] = {}

        def get_dataloader(self, dataset_path: Any, batch_size: int) -> Any:
            """Return the loader. For classification it must not shuffle: files are matched by their order."""
            loader = super().get_dataloader(dataset_path, batch_size)
            if task != "classify":
                return loader
            return DataLoader(loader.dataset, batch_size, shuffle=False, num_workers=loader.num_workers)

        def update_metrics(self, preds: Tensor, batch: dict[str, Any]) -> None:
            """Count a batch, and keep its predictions."""
            super().update_metrics(preds, batch)
            shape = tuple(batch["img"].shape[-2:])
            # Batches of a classification do not hold the names of their files
            start = len(self.kept)
            files = batch.get("im_file") or [s[0] for s in self.dataloader.dataset.samples[start : start + len(preds)]]
            for i, file in enumerate(files):
                self.kept[str(file)] = DensePrediction(_reduced(preds[i], task), shape)
                self.truth[str(file)] = DensePrediction(_labels(batch, i, task, preds.shape[-1]), shape)

    return RecordingValidator


def _labels(batch: dict[str, Any], i: int, task: str, nc: int) -> np.ndarray:
    """Return the labels of one image in the form of a prediction."""
    if task == "classify":
        return np.eye(nc, dtype=np.float16)[int(batch["cls"][i])]
    return _reduced(batch["semantic_mask" if task == "semantic" else "depth"][i], task)


def _reduced(values: Tensor, task: str) -> np.ndarray:
    """Return probabilities, or a map reduced to `SIDE` pixels along its longer side.

    Reduction keeps the nearest pixels, because classes have no mean.

    Args:
        values (Tensor): Probabilities of shape (nc,), or a map of shape (..., h, w).
        task (str): "classify", "semantic" or "depth".
    """
    if task == "classify":
        return values.float().cpu().numpy().astype(np.float16)
    maps = values.float().reshape(1, 1, *values.shape[-2:])
    scale = min(SIDE / max(maps.shape[-2:]), 1.0)
    size = [max(round(side * scale), 1) for side in maps.shape[-2:]]
    small = F.interpolate(maps, size, mode="nearest-exact")[0, 0].cpu().numpy()
    return small.astype(np.int16 if task == "semantic" else np.float16)


def pixel_classes(metrics: Any) -> dict[str, Any]:
    """Return "score" (IoU) and number of "labels" (pixels) of every class that has labels.

    Args:
        metrics (SemanticMetrics): Metrics of a finished validation.
    """
    if metrics.matrix is None:
        return {}
    matrix = metrics.matrix.double().cpu()
    hits, rows, columns = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    first = len(matrix) - metrics.nc  # with one class, row 0 counts the background
    names = distinct(metrics.names)
    return {
        name: {"score": float(hits[c] / (rows[c] + columns[c] - hits[c])), "labels": int(rows[c])}
        for c, name in ((i + first, names[i]) for i in range(metrics.nc))
        if rows[c] > 0
    }


def image_classes(
    names: Mapping[int, str], predictions: Mapping[str, DensePrediction], truth: Mapping[str, DensePrediction]
) -> dict[str, Any]:
    """Return "score" (top-1 accuracy) and number of "labels" (images) of every class that has labels.

    Args:
        names (Mapping[int, str]): Class names.
        predictions (Mapping[str, DensePrediction]): The model's predictions by image.
        truth (Mapping[str, DensePrediction]): The labels by image.
    """
    correct: dict[int, list[bool]] = {}
    for file, prediction in predictions.items():
        label = int(truth[file].values.argmax())
        correct.setdefault(label, []).append(int(prediction.values.argmax()) == label)
    return {names[c]: {"score": float(np.mean(hits)), "labels": len(hits)} for c, hits in sorted(correct.items())}


def difference(
    first: DensePrediction, second: DensePrediction, task: str, truth: DensePrediction | None = None
) -> tuple[float, float]:
    """Return how much two predictions for an image differ.

    Args:
        first (DensePrediction): One model's prediction.
        second (DensePrediction): The other model's prediction.
        task (str): Their task.
        truth (DensePrediction | None): Labels; pixels without a label, padding among them, do not count in "semantic".

    Returns:
        (float): Distance. "classify": total variation of the probabilities; "semantic": share of pixels with different
            classes; "depth": mean absolute difference of log-depth.
        (float): Share that agrees. "classify": 1 if the most probable class is the same, else 0; "semantic": share of
            pixels with equal classes; "depth": share of pixels that are less than a factor of 1.25 apart.
    """
    a, b = first.values.astype(np.float64), second.values.astype(np.float64)
    if task == "classify":
        return float(np.abs(a - b).sum() / 2), float(a.argmax() == b.argmax())
    if task == "semantic":
        counted = np.ones(a.shape, bool) if truth is None else truth.values != UNLABELED
        same = float((a == b)[counted].mean()) if counted.any() else 1.0
        return 1 - same, same
    known = (a > 0) & (b > 0)
    if not known.any():
        return 0.0, 1.0
    log_ratio = np.abs(np.log(a[known]) - np.log(b[known]))
    return float(log_ratio.mean()), float((log_ratio < np.log(MAX_RATIO)).mean())


def dense_agreement(
    teacher: Mapping[str, DensePrediction],
    model: Mapping[str, DensePrediction],
    task: str,
    truth: Mapping[str, DensePrediction],
) -> dict[str, Any]:
    """Return how far a model's predictions agree with its teacher's.

    Args:
        teacher (Mapping[str, DensePrediction]): The teacher's predictions by image.
        model (Mapping[str, DensePrediction]): The model's predictions by image.
        task (str): Their task.
        truth (Mapping[str, DensePrediction]): The labels by image.

    Returns:
        (dict): "same" and "distance", the means of `difference` over the images; None without images.
    """
    if not teacher:
        return {"same": None, "distance": None}
    rows = [difference(prediction, model[file], task, truth[file]) for file, prediction in teacher.items()]
    distance, same = np.mean(rows, axis=0)
    return {"same": float(same), "distance": float(distance)}


def worst_dense_images(
    teacher: Mapping[str, DensePrediction],
    student: Mapping[str, DensePrediction],
    task: str,
    truth: Mapping[str, DensePrediction],
    count: int,
) -> list[dict[str, Any]]:
    """Return the images on which teacher and student differ most, most first.

    Args:
        teacher (Mapping[str, DensePrediction]): The teacher's predictions by image.
        student (Mapping[str, DensePrediction]): The student's predictions by image.
        task (str): Their task.
        truth (Mapping[str, DensePrediction]): The labels by image.
        count (int): Number of images.

    Returns:
        (list[dict]): "file", "spent" (the distance) and "same" (see `difference`).
    """
    rows: list[dict[str, Any]] = []
    for file, prediction in teacher.items():
        distance, same = difference(prediction, student[file], task, truth[file])
        rows.append({"file": file, "spent": distance, "same": same})
    return sorted(rows, key=lambda row: (-row["spent"], row["file"]))[:count]
