"""Losses on what tasks predict beside classes and boxes: masks, keypoints, depth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from ultralytics.utils.ops import crop_mask

LEVELS = 4  # scales at which gradients of depth are compared, as in Ultralytics' depth loss


def mask_loss(student: Tensor, teacher: Tensor, boxes: Tensor) -> Tensor:
    """Return the KL divergence per pixel between masks, averaged over each mask's box.

    Every pixel of a mask is a Bernoulli variable; the average over the box is that of Ultralytics' mask loss.

    Args:
        student (Tensor): Mask logits of shape (n, H, W).
        teacher (Tensor): Mask logits of shape (n, H, W).
        boxes (Tensor): Boxes that the masks are cropped to, as x1, y1, x2, y2 in pixels of the masks, shape (n, 4).

    Returns:
        (Tensor): Loss per mask, shape (n,); 0 where student and teacher are equal.
    """
    q = teacher.detach().sigmoid()
    entropy = F.binary_cross_entropy(q, q, reduction="none")
    divergence = F.binary_cross_entropy_with_logits(student, q, reduction="none") - entropy
    height, width = student.shape[-2:]  # what lies outside the image is neither summed nor counted
    boxes = boxes.clamp(min=0).minimum(boxes.new_tensor((width, height, width, height)))
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).prod(1)
    return crop_mask(divergence, boxes).sum((1, 2)) / area


def keypoint_loss(student: Tensor, teacher: Tensor, visible: Tensor, area: Tensor, sigmas: Tensor) -> Tensor:
    """Return 1 - the object keypoint similarity of student and teacher.

    Each keypoint counts 1 - exp(-d^2 / (8 sigma^2 area)), as in COCO's evaluation and Ultralytics' pose loss.

    Args:
        student (Tensor): Positions of shape (n, K, 2).
        teacher (Tensor): Positions of shape (n, K, 2) in the same unit.
        visible (Tensor): How much each keypoint counts, shape (n, K).
        area (Tensor): Area of each object in the unit squared, shape (n,).
        sigmas (Tensor): How far each keypoint may be off, relative to the object's size, shape (K,).

    Returns:
        (Tensor): Loss per object, shape (n,), from 0 to 1.
    """
    distance = (student - teacher.detach()).pow(2).sum(-1)
    error = distance / ((2 * sigmas).pow(2) * (area[:, None] + 1e-9) * 2)
    return ((1 - (-error).exp()) * visible).sum(1) / visible.sum(1).clamp(min=1e-6)


def laplace_kl(student: Tensor, teacher: Tensor, scale: Tensor, teacher_scale: Tensor) -> Tensor:
    """Return the KL divergence from the teacher's to the student's Laplace distributions.

    Residual log-likelihood estimation (Li et al., https://arxiv.org/abs/2107.11291) models where a keypoint is as a
    Laplace distribution, which a flow corrects: positions and how sure the teacher is of each are learnt together.

    Args:
        student (Tensor): Locations of shape (...).
        teacher (Tensor): Locations of shape (...) in the same unit.
        scale (Tensor): The student's scales, positive, shape (...).
        teacher_scale (Tensor): The teacher's, shape (...).

    Returns:
        (Tensor): Divergence of shape (...); 0 where both are equal.
    """
    apart, b = (student - teacher.detach()).abs(), teacher_scale.detach()
    return (scale / b).log() + (apart + b * (-apart / b).exp()) / scale - 1


def depth_loss(student: Tensor, teacher: Tensor, valid: Tensor, gradient: float = 0.5) -> Tensor:
    """Return the mean absolute difference of log-depth, and of its gradients at several scales.

    Gradients are compared where both of their pixels are valid, as in MiDaS (Ranftl et al.,
    https://arxiv.org/abs/1907.01341), so that edges are where the teacher sees them.

    Args:
        student (Tensor): Depth of shape (B, 1, H, W), positive.
        teacher (Tensor): Depth of shape (B, 1, H, W) in the same unit.
        valid (Tensor): Whether the teacher's depth counts, shape (B, 1, H, W).
        gradient (float): Weight of the gradients.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are equal.
    """
    mask = valid.to(student.dtype)
    apart = (student.clamp(min=1e-3).log() - teacher.detach().clamp(min=1e-3).log()) * mask
    loss = apart.abs().sum() / mask.sum().clamp(min=1)
    for level in range(LEVELS):
        if level:
            if min(apart.shape[-2:]) < 4:
                break
            share = F.avg_pool2d(mask, 2)
            apart = F.avg_pool2d(apart * mask, 2) / share.clamp(min=1e-6)
            mask = (share > 0).to(mask.dtype)
            apart = apart * mask
        for axis in (-1, -2):
            both = mask.narrow(axis, 1, mask.shape[axis] - 1) * mask.narrow(axis, 0, mask.shape[axis] - 1)
            step = torch.diff(apart, dim=axis).abs() * both
            loss = loss + gradient * step.sum() / both.sum().clamp(min=1)
    return loss
