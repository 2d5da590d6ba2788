"""Answers: what a teacher returns for a batch of images. They travel to the loss as `batch["teacher"]`."""

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
    """What the terms read of a teacher's answer: it need not compute more.

    Attributes:
        parts (Mapping[str, Collection[str]] | None): Parts, as `predictions.towers` names them, by head branch; None
            for scores and boxes of all branches.
        strides (Sequence[int] | None): Strides of the levels whose parts are read; None for all.
        features (Sequence[int]): Strides of the feature maps that are read; a teacher gives those of them that it has.
    """

    parts: Mapping[str, Collection[str]] | None = None
    strides: Sequence[int] | None = None
    features: Sequence[int] = ()


@dataclass
class Answer:
    """What a teacher with a YOLO head says about a batch, anchor point by anchor point.

    It travels to the loss as `batch["teacher"]`, as do answers of other kinds.

    Attributes:
        branches (dict[str, Branch]): Raw outputs per head branch, class logits already those of `classes`.
        classes (Tensor | None): Student classes that the logits stand for; None if they are all, in order.
        teacher (Any): The teacher, for terms that let it go on from the student's features.
        features (list[list[Tensor]]): Feature maps of every teacher behind the answer, one list of levels each.
    """

    branches: dict[str, Branch]
    classes: Tensor | None
    teacher: Any
    features: list[list[Tensor]] = field(default_factory=list)


@dataclass
class DenseAnswer:
    """What a teacher says about a batch, without anchor points.

    Attributes:
        value (Tensor): Class logits (B, k), per-pixel logits (B, k, H, W) of `classes`, or depth (B, 1, H, W), which is
            infinite where the teacher knows none.
        classes (Tensor | None): Student classes that the logits stand for; None if they are all, in order.
        features (list[list[Tensor]]): Feature maps of every teacher behind the answer.
    """

    value: Tensor
    classes: Tensor | None
    features: list[list[Tensor]] = field(default_factory=list)


@dataclass
class Instances:
    """Instances of all images of a batch.

    Attributes:
        boxes (Tensor): Corners in pixels of the input, shape (N, 4).
        labels (Tensor): Class of each, shape (N,).
        image (Tensor): Index of each one's image, shape (N,), int64.
        confidence (Tensor): How sure the teacher is of each, shape (N,); 1 for labels.
    """

    boxes: Tensor
    labels: Tensor
    image: Tensor
    confidence: Tensor
    _inside: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def pairs(self, assigner: Any, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return instance and anchor point of every pair that may be assigned; the branches of a head share them.

        Args:
            assigner (TaskAlignedAssigner): The base loss's assigner.
            points (Tensor): Anchor points in pixels of the input, shape (A, 2).
        """
        if assigner.stride_val not in self._inside:
            valid = torch.ones(1, len(self.boxes), 1, device=points.device)
            inside = assigner.select_candidates_in_gts(points, self.boxes[None], valid)[0]
            inside &= self.boxes.any(1, keepdim=True)
            self._inside[assigner.stride_val] = inside.nonzero(as_tuple=True)
        return self._inside[assigner.stride_val]


@dataclass
class SetAnswer:
    """What a teacher says about a batch as a set of instances: stored answers, RT-DETR's queries, any detections.

    Attributes:
        bboxes (Tensor): Boxes of shape (M, 4): x, y, w, h as shares of the image, of all images together.
        probs (Tensor): Probabilities of the taught classes, shape (M, k).
        batch_idx (Tensor): Index of each box's image, shape (M,).
        classes (Tensor | None): Student classes that the probabilities stand for; None if they are all, in order.
        features (list[list[Tensor]]): Feature maps of the teachers that offer some, one list of levels each.
    """

    bboxes: Tensor
    probs: Tensor
    batch_idx: Tensor
    classes: Tensor | None
    features: list[list[Tensor]] = field(default_factory=list)
    _instances: dict[tuple[int, int], Instances] = field(default_factory=dict, repr=False)

    def instances(self, size: tuple[int, int]) -> Instances:
        """Return the boxes for images of a height and width in pixels, each with its likeliest class."""
        if size not in self._instances:
            none = self.probs.new_zeros(0)
            confidence, likeliest = self.probs.max(1) if len(self.probs) else (none, none.long())
            labels = likeliest if self.classes is None else self.classes[likeliest]
            height, width = size
            scale = self.bboxes.new_tensor((width, height, width, height), dtype=torch.float32)
            self._instances[size] = Instances(xywh2xyxy(self.bboxes * scale), labels, self.batch_idx.long(), confidence)
        return self._instances[size]
