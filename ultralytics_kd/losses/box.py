"""Losses on boxes: decoded, or as distributions over distance bins."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from ultralytics.utils.metrics import bbox_iou


def iou_loss(student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float) -> Tensor:
    """Return the weighted mean of 1 - GIoU between student and teacher boxes.

    GIoU (https://arxiv.org/abs/1902.09630) rather than IoU, so that boxes that do not touch have a gradient too.

    Args:
        student (Tensor): Boxes of shape (..., 4) as x1, y1, x2, y2.
        teacher (Tensor): Boxes of shape (..., 4) in the same unit.
        weight (Tensor): Weight per box, shape (...).
        avg_factor (Tensor | float): Normaliser.

    Returns:
        (Tensor): Scalar; 0 (to rounding) when student and teacher are equal.
    """
    giou = bbox_iou(student, teacher.detach(), xywh=False, GIoU=True).squeeze(-1)
    return ((1 - giou) * weight).sum() / avg_factor


def l1_loss(student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float) -> Tensor:
    """Return the weighted mean absolute difference of box coordinates.

    Args:
        student (Tensor): Boxes of shape (..., 4) as x1, y1, x2, y2, in units of their stride.
        teacher (Tensor): Boxes of shape (..., 4) in the same unit.
        weight (Tensor): Weight per box, shape (...).
        avg_factor (Tensor | float): Normaliser.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are equal.
    """
    return ((student - teacher.detach()).abs().mean(-1) * weight).sum() / avg_factor


def ld(student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float, tau: float = 10.0) -> Tensor:
    """Return the localization distillation loss of Zheng et al. (https://arxiv.org/abs/2102.12252).

    Args:
        student (Tensor): Logits over distance bins, shape (N, reg_max), one row per box side.
        teacher (Tensor): Logits over distance bins, shape (N, reg_max).
        weight (Tensor): Weight per row, shape (N,).
        avg_factor (Tensor | float): Normaliser.
        tau (float): Temperature; the result is multiplied by tau².

    Returns:
        (Tensor): Scalar: KL averaged over bins, weighted and summed over rows, over `avg_factor`.
    """
    log_p = F.log_softmax(student / tau, dim=1)
    log_q = F.log_softmax(teacher.detach() / tau, dim=1)
    divergence = F.kl_div(log_p, log_q, reduction="none", log_target=True).mean(1) * tau**2
    return (divergence * weight).sum() / avg_factor
