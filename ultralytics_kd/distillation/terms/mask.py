"""The mask term."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...losses import mask_loss
from ...outputs import BOXES, COEFFICIENTS, PROTO, SCORES
from .base import Pair

PER_IMAGE = 32  # masks of an image, on the mean of the batch: several for each object, as it has several anchor points


class MaskTerm:
    """Masks as they are composed of prototypes and coefficients, where the teacher is sure of an object.

    Each model has prototypes of its own, so that coefficients mean nothing to another: what is compared is each anchor
    point's mask, inside the teacher's box.
    """

    per_branch = True
    reads = frozenset({SCORES, BOXES, COEFFICIENTS, PROTO})
    adapters: nn.Module | None = None

    def __call__(self, pair: Pair) -> Tensor:
        """Return the term of one branch, a scalar."""
        image, point, weight = pair.surest(PER_IMAGE)
        strides = torch.cat(
            [
                pair.student.scores.new_full((f.shape[-2] * f.shape[-1],), s, dtype=torch.float32)
                for f, s in zip(pair.student.feats, pair.student_layout.strides)
            ]
        )
        boxes = pair.teacher_boxes[image, point] * strides[point, None]
        height = pair.student.feats[0].shape[-2] * pair.student_layout.strides[0]
        assert pair.student.proto is not None and pair.teacher.proto is not None
        boxes = boxes * (pair.student.proto.shape[-2] / height)  # in pixels of the prototypes
        losses = [
            mask_loss(*self._masks(pair, int(i), point[image == i]), boxes[image == i]) * weight[image == i]
            for i in image.unique()
        ]
        # DDP wants all outputs used; sums over nothing, as those over everything may overflow in half precision
        untouched = pair.student.proto[..., :0].sum().float() + pair.student.extras[COEFFICIENTS][..., :0].sum().float()
        return sum((each.sum() for each in losses), untouched) / weight.sum().clamp(min=1)

    @staticmethod
    def _masks(pair: Pair, image: int, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student's and the teacher's mask logits of an image's anchor points, each of shape (n, H, W)."""
        student, teacher = (
            torch.einsum("nc,chw->nhw", side.extras[COEFFICIENTS][image, points].float(), side.proto[image].float())
            for side in (pair.student, pair.teacher)
            if side.proto is not None
        )
        if student.shape != teacher.shape:
            teacher = F.interpolate(teacher[None], student.shape[-2:], mode="bilinear", align_corners=False)[0]
        return student, teacher
