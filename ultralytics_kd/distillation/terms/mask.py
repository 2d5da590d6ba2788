"""The mask term."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...losses import mask_loss
from ...outputs import BOXES, COEFFICIENTS, PROTO, SCORES
from ..pairs import Pair, zero_of

# Highest number of masks for each image, on average over the batch; an object has a mask at several anchor points
PER_IMAGE = 32


class MaskTerm:
    """Compares masks at the teacher's most confident boxes.

    Every model has its own prototypes, so coefficients of two models cannot be compared. The term therefore composes
    each model's masks from its prototypes and coefficients, and compares the masks inside the teacher's box.
    """

    per_branch = True
    reads = frozenset({SCORES, BOXES, COEFFICIENTS, PROTO})
    adapters: nn.Module | None = None

    def __call__(self, pair: Pair) -> Tensor:
        """Return the term of one branch, a scalar."""
        image, point, weight = pair.most_confident(PER_IMAGE)
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
        images = len(pair.student.proto)
        counts = image.new_zeros(images).index_add_(0, image, torch.ones_like(image)).tolist()
        parts = zip(range(images), *(x.split(counts) for x in (point, boxes, weight)))
        losses = [
            mask_loss(*self._masks(pair, i, points), own) * factor for i, points, own, factor in parts if len(own)
        ]
        zero = zero_of(pair.student.proto, pair.student.extras[COEFFICIENTS])
        return sum((each.sum() for each in losses), zero) / weight.sum().clamp(min=1)

    @staticmethod
    def _masks(pair: Pair, image: int, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student's and the teacher's mask logits at anchor points of an image, each of shape (n, H, W)."""
        student, teacher = (
            torch.einsum("nc,chw->nhw", branch.extras[COEFFICIENTS][image, points].float(), branch.proto[image].float())
            for branch in (pair.student, pair.teacher)
            if branch.proto is not None
        )
        if student.shape != teacher.shape:
            teacher = F.interpolate(teacher[None], student.shape[-2:], mode="bilinear", align_corners=False)[0]
        return student, teacher
