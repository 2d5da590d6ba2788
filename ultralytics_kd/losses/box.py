"""Losses on boxes: decoded, rotated, or as distributions over distance bins."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from ultralytics.utils.metrics import bbox_iou, probiou

MIN_SIDE = 0.1  # a Gaussian of a flat box has a covariance that cannot be inverted
SLENDEREST = 1e-3  # sides of a box beyond which float32 takes its covariance for one that cannot


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


def probiou_loss(student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float) -> Tensor:
    """Return the weighted mean Hellinger distance between rotated boxes as Gaussians, 1 - ProbIoU.

    Llerena et al. (https://arxiv.org/abs/2106.06072). A Gaussian is the same for an angle and that angle plus pi, and
    for sides that are exchanged with a quarter turn, so that equal boxes are equal however they are described.

    Args:
        student (Tensor): Boxes of shape (..., 5) as x, y, w, h and angle in radians.
        teacher (Tensor): Boxes of shape (..., 5) in the same unit.
        weight (Tensor): Weight per box, shape (...).
        avg_factor (Tensor | float): Normaliser.

    Returns:
        (Tensor): Scalar; 0 (to rounding) when student and teacher are the same boxes.
    """
    ours, theirs = (_with_width(b.reshape(-1, 5)) for b in (student, teacher.detach()))
    similarity = probiou(ours, theirs).reshape(weight.shape)
    return ((1 - similarity) * weight).sum() / avg_factor


def _with_width(boxes: Tensor) -> Tensor:
    """Return boxes (N, 5) whose flat sides are made long enough, without cutting their gradient: they can open."""
    sides = boxes[:, 2:4]
    least = (sides.amax(1, keepdim=True) * SLENDEREST).clamp(min=MIN_SIDE)
    return torch.cat((boxes[:, :2], sides + (least - sides).clamp(min=0).detach(), boxes[:, 4:]), 1)


def rotated_l1_loss(student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float) -> Tensor:
    """Return the weighted mean absolute difference of rotated boxes, in that of two descriptions which is nearer.

    A box with sides w, h at an angle is the box with sides h, w a quarter turn on. The angle counts as the distance by
    which it moves the end of the longer half side, by its sine, which does not change with half a turn.

    Args:
        student (Tensor): Boxes of shape (..., 5) as x, y, w, h and angle in radians, lengths in strides.
        teacher (Tensor): Boxes of shape (..., 5) in the same unit.
        weight (Tensor): Weight per box, shape (...).
        avg_factor (Tensor | float): Normaliser.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are the same boxes.
    """
    teacher = teacher.detach()
    place = (student[..., :2] - teacher[..., :2]).abs().sum(-1)
    turned = torch.cat((teacher[..., [3, 2]], teacher[..., 4:] + torch.pi / 2), -1)
    arm = teacher[..., 2:4].amax(-1) / 2
    ways = [
        (student[..., 2:4] - way[..., :2]).abs().sum(-1) + arm * (student[..., 4] - way[..., 2]).sin().abs()
        for way in (teacher[..., 2:], turned)
    ]
    return (((place + torch.minimum(*ways)) / 5) * weight).sum() / avg_factor


def angle_loss(student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float) -> Tensor:
    """Return the weighted mean squared sine of twice the angle between boxes, less for long ones.

    It is the angle loss of Ultralytics' rotated boxes: ProbIoU cannot tell how a square is turned, this can, up to a
    quarter turn.

    Args:
        student (Tensor): Boxes of shape (..., 5) as x, y, w, h and angle in radians.
        teacher (Tensor): Boxes of shape (..., 5).
        weight (Tensor): Weight per box, shape (...).
        avg_factor (Tensor | float): Normaliser.
    """
    teacher = teacher.detach()
    ratio = (teacher[..., 2].clamp(min=1e-6) / teacher[..., 3].clamp(min=1e-6)).log()
    turn = (2 * (student[..., 4] - teacher[..., 4])).sin() ** 2
    return (turn * (-(ratio**2) / 9).exp() * weight).sum() / avg_factor
