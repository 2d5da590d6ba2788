"""The input of the terms: the outputs of student and teacher for one batch, side by side.

`Pair` and `AssignedPair` also decide which anchor points are compared. In both, `avg_factor` is the divisor of all
terms and `box_weight` the weight of each box. The class term (`terms.detection`) gives each anchor point of a pair a
weight of 1. Background anchor points:

- `Pair` (the teacher predicts at every anchor point) holds all of them. `box_weight` is the teacher's confidence, which
  is close to 0 on the background.
- `AssignedPair` (the teacher predicts a set of instances, or its answers are stored) holds those where the student is
  confident (`assignment.CONFIDENT`), with a target of 0 for the classes. Their `box_weight` is 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from ultralytics.utils.tal import dist2rbox

from ..outputs import ANGLES, Branch, Layout, anchors, decode, distances

MIN_BOX_SIDE = 1e-3  # in strides; a smaller box has no area to compare
MAX_PADDING_RANGE = 1e-3  # largest difference between values of padding; one step of 8 bits is four times that


@dataclass
class Pair:
    """One head branch of the student and of the teacher, on the levels that both have.

    Attributes:
        name (str): "one2many" or "one2one".
        student (Branch): The student's raw outputs.
        teacher (Branch): The teacher's raw outputs; its class logits are those of `classes`.
        classes (Tensor | None): Indices of the student's classes that the teacher has too; None if it has all.
        student_layout (Layout): The student's head.
        teacher_layout (Layout): The teacher's head.
        student_head (Any): The student's detection head, for terms that use its layers.
        levels (list[int]): Index of each level in the student's head.
        answer (Any): The teacher's whole answer, for terms that use the teacher's layers.
        base (Any): The branch's base loss, whose gains some terms use; None where there is none.
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
        """The student's float32 logits of the matched classes, shape (B, A, k)."""
        scores = self.student.scores if self.classes is None else self.student.scores.index_select(-1, self.classes)
        return scores.float()

    @cached_property
    def teacher_scores(self) -> Tensor:
        """The teacher's float32 logits of the matched classes, shape (B, A, k)."""
        return self.teacher.scores.float()

    @cached_property
    def confidence(self) -> Tensor:
        """The teacher's highest class probability at each anchor point, shape (B, A)."""
        return self.teacher_scores.amax(-1).sigmoid()

    @cached_property
    def avg_factor(self) -> Tensor:
        """The divisor of all terms: the teacher's summed confidence, as the base loss divides by summed targets."""
        return self.confidence.sum().clamp(min=1)

    @cached_property
    def anchor_points(self) -> Tensor:
        """Anchor points in strides, shape (A, 2)."""
        return anchors(self.student.feats, self.student_layout)[0]

    @cached_property
    def student_boxes(self) -> Tensor:
        """The student's boxes in strides: (B, A, 4) as corners, or rotated (B, A, 5) as x, y, w, h and angle."""
        return self._boxes(self.student, self.student_layout)

    @cached_property
    def teacher_boxes(self) -> Tensor:
        """The teacher's boxes, in the form of `student_boxes`."""
        return self._boxes(self.teacher, self.teacher_layout)

    def _boxes(self, branch: Branch, layout: Layout) -> Tensor:
        """Return the boxes of the student or of the teacher in strides."""
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
        """The weight of each box, shape (B, A): the teacher's confidence, or 0 where its box has no area."""
        boxes = self.teacher_boxes
        sides = boxes[..., 2:4] if self.rotated else boxes[..., 2:] - boxes[..., :2]
        return self.confidence * (sides.amin(-1) > MIN_BOX_SIDE)

    def most_confident(self, per_image: int, min_weight: float = 0.05) -> tuple[Tensor, Tensor, Tensor]:
        """Return image, anchor point and weight of the teacher's most confident boxes, ordered by image.

        Args:
            per_image (int): Highest number of boxes for each image, on average over the batch.
            min_weight (float): Boxes of this `box_weight` or less are left out.
        """
        weight = self.box_weight
        values, index = weight.flatten().topk(min(per_image * len(weight), weight.numel()))
        index = index[values > min_weight].sort().values
        return index // weight.shape[1], index % weight.shape[1], weight.flatten()[index]


