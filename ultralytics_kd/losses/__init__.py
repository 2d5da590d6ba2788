"""Distillation losses as pure functions of tensors: a stable API that does not depend on YOLO models.

Every function takes the student first and the teacher second. No gradient reaches the teacher. Most functions return a
scalar. `mask_loss`, `keypoint_loss` and `laplace_kl` return one value per mask, object or coordinate. `align` returns
features.

The tables at the end of `logit`, `box` and `feature` list the losses that `kd_cls_loss`, `kd_box_loss` and
`kd_feat_loss` choose by name. `docs/extending.md` shows how to add one.
"""

from . import box, feature, logit, task
from .box import *  # noqa: F403 (each module lists its public functions once, in its `__all__`)
from .feature import *  # noqa: F403
from .logit import *  # noqa: F403
from .task import *  # noqa: F403

__all__ = (*box.__all__, *feature.__all__, *logit.__all__, *task.__all__)
