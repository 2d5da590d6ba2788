"""From a student and a teacher to the terms between them."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...config.arguments import GRID_TASKS
from ...teachers import Teacher
from .base import Distiller
from .dense import DenseDistiller
from .grid import GridDistiller

__all__ = ("DenseDistiller", "Distiller", "GridDistiller", "build_distiller")


def build_distiller(args: Any, student: nn.Module, teacher: Teacher, stored: bool = False) -> Distiller:
    """Return the terms for a student and a teacher of a task.

    Args:
        args (Namespace): Arguments of the training.
        student (nn.Module): The student.
        teacher (Teacher): The teacher, inspected.
        stored (bool): Whether its answers were stored.

    Raises:
        KDError: If the two cannot be matched.
    """
    if args.task in GRID_TASKS:
        return GridDistiller(args, student, teacher, stored)
    return DenseDistiller(args, student, teacher)
