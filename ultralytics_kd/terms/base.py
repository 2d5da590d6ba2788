"""What every term sees, and how much each anchor point counts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ..predictions import Branch, Layout, decode


@dataclass
class Pair:
    """One head branch of the student beside the teacher's, for one batch.

    Attributes:
        name (str): "one2many" or "one2one".
        student (Branch): The student's raw outputs.
        teacher (Branch): The teacher's, class logits those of `classes`.
        classes (Tensor | None): Indices of the student's classes that are taught; None if all.
        student_layout (Layout): The student's head.
        teacher_layout (Layout): The teacher's head.
        student_head (Any): The student's detection head, for terms that look inside.
        answer (Any): The teacher's whole answer, for terms that let the teacher go on.
    """

    name: str
    student: Branch
    teacher: Branch
    classes: Tensor | None
    student_layout: Layout
    teacher_layout: Layout
    student_head: Any = None
    answer: Any = None

    @cached_property
    def student_scores(self) -> Tensor:
        """The student's float32 logits of the taught classes, shape (B, A, k)."""
        scores = self.student.scores if self.classes is None else self.student.scores.index_select(-1, self.classes)
        return scores.float()

    @cached_property
    def teacher_scores(self) -> Tensor:
        """The teacher's float32 logits of the taught classes, shape (B, A, k)."""
        return self.teacher.scores.float()

    @cached_property
    def confidence(self) -> Tensor:
        """The teacher's confidence that an anchor point holds an object of a taught class, shape (B, A)."""
        return self.teacher_scores.amax(-1).sigmoid()

    @cached_property
    def avg_factor(self) -> Tensor:
        """The normaliser: the teacher's summed confidence, as the base loss divides by the summed target score."""
        return self.confidence.sum().clamp(min=1)

    @cached_property
    def student_boxes(self) -> Tensor:
        """The student's boxes in strides, shape (B, A, 4)."""
        return decode(self.student.boxes.float(), self.student.feats, self.student_layout)

    @cached_property
    def teacher_boxes(self) -> Tensor:
        """The teacher's boxes in strides, shape (B, A, 4)."""
        return decode(self.teacher.boxes.float(), self.student.feats, self.teacher_layout)

    @cached_property
    def box_weight(self) -> Tensor:
        """The teacher's confidence where its box has an area to be matched, 0 elsewhere, shape (B, A)."""
        sides = self.teacher_boxes[..., 2:] - self.teacher_boxes[..., :2]
        return self.confidence * (sides.amin(-1) > 1e-3)
