"""One run of Ultralytics' validator: the scores of a model, and its detections and labels of every image."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from ultralytics.utils import callbacks, ops

from ..config.arguments import GRID_TASKS
from .datasets import distinct
from .dense import DensePrediction, image_classes, pixel_classes, recording_dense_validator
from .score_names import METRICS

PARTS = {"segment": "seg", "pose": "pose"}  # attribute of the metrics with a task's scores; "box" for other tasks


@dataclass
class Objects:
    """Objects in one image.

    Attributes:
        boxes (np.ndarray): Boxes in pixels of the image file: x1, y1, x2, y2 of shape (N, 4), or x, y, w, h and angle
            in radians of shape (N, 5).
        cls (np.ndarray): Class of each, shape (N,).
        conf (np.ndarray): Confidence of each in falling order, shape (N,); 1 for labels.
    """

    boxes: np.ndarray
    cls: np.ndarray
    conf: np.ndarray

    def confident(self, min_conf: float) -> Objects:
        """Return the objects with a confidence of `min_conf` or more and an area of a square pixel or more.

        A box without area has an IoU of 0 with every box, even with itself.
        """
        kept = (self.conf >= min_conf) & (self.areas >= 1)
        return Objects(self.boxes[kept], self.cls[kept], self.conf[kept])

    def without(self, indices: Sequence[int]) -> Objects:
        """Return all objects but those with these indices."""
        kept = np.setdiff1d(np.arange(len(self.cls)), np.asarray(indices, int))
        return Objects(self.boxes[kept], self.cls[kept], self.conf[kept])

    def of(self, classes: int | Sequence[int]) -> Objects:
        """Return the objects of some classes."""
        kept = np.isin(self.cls, classes)
        return Objects(self.boxes[kept], self.cls[kept], self.conf[kept])

    @property
    def areas(self) -> np.ndarray:
        """Areas in square pixels, shape (N,)."""
        if self.boxes.shape[1] == 5:
            return self.boxes[:, 2] * self.boxes[:, 3]
        return np.maximum(self.boxes[:, 2:] - self.boxes[:, :2], 0).prod(1)  # without DFL, x2 can be less than x1


@dataclass
class ValidationResult:
    """Scores and predictions of a model on a val set.

    Attributes:
        score (float): The task's first metric.
        second (float): The task's second metric.
        classes (dict[str, dict[str, float]]): Each class with labels: "score" and "labels" (a count), for boxes also
            "second", "precision" and "recall".
        objects (dict[str, Objects]): Detections by image file; empty for tasks without boxes.
        labels (dict[str, Objects]): Labels by image file; empty for tasks without boxes.
        predictions (dict[str, DensePrediction]): Predictions by image file; empty for tasks with boxes.
        truth (dict[str, DensePrediction]): Labels by image file; empty for tasks with boxes.
    """

    score: float
    second: float
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    objects: dict[str, Objects] = field(default_factory=dict)
    labels: dict[str, Objects] = field(default_factory=dict)
    predictions: dict[str, DensePrediction] = field(default_factory=dict)
    truth: dict[str, DensePrediction] = field(default_factory=dict)


def validate(model: Any, validator: type, args: Namespace, folder: Path) -> ValidationResult:
    """Validate a model and keep its predictions.

    Args:
        model (nn.Module): A model in the form that validators take; it is fused in place.
        validator (type[BaseValidator]): The task's validator.
        args (Namespace): Ultralytics' arguments; `nms=False` chooses the NMS-free head.
        folder (Path): Folder for what Ultralytics writes.
    """
    has_boxes = args.task in GRID_TASKS
    recording = recording_validator(validator) if has_boxes else recording_dense_validator(validator, args.task)
    run = recording(args=vars(args), save_dir=folder, _callbacks=callbacks.get_default_callbacks())
    metrics = run(model=model)
    score, second = (float(metrics[key]) for key, _ in METRICS[args.task])
    if has_boxes:
        return ValidationResult(score, second, _per_class(run.metrics, args.task), run.kept, run.truth)
    classes = {}
    if args.task == "classify":
        classes = image_classes(distinct(run.names), run.kept, run.truth)
    elif args.task == "semantic":
        classes = pixel_classes(run.metrics)
    return ValidationResult(score, second, classes, predictions=run.kept, truth=run.truth)


def recording_validator(validator: Any) -> Any:
    """Return a validator that also keeps detections and labels, in pixels of the image files.

    Args:
        validator (type[DetectionValidator]): The task's validator.

    Returns:
        (type[DetectionValidator]): A subclass; `kept` and `truth` of its objects are detections and labels by file.
    """

    class RecordingValidator(validator):
        """Keeps detections and labels of every image."""

        def init_metrics(self, model: Any) -> None:
            """Start with no images."""
            super().init_metrics(model)
            self.kept: dict[str, Objects] = {}
            self.truth: dict[str, Objects] = {}
            self.prepared: list[dict[str, Any]] = []

        def _prepare_batch(self, si: int, batch: dict[str, Any]) -> dict[str, Any]:
            """Keep the prepared labels of an image: preparing masks again would take a while."""
            self.prepared.append(super()._prepare_batch(si, batch))
            return self.prepared[-1]

        def update_metrics(self, preds: list[dict[str, Tensor]], batch: dict[str, Any]) -> None:
            """Count a batch, and keep its objects."""
            self.prepared.clear()
            super().update_metrics(preds, batch)
            for pred, labels in zip(preds, self.prepared, strict=True):
                detections = _objects(pred, labels, pred["conf"])
                if self.args.classes is not None:  # labels of other classes are left out already
                    detections = detections.of(self.args.classes)
                self.kept[labels["im_file"]] = detections
                self.truth[labels["im_file"]] = _objects(labels, labels, None)

    return RecordingValidator


def _objects(values: dict[str, Any], image: dict[str, Any], conf: Tensor | None) -> Objects:
    """Return detections or labels of one image, most confident first.

    Args:
        values (dict): "bboxes" in pixels of the network's input and "cls", as validators have them.
        image (dict): The image's sizes, as `_prepare_batch` returns them.
        conf (Tensor | None): Confidence of each, shape (N,); None for labels.
    """
    boxes, cls = values["bboxes"].clone().float(), values["cls"]
    if len(cls):
        rotated = boxes.shape[1] == 5
        boxes = ops.scale_boxes(image["imgsz"], boxes, image["ori_shape"], image["ratio_pad"], xywh=rotated)
    confidence = np.ones(len(cls)) if conf is None else conf.float().cpu().numpy()
    order = np.argsort(-confidence, kind="stable")
    return Objects(boxes.cpu().numpy()[order], cls.cpu().numpy().astype(int)[order], confidence[order])


def _per_class(metrics: Any, task: str) -> dict[str, dict[str, float]]:
    """Return the scores of every class that has labels."""
    part, names = getattr(metrics, PARTS.get(task, "box")), distinct(metrics.names)
    return {
        names[c]: {
            "score": float(part.ap[i]),
            "second": float(part.ap50[i]),
            "precision": float(part.p[i]),
            "recall": float(part.r[i]),
            "labels": int(metrics.nt_per_class[c]),
        }
        for i, c in enumerate(metrics.ap_class_index)
    }
