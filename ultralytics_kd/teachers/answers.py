"""Answers that teachers return for a batch of images. They reach the loss as `batch["teacher"]`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.ops import xywh2xyxy

from ..outputs import Branch


@dataclass(frozen=True)
class Reads:
    """The parts of a teacher's answer that the terms read; the teacher need not compute the rest.

    Attributes:
        parts (Mapping[str, Collection[str]] | None): Parts, as `outputs.towers` names them, by head branch; None for
            scores and boxes of all branches.
        strides (Sequence[int] | None): Strides of the levels whose parts are read; None for all.
        features (Sequence[int]): Strides of the feature maps that are read; a teacher returns those that it has.
    """

    parts: Mapping[str, Collection[str]] | None = None
    strides: Sequence[int] | None = None
    features: Sequence[int] = ()


@dataclass
class Answer:
    """Predictions of a teacher with a YOLO head for a batch, at every anchor point.

    Attributes:
        branches (dict[str, Branch]): Raw outputs by head branch; their class logits are those of `classes`.
        classes (Tensor | None): Student classes of the logits; None for all classes in order.
        teacher (Any): The teacher, for terms that run its head on the student's features.
        features (list[list[Tensor]]): Feature maps of each model behind the answer, one list of levels each.
    """

    branches: dict[str, Branch]
    classes: Tensor | None
    teacher: Any
    features: list[list[Tensor]] = field(default_factory=list)


@dataclass
class DenseAnswer:
    """Predictions of a teacher without anchor points for a batch.

    Attributes:
        value (Tensor): Class logits (B, k), per-pixel logits (B, k, H, W) of `classes`, or depth (B, 1, H, W). Depth is
            infinite where the teacher predicts a limit of its range.
        classes (Tensor | None): Student classes of the logits; None for all classes in order.
        features (list[list[Tensor]]): Feature maps of each model behind the answer, one list of levels each.
    """

    value: Tensor
    classes: Tensor | None
    features: list[list[Tensor]] = field(default_factory=list)


@dataclass
class Instances:
    """Instances of all images of a batch.

    Attributes:
        boxes (Tensor): Corners in pixels of the input, shape (N, 4).
        labels (Tensor): Class index of each instance, shape (N,).
        image (Tensor): Image index of each instance, shape (N,), int64.
        confidence (Tensor): The teacher's confidence in each instance, shape (N,); 1 for labels.
    """

    boxes: Tensor
    labels: Tensor
    image: Tensor
    confidence: Tensor
    _inside: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def pairs(self, assigner: Any, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pairs of instance and anchor point that may be assigned; computed once for all branches.

        Args:
            assigner (TaskAlignedAssigner): The base loss's assigner.
            points (Tensor): Anchor points in pixels of the input, shape (A, 2).

        Returns:
            (tuple[Tensor, Tensor]): Index of the instance and of the anchor point of each pair, both of shape (P,).
        """
        if assigner.stride_val not in self._inside:
            valid = torch.ones(1, len(self.boxes), 1, device=points.device)
            inside = assigner.select_candidates_in_gts(points, self.boxes[None], valid)[0]
            inside &= self.boxes.any(1, keepdim=True)
            self._inside[assigner.stride_val] = inside.nonzero(as_tuple=True)
        return self._inside[assigner.stride_val]


@dataclass
class SetAnswer:
    """Instances that a teacher predicts for a batch: stored answers, RT-DETR's queries, or any detections.

    Attributes:
        bboxes (Tensor): Boxes of all images, shape (M, 4): x, y, w, h as fractions of the image.
        probs (Tensor): Probabilities of the taught classes, shape (M, k).
        batch_idx (Tensor): Index of each box's image, shape (M,).
        classes (Tensor | None): Student classes of the probabilities; None for all classes in order.
        features (list[list[Tensor]]): Feature maps of each model that offers some, one list of levels each.
    """

    bboxes: Tensor
    probs: Tensor
    batch_idx: Tensor
    classes: Tensor | None
    features: list[list[Tensor]] = field(default_factory=list)
    _instances: dict[tuple[int, int], Instances] = field(default_factory=dict, repr=False)

    def instances(self, size: tuple[int, int]) -> Instances:
        """Return the instances for images of a height and width in pixels, each with its most probable class."""
        if size not in self._instances:
            empty = self.probs.new_zeros(0)
            confidence, best = self.probs.max(1) if len(self.probs) else (empty, empty.long())
            labels = best if self.classes is None else self.classes[best]
            boxes = corners(self.bboxes, size)
            self._instances[size] = Instances(boxes, labels, self.batch_idx.long(), confidence)
        return self._instances[size]


def corners(bboxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes as x1, y1, x2, y2 in pixels, float32.

    Args:
        bboxes (Tensor): Boxes of shape (N, 4): x, y, w, h as fractions of the image.
        size (tuple[int, int]): Height and width of the image in pixels.
    """
    x, y = bboxes.float().view(-1, 2, 2).unbind(-1)  # a tensor (width, height) would be copied from the host
    return xywh2xyxy(torch.stack((x * size[1], y * size[0]), -1).view(-1, 4))
