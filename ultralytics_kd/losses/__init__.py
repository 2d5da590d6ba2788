"""Distillation losses as pure functions of tensors; a stable API, independent of Ultralytics.

Every function takes the student first and the teacher second and lets no gradient reach the teacher. Most return a
scalar; [align][ultralytics_kd.losses.feature.align] returns the aligned student feature, and losses on masks and
keypoints a value for each.
"""

from .box import angle_loss, iou_loss, l1_loss, ld, probiou_loss, rotated_l1_loss
from .feature import align, at, cwd, mgd_distance, pkd, pkd_adapted, sl2
from .logit import bckd, binary_kl, dist, dkd, kl, qfl
from .task import depth_loss, keypoint_loss, laplace_kl, mask_loss

__all__ = (
    "align",
    "angle_loss",
    "at",
    "bckd",
    "binary_kl",
    "cwd",
    "depth_loss",
    "dist",
    "dkd",
    "iou_loss",
    "keypoint_loss",
    "kl",
    "l1_loss",
    "laplace_kl",
    "ld",
    "mask_loss",
    "mgd_distance",
    "pkd",
    "pkd_adapted",
    "probiou_loss",
    "qfl",
    "rotated_l1_loss",
    "sl2",
)
