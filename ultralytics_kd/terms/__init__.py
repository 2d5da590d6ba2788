"""What is compared, where and with which weight: a term is a loss, a region and a normaliser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from ..predictions import Layout
from .base import Pair
from .box import BoxTerm
from .crosskd import CrossKDTerm
from .feature import FeatureTerm
from .logit import ClassTerm

__all__ = ("Pair", "Term", "build_terms")


class Term(Protocol):
    """A part of the distillation loss.

    Attributes:
        per_branch (bool): Whether it is computed for every head branch, with the branch's gain, or once, with the gain
            of the branch that trains the features.
        reads (frozenset[str]): Parts of the teacher's answer that it reads beside features, of "scores" and "boxes".
        adapters (nn.Module | None): What trains with the student and does not ship.
    """

    per_branch: bool
    reads: frozenset[str]
    adapters: Any

    def __call__(self, pair: Pair) -> Tensor:
        """Return the unweighted term, a scalar."""


def build_terms(args: Any, student: Layout, teacher: Layout, student_head: Any, teacher_head: Any) -> dict[str, Term]:
    """Build the terms whose weight is not 0.

    Args:
        args (Namespace): Arguments of the training.
        student (Layout): The student's head layout.
        teacher (Layout): The teacher's head layout.
        student_head (Detect): The student's head.
        teacher_head (Detect): The teacher's head.

    Returns:
        (dict[str, Term]): Terms by the name of their weight.

    Raises:
        KDError: If a loss does not suit the heads.
    """
    shared = tuple(b for b in student.branches if b in teacher.branches)
    makers: dict[str, Callable[[], Term]] = {
        "kd_cls": lambda: ClassTerm(args.kd_cls_loss, args.kd_tau),
        "kd_box": lambda: BoxTerm(args.kd_box_loss, args.kd_tau, student, teacher),
        "kd_feat": lambda: (
            CrossKDTerm(student_head, teacher_head, shared)
            if args.kd_feat_loss == "crosskd"
            else FeatureTerm(args.kd_feat_loss, args.kd_tau, student, teacher)
        ),
    }
    return {name: make() for name, make in makers.items() if getattr(args, name)}
