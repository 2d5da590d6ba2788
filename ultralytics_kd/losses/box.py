"""Losses on boxes: decoded boxes, rotated boxes, or distributions over distance bins.

A new box loss is a function here, its name in `__all__`, and an entry in a table at the end: `BOX_LOSSES`,
`ROTATED_BOX_LOSSES` for rotated boxes (obb), or `BIN_LOSSES` for distributions over bins. Its name also goes among the
choices of `kd_box_loss` in `config/arguments.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from ultralytics.utils.metrics import bbox_iou, probiou

__all__ = ("angle_loss", "iou_loss", "l1_loss", "ld", "probiou_loss", "rotated_l1_loss")

MIN_SIDE = 0.1  # shortest side in `probiou_loss`: the covariance of a flat box is singular
MIN_ASPECT = 1e-3  # smallest ratio of sides there: the covariance of a more slender box is singular in float32


def iou_loss(student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float) -> Tensor:
    """Return the weighted mean of 1 - GIoU between student and teacher boxes.

    `loss = sum(weight * (1 - GIoU)) / avg_factor`. GIoU (Rezatofighi et al., https://arxiv.org/abs/1902.09630) has a
    gradient for boxes that do not overlap too; IoU has none there.

    Args:
        student (Tensor): Boxes of shape (..., 4) as x1, y1, x2, y2.
        teacher (Tensor): Boxes of shape (..., 4) in the same unit.
        weight (Tensor): Weight of each box, shape (...).
        avg_factor (Tensor | float): Divisor of the sum.

    Returns:
        (Tensor): Scalar; 0 (to rounding) when student and teacher are equal.

    Examples:
        >>> import torch
        >>> student = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> teacher = torch.tensor([[0.0, 0.0, 2.0, 1.0]])
        >>> round(iou_loss(student, teacher, weight=torch.ones(1), avg_factor=1.0).item(), 3)
        0.5
    """
    giou = bbox_iou(student, teacher.detach(), xywh=False, GIoU=True).squeeze(-1)
    return ((1 - giou) * weight).sum() / avg_factor


def l1_loss(student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float) -> Tensor:
    """Return the weighted mean absolute difference of box coordinates.

    `loss = sum(weight * mean(|student - teacher|)) / avg_factor`, with the mean over the four coordinates.

    Args:
        student (Tensor): Boxes of shape (..., 4) as x1, y1, x2, y2, in units of their stride.
        teacher (Tensor): Boxes of shape (..., 4) in the same unit.
        weight (Tensor): Weight of each box, shape (...).
        avg_factor (Tensor | float): Divisor of the sum.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are equal.

    Examples:
        >>> import torch
        >>> student = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> l1_loss(student, student + 0.5, weight=torch.ones(1), avg_factor=1.0).item()
        0.5
    """
    return ((student - teacher.detach()).abs().mean(-1) * weight).sum() / avg_factor


def ld(student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float, tau: float = 10.0) -> Tensor:
    """Return the localization distillation loss of Zheng et al. (https://arxiv.org/abs/2102.12252).

    `loss = tau² * sum(weight * mean(q * log(q / p))) / avg_factor`, with p and q the softmax of the student's and the
    teacher's logits over tau, and the mean over bins.

    Args:
        student (Tensor): Logits over distance bins, shape (N, reg_max), one row for each side of a box.
        teacher (Tensor): Logits over distance bins, shape (N, reg_max).
        weight (Tensor): Weight of each row, shape (N,).
        avg_factor (Tensor | float): Divisor of the sum.
        tau (float): Temperature of both softmaxes.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are equal.

    Examples:
        >>> import torch
        >>> bins = torch.tensor([[4.0, 0.0, 0.0, 0.0]])
        >>> ld(bins, bins, weight=torch.ones(1), avg_factor=1.0).item()
        0.0
        >>> ld(bins, bins.flip(1), weight=torch.ones(1), avg_factor=1.0).item() > 0
        True
    """
    log_p = F.log_softmax(student / tau, dim=1)
    log_q = F.log_softmax(teacher.detach() / tau, dim=1)
    divergence = F.kl_div(log_p, log_q, reduction="none", log_target=True).mean(1) * tau**2
    return (divergence * weight).sum() / avg_factor


def probiou_loss(student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float) -> Tensor:
    """Return the weighted mean Hellinger distance between rotated boxes as Gaussians, 1 - ProbIoU.

    `loss = sum(weight * (1 - ProbIoU)) / avg_factor` (Llerena et al., https://arxiv.org/abs/2106.06072). Half a
    turn of a box does not change its Gaussian. Nor does exchanging w and h together with a quarter turn. The loss is
    therefore 0 for two descriptions of the same box.

    Args:
        student (Tensor): Boxes of shape (..., 5) as x, y, w, h and angle in radians.
        teacher (Tensor): Boxes of shape (..., 5) in the same unit.
        weight (Tensor): Weight of each box, shape (...).
        avg_factor (Tensor | float): Divisor of the sum.

    Returns:
        (Tensor): Scalar; 0 (to rounding) when student and teacher are the same boxes.

    Examples:
        >>> import torch
        >>> box = torch.tensor([[10.0, 12.0, 8.0, 3.0, 0.4]])
        >>> half_turn = box + torch.tensor([0.0, 0.0, 0.0, 0.0, torch.pi])
        >>> probiou_loss(half_turn, box, weight=torch.ones(1), avg_factor=1.0).item() < 1e-2
        True
    """
    student_boxes, teacher_boxes = (_with_min_sides(b.reshape(-1, 5)) for b in (student, teacher.detach()))
    similarity = probiou(student_boxes, teacher_boxes).reshape(weight.shape)
    return ((1 - similarity) * weight).sum() / avg_factor


def _with_min_sides(boxes: Tensor) -> Tensor:
    """Return boxes (N, 5) with short sides made longer; the gradient still reaches these sides, so they can grow."""
    sides = boxes[:, 2:4]
    least = (sides.amax(1, keepdim=True) * MIN_ASPECT).clamp(min=MIN_SIDE)
    return torch.cat((boxes[:, :2], sides + (least - sides).clamp(min=0).detach(), boxes[:, 4:]), 1)


def rotated_l1_loss(student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float) -> Tensor:
    """Return the weighted mean absolute difference of rotated boxes.

    A box with sides w, h at an angle is also the box with sides h, w a quarter turn further. The loss uses the
    description of the teacher's box that is nearer to the student's box. It turns the difference of angles into a
    distance, `max(w, h) / 2 * |sin(difference)|`: how far the end of the longer side moves. Half a turn moves it by 0.
    The loss averages the five distances.

    Args:
        student (Tensor): Boxes of shape (..., 5) as x, y, w, h and angle in radians, lengths in strides.
        teacher (Tensor): Boxes of shape (..., 5) in the same unit.
        weight (Tensor): Weight of each box, shape (...).
        avg_factor (Tensor | float): Divisor of the sum.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are the same boxes.

    Examples:
        >>> import torch
        >>> box = torch.tensor([[10.0, 12.0, 8.0, 3.0, 0.0]])
        >>> exchanged = torch.tensor([[10.0, 12.0, 3.0, 8.0, torch.pi / 2]])
        >>> rotated_l1_loss(exchanged, box, weight=torch.ones(1), avg_factor=1.0).item() < 1e-6
        True
    """
    teacher = teacher.detach()
    center = (student[..., :2] - teacher[..., :2]).abs().sum(-1)
    exchanged = torch.cat((teacher[..., [3, 2]], teacher[..., 4:] + torch.pi / 2), -1)
    arm = teacher[..., 2:4].amax(-1) / 2
    sides_and_angle = [
        (student[..., 2:4] - target[..., :2]).abs().sum(-1) + arm * (student[..., 4] - target[..., 2]).sin().abs()
        for target in (teacher[..., 2:], exchanged)
    ]
    return (((center + torch.minimum(*sides_and_angle)) / 5) * weight).sum() / avg_factor


def angle_loss(student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float) -> Tensor:
    """Return the weighted mean of sin² of twice the angle between boxes; elongated boxes count less.

    `loss = sum(weight * sin²(2 * difference) * exp(-log²(w / h) / 9)) / avg_factor`, the angle loss of Ultralytics'
    rotated boxes. ProbIoU cannot tell how a square is turned; this loss can, up to a quarter turn.

    Args:
        student (Tensor): Boxes of shape (..., 5) as x, y, w, h and angle in radians.
        teacher (Tensor): Boxes of shape (..., 5).
        weight (Tensor): Weight of each box, shape (...).
        avg_factor (Tensor | float): Divisor of the sum.

    Returns:
        (Tensor): Scalar; 0 when the angles are equal up to a quarter turn.

    Examples:
        >>> import torch
        >>> box = torch.tensor([[0.0, 0.0, 4.0, 4.0, 0.0]])
        >>> turned = torch.tensor([[0.0, 0.0, 4.0, 4.0, torch.pi / 4]])
        >>> round(angle_loss(turned, box, weight=torch.ones(1), avg_factor=1.0).item(), 4)
        1.0
    """
    teacher = teacher.detach()
    log_aspect = (teacher[..., 2].clamp(min=1e-6) / teacher[..., 3].clamp(min=1e-6)).log()
    difference = (2 * (student[..., 4] - teacher[..., 4])).sin() ** 2
    return (difference * (-(log_aspect**2) / 9).exp() * weight).sum() / avg_factor


# Choices of `kd_box_loss`. Each is called as loss(student, teacher, weight, avg_factor) and returns a scalar. A loss
# with a parameter `tau` also gets the temperature, if the user sets one.
BOX_LOSSES: dict[str, Callable[..., Tensor]] = {"iou": iou_loss, "l1": l1_loss}  # boxes (..., 4) as x1, y1, x2, y2
ROTATED_BOX_LOSSES: dict[str, Callable[..., Tensor]] = {"iou": probiou_loss, "l1": rotated_l1_loss}  # boxes (..., 5)
BIN_LOSSES: dict[str, Callable[..., Tensor]] = {"ld": ld}  # logits over bins (N, reg_max), a row for each side
