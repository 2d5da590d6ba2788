"""Stored answers meet the student: soft instances are assigned to anchor points as the base loss assigns labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.tal import make_anchors

from .predictions import Branch, Layout, decode

CONFIDENT = 0.05  # student's probability above which a background anchor point is shown that the teacher saw nothing


@dataclass
class StoredAnswer:
    """What the teacher said about the images of a batch, after their augmentation.

    Attributes:
        bboxes (Tensor): Boxes of shape (M, 4): x, y, w, h as shares of the image, of all images together.
        probs (Tensor): Probabilities of the taught classes, shape (M, k).
        batch_idx (Tensor): Index of each box's image, shape (M,).
        classes (Tensor | None): Student classes that the probabilities stand for; None if they are all, in order.
    """

    bboxes: Tensor
    probs: Tensor
    batch_idx: Tensor
    classes: Tensor | None


@dataclass
class AssignedPair:
    """One head branch of the student beside stored answers, at the anchor points that matter.

    These are the anchor points that were assigned an instance and, with a target of 0, those of the background where
    the student is confident of something. M is their number; k that of the taught classes.

    Attributes:
        name (str): "one2many" or "one2one".
        student_scores (Tensor): The student's float32 logits, shape (M, k).
        student_boxes (Tensor): The student's boxes in strides, shape (M, 4).
        target (Tensor): Target probabilities, shape (M, k): the instance's, times how well the anchor point fits it.
        teacher_boxes (Tensor): The instances' boxes in strides, shape (M, 4).
        assigned (Tensor): Whether the anchor point has an instance, shape (M,).
    """

    name: str
    student_scores: Tensor
    student_boxes: Tensor
    target: Tensor
    teacher_boxes: Tensor
    assigned: Tensor

    @cached_property
    def teacher_scores(self) -> Tensor:
        """The target as logits, shape (M, k)."""
        return torch.logit(self.target, eps=1e-6)

    @cached_property
    def confidence(self) -> Tensor:
        """The largest target of each anchor point, shape (M,)."""
        return self.target.amax(-1)

    @cached_property
    def avg_factor(self) -> Tensor:
        """The normaliser: the summed confidence, as the base loss divides by the summed target score."""
        return self.confidence.sum().clamp(min=1)

    @cached_property
    def box_weight(self) -> Tensor:
        """The confidence where there is a box with an area, 0 elsewhere, shape (M,)."""
        sides = self.teacher_boxes[..., 2:] - self.teacher_boxes[..., :2]
        return self.confidence * self.assigned * (sides.amin(-1) > 1e-3)


def assign(answer: StoredAnswer, name: str, student: Branch, layout: Layout, base: Any) -> AssignedPair:
    """Assign the instances of a batch to the anchor points of one branch.

    Args:
        answer (StoredAnswer): The instances.
        name (str): The branch.
        student (Branch): The student's raw outputs.
        layout (Layout): The student's head.
        base (v8DetectionLoss): The branch's base loss, whose assigner is used.
    """
    points, strides = make_anchors(student.feats, layout.strides, 0.5)
    boxes = decode(student.boxes.float(), student.feats, layout)
    scores = student.scores.float()
    size = (torch.tensor(student.feats[0].shape[-2:], device=boxes.device) * layout.strides[0]).flip(0).repeat(2)
    rows = torch.arange(len(answer.bboxes), device=boxes.device)
    instances = torch.cat((answer.batch_idx.view(-1, 1), rows.view(-1, 1), answer.bboxes), 1).float()
    row, truth = base.preprocess(instances, len(boxes), scale_tensor=size.float()).split((1, 4), 2)
    row = row.long().squeeze(-1)
    likeliest = answer.probs.argmax(1) if len(rows) else rows
    labels = likeliest if answer.classes is None else answer.classes[likeliest]
    probabilities = scores.detach().sigmoid()
    with torch.no_grad():
        _, target_boxes, target_scores, assigned, instance = base.assigner(
            probabilities,
            boxes.detach() * strides,
            points * strides,
            labels[row].unsqueeze(-1) if len(rows) else row.unsqueeze(-1),
            truth,
            truth.sum(2, keepdim=True).gt_(0),
        )
    taught = scores if answer.classes is None else scores.index_select(-1, answer.classes)
    seen = probabilities if answer.classes is None else probabilities.index_select(-1, answer.classes)
    image, point = (assigned | (seen.amax(-1) > CONFIDENT)).nonzero(as_tuple=True)
    assigned = assigned[image, point]
    fit = target_scores[image, point].sum(-1, keepdim=True)  # one class has all of it; 0 on the background
    target = torch.zeros_like(taught[image, point])
    if len(rows):
        target = answer.probs[row[image, instance[image, point].long()]] * fit * assigned[:, None]
    return AssignedPair(
        name, taught[image, point], boxes[image, point], target, target_boxes[image, point] / strides[point], assigned
    )
