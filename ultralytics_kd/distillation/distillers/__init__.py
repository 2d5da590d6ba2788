"""Distillers: all terms of one run, for heads with anchor points (`grid`) and for other heads (`dense`)."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...config.arguments import GRID_TASKS
from ...teachers import Teacher
from .base import Distiller
from .dense import DenseDistiller
from .grid import GridDistiller

__all__ = ("DenseDistiller", "Distiller", "GridDistiller", "build_distiller")


def build_distiller(
    args: Any, student: nn.Module, teacher: Teacher, stored: bool = False, as_sets: bool = False
) -> Distiller:
    """Return the distiller for a student, a teacher and the task of the training.

    Args:
        args (Namespace): Arguments of the training.
        student (nn.Module): The student.
        teacher (Teacher): The teacher, inspected.
        stored (bool): Whether the teacher's answers come from a cache.
        as_sets (bool): Whether a teacher with anchor points answers by `answer_for_any_size`.

    Raises:
        KDError: If student and teacher cannot be matched.
    """
    if args.task in GRID_TASKS:
        return GridDistiller(args, student, teacher, stored, as_sets)
    return DenseDistiller(args, student, teacher)
