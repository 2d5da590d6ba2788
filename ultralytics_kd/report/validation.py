"""What a model sees in the val images: one pass of Ultralytics' own validator, which also gives the scores."""

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
from .dense import Said, image_classes, keeping_dense, pixel_classes
from .score_names import METRICS

PARTS = {"segment": "seg", "pose": "pose"}  # what a task's metrics call the part that it is judged by; else "box"


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
        """Return those of a least confidence whose area is a square pixel or more.

        A box without area has an IoU of 0 with every box, itself among them.
        """
        kept = (self.conf >= min_conf) & (self.areas >= 1)
        return Objects(self.boxes[kept], self.cls[kept], self.conf[kept])

    def of(self, classes: int | Sequence[int]) -> Objects:
        """Return those of some classes."""
        kept = np.isin(self.cls, classes)
        return Objects(self.boxes[kept], self.cls[kept], self.conf[kept])

    @property
    def areas(self) -> np.ndarray:
        """Areas in square pixels, shape (N,)."""
        if self.boxes.shape[1] == 5:
            return self.boxes[:, 2] * self.boxes[:, 3]
        return np.maximum(self.boxes[:, 2:] - self.boxes[:, :2], 0).prod(1)  # without DFL a box can be inside out


@dataclass
class Seen:
    """What a model said about a val set.

    Attributes:
        score (float): The task's first metric.
        second (float): The task's second metric.
        classes (dict[str, dict[str, float]]): "score", "precision", "recall" and "labels" of each class in the labels.
        objects (dict[str, Objects]): Detections by image file; none of a task without boxes.
        labels (dict[str, Objects]): Labels by image file; none of a task without boxes.
        said (dict[str, Said]): What is said by image file, of a task without boxes.
        truth (dict[str, Said]): Its labels by image file.
    """

    score: float
    second: float
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    objects: dict[str, Objects] = field(default_factory=dict)
    labels: dict[str, Objects] = field(default_factory=dict)
    said: dict[str, Said] = field(default_factory=dict)
    truth: dict[str, Said] = field(default_factory=dict)


def watch(model: Any, validator: type, args: Namespace, folder: Path) -> Seen:
    """Validate a model and keep what it detects.

    Args:
        model (nn.Module): A model as validators take one; it is fused.
        validator (type[BaseValidator]): The task's validator.
        args (Namespace): Ultralytics' arguments; `nms=False` chooses the end-to-end head.
        folder (Path): Folder for what Ultralytics writes.
    """
    boxes = args.task in GRID_TASKS
    kind = _keeping(validator) if boxes else keeping_dense(validator, args.task)
    run = kind(args=vars(args), save_dir=folder, _callbacks=callbacks.get_default_callbacks())
    found = run(model=model)
    score, second = (float(found[key]) for key, _ in METRICS[args.task])
    if boxes:
        return Seen(score, second, _per_class(run.metrics, args.task), run.kept, run.truth)
    classes = {}
    if args.task == "classify":
        classes = image_classes(distinct(run.names), run.kept, run.truth)
    elif args.task == "semantic":
        classes = pixel_classes(run.metrics)
    return Seen(score, second, classes, said=run.kept, truth=run.truth)


def _keeping(validator: Any) -> Any:
    """Return a validator that also keeps detections and labels in pixels of the image files."""

    class Keeping(validator):
        """Keeps what it is shown."""

        def init_metrics(self, model: Any) -> None:
            """Begin with nothing."""
            super().init_metrics(model)
            self.kept: dict[str, Objects] = {}
            self.truth: dict[str, Objects] = {}
            self.prepared: list[dict[str, Any]] = []

        def _prepare_batch(self, si: int, batch: dict[str, Any]) -> dict[str, Any]:
            """Prepare the labels of an image once for both uses: those of masks take a while."""
            self.prepared.append(super()._prepare_batch(si, batch))
            return self.prepared[-1]

        def update_metrics(self, preds: list[dict[str, Tensor]], batch: dict[str, Any]) -> None:
            """Count a batch, and keep it."""
            self.prepared.clear()
            super().update_metrics(preds, batch)
            for pred, labels in zip(preds, self.prepared, strict=True):
                found = _objects(pred, labels, pred["conf"])
                if self.args.classes is not None:  # labels of others are gone already
                    found = found.of(self.args.classes)
                self.kept[labels["im_file"]] = found
                self.truth[labels["im_file"]] = _objects(labels, labels, None)

    return Keeping


def _objects(found: dict[str, Any], image: dict[str, Any], conf: Tensor | None) -> Objects:
    """Return detections or labels of one image, most confident first."""
    boxes, cls = found["bboxes"].clone().float(), found["cls"]
    if len(cls):
        rotated = boxes.shape[1] == 5
        boxes = ops.scale_boxes(image["imgsz"], boxes, image["ori_shape"], image["ratio_pad"], xywh=rotated)
    sure = np.ones(len(cls)) if conf is None else conf.float().cpu().numpy()
    order = np.argsort(-sure, kind="stable")
    return Objects(boxes.cpu().numpy()[order], cls.cpu().numpy().astype(int)[order], sure[order])


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
