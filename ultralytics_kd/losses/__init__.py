"""Distillation losses as pure functions of tensors; a stable API, independent of Ultralytics.

Every function takes the student first and the teacher second, lets no gradient reach the teacher and returns a scalar,
save [align][ultralytics_kd.losses.feature.align], which returns the aligned student feature.
"""

from .box import iou_loss, l1_loss, ld
from .feature import align, at, cwd, mgd_distance, pkd, pkd_adapted, sl2
from .logit import bckd, binary_kl, dist, dkd, kl, qfl

__all__ = (
    "align",
    "at",
    "bckd",
    "binary_kl",
    "cwd",
    "dist",
    "dkd",
    "iou_loss",
    "kl",
    "l1_loss",
    "ld",
    "mgd_distance",
    "pkd",
    "pkd_adapted",
    "qfl",
    "sl2",
)
