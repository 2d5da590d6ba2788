"""Losses on feature maps of shape (B, C, H, W).

A new loss is a function here, its name in `__all__`, and an entry in `FEATURE_LOSSES` at the end. Its name also goes
among the choices of `kd_feat_loss` in `config/arguments.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

__all__ = ("align", "cosine", "cwd", "mgd_distance", "pkd", "pkd_adapted", "sl2")


def _channel_rows(x: Tensor) -> Tensor:
    """Return (C, B*H*W): one row per channel, over the whole batch."""
    return x.transpose(0, 1).flatten(1)


def pkd(student: Tensor, teacher: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the PKD loss of Cao et al. (https://arxiv.org/abs/2207.02039).

    `loss = mean((s - t)²) / 2`, with s and t the features normalised to zero mean and unit variance in each channel,
    over batch and positions. This equals 1 - the Pearson correlation, so magnitudes do not matter. A channel with a
    single value (one image, a map of one cell) has no correlation: the loss is 0 there.

    Args:
        student (Tensor): Features of shape (B, C, H, W).
        teacher (Tensor): Features of shape (B, C, H, W).
        eps (float): Guard against constant channels.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are equal up to scale and shift of each channel.

    Examples:
        >>> import torch
        >>> feature = torch.arange(16.0).view(1, 1, 4, 4)
        >>> pkd(feature, 3 * feature + 1).item() < 1e-6
        True
        >>> pkd(feature, -feature).item() > 1.8
        True
    """
    if student.shape[0] * student[0, 0].numel() < 2:
        return student.sum() * 0

    def normalise(x: Tensor) -> Tensor:
        rows = _channel_rows(x)
        return (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + eps)

    return F.mse_loss(normalise(student), normalise(teacher.detach())) / 2


def pkd_adapted(student: Tensor, weight: Tensor, teacher: Tensor, eps: float = 1e-6) -> Tensor:
    """Return `pkd` of a student behind a 1x1 convolution, without computing the output of the convolution.

    Mean, variance and covariance of the adapted features follow from those of the features themselves:
    `cov(W s, t) = W cov(s, t)` and `var(W s) = diag(W cov(s, s) W')`. The student has fewer channels than the teacher,
    so this needs a fraction of the arithmetic and no big intermediate tensors. A bias of the convolution would not
    change the loss.

    Args:
        student (Tensor): Features of shape (B, C_s, H, W).
        weight (Tensor): Weights of the convolution, shape (C_t, C_s, 1, 1).
        teacher (Tensor): Features of shape (B, C_t, H, W).
        eps (float): Guard against constant channels.

    Returns:
        (Tensor): Scalar, equal to `pkd(conv2d(student, weight), teacher)` to rounding.

    Examples:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> student, teacher = torch.rand(2, 3, 8, 8, generator=generator), torch.rand(2, 5, 8, 8, generator=generator)
        >>> weight = torch.rand(5, 3, 1, 1, generator=generator)
        >>> direct = pkd(torch.nn.functional.conv2d(student, weight), teacher)
        >>> torch.allclose(pkd_adapted(student, weight, teacher), direct, atol=1e-4)
        True
    """
    w, rows = weight.flatten(1), student.movedim(1, -1).flatten(0, 2)
    targets = teacher.detach().movedim(1, -1).flatten(0, 2)
    n = len(rows)
    if n < 2:
        return (rows.sum() + w.sum()) * 0
    targets = targets - targets.mean(0)
    rows = rows - rows.detach().mean(0)  # the gradient of the mean is 0: only centred matrices multiply it
    covariance, gram = rows.T @ targets / (n - 1), _gram(rows) / (n - 1)
    teacher_std = (targets.square().sum(0) / (n - 1)).sqrt()  # Tensor.std() is several times slower on a CPU
    student_std = ((w @ gram) * w).sum(1).clamp(min=1e-20).sqrt()  # the root has no finite gradient at 0
    a, b = student_std + eps, teacher_std + eps
    product = 2 * (w * covariance.T).sum(1) / (a * b)
    return ((student_std / a) ** 2 + (teacher_std / b) ** 2 - product).mean() * (n - 1) / (2 * n)


def _gram(rows: Tensor) -> Tensor:
    """Return rows' @ rows with a cheaper backward pass, right only if the gradient to the result is symmetric."""
    product = rows.T @ rows.detach()
    return 2 * product - product.detach()


