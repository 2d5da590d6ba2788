"""The class-logit term."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...losses import bckd, binary_kl, qfl
from ...outputs import SCORES
from .base import Pair


class ClassTerm:
    """Class logits of every anchor point, normalised by the teacher's summed confidence."""

    per_branch = True
    reads = frozenset({SCORES})

    def __init__(self, loss: str, tau: float | None):
        """Choose the loss.

        Args:
            loss (str): "bckd", "qfl" or "kl".
            tau (float | None): Temperature of "kl".
        """
        self.loss, self.tau = loss, tau or 1.0
        self.adapters: nn.Module | None = None

    def __call__(self, pair: Pair) -> Tensor:
        """Return the term of one branch, a scalar."""
        student, teacher = pair.student_scores, pair.teacher_scores
        if self.loss == "bckd":
            return bckd(student, teacher, pair.avg_factor)
        every_anchor = torch.ones_like(student[..., 0])
        if self.loss == "qfl":
            return qfl(student, teacher, every_anchor, pair.avg_factor)
        return binary_kl(student, teacher, every_anchor, pair.avg_factor, self.tau)
