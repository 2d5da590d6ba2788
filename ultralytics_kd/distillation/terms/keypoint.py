"""The keypoint term."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import KDError
from ...losses import binary_kl, keypoint_loss, laplace_kl
from ...outputs import BOXES, KEYPOINTS, SCORES, SIGMAS, Branch, Layout
from ..pairs import Pair, zero_of

PER_IMAGE = 64  # highest number of anchor points for each image, on average over the batch


class KeypointTerm:
    """Compares positions and visibility of keypoints at the teacher's most confident boxes, with the base loss's gains.

    Positions are compared by object keypoint similarity, weighted by the teacher's visibility. If both heads predict
    the uncertainty of a position (YOLO26's residual log-likelihood), the term compares it too.
    """

    per_branch = True
    reads = frozenset({SCORES, BOXES, KEYPOINTS, SIGMAS})
    adapters: nn.Module | None = None

    def __init__(self, student: Layout, teachers: Sequence[Layout]):
        """Check the numbers of keypoints.

        Args:
            student (Layout): The student's head.
            teachers (Sequence[Layout]): The teachers' heads.

        Raises:
            KDError: If the numbers differ.
        """
        expected, *counts = (layout.kpt_shape[0] if layout.kpt_shape else 0 for layout in (student, *teachers))
        for count in counts:
            if count != expected:
                raise KDError(
                    f"kd_kpt compares keypoints one by one, and the student has {expected} and the teacher {count}: "
                    f"set kd_kpt=0, or give a teacher with {expected}."
                )

    def __call__(self, pair: Pair) -> Tensor:
        """Return the term of one branch, a scalar."""
        image, point, weight = pair.most_confident(PER_IMAGE)
        total = weight.sum().clamp(min=1)
        student, student_visibility = self._decoded(pair, pair.student, pair.student_layout, image, point)
        teacher, teacher_visibility = self._decoded(pair, pair.teacher, pair.teacher_layout, image, point)
        visible = torch.ones_like(student[..., 0]) if teacher_visibility is None else teacher_visibility.sigmoid()
        box = pair.teacher_boxes[image, point]
        area = (box[:, 2:] - box[:, :2]).clamp(min=1e-3).prod(1)
        position = keypoint_loss(student, teacher, visible, area, self._tolerances(pair, student))
        loss = (position * weight).sum() / total
        if student_visibility is not None and teacher_visibility is not None:
            count = student_visibility.shape[1]
            visibility = binary_kl(student_visibility, teacher_visibility, weight, total * count)
            loss = loss + self._relative_gain(pair, "kobj") * visibility
        if SIGMAS in pair.student.extras and SIGMAS in pair.teacher.extras:
            scale, teacher_scale = (
                b.extras[SIGMAS][image, point].float().sigmoid().clamp(min=1e-4).unflatten(-1, (-1, 2))
                for b in (pair.student, pair.teacher)
            )
            divergence = laplace_kl(student, teacher, scale, teacher_scale).sum(-1)
            divergence = divergence * self._importance(pair, visible)
            likelihood = (divergence * visible).sum(1) / visible.sum(1).clamp(min=1e-6)
            loss = loss + self._relative_gain(pair, "rle") * (likelihood * weight).sum() / total
        return loss + zero_of(*pair.student.extras.values())

    @staticmethod
    def _decoded(
        pair: Pair, branch: Branch, layout: Layout, image: Tensor, point: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return positions in strides, shape (n, K, 2), and visibility logits (n, K); None if the head has none."""
        assert layout.kpt_shape is not None
        raw = branch.extras[KEYPOINTS][image, point].float().unflatten(-1, layout.kpt_shape)
        corner = 0.5 if layout.kpt_scale != 1 else 0.0
        positions = raw[..., :2] * layout.kpt_scale + (pair.anchor_points[point] - corner)[:, None]
        return positions, raw[..., 2] if layout.kpt_shape[1] == 3 else None

    @staticmethod
    def _tolerances(pair: Pair, positions: Tensor) -> Tensor:
        """Return the base loss's tolerance (sigma) of each keypoint, shape (K,)."""
        loss: Any = getattr(pair.base, "keypoint_loss", None)
        count = positions.shape[1]
        return positions.new_full((count,), 1 / count) if loss is None else loss.sigmas.to(positions)

    @staticmethod
    def _importance(pair: Pair, visible: Tensor) -> Tensor:
        """Return the base loss's weight of each keypoint's likelihood, in the shape of `visible`."""
        weights: Any = getattr(pair.base, "target_weights", None)
        return torch.ones_like(visible) if weights is None else weights.to(visible).expand_as(visible)

    @staticmethod
    def _relative_gain(pair: Pair, name: str) -> float:
        """Return one of the base loss's gains relative to its gain of positions."""
        gains = getattr(pair.base, "hyp", None)
        return getattr(gains, name, 1.0) / max(getattr(gains, "pose", 12.0), 1e-9)
