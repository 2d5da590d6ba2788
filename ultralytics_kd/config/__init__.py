"""The kd arguments, recipes and objects of the user's own code."""

from .arguments import (
    ARGUMENTS,
    GRID_TASKS,
    TASK_WEIGHTS,
    TASKS,
    as_list,
    cfg_text,
    check_combination,
    check_plain,
    check_values,
    has_teacher,
    help_text,
    idle_arguments,
    listed,
    own_loss,
)
from .registration import register, register_arguments

__all__ = (
    "ARGUMENTS",
    "GRID_TASKS",
    "TASKS",
    "TASK_WEIGHTS",
    "as_list",
    "cfg_text",
    "check_combination",
    "check_plain",
    "check_values",
    "has_teacher",
    "help_text",
    "idle_arguments",
    "listed",
    "own_loss",
    "register",
    "register_arguments",
)
