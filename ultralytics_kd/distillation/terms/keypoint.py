"""The keypoint term."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import KDError
from ...losses import binary_kl, keypoint_loss, laplace_kl
from ...outputs import BOXES, KEYPOINTS, SCORES, SIGMAS, Branch, Layout
from .base import Pair

PER_IMAGE = 64  # anchor points of an image, on the mean of the batch


class KeypointTerm:
    """Positions and visibility of keypoints where the teacher is sure of an object, weighted as the base loss does.

    Positions are compared by object keypoint similarity, weighted by the teacher's visibility. Where both heads
    estimate how far a keypoint may be off (YOLO26's residual log-likelihood), that is learnt too.
    """

    per_branch = True
    reads = frozenset({SCORES, BOXES, KEYPOINTS, SIGMAS})
    adapters: nn.Module | None = None

    def __init__(self, student: Layout, teachers: Sequence[Layout]):
        """Check that both know the same keypoints.

        Raises:
            KDError: If they do not.
        """
        ours, *counts = (layout.kpt_shape[0] if layout.kpt_shape else 0 for layout in (student, *teachers))
        for theirs in counts:
            if theirs != ours:
                raise KDError(f"the student has {ours} keypoints and the teacher {theirs}: both must know the same.")

    def __call__(self, pair: Pair) -> Tensor:
        """Return the term of one branch, a scalar."""
        image, point, weight = pair.surest(PER_IMAGE)
        total = weight.sum().clamp(min=1)
        sides = [(pair.student, pair.student_layout), (pair.teacher, pair.teacher_layout)]
        (ours, our_sight), (theirs, their_sight) = (self._decoded(pair, *side, image, point) for side in sides)
        visible = torch.ones_like(ours[..., 0]) if their_sight is None else their_sight.sigmoid()
        box = pair.teacher_boxes[image, point]
        area = (box[:, 2:] - box[:, :2]).clamp(min=1e-3).prod(1)
        loss = (keypoint_loss(ours, theirs, visible, area, self._sigmas(pair, ours)) * weight).sum() / total
        if our_sight is not None and their_sight is not None:
            sight = binary_kl(our_sight, their_sight, weight, total * our_sight.shape[1])
            loss = loss + self._share(pair, "kobj") * sight
        if SIGMAS in pair.student.extras and SIGMAS in pair.teacher.extras:
            spread, their_spread = (
                b.extras[SIGMAS][image, point].float().sigmoid().clamp(min=1e-4).unflatten(-1, (-1, 2))
                for b in (pair.student, pair.teacher)
            )
            apart = laplace_kl(ours, theirs, spread, their_spread).sum(-1) * self._importance(pair, visible)
            likelihood = (apart * visible).sum(1) / visible.sum(1).clamp(min=1e-6)
            loss = loss + self._share(pair, "rle") * (likelihood * weight).sum() / total
        # DDP wants all outputs used; sums over nothing, as those over everything may overflow in half precision
        return loss + sum(values[..., :0].sum().float() for values in pair.student.extras.values())

    @staticmethod
    def _decoded(
        pair: Pair, branch: Branch, layout: Layout, image: Tensor, point: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return positions in strides, shape (n, K, 2), and visibility logits, shape (n, K), if the head has some."""
        assert layout.kpt_shape is not None
        raw = branch.extras[KEYPOINTS][image, point].float().unflatten(-1, layout.kpt_shape)
        corner = 0.5 if layout.kpt_scale != 1 else 0.0
        places = raw[..., :2] * layout.kpt_scale + (pair.anchor_points[point] - corner)[:, None]
        return places, raw[..., 2] if layout.kpt_shape[1] == 3 else None

    @staticmethod
    def _sigmas(pair: Pair, places: Tensor) -> Tensor:
        """Return how far each keypoint may be off, as the base loss has it."""
        loss: Any = getattr(pair.base, "keypoint_loss", None)
        count = places.shape[1]
        return places.new_full((count,), 1 / count) if loss is None else loss.sigmas.to(places)

    @staticmethod
    def _importance(pair: Pair, visible: Tensor) -> Tensor:
        """Return how much the likelihood of each keypoint counts, as the base loss has it."""
        weights: Any = getattr(pair.base, "target_weights", None)
        return torch.ones_like(visible) if weights is None else weights.to(visible).expand_as(visible)

    @staticmethod
    def _share(pair: Pair, gain: str) -> float:
        """Return one of the base loss's gains over that of positions."""
        hyp = getattr(pair.base, "hyp", None)
        return getattr(hyp, gain, 1.0) / max(getattr(hyp, "pose", 12.0), 1e-9)