@dataclass
class AssignedPair:
    """One head branch of the student and a set of instances, at M anchor points with k matched classes.

    The anchor points are those that an instance is assigned to, and the background anchor points where the student is
    confident.

    Attributes:
        name (str): "one2many" or "one2one".
        student_scores (Tensor): The student's float32 logits, shape (M, k).
        student_boxes (Tensor): The student's boxes in strides, shape (M, 4).
        target (Tensor): Target probabilities, shape (M, k): the instance's probabilities, times the alignment of the
            anchor point relative to the instance's best anchor point. The base loss also multiplies its target for a
            label by the overlap; a teacher's probability already reflects how well it located the object.
        teacher_boxes (Tensor): The instances' boxes in strides, shape (M, 4).
        assigned (Tensor): Whether an instance is assigned to the anchor point, shape (M,).
    """

    rotated = False

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
        """The highest target probability of each anchor point, shape (M,)."""
        return self.target.amax(-1)

    @cached_property
    def avg_factor(self) -> Tensor:
        """The divisor of all terms: the summed confidence, as the base loss divides by summed targets."""
        return self.confidence.sum().clamp(min=1)

    @cached_property
    def box_weight(self) -> Tensor:
        """The weight of each box, shape (M,): the confidence, or 0 on the background and where a box has no area."""
        sides = self.teacher_boxes[..., 2:] - self.teacher_boxes[..., :2]
        return self.confidence * self.assigned * (sides.amin(-1) > MIN_BOX_SIDE)


@dataclass
class FeaturePair:
    """The student's feature maps and those of the teachers.

    Attributes:
        student (list[Tensor]): Head inputs on all of the student's levels, each of shape (B, C, H, W).
        teachers (list[list[Tensor]]): Feature maps of each teacher, on levels that the student has too.
        confidence (list[Tensor] | None): The teacher's confidence, a map (B, 1, H, W) for each of its levels; None
            where the teacher does not predict at every anchor point.
    """

    student: list[Tensor]
    teachers: list[list[Tensor]]
    confidence: list[Tensor] | None = None


@dataclass
class DensePair:
    """The outputs of student and teacher for a task without anchor points.

    Attributes:
        student (Tensor): Class logits (B, nc), class logits of pixels (B, nc, H, W), or depth (B, 1, H, W).
        teacher (Tensor): The teacher's output, of the same kind; its logits are those of `classes`.
        classes (Tensor | None): Indices of the student's classes that the teacher has too; None if it has all.
        labels (Tensor | None): Class of each labelled image; these images come first in the batch.
        images (Tensor | None): The images, shape (B, C, height, width); their padding is excluded from the loss.
    """

    student: Tensor
    teacher: Tensor
    classes: Tensor | None = None
    labels: Tensor | None = None
    images: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """The student's float32 logits of the matched classes."""
        return (self.student if self.classes is None else self.student.index_select(1, self.classes)).float()

    @property
    def inside(self) -> Tensor:
        """Whether each of the student's pixels, shape (B, 1, H, W), lies in the image and not in its padding."""
        if self.images is None:
            return torch.ones_like(self.student[:, :1], dtype=torch.bool)
        inside = not_padding(self.images).to(self.images.dtype)
        return F.interpolate(inside, self.student.shape[-2:], mode="area") > 0.5


def not_padding(images: Tensor) -> Tensor:
    """Return which pixels are not padding. Padding has no labels, and the teacher did not learn from it either.

    Padding is every outer row and column of one uniform grey. Ultralytics' letterbox and its random shift and scale
    make such rows and columns, and its change of colours keeps them grey.

    Args:
        images (Tensor): Images of shape (B, C, H, W) in [0, 1].

    Returns:
        (Tensor): Shape (B, 1, H, W), bool.
    """
    brightest, darkest = images.amax(1), images.amin(1)
    rows, columns = (brightest.amax(d) - darkest.amin(d) < MAX_PADDING_RANGE for d in (2, 1))
    return ~(_outer_runs(rows)[:, None, :, None] | _outer_runs(columns)[:, None, None])


def _outer_runs(flags: Tensor) -> Tensor:
    """Return the true flags of shape (B, n) that are connected to either end by true flags alone."""
    first, last = (side.cumprod(1) for side in (flags.long(), flags.long().flip(1)))
    return (first + last.flip(1)).bool()


def zero_of(*outputs: Tensor) -> Tensor:
    """Return a 0 that depends on outputs of the student, for a term that may use none of their values in some batches.

    DDP requires that every output takes part in the loss. The sum is over an empty slice: a sum over all values could
    overflow in half precision, and 0 times infinity is NaN.
    """
    return torch.stack([values[..., :0].sum().float() for values in outputs]).sum()
