"""The kd arguments, their checks, recipes and objects of the user's own code."""

from .arguments import (
    ARGUMENTS,
    GRID_TASKS,
    TASK_WEIGHTS,
    TASKS,
    as_list,
    cfg_text,
    has_teacher,
    help_text,
    parse_list,
)
from .checks import check_combination, check_plain, check_user_losses, check_values
from .idle import Idle, idle_arguments
from .registration import register, register_arguments

__all__ = (
    "ARGUMENTS",
    "GRID_TASKS",
    "TASKS",
    "TASK_WEIGHTS",
    "Idle",
    "as_list",
    "cfg_text",
    "check_combination",
    "check_plain",
    "check_user_losses",
    "check_values",
    "has_teacher",
    "help_text",
    "idle_arguments",
    "parse_list",
    "register",
    "register_arguments",
)
