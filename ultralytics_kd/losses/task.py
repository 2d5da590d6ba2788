"""Losses on masks, keypoints and depth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from ultralytics.utils.ops import crop_mask

__all__ = ("depth_loss", "keypoint_loss", "laplace_kl", "mask_loss")

LEVELS = 4  # scales at which gradients of depth are compared, as in Ultralytics' depth loss


def mask_loss(student: Tensor, teacher: Tensor, boxes: Tensor) -> Tensor:
    """Return the KL divergence between masks, averaged over each mask's box.

    `loss = sum(BCE(p, q) - BCE(q, q)) / area`, with p and q the sigmoids of the student's and the teacher's logits and
    the sum over the pixels in the box: every pixel is a Bernoulli variable. Ultralytics' mask loss averages over the
    box in the same way.

    Args:
        student (Tensor): Mask logits of shape (n, H, W).
        teacher (Tensor): Mask logits of shape (n, H, W).
        boxes (Tensor): Boxes that the masks are cropped to, as x1, y1, x2, y2 in pixels of the masks, shape (n, 4).

    Returns:
        (Tensor): Loss of each mask, shape (n,); 0 where student and teacher are equal.

    Examples:
        >>> import torch
        >>> mask, box = torch.tensor([[[3.0, -3.0], [3.0, -3.0]]]), torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> mask_loss(mask, mask, box).item() < 1e-6
        True
    """
    q = teacher.detach().sigmoid()
    entropy = F.binary_cross_entropy(q, q, reduction="none")
    divergence = F.binary_cross_entropy_with_logits(student, q, reduction="none") - entropy
    height, width = student.shape[-2:]  # pixels outside the image are neither summed nor counted
    x, y = boxes.unflatten(-1, (2, 2)).unbind(-1)  # a tensor of the sides would come from the host
    boxes = torch.stack((x.clamp(0, width), y.clamp(0, height)), -1).flatten(-2)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).prod(1)
    return crop_mask(divergence, boxes).sum((1, 2)) / area


def keypoint_loss(student: Tensor, teacher: Tensor, visible: Tensor, area: Tensor, sigmas: Tensor) -> Tensor:
    """Return 1 - the object keypoint similarity of student and teacher.

    `loss = sum(visible * (1 - exp(-d² / (8 * sigma² * area)))) / sum(visible)`, with d the distance of a keypoint and
    the sums over the keypoints of an object, as in COCO's evaluation and Ultralytics' pose loss.

    Args:
        student (Tensor): Positions of shape (n, K, 2).
        teacher (Tensor): Positions of shape (n, K, 2) in the same unit.
        visible (Tensor): Weight of each keypoint, shape (n, K).
        area (Tensor): Area of each object in the unit squared, shape (n,).
        sigmas (Tensor): Tolerance of each keypoint relative to the object's size, shape (K,).

    Returns:
        (Tensor): Loss of each object, shape (n,), from 0 to 1.

    Examples:
        >>> import torch
        >>> keypoints = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> visible, area, sigmas = torch.ones(1, 2), torch.tensor([9.0]), torch.full((2,), 0.5)
        >>> keypoint_loss(keypoints, keypoints, visible, area, sigmas).tolist()
        [0.0]
    """
    distance = (student - teacher.detach()).pow(2).sum(-1)
    error = distance / ((2 * sigmas).pow(2) * (area[:, None] + 1e-9) * 2)
    return ((1 - (-error).exp()) * visible).sum(1) / visible.sum(1).clamp(min=1e-6)


def laplace_kl(student: Tensor, teacher: Tensor, scale: Tensor, teacher_scale: Tensor) -> Tensor:
    """Return the KL divergence from the teacher's to the student's Laplace distributions.

    `loss = log(scale / b) + (d + b * exp(-d / b)) / scale - 1`, with d the distance of the locations and b the
    teacher's scale. Residual log-likelihood estimation (Li et al., https://arxiv.org/abs/2107.11291) models the
    position of a keypoint as a Laplace distribution that a flow corrects. The loss teaches positions and their
    uncertainty together.

    Args:
        student (Tensor): Locations of shape (...).
        teacher (Tensor): Locations of shape (...) in the same unit.
        scale (Tensor): The student's scales, positive, shape (...).
        teacher_scale (Tensor): The teacher's scales, positive, shape (...).

    Returns:
        (Tensor): Divergence of shape (...); 0 where both distributions are equal.

    Examples:
        >>> import torch
        >>> location, scale = torch.tensor([0.3]), torch.tensor([0.5])
        >>> laplace_kl(location, location, scale, scale).tolist()
        [0.0]
    """
    distance, b = (student - teacher.detach()).abs(), teacher_scale.detach()
    return (scale / b).log() + (distance + b * (-distance / b).exp()) / scale - 1


def depth_loss(student: Tensor, teacher: Tensor, valid: Tensor, gradient: float = 0.5) -> Tensor:
    """Return the mean absolute difference of log-depth and of its gradients at several scales.

    `loss = mean(|d|) + gradient * sum over scales and axes of mean(|diff(d)|)`, with d = log(student) - log(teacher).
    The gradients put edges where the teacher sees them, as in MiDaS (Ranftl et al., https://arxiv.org/abs/1907.01341).
    A gradient counts if both of its pixels are valid.

    Args:
        student (Tensor): Depth of shape (B, 1, H, W), positive.
        teacher (Tensor): Depth of shape (B, 1, H, W) in the same unit.
        valid (Tensor): Whether the teacher's depth is valid, shape (B, 1, H, W).
        gradient (float): Weight of the gradients.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are equal.

    Examples:
        >>> import torch
        >>> depth = torch.full((1, 1, 8, 8), 3.0)
        >>> depth_loss(depth, depth, valid=torch.ones(1, 1, 8, 8, dtype=torch.bool)).item()
        0.0
    """
    mask = valid.to(student.dtype)
    difference = (student.clamp(min=1e-3).log() - teacher.detach().clamp(min=1e-3).log()) * mask
    loss = difference.abs().sum() / mask.sum().clamp(min=1)
    for level in range(LEVELS):
        if level:
            if min(difference.shape[-2:]) < 4:
                break
            valid_share = F.avg_pool2d(mask, 2)
            difference = F.avg_pool2d(difference * mask, 2) / valid_share.clamp(min=1e-6)
            mask = (valid_share > 0).to(mask.dtype)
            difference = difference * mask
        for axis in (-1, -2):
            both_valid = mask.narrow(axis, 1, mask.shape[axis] - 1) * mask.narrow(axis, 0, mask.shape[axis] - 1)
            step = torch.diff(difference, dim=axis).abs() * both_valid
            loss = loss + gradient * step.sum() / both_valid.sum().clamp(min=1)
    return loss
