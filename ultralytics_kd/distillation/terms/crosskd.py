"""Cross-head distillation: the student's head features go on through the teacher's head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...losses import align, iou_loss, qfl
from ...outputs import BOXES, SCORES, decode, last_conv, stem_features, towers
from .base import Pair
from .feature import adapter


class CrossKDTerm:
    """CrossKD of Wang et al. (CVPR 2024, https://arxiv.org/abs/2306.11369).

    What the first block of each of the student's head towers makes of its input is adapted to the teacher's channels,
    aligned to the teacher's statistics, and finished by the rest of the teacher's frozen tower. These cross-head
    predictions imitate the teacher's own, so that the student's head is not pulled two ways by labels and teacher.
    Classes are compared by quality focal loss, boxes by GIoU where the teacher is confident.
    """

    per_branch = True
    reads = frozenset({SCORES, BOXES})

    def __init__(self, student_head: Any, teacher_head: Any, branches: tuple[str, ...], levels: list[tuple[int, int]]):
        """Build the adapters.

        Args:
            student_head (Detect): The student's detection head.
            teacher_head (Detect): The teacher's detection head.
            branches (tuple[str, ...]): Branches that both heads have.
            levels (list[tuple[int, int]]): Index of each common level in the student's and in the teacher's head.
        """
        self.adapters: nn.Module = nn.ModuleDict(
            {branch: self._branch_adapters(student_head, teacher_head, branch, levels) for branch in branches}
        )

    @staticmethod
    def _branch_adapters(
        student_head: Any, teacher_head: Any, branch: str, levels: list[tuple[int, int]]
    ) -> nn.ModuleDict:
        """Return adapters per tower and level."""
        students, teachers = towers(student_head, branch), towers(teacher_head, branch)
        return nn.ModuleDict(
            {
                name: nn.ModuleList(
                    adapter(last_conv(students[name][i][0]).out_channels, last_conv(teachers[name][j][0]).out_channels)
                    for i, j in levels
                )
                for name in (BOXES, SCORES)
            }
        )

    def __call__(self, pair: Pair) -> Tensor:
        """Return the term of one branch, a scalar."""
        assert isinstance(self.adapters, nn.ModuleDict)
        teacher = pair.answer.teacher
        own = stem_features(pair.student_head, pair.name, pair.student.feats, pair.levels)
        targets = stem_features(teacher.head, pair.name, pair.teacher.feats, teacher.levels)
        adapters: Any = self.adapters[pair.name]
        stems = {name: [align(a(s), t) for a, s, t in zip(adapters[name], own[name], targets[name])] for name in own}
        cross = teacher.finish(pair.name, stems, pair.teacher.feats)
        boxes = decode(cross.boxes.float(), pair.teacher.feats, pair.teacher_layout)
        weight = pair.box_weight
        class_loss = qfl(cross.scores.float(), pair.teacher_scores, torch.ones_like(weight), pair.avg_factor)
        box_loss = iou_loss(boxes, pair.teacher_boxes, weight, pair.avg_factor)
        return class_loss + box_loss
