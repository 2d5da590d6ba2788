"""Cross-head distillation: the student's head features pass through the rest of the teacher's head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...losses import align, iou_loss, qfl
from ...outputs import BOXES, SCORES, decode, last_conv, stem_features, towers
from ..pairs import Pair
from .feature import adapter


class CrossKDTerm:
    """CrossKD of Wang et al. (CVPR 2024, https://arxiv.org/abs/2306.11369).

    The output of the first block of each of the student's head towers is adapted to the teacher's channels, aligned to
    the teacher's statistics, and passed through the rest of the teacher's frozen tower. These cross-head predictions
    imitate the teacher's predictions. The student's own predictions learn from the labels alone, so that labels and
    teacher do not pull them in two directions. Classes are compared by quality focal loss, and boxes by GIoU weighted
    by the teacher's confidence.
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
        self.adapters: nn.Module | None = nn.ModuleDict(
            {branch: self._branch_adapters(student_head, teacher_head, branch, levels) for branch in branches}
        )

    @staticmethod
    def _branch_adapters(
        student_head: Any, teacher_head: Any, branch: str, levels: list[tuple[int, int]]
    ) -> nn.ModuleDict:
        """Return the adapters of a branch, by tower and level."""
        student_towers, teacher_towers = towers(student_head, branch), towers(teacher_head, branch)

        def level_adapter(name: str, i: int, j: int) -> nn.Module:
            """Return the adapter of one tower and level."""
            first_blocks = student_towers[name][i][0], teacher_towers[name][j][0]
            student_channels, teacher_channels = (last_conv(block).out_channels for block in first_blocks)
            return adapter(student_channels, teacher_channels)

        return nn.ModuleDict(
            {name: nn.ModuleList(level_adapter(name, i, j) for i, j in levels) for name in (BOXES, SCORES)}
        )

    def __call__(self, pair: Pair) -> Tensor:
        """Return the term of one branch, a scalar."""
        assert isinstance(self.adapters, nn.ModuleDict)
        teacher = pair.answer.teacher
        student_stems = stem_features(pair.student_head, pair.name, pair.student.feats, pair.levels)
        teacher_stems = stem_features(teacher.head, pair.name, pair.teacher.feats, teacher.levels)
        adapters: Any = self.adapters[pair.name]
        stems = {
            name: [align(adapt(s), t) for adapt, s, t in zip(adapters[name], student_stems[name], teacher_stems[name])]
            for name in student_stems
        }
        cross = teacher.finish(pair.name, stems, pair.teacher.feats)
        boxes = decode(cross.boxes.float(), pair.teacher.feats, pair.teacher_layout)
        weight = pair.box_weight
        class_loss = qfl(cross.scores.float(), pair.teacher_scores, torch.ones_like(weight), pair.avg_factor)
        box_loss = iou_loss(boxes, pair.teacher_boxes, weight, pair.avg_factor)
        return class_loss + box_loss
