"""The class term and the box term of heads with anchor points.

`..pairs` decides which anchor points a pair holds, background included. `ClassTerm` gives each of them a weight of 1,
and `BoxTerm` the pair's `box_weight`. The losses and their names are in `losses.logit` and `losses.box`; `bckd` and
`qfl` weight each class logit by how far student and teacher differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ...errors import KDError
from ...losses import angle_loss
from ...losses.box import BIN_LOSSES, BOX_LOSSES, ROTATED_BOX_LOSSES
from ...losses.logit import ANCHOR_LOSSES
from ...outputs import ANGLES, BOXES, SCORES, Layout
from ..pairs import AssignedPair, Pair
from .named_losses import named_loss


class ClassTerm:
    """Compares class logits at every anchor point that the pair holds, background included, each with a weight of 1."""

    per_branch = True
    reads = frozenset({SCORES})
    adapters: nn.Module | None = None

    def __init__(self, loss: str, tau: float | None):
        """Choose the loss.

        Args:
            loss (str): A name in `ANCHOR_LOSSES`, or "module:name" of the user's own function.
            tau (float | None): Temperature; None for the loss's default.

        Raises:
            KDError: If the user's function cannot be imported.
        """
        self.loss = named_loss("kd_cls_loss", loss, ANCHOR_LOSSES, tau)

    def __call__(self, pair: Pair | AssignedPair) -> Tensor:
        """Return the term of one branch, a scalar."""
        return self.loss(pair.student_scores, pair.teacher_scores, pair.avg_factor)


class BoxTerm:
    """Compares boxes at every anchor point, weighted by the teacher's confidence (`box_weight` of the pair).

    BCKD weights boxes by the difference of the class scores, so its term vanishes as soon as the classes agree. With
    the confidence as weight, the boxes of all objects that the teacher detects keep training.
    """

    per_branch = True
    adapters: nn.Module | None = None

    def __init__(self, loss: str, tau: float | None, student: Layout, teachers: Sequence[Layout]):
        """Choose the loss.

        Args:
            loss (str): A name in `BOX_LOSSES` or `BIN_LOSSES`, or "module:name" of the user's own function. For rotated
                boxes the name stands for the loss in `ROTATED_BOX_LOSSES`, and "iou" adds Ultralytics' angle loss.
            tau (float | None): Temperature; None for the loss's default.
            student (Layout): The student's head.
            teachers (Sequence[Layout]): The teachers' heads; empty where they predict sets of instances, without bins.

        Raises:
            KDError: If the heads do not share the bins that the loss needs, if the loss is not defined for rotated
                boxes, or if the user's function cannot be imported.
        """
        rotated = student.task == "obb"
        if rotated and loss not in ROTATED_BOX_LOSSES and loss in {*BOX_LOSSES, *BIN_LOSSES}:
            raise KDError(
                f"kd_box_loss={loss} is not defined for rotated boxes: use kd_box_loss="
                f"{' or '.join(ROTATED_BOX_LOSSES)}."
            )
        bins = {teacher.reg_max for teacher in teachers}
        if loss in BIN_LOSSES and not (student.dfl and bins == {student.reg_max}):
            fault = "the teacher predicts a set of detections, which have none"
            if bins:
                teacher_bins = ", ".join(map(str, sorted(bins)))
                fault = f"the student has reg_max={student.reg_max} and the teacher reg_max={teacher_bins}"
            raise KDError(
                f"kd_box_loss={loss} compares distributions over box bins, but {fault}: use kd_box_loss="
                f"{' or '.join(BOX_LOSSES)}."
            )
        table = {**BIN_LOSSES, **(ROTATED_BOX_LOSSES if rotated else BOX_LOSSES)}
        self.loss = named_loss("kd_box_loss", loss, table, tau)
        self.on_bins, self.adds_angle_loss = loss in BIN_LOSSES, rotated and loss == "iou"
        self.reads = frozenset({SCORES, BOXES, *([ANGLES] if rotated else [])})

    def __call__(self, pair: Pair | AssignedPair) -> Tensor:
        """Return the term of one branch, a scalar."""
        if self.on_bins:
            return self._on_bins(pair)
        boxes, weight = (pair.student_boxes, pair.teacher_boxes), pair.box_weight
        value = self.loss(*boxes, weight, pair.avg_factor)
        if self.adds_angle_loss:
            value = value + _angle_gain(pair) * angle_loss(*boxes, weight, pair.avg_factor)
        return value

    def _on_bins(self, pair: Any) -> Tensor:
        """Return the term of distributions over bins: a row of logits for each of a box's four sides."""
        bins = pair.student_layout.reg_max
        student, teacher = (x.boxes.float().reshape(-1, bins) for x in (pair.student, pair.teacher))
        return self.loss(student, teacher, pair.box_weight.flatten().repeat_interleave(4), pair.avg_factor * 4)


def _angle_gain(pair: Any) -> float:
    """Return the base loss's gain of angles relative to its gain of boxes."""
    gains = getattr(pair.base, "hyp", None)
    return getattr(gains, "angle", 1.0) / max(getattr(gains, "box", 7.5), 1e-9)
