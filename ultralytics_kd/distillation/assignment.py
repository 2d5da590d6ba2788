"""Sets of instances meet the student: they are assigned to anchor points as the base loss assigns labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import Any

import torch
from torch import Tensor

from ..outputs import Branch, Layout, anchors, decode
from ..teachers.answers import SetAnswer
from .task_aligned import Aligner

CONFIDENT = log(0.05 / 0.95)  # student's logit above which a background anchor point is shown that it is empty


@dataclass
class AssignedPair:
    """One head branch of the student beside a set of instances, at the anchor points that matter.

    These are the anchor points that were assigned an instance and, with a target of 0, those of the background where
    the student is confident of something. M is their number; k that of the taught classes.

    Attributes:
        name (str): "one2many" or "one2one".
        student_scores (Tensor): The student's float32 logits, shape (M, k).
        student_boxes (Tensor): The student's boxes in strides, shape (M, 4).
        target (Tensor): Target probabilities, shape (M, k): the instance's, times the share of the anchor point's
            alignment in the instance's best. (The base loss's target for a label has the overlap as another factor; a
            teacher's probability says already how well it found the object.)
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


def assign(answer: SetAnswer, name: str, student: Branch, layout: Layout, base: Any, aligner: Aligner) -> AssignedPair:
    """Assign the instances of a batch to the anchor points of one branch.

    Args:
        answer (SetAnswer): The instances.
        name (str): The branch.
        student (Branch): The student's raw outputs.
        layout (Layout): The student's head.
        base (v8DetectionLoss): The branch's base loss, whose assigner's rule is used.
        aligner (Aligner): Applies it.
    """
    points, strides = anchors(student.feats, layout)
    boxes, scores = decode(student.boxes.float(), student.feats, layout), student.scores.float()
    height, width = student.feats[0].shape[-2:]
    instances = answer.instances((height * layout.strides[0], width * layout.strides[0]))
    found = aligner(name, base.assigner, scores.detach(), boxes.detach() * strides, points * strides, instances)
    taught = scores if answer.classes is None else scores.index_select(-1, answer.classes)
    shown = taught.detach().amax(-1) > CONFIDENT
    shown[found.image, found.point] = True
    image, point = shown.nonzero(as_tuple=True)
    row = torch.full_like(shown, -1, dtype=torch.long)
    row[found.image, found.point] = torch.arange(len(found.fit), device=row.device)
    row = row[image, point]  # of `found`; -1 on the background
    target, teacher_boxes = taught.new_zeros((len(row), taught.shape[-1])), boxes.new_zeros((len(row), 4))
    on = row >= 0
    own = found.instance[row[on]]
    target[on] = answer.probs[own].to(target.dtype) * found.share[row[on], None]
    teacher_boxes[on] = instances.boxes[own] / strides[point[on]]
    return AssignedPair(name, taught[image, point], boxes[image, point], target, teacher_boxes, on)