def cwd(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """Return the channel-wise distillation loss of Shu et al. (https://arxiv.org/abs/2011.13256).

    `loss = tau² * mean(sum(q * log(q / p)))`, with p and q the softmax of each channel over its positions at
    temperature tau, the sum over positions and the mean over batch and channels.

    Args:
        student (Tensor): Features of shape (B, C, H, W).
        teacher (Tensor): Features of shape (B, C, H, W).
        tau (float): Temperature of the softmax over positions.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are equal up to a shift of each channel.

    Examples:
        >>> import torch
        >>> feature = torch.arange(16.0).view(1, 1, 4, 4)
        >>> cwd(feature, feature).item()
        0.0
        >>> cwd(feature, feature.flip(-1)).item() > 0
        True
    """
    log_p = F.log_softmax(student.flatten(2) / tau, dim=2)
    log_q = F.log_softmax(teacher.detach().flatten(2) / tau, dim=2)
    b, c = student.shape[:2]
    return F.kl_div(log_p, log_q, reduction="sum", log_target=True) * tau**2 / (b * c)


def mgd_distance(student: Tensor, teacher: Tensor, alpha: float = 2e-5) -> Tensor:
    """Return the distance of masked generative distillation (Yang et al., https://arxiv.org/abs/2205.01529).

    `loss = alpha * sum((student - teacher)²) / B`. Masking and generation come before it, in `MGD` of
    `distillation/terms/feature.py`.

    Args:
        student (Tensor): Generated features of shape (B, C, H, W).
        teacher (Tensor): Features of shape (B, C, H, W).
        alpha (float): Scale of the summed squared error.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are equal.

    Examples:
        >>> import torch
        >>> mgd_distance(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), alpha=0.5).item()
        2.0
    """
    return F.mse_loss(student, teacher.detach(), reduction="sum") / student.shape[0] * alpha


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the cosine distance of features, which is used to learn from foundation models.

    `loss = mean(1 - cos(s, t))` over batch and positions, with s and t the channels at one position. It is used in
    AM-RADIO (Ranzinger et al., CVPR 2024, https://arxiv.org/abs/2312.06709).

    Args:
        student (Tensor): Features of shape (B, C, H, W).
        teacher (Tensor): Features of shape (B, C, H, W).

    Returns:
        (Tensor): Scalar in [0, 2]; 0 when features are equal up to a positive factor at each position.

    Examples:
        >>> import torch
        >>> feature = torch.ones(1, 4, 2, 2)
        >>> round(cosine(feature, 3 * feature).item(), 6), round(cosine(feature, -feature).item(), 6)
        (0.0, 2.0)
    """
    return 1 - F.cosine_similarity(student, teacher.detach(), dim=1).mean()


def align(student: Tensor, teacher: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the student's features with the teacher's mean and standard deviation in each channel.

    `aligned = (s - mean(s)) / (std(s) + eps) * std(t) + mean(t)`, over batch and positions, as in CrossKD (Wang et al.,
    https://arxiv.org/abs/2306.11369).

    Args:
        student (Tensor): Features of shape (B, C, H, W).
        teacher (Tensor): Features of shape (B, C, H, W).
        eps (float): Guard against constant channels.

    Returns:
        (Tensor): Features of shape (B, C, H, W).

    Examples:
        >>> import torch
        >>> teacher = torch.arange(16.0).view(1, 1, 4, 4)
        >>> torch.allclose(align(2 * teacher - 5, teacher), teacher, atol=1e-4)
        True
    """
    s, t = _channel_rows(student), _channel_rows(teacher.detach())
    s = (s - s.mean(1, keepdim=True)) / (s.std(1, keepdim=True) + eps)
    s = s * t.std(1, keepdim=True) + t.mean(1, keepdim=True)
    b, c, h, w = student.shape
    return s.view(c, b, h, w).transpose(0, 1)


def sl2(student: Tensor, teacher: Tensor, score: Tensor, eps: float = 1e-9) -> Tensor:
    """Return the score-weighted L2 loss, the kind of loss that Ultralytics' own `distill_model` uses.

    `loss = sum(score * (student - teacher)²) / (C * sum(score) + eps)`.

    Args:
        student (Tensor): Features of shape (B, C, H, W).
        teacher (Tensor): Features of shape (B, C, H, W).
        score (Tensor): The teacher's confidence at each position, shape (B, 1, H, W), in [0, 1].
        eps (float): Guard against a score that is 0 everywhere.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are equal.

    Examples:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
        >>> sl2(student, teacher, score=torch.full((1, 1, 2, 2), 0.25)).item()
        1.0
    """
    score = score.detach()
    error = F.mse_loss(student, teacher.detach(), reduction="none")
    return (error * score).sum() / (score.sum() * student.shape[1] + eps)


# Choices of `kd_feat_loss`; "crosskd" is a separate term, in `distillation/terms/crosskd.py`. Each is called for each
# level as loss(student, teacher) with float32 features of shape (B, C, H, W); an adapter has brought the student's to
# C channels. A loss with a parameter `tau` also gets the temperature, if the user sets one; "sl2" also gets the score.
FEATURE_LOSSES: dict[str, Callable[..., Tensor]] = {"pkd": pkd, "cwd": cwd, "mgd": mgd_distance, "sl2": sl2}
