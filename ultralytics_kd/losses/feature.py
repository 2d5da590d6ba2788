"""Losses on feature maps of shape (B, C, H, W), student and teacher already of equal shape."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def _channel_rows(x: Tensor) -> Tensor:
    """Return (C, B*H*W): one row per channel, over the whole batch."""
    return x.transpose(0, 1).flatten(1)


def pkd(student: Tensor, teacher: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the PKD loss of Cao et al. (https://arxiv.org/abs/2207.02039): MSE of channel-normalised features / 2.

    Zero mean and unit variance per channel make the loss equal to 1 - Pearson correlation, whatever the magnitudes.

    Args:
        student (Tensor): Features of shape (B, C, H, W).
        teacher (Tensor): Features of shape (B, C, H, W).
        eps (float): Guard against constant channels.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are equal up to scale and shift per channel.
    """

    def normalise(x: Tensor) -> Tensor:
        rows = _channel_rows(x)
        return (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + eps)

    return F.mse_loss(normalise(student), normalise(teacher.detach())) / 2


def cwd(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """Return the channel-wise distillation loss of Shu et al. (https://arxiv.org/abs/2011.13256).

    Args:
        student (Tensor): Features of shape (B, C, H, W).
        teacher (Tensor): Features of shape (B, C, H, W).
        tau (float): Temperature of the softmax over positions; the result is multiplied by tau².

    Returns:
        (Tensor): Scalar: KL over positions, averaged over batch and channels.
    """
    log_p = F.log_softmax(student.flatten(2) / tau, dim=2)
    log_q = F.log_softmax(teacher.detach().flatten(2) / tau, dim=2)
    b, c = student.shape[:2]
    return F.kl_div(log_p, log_q, reduction="sum", log_target=True) * tau**2 / (b * c)


def mgd_distance(student: Tensor, teacher: Tensor, alpha: float = 2e-5) -> Tensor:
    """Return the distance of masked generative distillation (Yang et al., https://arxiv.org/abs/2205.01529).

    The mask and the generation block stand before it: [MGD][ultralytics_kd.terms.feature.MGD].

    Args:
        student (Tensor): Generated features of shape (B, C, H, W).
        teacher (Tensor): Features of shape (B, C, H, W).
        alpha (float): Scale of the summed squared error.

    Returns:
        (Tensor): Scalar: summed squared error per image, times alpha.
    """
    return F.mse_loss(student, teacher.detach(), reduction="sum") / student.shape[0] * alpha


def at(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the attention transfer loss of Zagoruyko and Komodakis (ICLR 2017, https://arxiv.org/abs/1612.03928).

    Args:
        student (Tensor): Features of shape (B, C1, H, W); channel counts may differ.
        teacher (Tensor): Features of shape (B, C2, H, W).

    Returns:
        (Tensor): Scalar: mean squared difference of normalised spatial attention maps.
    """

    def attention(x: Tensor) -> Tensor:
        return F.normalize(x.pow(2).mean(1).flatten(1), dim=1)

    return F.mse_loss(attention(student), attention(teacher.detach()))


def align(student: Tensor, teacher: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the student feature with the teacher's mean and deviation per channel (CrossKD, arXiv 2306.11369).

    Args:
        student (Tensor): Features of shape (B, C, H, W).
        teacher (Tensor): Features of shape (B, C, H, W).
        eps (float): Guard against constant channels.

    Returns:
        (Tensor): Features of shape (B, C, H, W).
    """
    s, t = _channel_rows(student), _channel_rows(teacher.detach())
    s = (s - s.mean(1, keepdim=True)) / (s.std(1, keepdim=True) + eps)
    s = s * t.std(1, keepdim=True) + t.mean(1, keepdim=True)
    b, c, h, w = student.shape
    return s.view(c, b, h, w).transpose(0, 1)


def sl2(student: Tensor, teacher: Tensor, score: Tensor, eps: float = 1e-9) -> Tensor:
    """Return the score-weighted L2 loss, the kind that Ultralytics' own `distill_model` uses.

    Args:
        student (Tensor): Features of shape (B, C, H, W).
        teacher (Tensor): Features of shape (B, C, H, W).
        score (Tensor): The teacher's confidence per position, shape (B, 1, H, W), in [0, 1].
        eps (float): Guard against a score that is 0 everywhere.

    Returns:
        (Tensor): Scalar: squared error, averaged over channels and, weighted by the score, over positions.
    """
    score = score.detach()
    error = F.mse_loss(student, teacher.detach(), reduction="none")
    return (error * score).sum() / (score.sum() * student.shape[1] + eps)
