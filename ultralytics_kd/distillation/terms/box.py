"""The box term."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ...errors import KDError
from ...losses import angle_loss, iou_loss, l1_loss, ld, probiou_loss, rotated_l1_loss
from ...outputs import ANGLES, BOXES, SCORES, Layout
from .base import Pair


class BoxTerm:
    """Boxes of every anchor point, weighted by the teacher's confidence.

    BCKD weights boxes by how far the class scores are apart, which silences the term as soon as the classes agree; the
    confidence keeps teaching the boxes of the objects that the teacher sees.
    """

    per_branch = True

    def __init__(self, loss: str, tau: float | None, student: Layout, teachers: Sequence[Layout]):
        """Choose the loss.

        Args:
            loss (str): "iou", "l1" or "ld"; of rotated boxes "iou" is ProbIoU with Ultralytics' angle loss.
            tau (float | None): Temperature of "ld".
            student (Layout): The student's head.
            teachers (Sequence[Layout]): The teachers' heads.

        Raises:
            KDError: If "ld" is asked for and the heads do not both have the same bins, or boxes are rotated.
        """
        if loss == "ld" and student.task == "obb":
            raise KDError(
                "kd_box_loss=ld compares distances to the sides of boxes that are turned the same way, which rotated "
                "boxes are not: use kd_box_loss=iou or l1."
            )
        bins = {teacher.reg_max for teacher in teachers}
        if loss == "ld" and not (student.dfl and bins == {student.reg_max}):
            raise KDError(
                f"kd_box_loss=ld compares distributions over box bins, and the student has reg_max={student.reg_max}, "
                f"the teacher reg_max={', '.join(map(str, sorted(bins)))}: use kd_box_loss=iou or l1."
            )
        self.loss, self.tau = loss, tau or 10.0
        self.adapters: nn.Module | None = None
        self.reads = frozenset({SCORES, BOXES, *([ANGLES] if student.task == "obb" else [])})

    def __call__(self, pair: Pair) -> Tensor:
        """Return the term of one branch, a scalar."""
        weight = pair.box_weight
        if self.loss == "ld":
            bins = pair.student_layout.reg_max
            student, teacher = (x.boxes.float().reshape(-1, bins) for x in (pair.student, pair.teacher))
            return ld(student, teacher, weight.flatten().repeat_interleave(4), pair.avg_factor * 4, self.tau)
        boxes = pair.student_boxes, pair.teacher_boxes
        if getattr(pair, "rotated", False):
            loss = probiou_loss if self.loss == "iou" else rotated_l1_loss
            value = loss(*boxes, weight, pair.avg_factor)
            return value + self._angle_share(pair) * angle_loss(*boxes, weight, pair.avg_factor)
        loss = iou_loss if self.loss == "iou" else l1_loss
        return loss(*boxes, weight, pair.avg_factor)

    def _angle_share(self, pair: Any) -> float:
        """Return the base loss's gain of angles over that of boxes; ProbIoU alone needs it, for squares."""
        hyp = getattr(pair.base, "hyp", None)
        return getattr(hyp, "angle", 1.0) / max(getattr(hyp, "box", 7.5), 1e-9) if self.loss == "iou" else 0.0
