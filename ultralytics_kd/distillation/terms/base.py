"""What terms see, and how much each anchor point counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.tal import dist2rbox

from ...outputs import ANGLES, Branch, Layout, anchors, decode, distances


@dataclass
class Pair:
    """One head branch of the student beside the teacher's, for one batch, on the levels that both have.

    Attributes:
        name (str): "one2many" or "one2one".
        student (Branch): The student's raw outputs.
        teacher (Branch): The teacher's, class logits those of `classes`.
        classes (Tensor | None): Indices of the student's classes that are taught; None if all.
        student_layout (Layout): The student's head.
        teacher_layout (Layout): The teacher's head.
        student_head (Any): The student's detection head, for terms that look inside.
        levels (list[int]): Index in the student's head of each level.
        answer (Any): The teacher's whole answer, for terms that let the teacher go on.
        base (Any): The branch's base loss, whose weights terms of a task take over; None where there is none.
    """

    name: str
    student: Branch
    teacher: Branch
    classes: Tensor | None
    student_layout: Layout
    teacher_layout: Layout
    student_head: Any = None
    levels: list[int] = field(default_factory=list)
    answer: Any = None
    base: Any = None

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
    def anchor_points(self) -> Tensor:
        """Anchor points in strides, shape (A, 2)."""
        return anchors(self.student.feats, self.student_layout)[0]

    @cached_property
    def student_boxes(self) -> Tensor:
        """The student's boxes in strides, shape (B, A, 4); of rotated boxes (B, A, 5): x, y, w, h and angle."""
        return self._boxes(self.student, self.student_layout)

    @cached_property
    def teacher_boxes(self) -> Tensor:
        """The teacher's boxes as `student_boxes` has the student's."""
        return self._boxes(self.teacher, self.teacher_layout)

    def _boxes(self, branch: Branch, layout: Layout) -> Tensor:
        """Return a side's boxes in strides."""
        if ANGLES not in branch.extras:
            return decode(branch.boxes.float(), self.student.feats, layout)
        sides, angle = distances(branch.boxes.float(), layout), branch.extras[ANGLES].float()
        return torch.cat((dist2rbox(sides, angle, self.anchor_points), angle), -1)

    @property
    def rotated(self) -> bool:
        """Whether boxes have an angle."""
        return ANGLES in self.teacher.extras

    @cached_property
    def box_weight(self) -> Tensor:
        """The teacher's confidence where its box has an area to be matched, 0 elsewhere, shape (B, A)."""
        boxes = self.teacher_boxes
        sides = boxes[..., 2:4] if self.rotated else boxes[..., 2:] - boxes[..., :2]
        return self.confidence * (sides.amin(-1) > 1e-3)

    def surest(self, per_image: int, least: float = 0.05) -> tuple[Tensor, Tensor, Tensor]:
        """Return image, anchor point and weight of those at which the teacher is surest, in the order of images.

        Args:
            per_image (int): Most of them, on the mean of the batch's images.
            least (float): Least weight.
        """
        weight = self.box_weight
        values, index = weight.flatten().topk(min(per_image * len(weight), weight.numel()))
        index = index[values > least].sort().values
        return index // weight.shape[1], index % weight.shape[1], weight.flatten()[index]


@dataclass
class FeaturePair:
    """The student's feature maps beside those of one teacher or several, on the levels that they have in common.

    Attributes:
        student (list[Tensor]): Head inputs of all of the student's levels, each of shape (B, C, H, W).
        teachers (list[list[Tensor]]): Feature maps of every teacher.
        confidence (list[Tensor] | None): How sure the teacher is, a map (B, 1, H, W) for each of its levels; None where
            its answer is no grid.
    """

    student: list[Tensor]
    teachers: list[list[Tensor]]
    confidence: list[Tensor] | None = None
