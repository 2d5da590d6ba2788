"""Losses on class logits: for softmax classifiers, and for detectors that score each class with its own sigmoid."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def kl(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """Return the KL divergence between softened softmax outputs (Hinton et al., https://arxiv.org/abs/1503.02531).

    Args:
        student (Tensor): Logits of shape (N, nc).
        teacher (Tensor): Logits of shape (N, nc).
        tau (float): Temperature; the result is multiplied by tau² so that gradients keep their scale.

    Returns:
        (Tensor): Scalar, averaged over N.
    """
    log_p = F.log_softmax(student / tau, dim=1)
    log_q = F.log_softmax(teacher.detach() / tau, dim=1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * tau**2


def dkd(
    student: Tensor, teacher: Tensor, labels: Tensor, tau: float = 1.0, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """Return the decoupled distillation loss of Zhao et al. (https://arxiv.org/abs/2203.08679).

    The KL divergence is split in a binary part (labelled class against all others) and a part among the others.

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
        ValueError: If there is one class alone: it has no others.
    """
    if student.shape[1] < 2:
        raise ValueError("dkd sets a class apart from the others: logits of one class have none.")
    teacher = teacher.detach()
    is_label = F.one_hot(labels, student.shape[1]).bool()
    log_p, log_q = F.log_softmax(student / tau, dim=1), F.log_softmax(teacher / tau, dim=1)

    def binary(log_prob: Tensor) -> Tensor:
        """Return log-probabilities (N, 2) of the labelled class and of all others together."""
        others = torch.logsumexp(log_prob.masked_fill(is_label, -torch.inf), dim=1)
        return torch.stack((log_prob[is_label], others), dim=1)

    # A large negative number in place of -inf keeps 0 * inf out of the divergence
    p_others = F.log_softmax((student / tau).masked_fill(is_label, -1e4), dim=1)
    q_others = F.log_softmax((teacher / tau).masked_fill(is_label, -1e4), dim=1)
    tckd = F.kl_div(binary(log_p), binary(log_q), reduction="batchmean", log_target=True)
    nckd = F.kl_div(p_others, q_others, reduction="batchmean", log_target=True)
    return (alpha * tckd + beta * nckd) * tau**2


def dist(
    student: Tensor, teacher: Tensor, tau: float = 1.0, beta: float = 1.0, gamma: float = 1.0, eps: float = 1e-8
) -> Tensor:
    """Return the DIST loss of Huang et al. (https://arxiv.org/abs/2205.10536): match correlations, not values.

    Args:
        student (Tensor): Logits of shape (N, nc).
        teacher (Tensor): Logits of shape (N, nc).
        tau (float): Temperature.
        beta (float): Weight of the relation among classes (Pearson correlation along each row).
        gamma (float): Weight of the relation among samples (Pearson correlation along each column); a single sample
            has none.
        eps (float): Guard against constant rows or columns.

    Returns:
        (Tensor): Scalar; 0 when student and teacher probabilities are equal.
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

    Each class is a binary problem, weighted by how far student and teacher are apart. As in the authors' code, the
    weight takes part in the gradient.

    Args:
        student (Tensor): Logits of shape (..., nc).
        teacher (Tensor): Logits of shape (..., nc).
        avg_factor (Tensor | float): Normaliser, e.g. the number of positive anchors.
        beta (float): Exponent of the weight |p_teacher - p_student|.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are equal.
    """
    return _focused_bce(student, teacher, beta).sum() / avg_factor


def qfl(student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float, beta: float = 1.0) -> Tensor:
    """Return the quality focal loss towards the teacher, as in CrossKD (https://arxiv.org/abs/2306.11369).

    Args:
        student (Tensor): Logits of shape (..., nc).
        teacher (Tensor): Logits of shape (..., nc).
        weight (Tensor): Weight per anchor, shape (...).
        avg_factor (Tensor | float): Normaliser.
        beta (float): Exponent of the focal weight |p_teacher - p_student|.

    Returns:
        (Tensor): Scalar; 0 when student and teacher are equal.
    """
    return (_focused_bce(student, teacher, beta).sum(-1) * weight).sum() / avg_factor


def binary_kl(student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float, tau: float = 1.0) -> Tensor:
    """Return the KL divergence per class between softened sigmoid outputs.

    The detector's counterpart of [kl][ultralytics_kd.losses.logit.kl]: YOLO scores every class with a sigmoid of its
    own, so that each class is a Bernoulli variable and a softmax over classes would compare what was never trained.

    Args:
        student (Tensor): Logits of shape (..., nc).
        teacher (Tensor): Logits of shape (..., nc).
        weight (Tensor): Weight per anchor, shape (...).
        avg_factor (Tensor | float): Normaliser.
        tau (float): Temperature; the result is multiplied by tau².

    Returns:
        (Tensor): Scalar; 0 when student and teacher are equal.
    """
    s, t = student / tau, teacher.detach() / tau
    q = t.sigmoid()
    divergence = q * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - q) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return (divergence.sum(-1) * weight).sum() / avg_factor * tau**2


def _focused_bce(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Return the binary cross-entropy towards the teacher, weighted by |p_teacher - p_student|**beta."""
    if beta == 1:
        return _FocusedBCE.apply(student, teacher.detach())
    target = teacher.detach().sigmoid()
    apart = (target - student.sigmoid()).abs()
    return F.binary_cross_entropy_with_logits(student, target, reduction="none") * apart.pow(beta)


class _FocusedBCE(torch.autograd.Function):
    """The focused binary cross-entropy for beta = 1, with its gradient in closed form.

    A detector scores tens of thousands of anchor points in every class, and this is where most of the time of
    distilling its logits goes: half as many passes over memory as automatic differentiation makes.

        bce = softplus(x) - x q,  d = p - q,  loss = bce |d|,  dloss/dx = d |d| + bce sign(d) p (1 - p)
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of every logit."""
        p, q = student.sigmoid(), teacher.sigmoid()
        bce = F.softplus(student).addcmul_(student, q, value=-1)
        d = q.sub_(p).neg_()
        gradient = p.addcmul_(p, p, value=-1).mul_(bce).mul_(d.sign())
        apart = d.abs()
        ctx.save_for_backward(gradient.addcmul_(d, apart))
        return bce.mul_(apart)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient to the student's logits."""
        return grad * ctx.saved_tensors[0], None
