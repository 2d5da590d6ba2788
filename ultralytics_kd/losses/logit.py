"""Losses on class logits: of softmax classifiers, and of detectors that score each class with its own sigmoid.

A new loss is a function here, its name in `__all__`, and an entry in one of the tables at the end. In
`config/arguments.py` its name goes among the choices of `kd_cls_loss` and into `CLASS_LOSSES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .feature import cwd

__all__ = ("bckd", "binary_kl", "dist", "dkd", "kl", "qfl")


def kl(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """Return the KL divergence between softened softmax outputs (Hinton et al., https://arxiv.org/abs/1503.02531).

    `loss = tau² * mean(sum(q * log(q / p)))`, with p and q the softmax of the student's and the teacher's logits over
    tau, the sum over classes and the mean over N. The factor tau² keeps the scale of the gradient.

    Args:
        student (Tensor): Logits of shape (N, nc).
        teacher (Tensor): Logits of shape (N, nc).
        tau (float): Temperature.

    Returns:
        (Tensor): Scalar; 0 when student and teacher probabilities are equal.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> kl(logits, logits, tau=4.0).item()
        0.0
        >>> kl(logits, logits.flip(1)).item() > kl(logits, 0.5 * logits).item() > 0
        True
    """
    log_p = F.log_softmax(student / tau, dim=1)
    log_q = F.log_softmax(teacher.detach() / tau, dim=1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * tau**2


def dkd(
    student: Tensor, teacher: Tensor, labels: Tensor, tau: float = 1.0, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """Return the decoupled distillation loss of Zhao et al. (https://arxiv.org/abs/2203.08679).

    `loss = tau² * (alpha * TCKD + beta * NCKD)`. The KL divergence is split into two parts. TCKD compares the labelled
    class with all others together, and NCKD compares the others with each other.

    Args:
        student (Tensor): Logits of shape (N, nc).
        teacher (Tensor): Logits of shape (N, nc).
        labels (Tensor): Class indices of shape (N,).
        tau (float): Temperature.
        alpha (float): Weight of the binary part (TCKD).
        beta (float): Weight of the part among the other classes (NCKD).

    Returns:
        (Tensor): Scalar, averaged over N.

    Raises:
        ValueError: If there is only one class.

    Examples:
        >>> import torch
        >>> logits, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
        >>> abs(dkd(logits, logits, labels).item()) < 1e-6
        True
    """
    if student.shape[1] < 2:
        raise ValueError("dkd compares one class with the others: it needs logits of at least two classes.")
    teacher = teacher.detach()
    column = labels[:, None]
    is_label = column == torch.arange(student.shape[1], device=labels.device)
    log_p, log_q = F.log_softmax(student / tau, dim=1), F.log_softmax(teacher / tau, dim=1)

    def binary(log_prob: Tensor) -> Tensor:
        """Return the log-probabilities (N, 2) of the labelled class and of all others together."""
        others = torch.logsumexp(log_prob.masked_fill(is_label, -torch.inf), dim=1)
        return torch.cat((log_prob.gather(1, column), others[:, None]), dim=1)

    # A large negative number instead of -inf avoids 0 * inf in the divergence
    p_others = F.log_softmax((student / tau).masked_fill(is_label, -1e4), dim=1)
    q_others = F.log_softmax((teacher / tau).masked_fill(is_label, -1e4), dim=1)
    tckd = F.kl_div(binary(log_p), binary(log_q), reduction="batchmean", log_target=True)
    nckd = F.kl_div(p_others, q_others, reduction="batchmean", log_target=True)
    return (alpha * tckd + beta * nckd) * tau**2


def dist(
    student: Tensor, teacher: Tensor, tau: float = 1.0, beta: float = 1.0, gamma: float = 1.0, eps: float = 1e-8
) -> Tensor:
    """Return the DIST loss of Huang et al. (https://arxiv.org/abs/2205.10536), which matches correlations, not values.

    `loss = tau² * (beta * (1 - mean(rho_rows)) + gamma * (1 - mean(rho_columns)))`, with rho the Pearson correlation of
    student and teacher probabilities along each row (among classes) or column (among samples).

    Args:
        student (Tensor): Logits of shape (N, nc).
        teacher (Tensor): Logits of shape (N, nc).
        tau (float): Temperature.
        beta (float): Weight of the relation among classes.
        gamma (float): Weight of the relation among samples; a batch of one sample has no such relation.
        eps (float): Guard against constant rows or columns.

    Returns:
        (Tensor): Scalar; 0 when student and teacher probabilities are equal.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
        >>> abs(dist(logits, logits).item()) < 1e-5
        True
    """
    p, q = (student / tau).softmax(dim=1), (teacher.detach() / tau).softmax(dim=1)

    def one_minus_pearson(x: Tensor, y: Tensor) -> Tensor:
        """Return 1 - the mean Pearson correlation of corresponding rows."""
        x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        return 1 - F.cosine_similarity(x, y, dim=1, eps=eps).mean()

    among_samples = one_minus_pearson(p.T, q.T) if len(p) > 1 else 0.0
    return tau**2 * (beta * one_minus_pearson(p, q) + gamma * among_samples)


def bckd(student: Tensor, teacher: Tensor, avg_factor: Tensor | float, beta: float = 1.0) -> Tensor:
    """Return the binary classification loss of BCKD (Yang et al., ICCV 2023, https://arxiv.org/abs/2308.14286).

    `loss = sum(|q - p|^beta * BCE(p, q)) / avg_factor`, with p and q the sigmoids of the student's and the teacher's
    logits and the sum over all anchor points and classes. Each class is a binary problem. As in the authors' code, the
    gradient also flows through the weight |q - p|^beta.

    Args:
        student (Tensor): Logits of shape (..., nc).
        teacher (Tensor): Logits of shape (..., nc).
        avg_factor (Tensor | float): Divisor of the sum, e.g. the number of positive anchor points.
        beta (float): Exponent of the weight.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are equal.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([[2.0, -3.0], [-4.0, -5.0]])
        >>> bckd(logits, logits, avg_factor=1.0).item()
        0.0
        >>> bckd(logits, -logits, avg_factor=1.0).item() > 0
        True
    """
    return _focused_bce(student, teacher, beta).sum() / avg_factor


def qfl(
    student: Tensor, teacher: Tensor, weight: Tensor | float, avg_factor: Tensor | float, beta: float = 1.0
) -> Tensor:
    """Return the quality focal loss towards the teacher, as in CrossKD (https://arxiv.org/abs/2306.11369).

    `loss = sum(weight * sum(|q - p|^beta * BCE(p, q))) / avg_factor`, with p and q the sigmoids of the student's and
    the teacher's logits and the inner sum over classes.

    Args:
        student (Tensor): Logits of shape (..., nc).
        teacher (Tensor): Logits of shape (..., nc).
        weight (Tensor | float): Weight of each anchor point, shape (...), or one weight for all.
        avg_factor (Tensor | float): Divisor of the sum.
        beta (float): Exponent of the focal weight |q - p|.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are equal.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([[2.0, -3.0], [-4.0, -5.0]])
        >>> qfl(logits, logits, weight=torch.ones(2), avg_factor=1.0).item()
        0.0
        >>> qfl(logits, -logits, weight=torch.zeros(2), avg_factor=1.0).item()
        0.0
    """
    return (_focused_bce(student, teacher, beta).sum(-1) * weight).sum() / avg_factor


def binary_kl(
    student: Tensor, teacher: Tensor, weight: Tensor | float, avg_factor: Tensor | float, tau: float = 1.0
) -> Tensor:
    """Return the KL divergence between softened sigmoid outputs, summed over classes.

    `loss = tau² * sum(weight * sum(q * log(q / p) + (1 - q) * log((1 - q) / (1 - p)))) / avg_factor`, with p and q the
    sigmoids of the student's and the teacher's logits over tau. It is [kl][ultralytics_kd.losses.logit.kl] for
    detectors: YOLO scores every class with its own sigmoid, so each class is a Bernoulli variable, and a softmax over
    classes has no meaning there.

    Args:
        student (Tensor): Logits of shape (..., nc).
        teacher (Tensor): Logits of shape (..., nc).
        weight (Tensor | float): Weight of each anchor point, shape (...), or one weight for all.
        avg_factor (Tensor | float): Divisor of the sum.
        tau (float): Temperature.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are equal.

    Examples:
        >>> import torch
        >>> logits = torch.tensor([[2.0, -3.0], [-4.0, -5.0]])
        >>> binary_kl(logits, logits, weight=torch.ones(2), avg_factor=1.0).item()
        0.0
    """
    s, t = student / tau, teacher.detach() / tau
    q = t.sigmoid()
    divergence = q * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - q) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return (divergence.sum(-1) * weight).sum() / avg_factor * tau**2


def _focused_bce(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Return the binary cross-entropy of each logit towards the teacher, weighted by |q - p|**beta."""
    if beta == 1:
        return _FocusedBCE.apply(student, teacher.detach())
    target = teacher.detach().sigmoid()
    difference = (target - student.sigmoid()).abs()
    return F.binary_cross_entropy_with_logits(student, target, reduction="none") * difference.pow(beta)


class _FocusedBCE(torch.autograd.Function):
    """The focused binary cross-entropy for beta = 1, with its gradient in closed form.

    A detector scores tens of thousands of anchor points in every class, and most of the time of the class term is spent
    here. The closed form passes over memory half as often as automatic differentiation.

        bce = softplus(x) - x q,  d = p - q,  loss = bce |d|,  dloss/dx = d |d| + bce sign(d) p (1 - p)
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of each logit."""
        p, q = student.sigmoid(), teacher.sigmoid()
        bce = F.softplus(student).addcmul_(student, q, value=-1)
        d = q.sub_(p).neg_()
        gradient = p.addcmul_(p, p, value=-1).mul_(bce).mul_(d.sign())
        difference = d.abs()
        ctx.save_for_backward(gradient.addcmul_(d, difference))
        return bce.mul_(difference)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient to the student's logits."""
        return grad * ctx.saved_tensors[0], None


def _qfl_everywhere(student: Tensor, teacher: Tensor, avg_factor: Tensor | float) -> Tensor:
    """Return `qfl` with a weight of 1 at every anchor point."""
    return qfl(student, teacher, 1.0, avg_factor)


def _binary_kl_everywhere(student: Tensor, teacher: Tensor, avg_factor: Tensor | float, tau: float = 1.0) -> Tensor:
    """Return `binary_kl` with a weight of 1 at every anchor point."""
    return binary_kl(student, teacher, 1.0, avg_factor, tau)


# Choices of `kd_cls_loss`. A loss with a parameter `tau` also gets the temperature, if the user sets one.
# Detectors: called as loss(student, teacher, avg_factor) with logits of shape (..., nc) at all anchor points
ANCHOR_LOSSES: dict[str, Callable[..., Tensor]] = {
    "bckd": bckd,
    "qfl": _qfl_everywhere,
    "kl": _binary_kl_everywhere,
}
# Classifiers: called as loss(student, teacher) with logits of shape (B, nc); "dkd" also gets the labels
IMAGE_LOSSES: dict[str, Callable[..., Tensor]] = {"kl": kl, "dkd": dkd, "dist": dist}
# Semantic segmentation: called as loss(student, teacher) with logits of shape (B, nc, H, W), or (N, nc) for "kl"
PIXEL_LOSSES: dict[str, Callable[..., Tensor]] = {"kl": kl, "cwd": cwd}
