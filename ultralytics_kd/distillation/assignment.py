"""Assign sets of instances to the student's anchor points, as the base loss assigns labels."""

from __future__ import annotations

from math import log
from typing import Any

import torch

from ..outputs import Branch, Layout, anchors, decode
from ..teachers.answers import SetAnswer
from .pairs import AssignedPair
from .task_aligned import InstanceAssigner

# A background anchor point is kept, with a target of 0, if the student has a class logit above this. At the others the
# student predicts background too, so there is nothing to correct
CONFIDENT = log(0.05 / 0.95)


def assign(
    answer: SetAnswer, name: str, student: Branch, layout: Layout, base: Any, assigner: InstanceAssigner
) -> AssignedPair:
    """Assign the instances of a batch to the anchor points of one head branch.

    Args:
        answer (SetAnswer): The instances.
        name (str): The branch.
        student (Branch): The student's raw outputs.
        layout (Layout): The student's head.
        base (v8DetectionLoss): The branch's base loss; its assigner sets the rule.
        assigner (InstanceAssigner): Assigns by this rule.

    Returns:
        (AssignedPair): The anchor points with an instance, and background anchor points where the student is confident.
    """
    points, strides = anchors(student.feats, layout)
    boxes, scores = decode(student.boxes.float(), student.feats, layout), student.scores.float()
    height, width = student.feats[0].shape[-2:]
    instances = answer.instances((height * layout.strides[0], width * layout.strides[0]))
    assigned = assigner(name, base.assigner, scores.detach(), boxes.detach() * strides, points * strides, instances)
    matched = scores if answer.classes is None else scores.index_select(-1, answer.classes)

    kept = matched.detach().amax(-1) > CONFIDENT
    row = torch.full_like(kept, -1, dtype=torch.long)
    row[assigned.image, assigned.point] = torch.arange(len(assigned.target_score), device=row.device)
    image, point = (kept | (row >= 0)).nonzero(as_tuple=True)
    row = row[image, point]  # row of `assigned`; -1 on the background

    target, teacher_boxes = matched.new_zeros((len(row), matched.shape[-1])), boxes.new_zeros((len(row), 4))
    foreground = row >= 0
    if len(assigned.target_score):
        # Computed for all rows, then masked: selecting the foreground rows first would make the host wait for a GPU
        row = row.clamp(min=0)
        instance, inside = assigned.instance[row], foreground[:, None]
        probs = answer.probs[instance].to(target.dtype) * assigned.relative_score[row, None]
        target = torch.where(inside, probs, target)
        teacher_boxes = torch.where(inside, instances.boxes[instance] / strides[point], teacher_boxes)
    return AssignedPair(name, matched[image, point], boxes[image, point], target, teacher_boxes, foreground)
