"""The box term."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import KDError
from ..losses import iou_loss, l1_loss, ld
from ..predictions import BOXES, SCORES, Layout
from .base import Pair


class BoxTerm:
    """Boxes of every anchor point, weighted by the teacher's confidence.

    BCKD weights boxes by how far the class scores are apart, which silences the term as soon as the classes agree; the
    confidence keeps teaching the boxes of the objects that the teacher sees.
    """

    per_branch = True
    reads = frozenset({SCORES, BOXES})

    def __init__(self, loss: str, tau: float | None, student: Layout, teacher: Layout):
        """Choose the loss.

        Args:
            loss (str): "iou", "l1" or "ld".
            tau (float | None): Temperature of "ld".
            student (Layout): The student's head.
            teacher (Layout): The teacher's head.

        Raises:
            KDError: If "ld" is asked for and the heads do not both have the same bins.
        """
        if loss == "ld" and not (student.dfl and student.reg_max == teacher.reg_max):
            raise KDError(
                f"kd_box_loss=ld compares distributions over box bins, and the student has reg_max={student.reg_max}, "
                f"the teacher reg_max={teacher.reg_max}: use kd_box_loss=iou or l1."
            )
        self.loss, self.tau = loss, tau or 10.0
        self.adapters: nn.Module | None = None

    def __call__(self, pair: Pair) -> Tensor:
        """Return the term of one branch, a scalar."""
        weight = pair.box_weight
        if self.loss == "ld":
            bins = pair.student_layout.reg_max
            student, teacher = (x.boxes.float().reshape(-1, bins) for x in (pair.student, pair.teacher))
            return ld(student, teacher, weight.flatten().repeat_interleave(4), pair.avg_factor * 4, self.tau)
        loss = iou_loss if self.loss == "iou" else l1_loss
        return loss(pair.student_boxes, pair.teacher_boxes, weight, pair.avg_factor)
