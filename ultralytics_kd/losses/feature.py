"""Losses on feature maps of shape (B, C, H, W), student and teacher already of equal shape."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def _channel_rows(x: Tensor) -> Tensor:
    """Return (C, B*H*W): one row per channel, over the whole batch."""
    return x.transpose(0, 1).flatten(1)


def pkd(student: Tensor, teacher: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the PKD loss of Cao et al. (https://arxiv.org/abs/2207.02039): MSE of channel-normalised features / 2.

    Zero mean and unit variance per channel make the loss equal to 1 - Pearson correlation, whatever the magnitudes. A
    single value per channel, of one image with a map of one cell, has none: the loss is 0 then.

    Args:
        student (Tensor): Features of shape (B, C, H, W).
        teacher (Tensor): Features of shape (B, C, H, W).
        eps (float): Guard against constant channels.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are equal up to scale and shift per channel.
    """
    if student.shape[0] * student[0, 0].numel() < 2:
        return student.sum() * 0

    def normalise(x: Tensor) -> Tensor:
        rows = _channel_rows(x)
        return (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + eps)

    return F.mse_loss(normalise(student), normalise(teacher.detach())) / 2


def pkd_adapted(student: Tensor, weight: Tensor, teacher: Tensor, eps: float = 1e-6) -> Tensor:
    """Return `pkd` of a student behind a 1x1 convolution, without computing what the convolution returns.

    Mean, variance and covariance of adapted features follow from those of the features themselves:
    `cov(W s, t) = W cov(s, t)` and `var(W s) = diag(W cov(s, s) W')`. The student has fewer channels than the teacher,
    so that this takes a fraction of the arithmetic and none of the big intermediate tensors; the result is the same. A
    bias of the convolution has no effect on the loss.

    Args:
        student (Tensor): Features of shape (B, C_s, H, W).
        weight (Tensor): Weights of the convolution, shape (C_t, C_s, 1, 1).
        teacher (Tensor): Features of shape (B, C_t, H, W).
        eps (float): Guard against constant channels.

    Returns:
        (Tensor): Scalar, equal to `pkd(conv2d(student, weight), teacher)` to rounding.
    """
    w, rows = weight.flatten(1), student.movedim(1, -1).flatten(0, 2)
    targets = teacher.detach().movedim(1, -1).flatten(0, 2)
    n = len(rows)
    if n < 2:
        return (rows.sum() + w.sum()) * 0
    targets = targets - targets.mean(0)
    rows = rows - rows.detach().mean(0)  # the gradient through the mean is 0: both products are of centred matrices
    covariance, gram = rows.T @ targets / (n - 1), _gram(rows) / (n - 1)
    teacher_std = (targets.square().sum(0) / (n - 1)).sqrt()  # Tensor.std() takes several times as long on a CPU
    student_std = ((w @ gram) * w).sum(1).clamp(min=1e-20).sqrt()  # a constant channel has no direction to learn from
    a, b = student_std + eps, teacher_std + eps
    product = 2 * (w * covariance.T).sum(1) / (a * b)
    return ((student_std / a) ** 2 + (teacher_std / b) ** 2 - product).mean() * (n - 1) / (2 * n)


def _gram(rows: Tensor) -> Tensor:
    """Return rows' @ rows for a use that is symmetric in it, with half the arithmetic in its backward pass."""
    product = rows.T @ rows.detach()
    return 2 * product - product.detach()


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
